"""The teacher's logit for every training pair."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kdscale.data.dataset import Dataset, Tokens
from kdscale.data.queries import TRAIN
from kdscale.data.schema import SCORES
from kdscale.data.shards import write_shards
from kdscale.errors import KdscaleError
from kdscale.placement import Plan
from kdscale.runtime import check_fits, cpus_each, ray_session, threads_of
from kdscale.stages.context import StageContext

# An actor gets so many forward passes of work at a time: seconds on a CPU, so that progress
# shows and actors end together; at most MAX_BLOCKS, since each costs Ray some milliseconds.
FORWARDS_PER_BLOCK = 4
MAX_BLOCKS = 2_000


def run(ctx: StageContext) -> dict[str, Any]:
    """Raw logits of all training pairs, by pair_id, as Parquet.

    Raises KdscaleError if the actors cannot fit the cluster, if a score is not a finite number,
    or if scores and pairs do not match one to one.
    """
    cluster, config = ctx.config.cluster, ctx.config.score
    dataset, tokens = Dataset(ctx.inputs["dataset"].path), Tokens(ctx.inputs["tokens"].path)
    teacher = ctx.inputs["teacher"]
    pairs = dataset.pairs()
    if not pairs.num_rows:
        raise KdscaleError(
            "the dataset has no training pairs to score; the source needs a split named 'train'"
        )
    with ray_session(cluster, ctx.reporter):
        plan = Plan(cluster.scorers, 0.0, cluster.gpus_per_scorer, cluster.scorer_labels)
        plan = replace(plan, cpus=cpus_each(plan, cluster.cpus_per_scorer))
        check_fits(
            f"cluster.scorers={cluster.scorers}",
            plan,
            "cluster.scorers or cluster.cpus_per_scorer",
            cluster.wait_s,
        )
        blocks = list(plan_blocks(pairs, pair_lengths(pairs, tokens), config.batch_tokens))
        actor = {
            "teacher": str(teacher.path),
            "tokens": str(tokens.path),
            "batch_tokens": config.batch_tokens,
            "precision": config.precision,
            "threads": threads_of(plan.cpus),
            "device": "cuda" if cluster.gpus_per_scorer else "cpu",
        }
        tables = []
        began = time.monotonic()
        with ctx.reporter.task("scoring pairs", pairs.num_rows) as task:
            for table in _score_blocks(blocks, plan, actor):
                tables.append(table)
                rate = (task.completed + table.num_rows) / (time.monotonic() - began)
                task.advance(table.num_rows, f"{rate:.0f} pairs/s")
        seconds = time.monotonic() - began
    scores = collect_scores(pairs.num_rows, tables)
    columns = [*pairs.select(["pair_id", "qid", "pid"]).columns, pa.array(scores)]
    table = pa.table(columns, schema=SCORES)
    write_shards(ctx.out, table, SCORES, ctx.config.prepare.shards)
    return {
        "pairs": len(scores),
        "pairs_per_s": round(len(scores) / seconds, 1),
        "score_mean": round(float(scores.mean()), 4),
        "score_std": round(float(scores.std()), 4),
        "teacher": teacher.digest,
        "tokenizer": tokens.info["tokenizer"],
        "max_length": tokens.info["max_length"],
        "dtype": config.precision,
    }


class TeacherActor:
    """One copy of the teacher, loaded once, in a Ray Data actor."""

    def __init__(
        self,
        teacher: str,
        tokens: str,
        batch_tokens: int,
        precision: str,
        threads: int,
        device: str,
    ):
        import torch

        from kdscale.models.ranker import Scorer, load_ranker

        torch.set_num_threads(threads)
        self._tokens = Tokens(Path(tokens))
        self._scorer = Scorer(
            load_ranker(teacher), self._tokens.encoder(), batch_tokens, device, precision
        )

    def __call__(self, block: pa.Table) -> pa.Table:
        pairs = [
            (self._tokens.query_ids(TRAIN, qid), self._tokens.passage_ids(pid))
            for qid, pid in zip(block["qid"].to_pylist(), block["pid"].to_pylist(), strict=True)
        ]
        scores = pa.array(self._scorer.score(pairs), pa.float32())
        return pa.table({"pair_id": block["pair_id"], "score": scores})


def pair_lengths(pairs: pa.Table, tokens: Tokens) -> np.ndarray:
    """[pairs] tokens of each pair as the teacher reads it."""
    encoder = tokens.encoder()
    return np.array(
        [
            encoder.length(len(tokens.query_ids(TRAIN, qid)), len(tokens.passage_ids(pid)))
            for qid, pid in zip(pairs["qid"].to_pylist(), pairs["pid"].to_pylist(), strict=True)
        ],
        dtype=np.int64,
    )


def plan_blocks(pairs: pa.Table, lengths: np.ndarray, batch_tokens: int) -> Iterator[pa.Table]:
    """Blocks of pairs of like length and like cost, the longest pairs first.

    Longest first: a pair that does not fit the memory shows at once, and the actors finish with
    the small blocks.
    """
    order = np.argsort(-lengths, kind="stable")
    before = np.cumsum(lengths[order]) - lengths[order]
    size = max(FORWARDS_PER_BLOCK * batch_tokens, -(-int(lengths.sum()) // MAX_BLOCKS))
    cuts = np.flatnonzero(np.diff(before // size)) + 1
    columns = pairs.select(["pair_id", "qid", "pid"]).combine_chunks()
    for rows in np.split(order, cuts):
        yield columns.take(pa.array(rows))


def _score_blocks(blocks: list[pa.Table], plan: Plan, actor: dict[str, Any]) -> Iterator[pa.Table]:
    """Tables of pair_id and score, in the order in which the actors finish."""
    import ray.data

    # The blocks are in shared memory already, so that no read task waits for a CPU which the
    # actors hold: that would stand still for ever.
    scored = ray.data.from_arrow(blocks).map_batches(
        TeacherActor,
        fn_constructor_kwargs=actor,
        compute=ray.data.ActorPoolStrategy(size=min(plan.count, len(blocks))),
        num_cpus=plan.cpus,
        num_gpus=plan.gpus,
        label_selector=plan.labels or None,
        batch_format="pyarrow",
        batch_size=None,
    )
    return scored.iter_batches(batch_format="pyarrow", batch_size=None)


def collect_scores(count: int, tables: Iterable[pa.Table]) -> np.ndarray:
    """[count] float32 scores of the pairs 0 to count - 1, from tables in any order.

    Raises KdscaleError for a pair scored twice, not at all, or not with a finite number.
    """
    scores = np.zeros(count, dtype=np.float32)
    times = np.zeros(count, dtype=np.int64)
    for table in tables:
        ids = table["pair_id"].to_numpy()
        if len(ids) and (ids.min() < 0 or ids.max() >= count):
            raise KdscaleError(
                f"a score names pair {ids.min() if ids.min() < 0 else ids.max()}, the dataset has "
                f"0 to {count - 1}; run the score stage again"
            )
        np.add.at(times, ids, 1)
        scores[ids] = table["score"].to_numpy()
    if (times != 1).any():
        raise KdscaleError(
            f"{int((times > 0).sum())} of {count} pairs were scored, {int((times > 1).sum())} of "
            f"them more than once (first wrong: pair {int(np.argmax(times != 1))}); run the score "
            "stage again"
        )
    bad = ~np.isfinite(scores)
    if bad.any():
        raise KdscaleError(
            f"the teacher's score of {int(bad.sum())} of {count} pairs is not a finite number "
            f"(first: pair {int(np.argmax(bad))}); use score.precision fp32, or train the teacher "
            "with a lower teacher.train.lr"
        )
    return scores
