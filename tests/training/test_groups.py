import hashlib

import numpy as np
import pyarrow as pa
import pytest
import torch

from kdscale.data.dataset import Dataset, Tokens
from kdscale.data.pairs import pair_table
from kdscale.data.schema import EASY, PAIRS, SCORES
from kdscale.data.shards import write_shards
from kdscale.errors import KdscaleError
from kdscale.models.encode import PairEncoder
from kdscale.training.groups import GroupSource
from tests.worlds.artifacts import write_dataset, write_tokens
from tests.worlds.tiny_models import bert_tokenizer

# qid -> [(pid, grade)]: two relevant passages, one, none, no negative
PAIRS_OF = {
    "q0": [("p0", 1), ("p1", 2), ("p2", 0), ("p3", 0), ("p4", 0)],
    "q1": [("p5", 1), ("p2", 0), ("p6", 0)],
    "q2": [("p3", 0), ("p4", 0)],
    "q3": [("p7", 1)],
}
ROWS = [(q, p, g) for q, of in PAIRS_OF.items() for p, g in of]


@pytest.fixture
def world(tmp_path):
    return _write(tmp_path, PAIRS_OF)


def _write(root, pairs_of):
    """A dataset of such pairs, and tokens: passage pN has N + 2 words."""
    dataset, tokens = root / "dataset", root / "tokens"
    passages, queries = (
        {key: " ".join(f"w{j}" for j in range(i + 2)) for i, key in enumerate(keys)}
        for keys in ([f"p{i}" for i in range(8)], pairs_of)
    )
    pairs = pair_table((qid, [(p, g, 1) for p, g in of]) for qid, of in pairs_of.items())
    write_dataset(dataset, passages, {"train": queries}, {}, pairs=pairs)
    write_tokens(tokens, PairEncoder(bert_tokenizer(), 16), passages, {"train": queries})
    return Dataset(dataset), Tokens(tokens)


def _scores():
    order = np.random.default_rng(0).permutation(len(ROWS))  # rows in no order: ids must be used
    return pa.table(
        [order, [ROWS[i][0] for i in order], [ROWS[i][1] for i in order], order * 0.5],
        names=SCORES.names,
    ).cast(SCORES)


def test_easy_negatives_can_be_left_out(world):
    dataset, tokens = world
    pairs = dataset.pairs()
    ranks = [EASY if pid in ("p2", "p6") else 1 for pid in pairs["pid"].to_pylist()]
    table = pairs.set_column(pairs.schema.get_field_index("rank"), "rank", [ranks])
    write_shards(dataset.path / "pairs", table.cast(PAIRS), PAIRS, 2)

    def negatives(easy):
        source = GroupSource(dataset, tokens, None, 4, None, seed=0, easy=easy)
        rows = [source.rows(item, epoch)[1:] for item in range(len(source)) for epoch in range(9)]
        return {pairs["pid"][int(row)].as_py() for group in rows for row in group}

    assert negatives(True) == {"p2", "p3", "p4", "p6"}
    assert negatives(False) == {"p3", "p4"}  # q1 has no hard one, and so no group


def test_only_queries_with_a_relevant_passage_and_a_negative(world):
    source = GroupSource(*world, None, group_size=3, max_queries=None, seed=0)
    assert len(source) == 2
    assert source.pairs_per_item == 3


def test_a_group_is_a_relevant_passage_and_negatives_drawn_anew_each_epoch(world):
    source = GroupSource(*world, None, group_size=3, max_queries=None, seed=0)
    relevant, negatives = set(), set()
    for epoch in range(12):
        rows = source.rows(0, epoch)
        assert [ROWS[r][0] for r in rows] == ["q0"] * 3
        assert [ROWS[r][2] > 0 for r in rows] == [True, False, False]
        assert rows.tolist() == source.rows(0, epoch).tolist()
        relevant.add(rows[0])
        negatives.add(tuple(sorted(rows[1:])))
    assert len(relevant) == 2 and len(negatives) == 3


def test_a_batch_puts_every_score_in_its_place(world):
    dataset, tokens = world
    source = GroupSource(dataset, tokens, _scores(), group_size=4, max_queries=None, seed=0)
    batch = source.collate(np.array([0, 1]), epoch=0)
    rows = [source.rows(0, 0), source.rows(1, 0)]
    assert batch.mask.tolist() == [[True] * 4, [True, True, True, False]]
    assert batch.labels[0, 0] == ROWS[rows[0][0]][2]
    for b in range(2):
        for g, row in enumerate(rows[b]):
            assert batch.teacher[b, g] == row * 0.5
    # A stand-in for a model, whose score of a pair is the sum of its ids: it must come out where
    # the pair belongs, though pairs are sorted by length.
    sums = torch.cat([c["input_ids"].sum(1).float() for c in batch.chunks])
    placed = torch.zeros(8).index_put((batch.slots,), sums).view(2, 4)
    encoder = tokens.encoder()
    for b in range(2):
        for g, row in enumerate(rows[b]):
            query, pid, _ = ROWS[row]
            pair = (tokens.query_ids("train", query), tokens.passage_ids([pid])[pid])
            assert placed[b, g] == encoder.collate([pair])["input_ids"].sum()
    assert placed[1, 3] == 0


def test_a_smaller_data_budget_is_a_subset(world):
    assert len(GroupSource(*world, None, 3, max_queries=3, seed=0)) <= 2
    assert len(GroupSource(*world, None, 3, max_queries=4, seed=0)) == 2


def test_a_data_budget_is_the_queries_of_the_smallest_hash(tmp_path):
    """Each budget is a part of every larger one, so that a curve over budgets is of one data."""
    pairs = {f"q{i}": [("p0", 1), ("p1", 0)] for i in range(40)}
    dataset, tokens = _write(tmp_path, pairs)
    digests = {q: hashlib.sha256(f"5:{q}".encode()).digest() for q in pairs}
    for budget in (1, 4, 7, 39, 40, 41):
        source = GroupSource(dataset, tokens, None, 2, max_queries=budget, seed=5)
        expected = sorted(pairs, key=digests.get)[:budget]
        assert source.qids == [qid for qid in pairs if qid in expected]
        assert len(source) == len(source.lengths) == min(budget, 40)


def test_a_missing_score_is_named(world):
    table = _scores().slice(1)
    with pytest.raises(KdscaleError, match="the teacher scores lack pair"):
        GroupSource(*world, table, 3, None, 0)


def test_nothing_to_train_on(world, tmp_path):
    dataset, tokens = world
    write_shards(dataset.path / "pairs", PAIRS.empty_table(), PAIRS, 2)
    (dataset.path / "pairs" / "part-00001.parquet").unlink()
    with pytest.raises(KdscaleError, match="no training query has both"):
        GroupSource(dataset, tokens, None, 3, None, 0)
