"""The teacher's logit for every training pair, and the scores of several teachers joined.

The pairs are cut into blocks, the same ones however often a run is started. An actor publishes the
scores of a block as a piece of the workspace before it hands the block back, so a killed actor,
node or driver costs the blocks at work and no others.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdscale.cluster.placement import Plan
from kdscale.cluster.session import plan_workers, ray_session, threads_of
from kdscale.config import Cluster
from kdscale.data.dataset import Dataset, Tokens
from kdscale.data.queries import TRAIN
from kdscale.data.schema import PAIR_SCORES, SCORES
from kdscale.data.shards import read_shards, read_table, write_shards, write_table
from kdscale.errors import KdscaleError
from kdscale.evaluation.collection import scoring_device
from kdscale.evaluation.ensemble import Scale, combine, write_scales
from kdscale.experiment.context import DATASET, KNOWN, TEACHER, TOKENS, StageContext
from kdscale.experiment.settings import EnsembleSettings, ScoreSettings
from kdscale.models.ranker import BATCH_TOKENS
from kdscale.progress import Reporter
from kdscale.store import DamagedError, Workspace, locate

MAX_BLOCKS = 2_000  # each costs Ray some milliseconds and the store a few requests
READERS = 8  # blocks read from the store at a time
BLOCK_FILE = "scores.parquet"


def pair_lengths(pairs: pa.Table, tokens: Tokens) -> np.ndarray:
    """[pairs] tokens of each pair as the teacher reads it."""
    encoder = tokens.encoder()
    qids, pids = _ids(pairs)
    passages = tokens.passage_ids(pids)
    return np.array(
        [
            encoder.length(len(tokens.query_ids(TRAIN, qid)), len(passages[pid]))
            for qid, pid in zip(qids, pids, strict=True)
        ],
        dtype=np.int64,
    )


def plan_blocks(pairs: pa.Table, lengths: np.ndarray, block_tokens: int) -> Iterator[pa.Table]:
    """Blocks of pairs of like length and like cost, the longest pairs first.

    Longest first: a pair that does not fit the memory shows at once, and the actors finish with
    the small blocks.
    """
    order = np.argsort(-lengths, kind="stable")
    before = np.cumsum(lengths[order]) - lengths[order]
    size = max(block_tokens, -(-int(lengths.sum()) // MAX_BLOCKS))
    cuts = np.flatnonzero(np.diff(before // size)) + 1
    columns = pairs.select(["pair_id", "qid", "pid"]).combine_chunks()
    for rows in np.split(order, cuts):
        yield columns.take(pa.array(rows))


def known_scores(pairs: pa.Table, scores: Path) -> pa.Table:
    """PAIR_SCORES of the pairs whose query and passage stand in other scores.

    scores: a folder of SCORES.
    """
    table = read_shards(scores, SCORES)
    by_pair = dict(zip(zip(*_ids(table), strict=True), table["score"].to_pylist(), strict=True))
    found = [by_pair.get(ids) for ids in zip(*_ids(pairs), strict=True)]
    rows = [row for row, score in enumerate(found) if score is not None]
    ids = pairs["pair_id"].take(pa.array(rows, pa.int64()))
    return pa.table([ids, pa.array([found[row] for row in rows], pa.float32())], schema=PAIR_SCORES)


def pairs_without(pairs: pa.Table, known: pa.Table) -> pa.Table:
    return pairs.filter(
        pc.invert(pc.is_in(pairs["pair_id"], value_set=known["pair_id"].combine_chunks()))
    )


def _ids(table: pa.Table) -> tuple[list[str], list[str]]:
    return table["qid"].to_pylist(), table["pid"].to_pylist()


def block_name(pair_ids: pa.ChunkedArray) -> str:
    """The piece of a block: another plan's blocks (another score.batch_tokens) have other names."""
    digest = hashlib.sha256(np.asarray(pair_ids.to_numpy(), dtype="<i8").tobytes())
    return f"block-{digest.hexdigest()[:20]}"


def publish_block(workspace: Workspace, block: pa.Table, scores: np.ndarray) -> None:
    """scores: [pairs of the block] float32."""
    table = pa.table({"pair_id": block["pair_id"], "score": pa.array(scores, pa.float32())})
    with tempfile.TemporaryDirectory(prefix="kdscale-scores-") as directory:
        write_table(Path(directory, BLOCK_FILE), table, PAIR_SCORES)
        # A piece that is there stays: Ray gives a block out again when it lost sight of a node,
        # and then one of two equal results is kept.
        workspace.publish(Path(directory), block_name(block["pair_id"]))


def read_block(workspace: Workspace, name: str) -> pa.Table:
    """pair_id and score. Raises DamagedError for a piece that is not the scores of its pairs."""
    path = workspace.fetch(name) / BLOCK_FILE
    try:
        table = read_table(path, PAIR_SCORES).cast(PAIR_SCORES)
        if block_name(table["pair_id"]) != name:
            raise ValueError("it is of other pairs")
    except (pa.ArrowException, KdscaleError, ValueError) as error:
        raise DamagedError(f"{path} is not the scores of its block ({error})") from None
    return table


def read_blocks(workspace: Workspace, names: list[str]) -> dict[str, pa.Table]:
    with ThreadPoolExecutor(READERS) as pool:
        tables = pool.map(lambda name: read_block(workspace, name), names)
        return dict(zip(names, tables, strict=True))


def take_over(
    workspace: Workspace, blocks: dict[str, pa.Table], reporter: Reporter
) -> dict[str, pa.Table]:
    """Scores of the blocks that an earlier run published; a damaged one is told of and removed."""

    def sound(name: str) -> pa.Table | None:
        try:
            return read_block(workspace, name)
        except DamagedError as error:
            reporter.warn(f"a damaged block is scored again: {error}")
            workspace.remove(name)
            return None

    found = [name for name in workspace.names() if name in blocks]
    with ThreadPoolExecutor(READERS) as pool:
        tables = dict(zip(found, pool.map(sound, found), strict=True))
    kept = {name: table for name, table in tables.items() if table is not None}
    if kept:
        reporter.info(f"  {len(kept)} of {len(blocks)} blocks were scored before")
    return kept


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
