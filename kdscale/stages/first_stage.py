"""The candidates of every query of a dataset: those that the source brings, else BM25's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kdscale.config import DatasetOptions
from kdscale.data.bm25 import Bm25
from kdscale.data.candidates import (
    SourceCandidates,
    own_passages,
    source_candidates,
    without_own,
)
from kdscale.data.clean import RejectLog
from kdscale.data.parallel import BLOCK_ROWS, Calls
from kdscale.data.pids import PassageIds
from kdscale.data.queries import Judgments
from kdscale.data.readers.base import Reader
from kdscale.data.schema import PASSAGES
from kdscale.data.shards import read_batches
from kdscale.data.splits import QuerySet, Split
from kdscale.errors import KdscaleError
from kdscale.experiment.context import StageContext
from kdscale.experiment.settings import DatasetSettings
from kdscale.progress import Reporter, Task

BM25 = "BM25"


@dataclass(frozen=True)
class Found:
    """Of a split. table: CANDIDATES; known: every query of its set; own: the queries that are a
    passage and no candidate of themselves; facts: what stats.json says."""

    split: Split
    table: pa.Table
    known: dict[str, str]
    own: set[str]
    facts: dict[str, Any]


@dataclass(frozen=True)
class _Brought:
    """What the source brings for a query set. table: CANDIDATES, None while rows are unranked."""

    columns: str
    rows: SourceCandidates | None
    table: pa.Table | None


def candidates(
    ctx: StageContext[DatasetSettings],
    calls: Calls,
    reader: Reader,
    log: RejectLog,
    sets: list[QuerySet],
    pids: PassageIds,
    scratch: Path,
) -> Iterator[Found]:
    """Of every split in turn.

    The source's own where it brings any; what it brings without ranks and scores is ranked by BM25
    over the whole collection, and then cut. Raises KdscaleError where too many lines are refused,
    and where most queries of a split have no candidate.
    """
    prepare = ctx.settings.prepare
    own: dict[str, set[str]] = {}
    for split in (split for query_set in sets for split in query_set.splits):
        own[split.name] = own_of(
            prepare, split.texts, split.judgments, pids, lambda: _passages(ctx)
        )
    brought = {s.name: _brought(ctx, reader, log, s, own, pids) for s in sets}
    texts = [text for s in sets for text in _for_bm25(s, brought[s.name])]
    index = None
    if texts:
        index = Bm25(texts, prepare.bm25_k1, prepare.bm25_b, scratch, calls)
        with ctx.reporter.task("BM25 index", len(pids)) as task:
            index.index(_passages(ctx), task)
    for query_set in sets:
        source, table, unranked = brought[query_set.name], None, set()
        if source is not None:
            table = source.table
            if source.rows is not None:
                unranked = set(source.rows.unranked())
                assert index is not None  # it was made for the texts of these
                table = _rank(ctx, index, query_set, source.rows)
        for split in query_set.splits:
            depth = prepare.depth_of(split.name)
            if table is not None:
                mine = pc.is_in(table["qid"], value_set=pa.array(split.texts, pa.string()))
                found = table.filter(pc.and_(mine, pc.less_equal(table["rank"], depth)))
            else:
                assert index is not None  # and for those without candidates
                with ctx.reporter.task(f"BM25 candidates of {split.name}") as task:
                    found = search(index, split.texts, depth, own[split.name], task)
            facts = {
                "from": BM25 if source is None else source.columns,
                "ranked_by_bm25": len(unranked.intersection(split.texts)),
                "without": len(split.texts) - len(pc.unique(found["qid"])),
                "query_as_passage": len(own[split.name]),
            }
            tell(ctx.reporter, split.name, len(split.texts), facts)
            yield Found(split, found, query_set.known, own[split.name], facts)


def own_of(
    prepare: DatasetOptions,
    texts: dict[str, str],
    judgments: Judgments,
    pids: PassageIds,
    passages: Callable[[], Iterable[pa.Table]],
) -> set[str]:
    """The queries that are not to be candidates of themselves; see `own_passages`."""
    if prepare.query_as_passage == "keep":
        return set()
    return own_passages(texts, judgments, prepare.min_grade, pids, passages, prepare.max_chars)


def search(index: Bm25, texts: dict[str, str], depth: int, own: set[str], task: Task) -> pa.Table:
    """CANDIDATES of some queries by BM25. own: those that are no candidates of themselves."""
    found = index.search(list(texts), list(texts.values()), depth + bool(own), task)
    return without_own(found, own, depth)


def _passages(ctx: StageContext[DatasetSettings]) -> Iterator[pa.Table]:
    return read_batches(ctx.out / "passages", PASSAGES, BLOCK_ROWS)


def _deepest(prepare: DatasetOptions, query_set: QuerySet) -> int:
    return max(prepare.depth_of(split.name) for split in query_set.splits)


def _brought(
    ctx: StageContext[DatasetSettings],
    reader: Reader,
    log: RejectLog,
    query_set: QuerySet,
    own: dict[str, set[str]],
    pids: PassageIds,
) -> _Brought | None:
    items = reader.candidates(query_set.name)
    if items is None:
        return None
    columns, kind = items.columns, f"candidates/{query_set.name}"
    ctx.reporter.info(f"  candidates of {query_set.name} from the source, read as: {columns}")
    wanted = [qid for split in query_set.splits for qid in split.texts]
    mine = set().union(*(own[split.name] for split in query_set.splits))
    rows = source_candidates(items, kind, log, query_set.known, wanted, pids, mine)
    log.check(kind, ctx.workspace)
    if rows.unranked():
        return _Brought(columns, rows, None)
    return _Brought(columns, None, rows.table(_deepest(ctx.settings.prepare, query_set)))


def _for_bm25(query_set: QuerySet, brought: _Brought | None) -> Iterable[str]:
    """The texts of the queries of which BM25 searches or ranks passages."""
    if brought is None:
        return (text for split in query_set.splits for text in split.texts.values())
    unranked = brought.rows.unranked() if brought.rows else []
    return (query_set.known[qid] for qid in unranked)


def _rank(
    ctx: StageContext[DatasetSettings], index: Bm25, query_set: QuerySet, rows: SourceCandidates
) -> pa.Table:
    texts = [query_set.known[qid] for qid in rows.unranked()]
    ctx.reporter.info(
        f"  nothing ranks the candidates of {len(texts)} {query_set.name} queries: BM25 over the "
        "collection does"
    )
    with ctx.reporter.task(f"BM25 ranks candidates of {query_set.name}") as task:
        rows = rows.ranked(partial(index.score, texts, task=task))
    return rows.table(_deepest(ctx.settings.prepare, query_set))


def tell(reporter: Reporter, name: str, queries: int, facts: dict[str, Any]) -> None:
    """What became of a split's queries. Raises KdscaleError where most have no candidate."""
    without, own = facts["without"], facts["query_as_passage"]
    if own:
        reporter.info(
            f"  {own} {name} queries are passages too, and no candidates of themselves "
            "(prepare.query_as_passage)"
        )
    if facts["from"] == BM25:
        why = "BM25 finds no word of them in any passage; are both in one language?"
    else:
        why = "the file of candidates has none of them; do its query ids agree with the queries'?"
    if 2 * without > queries:
        raise KdscaleError(f"{name}: {without} of {queries} queries have no candidate: {why}")
    if without:
        reporter.warn(f"{without} of {queries} {name} queries have no candidate: {why}")
