import numpy as np
import pyarrow as pa
import pytest

from kdscale.data import tokenise as token_cuts
from kdscale.data.dataset import Dataset
from kdscale.data.schema import CANDIDATES, PAIRS, PASSAGE_TOKENS
from kdscale.data.shards import write_shards, write_table
from kdscale.data.tokenise import are_many, count_cuts, describe
from kdscale.models.encode import PairEncoder
from kdscale.models.pretrained import load_tokenizer
from tests.worlds.world import make_encoder

# max_length 13 less CLS and two SEP: 10 tokens of text
LENGTHS = {"short": 4, "fits": 8, "long": 20, "unused": 99}
QUERIES = {"train": {"t1": 2, "t2": 15}, "test": {"e1": 2, "e2": 3}}


@pytest.fixture
def encoder(tmp_path):
    return PairEncoder(load_tokenizer(str(make_encoder(tmp_path / "encoder"))), 13)


@pytest.fixture
def dataset(tmp_path):
    root = tmp_path / "dataset"
    root.mkdir()
    (root / "stats.json").write_text('{"splits": ["train", "test"]}')
    rows = [("t1", "short"), ("t1", "long"), ("t2", "short"), ("t2", "long")]
    pairs = [(i, q, p, 0, 0) for i, (q, p) in enumerate(rows)]
    write_shards(root / "pairs", table(pairs, PAIRS), PAIRS, 1)
    found = [("e1", "short", 1, 1.0), ("e1", "fits", 2, 1.0), ("e2", "fits", 1, 1.0)]
    write_table(root / "candidates/test.parquet", table(found, CANDIDATES), CANDIDATES)
    tokens = [(pid, [0] * min(length, 12)) for pid, length in LENGTHS.items()]
    write_shards(root / "tokens", table(tokens, PASSAGE_TOKENS), PASSAGE_TOKENS, 2)
    return Dataset(root)


def table(rows, schema):
    return pa.table([list(column) for column in zip(*rows, strict=True)], schema=schema)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_what_pairs_lose_by_the_limit_in_tokens(dataset, encoder, monkeypatch, rows):
    monkeypatch.setattr(token_cuts, "ROWS", rows)
    lengths = np.array(list(LENGTHS.values()))
    found = count_cuts(dataset, encoder, dataset.path / "tokens", lengths, QUERIES)
    assert found == {
        # 2 + 4 fit; 2 + 20 leave 8 of the passage; 15 + 4 leave 6 of the query; 15 + 20: 5 and 5
        "train": {
            "pairs": 4, "queries": 2, "passages": 2, "tokens": 6 + 22 + 19 + 35,
            "cut": {"pairs": 3, "queries": 1, "passages": 1, "tokens": 12 + 9 + 25},
        },
        # 3 + 8 are one too many
        "test": {
            "pairs": 3, "queries": 2, "passages": 2, "tokens": 6 + 10 + 11,
            "cut": {"pairs": 1, "queries": 0, "passages": 1, "tokens": 1},
        },
    }  # fmt: skip
    assert describe("train", found["train"], 13) == (
        "75 % of the training pairs are longer than prepare.max_length (13 tokens) and are cut, "
        "1 of 2 queries too; 56 % of all tokens are lost"
    )
    assert "33 % of the pairs of test" in describe("test", found["test"], 13)
    assert are_many(found["train"]) and are_many(found["test"])
    found["test"]["cut"]["pairs"] = 0
    assert describe("test", found["test"], 13) is None and not are_many(found["test"])
