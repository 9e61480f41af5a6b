import math

import numpy as np
import pytest

from kdscale.errors import KdscaleError
from kdscale.evaluation import measures as module
from kdscale.evaluation.measures import parse_measures, per_query

QRELS = {
    "q1": {"a": 2, "b": 1, "x": 0},
    "q2": {"c": 1},
    "q3": {"d": 1},  # the run lacks it
    "q4": {"e": 1},
}
RUN = {
    "q1": ["x", "a", "u", "b"],
    "q2": ["u", "v"],
    "q4": ["e"],
    "unjudged": ["e"],
}


def values(names, qrels=QRELS, run=RUN):
    return per_query(parse_measures(names), qrels, run)


def test_values_by_hand():
    found = values(["RR@10", "nDCG@10", "AP", "R@2", "P@2", "AP(rel=2)"])
    ideal = 2 / math.log2(2) + 1 / math.log2(3)
    ndcg = (2 / math.log2(3) + 1 / math.log2(5)) / ideal
    np.testing.assert_allclose(found["RR@10"], [1 / 2, 0, 0, 1])
    np.testing.assert_allclose(found["nDCG@10"], [ndcg, 0, 0, 1])
    np.testing.assert_allclose(found["AP"], [(1 / 2 + 2 / 4) / 2, 0, 0, 1])
    np.testing.assert_allclose(found["R@2"], [1 / 2, 0, 0, 1])
    np.testing.assert_allclose(found["P@2"], [1 / 2, 0, 0, 1 / 2])
    np.testing.assert_allclose(found["AP(rel=2)"], [1 / 2, 0, 0, 0])


def test_a_relevant_passage_below_the_cutoff_counts_nothing():
    run = {"q2": [f"u{i}" for i in range(10)] + ["c"]}
    found = values(["RR@10", "RR", "R@10"], {"q2": {"c": 1}}, run)
    assert found["RR@10"] == found["R@10"] == [0.0]
    np.testing.assert_allclose(found["RR"], [1 / 11])


def test_the_order_alone_counts_for_every_measure():
    """z comes before a although its id is the later one: a provider's own tie-breaking of equal
    scores would differ between these measures."""
    found = values(["RR@10", "nDCG@10", "AP"], {"q": {"z": 1}}, {"q": ["z", "a"]})
    assert [v.tolist() for v in found.values()] == [[1.0]] * 3


def test_a_name_is_kept_as_written():
    found = values(["MRR@10", "RR@10"])
    assert list(found) == ["MRR@10", "RR@10"]
    np.testing.assert_array_equal(found["MRR@10"], found["RR@10"])


def test_an_empty_run_is_all_zeros():
    assert values(["nDCG@10"], run={})["nDCG@10"].tolist() == [0, 0, 0, 0]
    assert values(["nDCG@10"], run={"q1": []})["nDCG@10"].tolist() == [0, 0, 0, 0]


def test_many_queries_are_handed_over_in_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 2)
    qrels = {f"q{i}": {"r": 1} for i in range(5)}
    run = {f"q{i}": [f"u{j}" for j in range(i)] + ["r"] for i in range(5)}
    np.testing.assert_allclose(
        values(["RR@10"], qrels, run)["RR@10"], [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]
    )


@pytest.mark.parametrize(
    ("name", "near"), [("nDGC@10", "nDCG@10"), ("mrr@10", "MRR@10"), ("recal@50", "Recall@50")]
)
def test_an_unknown_measure_names_near_ones(name, near):
    with pytest.raises(KdscaleError, match=f"{name}.*did you mean.*{near}"):
        parse_measures(["AP", name])


@pytest.mark.parametrize("name", ["R", "nDCG@x", "nDCG(zz=1)@10", "", "RBP"])
def test_a_measure_that_cannot_be_computed(name):
    with pytest.raises(KdscaleError, match="cannot be computed"):
        parse_measures([name])


def test_a_name_like_no_other():
    with pytest.raises(KdscaleError, match=r"'xqzw'; known ones are nDCG@10"):
        parse_measures(["xqzw"])
