import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kdscale.data import tokenise
from kdscale.data.dataset import flatten
from kdscale.data.schema import BLOCKS
from kdscale.data.tokenise import TokenSpool, block_table, cut_column, pack_blocks, ragged_column

CLS, SEP = 101, 102


def pack(documents, block_length=6, seed=0, max_tokens=None):
    column = pa.chunked_array([documents[:2], documents[2:]], pa.list_(pa.int32()))
    with tempfile.TemporaryDirectory() as folder, closing(TokenSpool(Path(folder))) as spool:
        spool.add(column)
        assert spool.lengths().tolist() == [len(d) for d in documents]
        parts = list(pack_blocks(spool, CLS, SEP, block_length, seed, max_tokens))
        assert not list(Path(folder).iterdir())  # nothing to be left behind
    return np.concatenate([np.empty((0, block_length), np.int32), *parts])


def test_blocks_by_hand():
    # one document has one order only; 10 tokens + SEP = 11, rows of 4: the tail of 3 is left out
    assert pack([list(range(1, 11))]).tolist() == [[CLS, 1, 2, 3, 4, SEP], [CLS, 5, 6, 7, 8, SEP]]


@pytest.mark.parametrize("rows", [1, 2, 3, 1000])
def test_blocks_do_not_depend_on_how_many_are_made_at_a_time(monkeypatch, rows):
    rng = np.random.default_rng(1)
    documents = [rng.integers(1, 90, size=n).tolist() for n in rng.integers(0, 30, size=40)]
    whole = pack(documents)
    monkeypatch.setattr(tokenise, "ROWS_PER_CHUNK", rows)
    assert (pack(documents) == whole).all()
    assert (pack(documents, max_tokens=100) == whole[:16]).all()


def test_documents_are_shuffled_whole_and_parted_by_sep():
    documents = [[10 * d + i for i in range(1, 4)] for d in range(1, 9)]
    blocks = pack(documents)
    assert blocks.shape == (8, 6)
    assert (blocks[:, 0] == CLS).all() and (blocks[:, -1] == SEP).all()
    stream = blocks[:, 1:-1].reshape(-1).tolist()  # 8 documents of 3 tokens and a SEP: no tail
    parts = [stream[i : i + 4] for i in range(0, len(stream), 4)]
    assert all(part[3] == SEP and part[:3] in documents for part in parts)
    assert sorted(part[:3] for part in parts) == documents
    assert [part[:3] for part in parts] != documents
    assert (pack(documents) == blocks).all()
    assert pack(documents, seed=1).tolist() != blocks.tolist()


def test_a_smaller_budget_is_the_head_of_a_larger():
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 90, size=n).tolist() for n in rng.integers(0, 12, size=60)]
    whole = pack(documents)
    for budget in (0, 5, 6, 30, 100, 10_000):
        some = pack(documents, max_tokens=budget)
        assert some.size == min(budget // 6 * 6, whole.size)
        assert (some == whole[: len(some)]).all()


def test_empty_documents_leave_no_double_sep():
    assert pack([[], [1, 2, 3, 4], []]).tolist() == [[CLS, 1, 2, 3, 4, SEP]]
    assert pack([[], []]).shape == (0, 6)


def test_cut_column_keeps_the_heads():
    column = pa.chunked_array([[[1, 2, 3], []], [[4], [5, 6, 7, 8]]], pa.list_(pa.int32()))
    assert cut_column(column, 2).to_pylist() == [[1, 2], [], [4], [5, 6]]
    assert cut_column(column.slice(1, 2), 2).to_pylist() == [[], [4]]
    assert cut_column(column, 9).to_pylist() == column.to_pylist()


def test_flatten_inverts_ragged_column():
    rows = [[1, 2], [], [3]]
    column = ragged_column(np.array([1, 2, 3], np.int32), np.array([2, 0, 1]))
    assert column.to_pylist() == rows
    flat, offsets = flatten(pa.chunked_array([column, column.slice(2)]))
    assert flat.tolist() == [1, 2, 3, 3] and offsets.tolist() == [0, 2, 2, 3, 4]
    assert flat.dtype == np.int32
    flat, offsets = flatten(pa.chunked_array([], pa.list_(pa.int32())))
    assert flat.tolist() == [] and offsets.tolist() == [0]


@pytest.mark.parametrize("rows", [0, 3])
def test_block_table(rows):
    blocks = np.arange(rows * 4, dtype=np.int32).reshape(rows, 4)
    table = block_table(blocks)
    assert table.schema == BLOCKS and table["ids"].to_pylist() == blocks.tolist()
