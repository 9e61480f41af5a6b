"""From a source to a dataset."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kdscale.cluster.session import ray_session
from kdscale.config import DatasetOptions
from kdscale.data.candidates import candidates_by_query
from kdscale.data.clean import RejectLog
from kdscale.data.dataset import STATS
from kdscale.data.ingest import ingest_negatives, ingest_passages, parse_in_parallel
from kdscale.data.pairs import PairRow, PairSampler, pair_table
from kdscale.data.parallel import OnRay
from kdscale.data.pids import PassageIds
from kdscale.data.queries import TRAIN
from kdscale.data.readers import open_reader
from kdscale.data.readers.base import ParallelReader, Reader, RemarkingReader
from kdscale.data.same_text import RelevantByText, count_equal_candidates
from kdscale.data.schema import CANDIDATES, PAIRS, PASSAGES, QRELS, QUERIES
from kdscale.data.shards import stream_shards, write_shards, write_table
from kdscale.data.splits import Split, describe, read_query_sets
from kdscale.errors import KdscaleError
from kdscale.experiment.context import StageContext
from kdscale.experiment.settings import DatasetSettings
from kdscale.stages import first_stage

KEPT_LEAKS = "figures there look better than they are; prepare.leakage: drop leaves them out"


def run(ctx: StageContext[DatasetSettings]) -> dict[str, Any]:
    """Passages, queries, qrels, candidates and training pairs as Parquet.

    Passages are read, cleaned, indexed and written a block at a time: memory grows with the
    queries, not with the collection.

    Raises KdscaleError for a source that cannot be used: too many refused lines (a copy of them
    stays in the workspace), no passages, a split without queries, splits that do not fit.
    """
    prepare = ctx.settings.prepare
    reader = open_reader(ctx.settings.source)
    with (
        RejectLog(ctx.out / "rejected.jsonl", prepare.max_reject_fraction) as log,
        tempfile.TemporaryDirectory(dir=ctx.out, prefix="scratch-") as folder,
        closing(PassageIds(Path(folder))) as pids,
        ray_session(ctx.cluster, ctx.reporter) as ray,
    ):
        scratch = Path(folder)
        if isinstance(reader, ParallelReader):
            with ctx.reporter.task("parsing files") as task:
                parse_in_parallel(reader, task)
        cut = _write_passages(ctx, reader, log, pids, scratch)
        sets = read_query_sets(reader, prepare, ctx.settings.seed, log, pids, ctx.workspace)
        splits = [split for query_set in sets for split in query_set.splits]
        for split in splits:
            write_table(
                ctx.out / "queries" / f"{split.name}.parquet", split.queries_table(), QUERIES
            )
            write_table(ctx.out / "qrels" / f"{split.name}.parquet", split.qrels_table(), QRELS)
        pairs, candidates, equal = PAIRS.empty_table(), {}, {}
        for found in first_stage.candidates(ctx, OnRay(ray), reader, log, sets, pids, scratch):
            split = found.split
            candidates[split.name] = found.facts
            write_table(ctx.out / "candidates" / f"{split.name}.parquet", found.table, CANDIDATES)
            equal[split.name] = count_equal_candidates(
                found.table, split.judgments, prepare.min_grade, pids
            )
            if split.name == TRAIN:
                given = _given_negatives(ctx, reader, log, split, found.known, pids)
                pairs = _pairs(prepare, ctx.settings.seed, found, pids, given)
        write_shards(ctx.out / "pairs", pairs, PAIRS, prepare.shards)
        lines, passages, texts = log.counts(), len(pids), pids.texts()
    remarks = reader.remarks() if isinstance(reader, RemarkingReader) else []
    stats = {
        "splits": [split.name for split in splits],
        "passages": passages,
        "passages_cut": cut,
        "queries_cut": sum(query_set.texts_cut for query_set in sets),
        "passages_repeated": passages - texts,  # with the text of another, one of each not counted
        "candidates_equal": equal,
        "queries": {split.name: split.counts for split in splits},
        "candidates": candidates,
        "pairs": pairs.num_rows,
        "lines": lines,
        "remarks": remarks,
    }
    (ctx.out / STATS).write_text(json.dumps(stats, indent=1), encoding="utf-8")
    _report(ctx, stats)
    return stats


def _write_passages(
    ctx: StageContext[DatasetSettings],
    reader: Reader,
    log: RejectLog,
    pids: PassageIds,
    scratch: Path,
) -> int:
    """Fills `pids`; how many texts were cut."""
    prepare, cut = ctx.settings.prepare, 0

    def kept() -> Iterator[pa.Table]:
        nonlocal cut
        with ctx.reporter.task("reading and cleaning passages") as task:
            for table in ingest_passages(reader.passages(), log, prepare.max_chars, pids, task):
                cut += pc.sum(table["cut"]).as_py() or 0
                yield table.select(PASSAGES.names)

    stream_shards(ctx.out / "passages", kept(), PASSAGES, prepare.shards, scratch)
    log.check("passages", ctx.workspace)
    if not len(pids):
        raise KdscaleError("the source has no passages; check the files that `source` names")
    return cut


def _given_negatives(
    ctx: StageContext[DatasetSettings],
    reader: Reader,
    log: RejectLog,
    split: Split,
    known: dict[str, str],
    pids: PassageIds,
) -> dict[str, list[str]]:
    items = reader.negatives()
    if items is None:
        return {}
    prepare = ctx.settings.prepare
    negatives = ingest_negatives(
        items, log, known, split.judgments, pids, prepare.min_grade, prepare.negatives
    )
    log.check("negatives", ctx.workspace)
    return negatives


def _pairs(
    prepare: DatasetOptions,
    seed: int,
    first: first_stage.Found,
    pids: PassageIds,
    given: dict[str, list[str]],
) -> pa.Table:
    sampler = PairSampler(
        pids,
        seed,
        prepare.negatives,
        prepare.skip_top,
        prepare.max_positives,
        prepare.min_grade,
        prepare.easy_negatives,
    )
    split = first.split
    found = candidates_by_query(first.table)
    relevant = RelevantByText(split.texts, split.judgments, prepare.min_grade, pids)

    def sampled(qid: str) -> list[PairRow]:
        never = relevant.of(qid) | ({qid} & first.own)
        of_query = found.get(qid, ()), given.get(qid, ())
        return sampler.sample(qid, split.judgments[qid], *of_query, never)

    return pair_table((qid, sampled(qid)) for qid in split.texts)


def _report(ctx: StageContext[DatasetSettings], stats: dict[str, Any]) -> None:
    queries = ", ".join(f"{n} {c['kept']}" for n, c in stats["queries"].items())
    ctx.reporter.info(
        f"  {stats['passages']} passages; queries: {queries}; {stats['pairs']} training pairs"
    )
    refused = {k: c["rejected"] for k, c in stats["lines"].items() if c["rejected"]}
    if refused:
        counts = ", ".join(f"{n} of {kind}" for kind, n in refused.items())
        ctx.reporter.warn(f"refused lines: {counts} (rejected.jsonl has each with its reason)")
    if stats["passages_cut"]:
        ctx.reporter.info(
            f"  {stats['passages_cut']} passages were longer than prepare.max_chars and cut there"
        )
    if stats["passages_repeated"]:
        equal = {name: e["repeated"] for name, e in stats["candidates_equal"].items()}
        counts = ", ".join(f"{count} of {name}" for name, count in equal.items() if count)
        ctx.reporter.info(
            f"  {stats['passages_repeated']} passages have the text of another"
            + (f"; candidates with the text of a better one: {counts}" if counts else "")
        )
    unjudged = {name: e["unjudged"] for name, e in stats["candidates_equal"].items()}
    if any(unjudged.values()):
        counts = ", ".join(f"{count} of {name}" for name, count in unjudged.items() if count)
        ctx.reporter.warn(
            f"candidates with the text of a relevant passage, but without a judgment: {counts}; "
            "they count as not relevant"
        )
    train = stats["queries"].get(TRAIN, {})
    if train.get("leaked"):
        what = "left out (prepare.leakage: drop)" if train["dropped_as_leaked"] else KEPT_LEAKS
        ctx.reporter.warn(f"{describe(train['leaked'])}; {what}")
    if train.get("repeated"):
        ctx.reporter.info(
            f"  {train['repeated']} training queries ask what an earlier one asks; what is "
            "relevant to one of them is no negative of the others"
        )
    for name, counts in stats["queries"].items():
        if counts["dropped"]:
            what = "relevant passage" if name == TRAIN else "judgment"
            ctx.reporter.warn(f"{counts['dropped']} {name} queries have no {what}, left out")
    for remark in stats["remarks"]:
        ctx.reporter.info(f"  {remark}")
