import json
from math import log

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from kdscale.data.dataset import Dataset, Tokens
from kdscale.data.schema import QUERY_FEATURES, QUERY_TOKENS
from kdscale.data.shards import write_table
from kdscale.evaluation.collection import Collection
from kdscale.evaluation.query_types import buckets, query_features, query_types, spearman
from kdscale.progress import Reporter
from tests.worlds.artifacts import table, write_dataset

PASSAGES_OF = {
    "p1": "Asthma runs in families",
    "p2": "Gout hurts",
    "p3": "asthma attacks hurt children",
    "p4": "the weather",
}
QUERIES_OF = {"q1": "asthma in families", "q2": "the", "q3": "does gout hurt"}


@pytest.fixture
def collection(tmp_path):
    qrels = {"q1": {"p1": 2, "p3": 1}, "q2": {"p4": 0}, "q3": {"p2": 1}}
    found = {"q1": ["p4", "p1", "p3"], "q3": ["p3"]}
    write_dataset(tmp_path, PASSAGES_OF, *({"test": of} for of in (QUERIES_OF, qrels, found)))
    tokens = tmp_path / "tokens"
    ids = [("q1", [7, 8, 9]), ("q2", [7]), ("q3", [1, 2])]
    write_table(tokens / "queries/test.parquet", table(QUERY_TOKENS, ids), QUERY_TOKENS)
    (tokens / "tokens.json").write_text(json.dumps({"splits": ["test"], "max_length": 9}))
    return Collection(Dataset(tmp_path), Tokens(tokens), "test", 10)


def test_features_by_hand(collection):
    """Of four passages "asthma" is in two, "families", "gout" and "hurt" in one, "does" in none;
    "in" and "the" are stop words."""
    with Reporter().task("test") as task:
        features = query_features(collection._dataset, collection, 1, task).to_pylist()
    two, one, none = log(2), log(1 + 3.5 / 1.5), log(1 + 4.5 / 0.5)
    assert [row["qid"] for row in features] == ["q1", "q2", "q3"]
    assert [row["length"] for row in features] == [3, 1, 2]
    assert [row["overlap"] for row in features] == [1.0, None, pytest.approx(1 / 3)]
    assert [row["idf"] for row in features] == [
        pytest.approx((two + one) / 2),
        None,
        pytest.approx((none + one + one) / 3),
    ]
    assert [row["rank"] for row in features] == [2, None, None]


def test_a_higher_grade_leaves_fewer_relevant(collection):
    with Reporter().task("test") as task:
        features = query_features(collection._dataset, collection, 2, task).to_pylist()
    assert [row["overlap"] for row in features] == [1.0, None, None]


def test_a_sample_of_passages_is_spread_over_the_files(collection):
    sampled = list(collection._dataset.sample_passages(2))
    texts = list(PASSAGES_OF.values())
    assert [t for part in sampled for t in part] == [texts[0], texts[2]]
    assert [t for part in collection._dataset.sample_passages(9) for t in part] == texts


def labelled(feature, values):
    return [(label, np.flatnonzero(mask).tolist()) for label, mask in buckets(feature, values)]


def test_buckets_are_quarters_that_never_part_equal_values():
    assert labelled("length", np.array([4.0, 1, 2, 3, 8, 7, 6, 5])) == [
        ("1–2", [1, 2]), ("3–4", [0, 3]), ("5–6", [6, 7]), ("7–8", [4, 5]),
    ]  # fmt: skip
    assert labelled("length", np.array([3.0, 3, 3, 3, 9])) == [("3", [0, 1, 2, 3]), ("9", [4])]
    assert labelled("overlap", np.array([0.5, np.nan, 0.5])) == [("0.50", [0, 2])]
    assert labelled("idf", np.array([np.nan])) == []


def test_buckets_of_ranks_are_the_steps_that_people_know():
    ranks = np.array([1.0, 5, 6, 11, np.nan, 1])
    assert labelled("rank", ranks) == [
        ("1", [0, 5]), ("2–5", [1]), ("6–10", [2]), ("> 10", [3]), ("not found", [4]),
    ]  # fmt: skip


def test_spearman_by_hand():
    """Ranks 1..5 against 2, 1, 4, 3, 5: rho = 1 - 6 * 4 / (5 * 24) = 0.8."""
    rho, p = spearman(np.array([1.0, 2, 3, 4, np.nan, 9]), np.array([0.2, 0.1, 0.4, 0.3, 7, 0.5]))
    assert rho == pytest.approx(0.8)
    t = 0.8 * (3 / (1 - 0.64)) ** 0.5
    assert p == pytest.approx(2 * stats.t.sf(t, 3))
    assert spearman(np.ones(5), np.arange(5.0)) == (None, None)
    assert spearman(np.arange(2.0), np.arange(2.0)) == (None, None)


def test_losses_by_kind_of_query():
    lengths = [1.0, 2, 3, 4, 5, 6, 7, 8]
    ranks = [1.0, 1, 1, 1, 2, 2, None, None]
    qids = [f"q{i}" for i in range(8)]
    nothing = [None] * 8
    features = pa.table([qids, lengths, nothing, nothing, ranks], schema=QUERY_FEATURES)
    base = np.full(8, 0.5)
    loss = np.array([0.0, 0.0, -0.1, 0.0, 0.1, 0.2, 0.3, 0.5])
    values = {"teacher": base, "a/x": base - loss, "b/x": base.copy()}
    rows = query_types(features, values, "teacher", 10).to_pylist()
    by_place = {(r["system"], r["feature"], r["bucket"]): r for r in rows}
    assert {r["feature"] for r in rows} == {"length", "rank"}  # the others have no value
    last = by_place["a/x", "rank", "not found"]
    assert (last["queries"], last["loss"], last["example"]) == (2, pytest.approx(0.4), "q7")
    half = 12.706205 * 0.1  # the t table's 97.5 % point of one degree of freedom
    assert (last["ci_low"], last["ci_high"]) == pytest.approx((0.4 - half, 0.4 + half), abs=1e-5)
    first = by_place["a/x", "rank", "1"]
    assert (first["queries"], first["loss"], first["example"]) == (4, pytest.approx(-0.025), None)
    # A relevant passage that is not a candidate counts as rank 11.
    rho, p = stats.spearmanr([1, 1, 1, 1, 2, 2, 11, 11], loss)
    assert (last["rho"], last["p"]) == (pytest.approx(rho), pytest.approx(p))
    rho, p = stats.spearmanr(lengths, loss)
    assert by_place["a/x", "length", "1–2"]["p"] == pytest.approx(p)
    # Two correlations are known; those of b, which never differs, are none and do not count.
    smaller = min(r["p"] for r in rows if r["p"] is not None)
    assert min(r["p_holm"] for r in rows if r["p"] is not None) == pytest.approx(2 * smaller)
    assert by_place["b/x", "length", "1–2"]["rho"] is None


def test_without_students_there_is_nothing():
    features = pa.table([["q"], [1.0], [None], [None], [1.0]], schema=QUERY_FEATURES)
    assert query_types(features, {"teacher": np.ones(1)}, "teacher", 10).num_rows == 0
