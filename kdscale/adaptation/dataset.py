"""Updating a student: its data, new and replayed, and its training, judged before it is kept."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kdscale.adaptation.acceptance import NEW, OLD, KeptError, decide, measure_ranker
from kdscale.data.bm25 import Bm25
from kdscale.data.candidates import candidates_by_query, source_candidates
from kdscale.data.clean import RejectLog
from kdscale.data.dataset import STATS, Dataset, Tokens
from kdscale.data.ingest import ingest_judgments, ingest_queries
from kdscale.data.pairs import PairRow, PairSampler, pair_table
from kdscale.data.parallel import BLOCK_ROWS, InProcess
from kdscale.data.pids import PassageIds
from kdscale.data.queries import (
    DEV,
    TRAIN,
    Judgments,
    choose_queries,
    ids_of,
    renamed,
    same_numbers,
)
from kdscale.data.queries import describe as describe_numbers
from kdscale.data.runfiles import run_lines
from kdscale.data.runs import qrels_lines
from kdscale.data.same_text import RelevantByText, text_key
from kdscale.data.schema import CANDIDATES, PAIRS, PASSAGES, QRELS, QUERIES
from kdscale.data.shards import write_shards, write_table
from kdscale.data.splits import describe, leaked
from kdscale.data.texts import read_queries
from kdscale.errors import KdscaleError
from kdscale.experiment.context import DATASET, STUDENT, TOKENS, StageContext
from kdscale.experiment.settings import UpdateDatasetSettings, UpdateStudentSettings
from kdscale.stages import first_stage
from kdscale.stages.train import student_title, train_ranker

LEAST = 10  # queries of each part: fewer show nothing


Tables = tuple[pa.Table, pa.Table, pa.Table]  # QUERIES, QRELS and CANDIDATES of a split


@dataclass(frozen=True)
class Fresh:
    """What is made of the new queries.

    parts: split -> their ids; tables: by split; pairs: of those learned from; facts and leaked: for
    stats.json
    """

    parts: dict[str, list[str]]
    tables: dict[str, Tables]
    pairs: pa.Table
    facts: dict[str, Any]
    leaked: dict[str, int]


def run_dataset(ctx: StageContext[UpdateDatasetSettings]) -> dict[str, Any]:
    """The new queries divided into train, dev (when to stop) and new (whether to accept), replayed
    queries of the old training beside the new ones, and the old dev queries as "old".

    Of the passages only those that are named stay.

    Raises KdscaleError where too little is left to learn from or to judge by.
    """
    old, prepare = Dataset(ctx.inputs[DATASET].path), ctx.settings.prepare
    if DEV not in old.splits():
        raise KdscaleError(
            f"the dataset has no split {DEV!r}, by which it is seen whether old queries suffer, "
            f"only {', '.join(old.splits())}"
        )
    with RejectLog(ctx.out / "rejected.jsonl", prepare.max_reject_fraction) as log:
        fresh = _fresh(ctx, old, log)
        lines = log.counts()
    replayed = _replayed(ctx.settings, old, len(fresh.parts[TRAIN]))
    pairs = pa.concat_tables([fresh.pairs, _of(old.pairs(), replayed)])
    pairs = pairs.set_column(0, PAIRS.field("pair_id"), pa.array(range(pairs.num_rows), pa.int64()))
    tables = {
        TRAIN: _join(fresh.tables[TRAIN], _old(old, TRAIN, set(replayed))),
        DEV: fresh.tables[DEV],
        NEW: fresh.tables[NEW],
        OLD: _old(old, DEV, set(old.queries(DEV)["qid"].to_pylist())),
    }
    passages = _write(ctx, old, tables, pairs)
    stats = {
        "splits": list(tables),
        "passages": passages,
        "queries": {s: {"kept": t[0].num_rows} for s, t in tables.items()},
        "pairs": pairs.num_rows,
        "candidates": fresh.facts,
        "new": len(fresh.parts[TRAIN]),
        "replayed": len(replayed),
        "leaked": fresh.leaked,
        "lines": lines,
    }
    (ctx.out / STATS).write_text(json.dumps(stats, indent=1), encoding="utf-8")
    ctx.reporter.info(
        f"  to learn from: {len(fresh.parts[TRAIN])} new and {len(replayed)} old queries, "
        f"{pairs.num_rows} pairs; to stop by: {len(fresh.parts[DEV])}; to judge by: "
        f"{len(fresh.parts[NEW])} new, {tables[OLD][0].num_rows} old"
    )
    return stats


def _fresh(ctx: StageContext[UpdateDatasetSettings], old: Dataset, log: RejectLog) -> Fresh:
    """The user's queries, read, divided, and paired with passages of the old collection."""
    settings, prepare = ctx.settings, ctx.settings.prepare
    with (
        tempfile.TemporaryDirectory(dir=ctx.out, prefix="scratch-") as folder,
        closing(PassageIds(Path(folder))) as pids,
    ):
        for table in old.passages(BLOCK_ROWS):
            for pid, text in zip(*(c.to_pylist() for c in table.columns), strict=True):
                pids.add(pid, text_key(text))
        known, judgments = _read(ctx, log, pids)
        texts = _new_queries(ctx, old, known, judgments)
        parts = _divide(texts, settings.holdout, settings.seed)
        leaks = _leaks(ctx, old, texts, parts)
        own = first_stage.own_of(prepare, texts, judgments, pids, lambda: old.passages(BLOCK_ROWS))
        found = _candidates(ctx, log, texts, known, old, pids, own, Path(folder))
        facts = {
            "from": "file" if settings.candidates else first_stage.BM25,
            "without": len(texts) - len(pc.unique(found["qid"])),
            "query_as_passage": len(own),
        }
        first_stage.tell(ctx.reporter, "new", len(texts), facts)
        pairs = _pairs(settings, parts[TRAIN], texts, judgments, found, pids, own)
    tables = {split: _split(texts, judgments, found, qids) for split, qids in parts.items()}
    return Fresh(parts, tables, pairs, facts, leaks)


def _pairs(
    settings: UpdateDatasetSettings,
    qids: list[str],
    texts: dict[str, str],
    judgments: Judgments,
    found: pa.Table,
    pids: PassageIds,
    own: set[str],
) -> pa.Table:
    """PAIRS of the queries to learn from."""
    prepare = settings.prepare
    sampler = PairSampler(
        pids,
        settings.seed,
        prepare.negatives,
        prepare.skip_top,
        prepare.max_positives,
        prepare.min_grade,
        prepare.easy_negatives,
    )
    by_query, depth = candidates_by_query(found), prepare.depth_of(TRAIN)
    relevant = RelevantByText(texts, judgments, prepare.min_grade, pids)

    def sampled(qid: str) -> list[PairRow]:
        never = relevant.of(qid) | ({qid} & own)
        return sampler.sample(qid, judgments[qid], by_query.get(qid, [])[:depth], (), never)

    return pair_table((qid, sampled(qid)) for qid in qids)


def _replayed(settings: UpdateDatasetSettings, old: Dataset, new: int) -> list[str]:
    """Queries that the student was trained on, as many as `replay` asks for beside the new ones."""
    trained = old.queries(TRAIN)["qid"].to_pylist()
    trained = choose_queries(trained, settings.max_queries, settings.trained_seed)
    wanted = round(new * settings.replay / (1 - settings.replay))
    return choose_queries(trained, wanted, settings.seed) if wanted else []


def _write(
    ctx: StageContext[UpdateDatasetSettings],
    old: Dataset,
    tables: dict[str, Tables],
    pairs: pa.Table,
) -> int:
    """The tables of a dataset; how many passages are in it: those that are named."""
    named = set(pairs["pid"].to_pylist())
    for split, (queries, qrels, candidates) in tables.items():
        write_table(ctx.out / "queries" / f"{split}.parquet", queries, QUERIES)
        write_table(ctx.out / "qrels" / f"{split}.parquet", qrels, QRELS)
        write_table(ctx.out / "candidates" / f"{split}.parquet", candidates, CANDIDATES)
        named.update(candidates["pid"].to_pylist())
    shards = ctx.settings.prepare.shards
    write_shards(ctx.out / "passages", old.passages_of(named), PASSAGES, shards)
    write_shards(ctx.out / "pairs", pairs, PAIRS, shards)
    return len(named)


def _read(
    ctx: StageContext[UpdateDatasetSettings], log: RejectLog, pids: PassageIds
) -> tuple[dict[str, str], Judgments]:
    """The user's queries and judgments, cleaned as those of a dataset are."""
    settings = ctx.settings
    limit = settings.prepare.max_chars
    queries = read_queries(Path(settings.queries.path), ctx.reporter.info)
    texts, _ = ingest_queries(queries, "queries", log, limit)
    log.check("queries", ctx.workspace)
    path = Path(settings.qrels.path)
    judged = renamed(qrels_lines(path), _known_ids(ctx, path, qrels_lines(path), texts))
    judgments = ingest_judgments(judged, "qrels", log, texts, pids)
    log.check("qrels", ctx.workspace)
    return texts, judgments


def _known_ids(
    ctx: StageContext[UpdateDatasetSettings],
    path: Path,
    lines: Iterable[Any],
    known: dict[str, str],
) -> dict[str, str]:
    """The query ids of a file's lines that are those of `known` by their number: `same_numbers`."""
    names = same_numbers(known, ids_of(lines))
    if names:
        ctx.reporter.info(
            f"  {describe_numbers(names, path.name, Path(ctx.settings.queries.path).name)}"
        )
    return names


def _new_queries(
    ctx: StageContext[UpdateDatasetSettings],
    old: Dataset,
    texts: dict[str, str],
    judgments: Judgments,
) -> dict[str, str]:
    """The queries with a relevant passage whose ids are not those of old ones."""
    before = {qid for split in old.splits() for qid in old.queries(split)["qid"].to_pylist()}
    judged = {
        qid: text
        for qid, text in texts.items()
        if max(judgments.get(qid, {}).values(), default=0) >= ctx.settings.prepare.min_grade
    }
    fresh = {qid: text for qid, text in judged.items() if qid not in before}
    if len(fresh) < len(judged):
        ctx.reporter.warn(
            f"{len(judged) - len(fresh)} queries have the ids of old ones and are left out"
        )
    if len(fresh) < 3 * LEAST:
        raise KdscaleError(
            f"{len(fresh)} new queries with a relevant passage (of {len(texts)} read): fewer than "
            f"{3 * LEAST} are too few to learn from and to judge by; check that the ids of "
            "queries, qrels and the collection agree"
        )
    return fresh


def _divide(texts: dict[str, str], holdout: float, seed: int) -> dict[str, list[str]]:
    """Drawn by `seed`: half of what is held out is to stop by, half to judge by."""
    held = choose_queries(list(texts), round(holdout * len(texts)), seed)
    stop = choose_queries(held, len(held) // 2, seed)
    set_aside, stopping = set(held), set(stop)
    parts = {
        TRAIN: [qid for qid in texts if qid not in set_aside],
        DEV: stop,
        NEW: [qid for qid in held if qid not in stopping],
    }
    for split, qids in parts.items():
        if len(qids) < LEAST:
            raise KdscaleError(
                f"--holdout {holdout:g} leaves {len(qids)} of {len(texts)} new queries for "
                f"{split}, and {LEAST} are the least; give another share, or more queries"
            )
    return parts


def _leaks(
    ctx: StageContext[UpdateDatasetSettings],
    old: Dataset,
    texts: dict[str, str],
    parts: dict[str, list[str]],
) -> dict[str, int]:
    """Split -> how many of the new queries to learn from are, by their text, among its queries."""
    of = {split: {qid: texts[qid] for qid in qids} for split, qids in parts.items()}
    of[OLD] = dict(zip(*old.queries(DEV).to_pydict().values(), strict=True))
    leaks = {split: len(qids) for split, qids in leaked(of.pop(TRAIN), of).items()}
    if leaks:
        ctx.reporter.warn(f"{describe(leaks)}; they make the update look better than it is")
    return leaks


def _candidates(
    ctx: StageContext[UpdateDatasetSettings],
    log: RejectLog,
    texts: dict[str, str],
    known: dict[str, str],
    old: Dataset,
    pids: PassageIds,
    own: set[str],
    scratch: Path,
) -> pa.Table:
    """CANDIDATES of the new queries: the user's, else BM25's over the whole collection, which also
    ranks the user's where nothing else does.

    known: all queries that were read; own: those that are no candidates of themselves.
    """
    prepare, file = ctx.settings.prepare, ctx.settings.candidates
    depth = max(prepare.depth_of(TRAIN), ctx.settings.evaluate_depth)
    rows = None
    if file is not None:
        path = Path(file.path)
        items = run_lines(path)
        ctx.reporter.info(f"  candidates read as: {items.columns}")
        items = items.renamed(_known_ids(ctx, path, items, known))
        rows = source_candidates(items, "candidates", log, known, list(texts), pids, own)
        log.check("candidates", ctx.workspace)
        if not rows.unranked():
            return rows.table(depth)
    index = Bm25(texts.values(), prepare.bm25_k1, prepare.bm25_b, scratch, InProcess())
    with ctx.reporter.task("BM25 index", len(pids)) as task:
        index.index(old.passages(BLOCK_ROWS), task)
    with ctx.reporter.task("BM25 candidates") as task:
        if rows is None:
            return first_stage.search(index, texts, depth, own, task)
        unranked = [texts[qid] for qid in rows.unranked()]
        ctx.reporter.info(f"  nothing ranks the candidates of {len(unranked)} queries: BM25 does")
        return rows.ranked(partial(index.score, unranked, task=task)).table(depth)


def _split(texts: dict[str, str], judgments: Judgments, found: pa.Table, qids: list[str]) -> Tables:
    """QUERIES, QRELS and CANDIDATES of some new queries."""
    queries = pa.table([qids, [texts[qid] for qid in qids]], schema=QUERIES)
    judged = [(qid, pid, grade) for qid in qids for pid, grade in judgments[qid].items()]
    qrels = pa.table([list(column) for column in zip(*judged, strict=True)], schema=QRELS)
    return queries, qrels, _of(found, qids)


def _old(old: Dataset, split: str, qids: set[str]) -> Tables:
    return _of(old.queries(split), qids), old.qrels(split, qids), old.candidates(split, qids)


def _join(first: Tables, second: Tables) -> Tables:
    queries, qrels, candidates = (pa.concat_tables(p) for p in zip(first, second, strict=True))
    return queries, qrels, candidates


def _of(table: pa.Table, qids: Iterable[str]) -> pa.Table:
    """The rows of some queries, in the order of the table."""
    return table.filter(pc.is_in(table["qid"], value_set=pa.array(sorted(qids), pa.string())))


def run_student(ctx: StageContext[UpdateStudentSettings]) -> dict[str, Any]:
    """Train the student further and judge it. Raises KeptError where it is not to be taken."""
    ranker, accept = ctx.settings.ranker, ctx.settings.accept
    facts = train_ranker(ctx, ranker, student_title(ranker))
    dataset, tokens = Dataset(ctx.inputs[DATASET].path), Tokens(ctx.inputs[TOKENS].path)

    def measured(path: Path) -> dict[str, Any]:
        return measure_ranker(path, dataset, tokens, accept.measure, accept.depth, ctx.reporter)

    verdict = decide(
        measured(ctx.inputs[STUDENT].path),
        measured(ctx.out),
        accept.measure,
        accept.margin,
        accept.alpha,
    )
    if not verdict.accepted:
        raise KeptError(verdict)
    return {**facts, "update": verdict.facts()}
