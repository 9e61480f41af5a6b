"""The teacher's logit for every training pair.

The pairs are cut into blocks, the same ones however often a run is started. An actor publishes the
scores of a block as a piece of the workspace before it hands the block back, so a killed actor,
node or driver costs the blocks at work and no others.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdscale.config import Cluster
from kdscale.data.dataset import Dataset, Tokens
from kdscale.data.queries import TRAIN
from kdscale.data.schema import SCORES
from kdscale.data.score_blocks import (
    block_name,
    collect_scores,
    known_scores,
    pair_lengths,
    pairs_without,
    plan_blocks,
    publish_block,
    read_blocks,
    take_over,
)
from kdscale.data.shards import write_shards
from kdscale.errors import KdscaleError
from kdscale.evaluation.ranking import scoring_device
from kdscale.models.ranker import BATCH_TOKENS
from kdscale.placement import Plan
from kdscale.progress import Reporter
from kdscale.runtime import plan_workers, ray_session, threads_of
from kdscale.stages.context import StageContext
from kdscale.store import Workspace, locate

# An actor gets so many forward passes of work at a time: seconds of it, so that progress shows,
# actors end together and little is lost with one, while the requests that publish a block are
# little beside it. A GPU's are a guess: at 400 TFLOP/s BERT-base would read 65,536 tokens in 28 ms.
FORWARDS_PER_BLOCK = {"cpu": 16, "cuda": 128}


def run(ctx: StageContext) -> dict[str, Any]:
    """Raw logits of all training pairs, by pair_id, as Parquet.

    Blocks that an earlier run scored are taken over, once their digests are checked. Where
    `known` is among the inputs, scores of the same teacher, its pairs are not scored again.
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
    on_ray = "cuda" if cluster.gpus_per_scorer else "cpu"
    device = on_ray if cluster.scorers else scoring_device()
    known = known_scores(pairs, ctx.inputs["known"].path) if "known" in ctx.inputs else None
    unknown = pairs if known is None else pairs_without(pairs, known)
    lengths = pair_lengths(unknown, tokens)
    batch_tokens = config.batch_tokens or BATCH_TOKENS[device]
    block_tokens = FORWARDS_PER_BLOCK[device] * batch_tokens
    blocks = {block_name(b["pair_id"]): b for b in plan_blocks(unknown, lengths, block_tokens)}
    tables = take_over(ctx.workspace, blocks, ctx.reporter)
    taken_over = len(tables)
    todo = {name: block for name, block in blocks.items() if name not in tables}
    seconds = 0.0
    if todo:
        actor = {
            "teacher": teacher.ref(),
            "tokens": ctx.inputs["tokens"].ref(),
            "workspace": ctx.workspace,
            "batch_tokens": batch_tokens,
            "precision": config.precision,
            "device": device,
            "pids": pc.unique(unknown["pid"]),
        }
        score = score_on_ray if cluster.scorers else score_here
        with (
            score(list(todo.values()), actor, cluster, ctx.reporter) as names,
            ctx.reporter.task("scoring pairs", unknown.num_rows) as task,
        ):
            began = time.monotonic()
            task.update(sum(table.num_rows for table in tables.values()))
            scored = 0
            for name in names:
                scored += todo[name].num_rows
                rate = scored / (time.monotonic() - began)
                task.advance(todo[name].num_rows, f"{rate:.0f} pairs/s")
            seconds = time.monotonic() - began
        tables.update(read_blocks(ctx.workspace, list(todo)))
    taken = [] if known is None else [known]
    scores = collect_scores(pairs.num_rows, [*tables.values(), *taken])
    columns = [*pairs.select(["pair_id", "qid", "pid"]).columns, pa.array(scores)]
    table = pa.table(columns, schema=SCORES)
    write_shards(ctx.out, table, SCORES, ctx.config.prepare.shards)
    return {
        "pairs": len(scores),
        "blocks": len(blocks),
        **({} if known is None else {"pairs_known": known.num_rows}),
        "blocks_taken_over": taken_over,  # from a run that was stopped
        "pairs_per_s": round(scored / seconds, 1) if todo else None,
        "score_mean": round(float(scores.mean()), 4),
        "score_std": round(float(scores.std()), 4),
        "teacher": teacher.digest,
        "tokenizer": tokens.info["tokenizer"],
        "max_length": tokens.info["max_length"],
        "dtype": config.precision,
    }


class TeacherActor:
    """One copy of the teacher, loaded once, in a Ray Data actor.

    It publishes the scores of a block and returns the block's name.
    """

    def __init__(
        self,
        teacher: dict[str, str],
        tokens: dict[str, str],
        workspace: Workspace,
        batch_tokens: int,
        precision: str,
        threads: int,
        device: str,
        pids: pa.Array,
    ):
        """pids: the passages of all blocks, whose tokens it holds."""
        import torch

        from kdscale.models.ranker import Scorer, load_ranker

        torch.set_num_threads(threads)
        self._tokens = Tokens(locate(tokens))
        self._passages = self._tokens.passage_ids(pids.to_pylist())
        self._scorer = Scorer(
            load_ranker(locate(teacher)), self._tokens.encoder(), batch_tokens, device, precision
        )
        self._workspace = workspace
        # Ray hands the block of a killed actor to its successor, be it published or not.
        self._published = set(workspace.names())

    def __call__(self, block: pa.Table) -> pa.Table:
        name = block_name(block["pair_id"])
        if name not in self._published:
            publish_block(self._workspace, block, self.score(block))
        return pa.table({"name": [name]})

    def score(self, block: pa.Table) -> np.ndarray:
        """[pairs] logits."""
        return self._scorer.score(
            [
                (self._tokens.query_ids(TRAIN, qid), self._passages[pid])
                for qid, pid in zip(block["qid"].to_pylist(), block["pid"].to_pylist(), strict=True)
            ]
        )


@contextmanager
def score_here(
    blocks: list[pa.Table], actor: dict[str, Any], cluster: Cluster, reporter: Reporter
) -> Iterator[Iterator[str]]:
    """Yields the names of the blocks, one after the other as they are scored."""
    import torch

    scorer = TeacherActor(**actor, threads=torch.get_num_threads())
    yield (scorer(block)["name"][0].as_py() for block in blocks)


@contextmanager
def score_on_ray(
    blocks: list[pa.Table], actor: dict[str, Any], cluster: Cluster, reporter: Reporter
) -> Iterator[Iterator[str]]:
    """The same, in the order in which the actors finish."""
    with ray_session(cluster, reporter):
        plan = plan_workers(
            f"cluster.scorers={cluster.scorers}",
            cluster.scorers,
            cluster.cpus_per_scorer,
            cluster.gpus_per_scorer,
            cluster.scorer_labels,
            "cluster.scorers or cluster.cpus_per_scorer",
            cluster.wait_s,
        )
        settings = {**actor, "threads": threads_of(plan.cpus)}
        yield map_blocks(blocks, plan, TeacherActor, settings)


def map_blocks(
    blocks: list[pa.Table], plan: Plan, actor: type, settings: dict[str, Any]
) -> Iterator[str]:
    """The names that so many of `actor`, each made with `settings`, give for the blocks, in the
    order in which they come."""
    import ray.data

    # The blocks are in shared memory already, so that no read task waits for a CPU which the
    # actors hold: that would stand still for ever.
    scored = ray.data.from_arrow(blocks).map_batches(
        actor,
        fn_constructor_kwargs=settings,
        compute=ray.data.ActorPoolStrategy(size=min(plan.count, len(blocks))),
        num_cpus=plan.cpus,
        num_gpus=plan.gpus,
        label_selector=plan.labels or None,
        batch_format="pyarrow",
        batch_size=None,
    )
    for table in scored.iter_batches(batch_format="pyarrow", batch_size=None):
        yield from table["name"].to_pylist()
