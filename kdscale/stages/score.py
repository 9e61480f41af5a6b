"""The teacher's logit for every training pair, and the scores of several teachers joined.

The pairs are cut into blocks, the same ones however often a run is started. An actor publishes the
scores of a block as a piece of the workspace before it hands the block back, so a killed actor,
node or driver costs the blocks at work and no others.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdscale.cluster.placement import Plan
from kdscale.cluster.session import plan_workers, ray_session, threads_of
from kdscale.config import Cluster
from kdscale.data.dataset import Dataset, Tokens
from kdscale.data.queries import TRAIN
from kdscale.data.schema import SCORES
from kdscale.data.shards import read_shards, write_shards
from kdscale.errors import KdscaleError
from kdscale.evaluation.collection import scoring_device
from kdscale.evaluation.ensemble import Scale, combine, write_scales
from kdscale.experiment.context import DATASET, KNOWN, TEACHER, TOKENS, StageContext
from kdscale.experiment.settings import EnsembleSettings, ScoreSettings
from kdscale.models.ranker import BATCH_TOKENS
from kdscale.progress import Reporter
from kdscale.stages.score_blocks import (
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
from kdscale.store import Workspace, locate

# An actor gets so many forward passes of work at a time: seconds of it, so that progress shows,
# actors end together and little is lost with one, while the requests that publish a block are
# little beside it. A GPU's are a guess: at 400 TFLOP/s BERT-base would read 65,536 tokens in 28 ms.
FORWARDS_PER_BLOCK = {"cpu": 16, "cuda": 128}


def run(ctx: StageContext[ScoreSettings]) -> dict[str, Any]:
    """Raw logits of all training pairs, by pair_id, as Parquet.

    Blocks that an earlier run scored are taken over, once their digests are checked. Where
    `known` is among the inputs, scores of the same teacher, its pairs are not scored again.
    Raises KdscaleError if the actors cannot fit the cluster, if a score is not a finite number,
    or if scores and pairs do not match one to one.
    """
    pairs, tokens = Dataset(ctx.inputs[DATASET].path).pairs(), Tokens(ctx.inputs[TOKENS].path)
    if not pairs.num_rows:
        raise KdscaleError(
            "the dataset has no training pairs to score; the source needs a split named 'train'"
        )
    device = _device(ctx.cluster)
    batch_tokens = ctx.settings.batch_tokens or BATCH_TOKENS[device]
    settings = replace(ctx.settings, batch_tokens=batch_tokens)
    known = known_scores(pairs, ctx.inputs[KNOWN].path) if KNOWN in ctx.inputs else None
    unknown = pairs if known is None else pairs_without(pairs, known)
    block_tokens = FORWARDS_PER_BLOCK[device] * batch_tokens
    planned = plan_blocks(unknown, pair_lengths(unknown, tokens), block_tokens)
    blocks = {block_name(block["pair_id"]): block for block in planned}
    tables = take_over(ctx.workspace, blocks, ctx.reporter)
    taken_over = len(tables)
    todo = {name: block for name, block in blocks.items() if name not in tables}
    rate = None
    if todo:
        actor = {
            "teacher": ctx.inputs[TEACHER].ref(),
            "tokens": ctx.inputs[TOKENS].ref(),
            "workspace": ctx.workspace,
            "settings": settings,
            "device": device,
            "pids": pc.unique(unknown["pid"]),
        }
        rate = _score_blocks(ctx, todo, actor, unknown.num_rows)
        tables.update(read_blocks(ctx.workspace, list(todo)))
    taken = [] if known is None else [known]
    scores = collect_scores(pairs.num_rows, [*tables.values(), *taken])
    columns = [*pairs.select(["pair_id", "qid", "pid"]).columns, pa.array(scores)]
    write_shards(ctx.out, pa.table(columns, schema=SCORES), SCORES, settings.shards)
    return {
        "pairs": len(scores),
        "blocks": len(blocks),
        **({} if known is None else {"pairs_known": known.num_rows}),
        "blocks_taken_over": taken_over,  # from a run that was stopped
        "pairs_per_s": rate,
        "score_mean": round(float(scores.mean()), 4),
        "score_std": round(float(scores.std()), 4),
        "teacher": ctx.inputs[TEACHER].digest,
        "tokenizer": tokens.info["tokenizer"],
        "max_length": tokens.info["max_length"],
        "dtype": settings.precision,
    }


def _device(cluster: Cluster) -> str:
    """The scorers' device, cpu or cuda."""
    if not cluster.scorers:
        return scoring_device()
    return "cuda" if cluster.gpus_per_scorer else "cpu"


def _score_blocks(
    ctx: StageContext[ScoreSettings], todo: dict[str, pa.Table], actor: dict[str, Any], pairs: int
) -> float:
    """Have the blocks scored and published; pairs a second. pairs: of all blocks, those that are
    scored already too."""
    score = score_on_ray if ctx.cluster.scorers else score_here
    with (
        score(list(todo.values()), actor, ctx.cluster, ctx.reporter) as names,
        ctx.reporter.task("scoring pairs", pairs) as task,
    ):
        began, scored = time.monotonic(), 0
        task.update(pairs - sum(block.num_rows for block in todo.values()))
        for name in names:
            scored += todo[name].num_rows
            rate = scored / (time.monotonic() - began)
            task.advance(todo[name].num_rows, f"{rate:.0f} pairs/s")
        return round(scored / (time.monotonic() - began), 1)


class TeacherActor:
    """One copy of the teacher, loaded once, in a Ray Data actor.

    It publishes the scores of a block and returns the block's name.
    """

    def __init__(
        self,
        teacher: dict[str, str],
        tokens: dict[str, str],
        workspace: Workspace,
        settings: ScoreSettings,
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
        ranker, encoder = load_ranker(locate(teacher)), self._tokens.encoder()
        self._scorer = Scorer(ranker, encoder, settings.batch_tokens, device, settings.precision)
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
    table: Any  # in this format a pa.Table; Ray's type names all formats
    for table in scored.iter_batches(batch_format="pyarrow", batch_size=None):
        yield from table["name"].to_pylist()


PAIR = ["pair_id", "qid", "pid"]


def join_scores(ctx: StageContext[EnsembleSettings]) -> dict[str, Any]:
    """`inputs`: the teachers' scores, the first teacher's first.

    Raises KdscaleError where they are not of the same pairs.
    """
    tables = {role: read_shards(a.path, SCORES) for role, a in ctx.inputs.items()}
    (first, pairs), *others = tables.items()
    for role, table in others:
        if not table.select(PAIR).equals(pairs.select(PAIR)):
            raise KdscaleError(
                f"{role} ({table.num_rows} pairs) is not of the pairs of {first} "
                f"({pairs.num_rows}); remove both artifacts and join_scores the score stage again"
            )
    scores = [table["score"].to_numpy() for table in tables.values()]
    scales = [Scale.of(own, str(role)) for own, role in zip(scores, tables, strict=True)]
    joined = pa.array(combine(scores, scales), pa.float64()).cast(pa.float32())
    table = pa.table([*pairs.select(PAIR).columns, joined], schema=SCORES)
    write_shards(ctx.out, table, SCORES, ctx.settings.shards)
    write_scales(ctx.out, scales)
    return {
        "pairs": table.num_rows,
        "teachers": [a.facts.get("teacher") for a in ctx.inputs.values()],
        "score_means": [round(scale.mean, 4) for scale in scales],
        "score_stds": [round(scale.std, 4) for scale in scales],
    }
