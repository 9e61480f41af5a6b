"""Blocks of pairs that a teacher scores one by one; their scores are pieces of a workspace."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdscale.data.dataset import Tokens
from kdscale.data.queries import TRAIN
from kdscale.data.schema import PAIR_SCORES, SCORES
from kdscale.data.shards import read_shards, read_table, write_table
from kdscale.errors import KdscaleError
from kdscale.progress import Reporter
from kdscale.store import DamagedError, Workspace

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
