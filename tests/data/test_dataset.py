import json

import numpy as np
import pyarrow as pa
import pytest

from kdscale.data.dataset import Dataset, Tokens
from kdscale.data.schema import BLOCKS, PASSAGE_TOKENS, PASSAGES, QUERIES, QUERY_TOKENS
from kdscale.data.shards import write_shards, write_table
from kdscale.data.tokenise import block_table
from kdscale.errors import KdscaleError


def test_dataset_reads_tables_and_names_its_splits(tmp_path):
    passages = pa.table([["p1", "p2"], ["one", "two"]], schema=PASSAGES)
    queries = pa.table([["q1"], ["why"]], schema=QUERIES)
    write_shards(tmp_path / "passages", passages, PASSAGES, 2)
    write_table(tmp_path / "queries" / "dev.parquet", queries, QUERIES)
    (tmp_path / "stats.json").write_text(json.dumps({"splits": ["train", "dev"]}))
    dataset = Dataset(tmp_path)
    assert dataset.splits() == ["train", "dev"]
    assert pa.concat_tables(dataset.passages(1)).equals(passages)
    assert dataset.passage_count() == 2 and dataset.queries("dev").equals(queries)
    with pytest.raises(KdscaleError, match="no split 'test', only train, dev"):
        dataset.qrels("test")
    with pytest.raises(KdscaleError, match=r"qrels/dev\.parquet is missing"):
        dataset.qrels("dev")
    write_table(tmp_path / "queries" / "train.parquet", QUERIES.empty_table(), QUERIES)
    assert list(dataset.text_batches()) == [["one"], ["two"], ["why"]]


def test_a_folder_that_is_no_dataset(tmp_path):
    with pytest.raises(KdscaleError, match=r"cannot read .*stats\.json"):
        Dataset(tmp_path)


def test_tokens_by_id(tmp_path):
    rows = [[5, 6, 7], [], [8]]
    passages = pa.table([["a", "b", "c"], rows], schema=PASSAGE_TOKENS)
    write_shards(tmp_path / "passages", passages, PASSAGE_TOKENS, 2)
    queries = pa.table([["q"], [[9, 10]]], schema=QUERY_TOKENS)
    write_table(tmp_path / "queries" / "train.parquet", queries, QUERY_TOKENS)
    blocks = np.arange(20, dtype=np.int32).reshape(5, 4)
    write_shards(tmp_path / "blocks", block_table(blocks), BLOCKS, 2)
    (tmp_path / "tokens.json").write_text(json.dumps({"splits": ["train"], "block_length": 4}))
    tokens = Tokens(tmp_path)
    found = tokens.passage_ids(iter("cac"))
    assert {pid: ids.tolist() for pid, ids in found.items()} == {"a": [5, 6, 7], "c": [8]}
    assert found["a"].dtype == np.int32
    assert tokens.passage_ids("b")["b"].tolist() == [] and len(tokens.passage_ids([])) == 0
    assert tokens.query_ids("train", "q").tolist() == [9, 10]
    assert (tokens.blocks() == blocks).all() and tokens.blocks().dtype == np.int32
    with pytest.raises(KdscaleError, match="the tokens lack 'z'"):
        tokens.passage_ids(["a", "z"])
    with pytest.raises(KdscaleError, match="the tokens lack 'z'"):
        tokens.query_ids("train", "z")
    with pytest.raises(KdscaleError, match="no split 'dev'"):
        tokens.query_ids("dev", "q")
