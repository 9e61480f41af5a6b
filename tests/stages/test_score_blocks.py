import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from kdscale.data.schema import PAIRS, SCORES
from kdscale.data.shards import write_shards
from kdscale.errors import KdscaleError
from kdscale.progress import Reporter
from kdscale.stages.score_blocks import (
    block_name,
    collect_scores,
    known_scores,
    pairs_without,
    plan_blocks,
    publish_block,
    read_block,
    read_blocks,
    take_over,
)
from kdscale.store import DamagedError, LocalWorkspace


def table(ids, scores):
    return pa.table({"pair_id": pa.array(ids, pa.int64()), "score": pa.array(scores, pa.float32())})


def test_scores_are_put_in_the_order_of_the_pairs():
    scores = collect_scores(4, [table([3, 0], [0.3, 0.0]), table([], []), table([1, 2], [1, 2])])
    assert scores.tolist() == pytest.approx([0.0, 1.0, 2.0, 0.3]) and scores.dtype == np.float32


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([table([0, 1], [1, 2])], r"2 of 3 pairs were scored, 0 .*first wrong: pair 2"),
        ([table([0, 1, 2], [1, 2, 3]), table([1], [2])], r"3 of 3 .*, 1 .*first wrong: pair 1"),
        ([table([0, 1, 3], [1, 2, 3])], r"names pair 3, the dataset has 0 to 2"),
        ([table([0, 1, -1], [1, 2, 3])], r"names pair -1"),
        ([table([0, 1, 2], [1, float("nan"), 3])], r"1 of 3 .*not a finite number .*pair 1"),
        ([table([0, 1, 2], [1, 2, float("inf")])], r"not a finite number .*pair 2"),
    ],
)
def test_scores_that_do_not_match_the_pairs(tables, message):
    with pytest.raises(KdscaleError, match=message):
        collect_scores(3, tables)


def test_blocks_hold_every_pair_once_longest_first():
    count = 500
    lengths = np.random.default_rng(0).integers(8, 128, size=count)
    ids = [str(i) for i in range(count)]
    pairs = pa.table({"pair_id": range(count), "qid": ids, "pid": ids, "grade": range(count)})
    blocks = list(plan_blocks(pairs, lengths, block_tokens=2048))
    order = [i for block in blocks for i in block["pair_id"].to_pylist()]
    assert sorted(order) == list(range(count))
    assert (np.diff(lengths[order]) <= 0).all()
    costs = [lengths[block["pair_id"].to_numpy()].sum() for block in blocks]
    assert max(costs) <= 4 * 512 + 128 and len(blocks) == -(-lengths.sum() // (4 * 512))


@pytest.fixture
def workspace(tmp_path):
    return LocalWorkspace(tmp_path / "work")


def _publish(workspace, ids):
    """The name of a block of these pairs, each scored as half its number."""
    block = pa.table({"pair_id": pa.array(ids, pa.int64())})
    publish_block(workspace, block, np.asarray(ids, dtype=np.float32) / 2)
    return block_name(block["pair_id"])


def test_a_block_is_read_as_it_was_published(workspace):
    names = [_publish(workspace, ids) for ids in ([3, 1], [2, 0])]
    assert workspace.names() == sorted(names)
    tables = read_blocks(workspace, names)
    assert list(tables) == names
    assert tables[names[0]].to_pydict() == {"pair_id": [3, 1], "score": [1.5, 0.5]}
    assert collect_scores(4, tables.values()).tolist() == [0.0, 0.5, 1.0, 1.5]


def test_the_first_of_two_equal_blocks_stays(workspace):
    name = _publish(workspace, [3, 1])
    block = pa.table({"pair_id": pa.array([3, 1], pa.int64())})
    publish_block(workspace, block, np.zeros(2, dtype=np.float32))
    assert read_block(workspace, name)["score"].to_pylist() == [1.5, 0.5]


def test_blocks_are_taken_over_but_not_a_damaged_one_nor_another_plans(workspace):
    good, damaged = _publish(workspace, [0, 1]), _publish(workspace, [2, 3])
    _publish(workspace, [0, 1, 2])
    path = workspace.directory / damaged / "scores.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    console = Console(width=1000, record=True)
    planned = {good: None, damaged: None, "block-to-do": None}
    assert list(take_over(workspace, planned, Reporter(console))) == [good]
    told = console.export_text()
    assert "a damaged block is scored again" in told and damaged in told
    assert "1 of 3 blocks were scored before" in told
    assert damaged not in workspace.names() and good in workspace.names()


@pytest.mark.parametrize("content", ["other pairs", "no parquet"])
def test_a_sound_piece_of_another_content_is_refused(workspace, tmp_path, content):
    name = _publish(workspace, [0, 1])
    forged = LocalWorkspace(tmp_path / "forged")
    other = forged.fetch(_publish(forged, [0, 2])) / "scores.parquet"
    if content == "no parquet":
        other.write_bytes(b"no parquet")
    (other.parent / "manifest.json").unlink()
    workspace.remove(name)
    workspace.publish(other.parent, name)
    with pytest.raises(DamagedError, match="not the scores of its block"):
        read_block(workspace, name)


def test_scores_that_are_known(tmp_path):
    ids = {"qid": ["a", "a", "b"], "pid": ["1", "2", "1"]}
    scores = pa.table({"pair_id": [7, 8, 9], **ids, "score": [0.5, 1.5, 2.5]}).cast(SCORES)
    write_shards(tmp_path, scores, SCORES, 2)
    pairs = pa.table(
        {"pair_id": [0, 1, 2], "qid": ["b", "a", "a"], "pid": ["1", "3", "2"],
         "grade": [1, 0, 0], "rank": [1, 2, 3]}
    ).cast(PAIRS)  # fmt: skip
    known = known_scores(pairs, tmp_path)
    assert known.to_pydict() == {"pair_id": [0, 2], "score": [2.5, 1.5]}
    assert pairs_without(pairs, known)["pair_id"].to_pylist() == [1]
