import math
from pathlib import Path

import numpy as np
import pytest

from kdscale.data.runs import read_qrels, read_run
from kdscale.errors import KdscaleError
from kdscale.evaluation import measures as module
from kdscale.evaluation.measures import parse_measures, per_query
from kdscale.experiment.load import load_config

CONFIGS = Path(__file__).parents[2] / "configs"
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


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("R", r"it needs a cutoff; write it like R@10"),
        ("IPrec", r"it needs a recall; write it like IPrec@0\.5"),
        ("BPM@10", r"it needs a max_rel; add max_rel=\.\.\."),
        ("nDCG@x", r"it is not written like nDCG@10"),
        ("nDCG@-1", r"it is not written like .*, with a cutoff from 1 up"),
        ("", r"it is not written like nDCG@10"),
        ("10@10", r"it is not written like nDCG@10"),
        ("(" * 3000, r"it is not written like nDCG@10"),
        ("nDCG@" + "9" * 5000, r"it is not written like nDCG@10"),
        ("P@0", r"cutoff is a whole number from 1 up, .* not 0"),
        ("nDCG@1.5", r"cutoff is a whole number from 1 up, .* not 1\.5"),
        ("RR@True", r"cutoff is a whole number from 1 up, .* not True"),
        ("R@9999999999", r"at most 2147483647, not 9999999999"),
        ("AP(rel=0)", r"rel is a grade from 1 to 1000000, not 0"),
        ("AP(rel=99999999999)", r"rel is a grade from 1 to 1000000"),
        ("Compat(p=1.5)", r"p is a number between 0 and 1, such as 0\.8, not 1\.5"),
        ("RBP(p=1.0,rel=1)", r"p is a number between 0 and 1, such as 0\.8, not 1\.0"),
        ("IPrec@1.5", r"recall is a number from 0\.0 to 1\.0"),
        ("IPrec@0.123", r"recall is .* in steps of 0\.01"),
        ("SetF(beta=0.0)", r"beta is a number above 0"),
        ("nDCG(gains={1: 99999999})@5", r"gains is from grade to gain"),
        ("nDCG(dcg='exp')@10", r"dcg is one of log2, exp-log2, not 'exp'"),
        ("P(judged_only=1)@5", r"judged_only is True or False, not 1"),
        ("nDCG(zz=1)@10", r"nDCG has no parameter zz, only cutoff, dcg"),
        ("ERR", r"nothing that ir-measures knows supports it with"),
        ("Accuracy", r"ir-measures fails at one query .*ZeroDivisionError"),
    ],
)
def test_a_measure_that_cannot_be_computed_is_refused_before_a_library_sees_it(name, why):
    """trec_eval ends the process at a cutoff of 0."""
    with pytest.raises(KdscaleError, match=f"evaluate.measures: .* cannot be computed: .*{why}"):
        parse_measures([name])


@pytest.mark.parametrize(
    "name", ["RR(rel=2)@10", "AP(rel=2)", "P(judged_only=True)@5", "IPrec@0.2"]
)
def test_sound_parameters_are_taken(name):
    assert list(parse_measures([name])) == [name]


def test_a_measure_that_needs_a_program_names_it(monkeypatch):
    import ir_measures

    monkeypatch.setattr(ir_measures.gdeval, "_is_available", False)
    with pytest.raises(KdscaleError, match=r"'ERR@10' .* not installed \(gdeval: Install perl"):
        parse_measures(["ERR@10"])


def test_err_and_exponential_gain_whatever_the_ids():
    """gdeval, which computes both, cuts a query's id at a dash and prints five digits."""
    ids = {"q1": "PLAIN-2", "q2": "PLAIN-20", "q3": "none", "q4": "a-20"}
    qrels = {ids[qid]: {f"p {p}": g for p, g in grades.items()} for qid, grades in QRELS.items()}
    run = {ids[q]: [f"p {p}" for p in ranking] for q, ranking in RUN.items() if q in ids}
    found = values(["ERR@10", "nDCG(dcg='exp-log2')@10"], qrels, run)
    two, one = 3 / 16, 1 / 16  # (2^grade - 1) / 2^4
    err = two / 2 + (1 - two) * one / 4
    ndcg = (3 / math.log2(3) + 1 / math.log2(5)) / (3 / math.log2(2) + 1 / math.log2(3))
    np.testing.assert_allclose(found["ERR@10"], [err, 0, 0, one], atol=5e-6)
    np.testing.assert_allclose(found["nDCG(dcg='exp-log2')@10"], [ndcg, 0, 0, 1], atol=5e-6)


@pytest.mark.parametrize(
    ("split", "measure", "expected"),
    [("dl19", "RR@10", 0.823), ("dl19", "RR(rel=2)@10", 0.702), ("dl20", "RR(rel=2)@10", 0.653)],
)
def test_trec_dl_counts_grades_from_2_as_relevant(shared_data, split, measure, expected):
    """By BM25's runs; counted from grade 1, RR@10 of DL 2019 is far too good."""
    folder = shared_data("trecdl")
    qrels = read_qrels(folder / f"qrels.{split}-passage.txt")
    found = read_run(folder / f"trec_results_{split}_top100.txt")
    run = {qid: [pid for pid, _ in ranking] for qid, ranking in found}
    assert values([measure], qrels, run)[measure].mean() == pytest.approx(expected, abs=5e-4)


def test_the_config_for_ms_marco_counts_grades_as_its_collections_do():
    evaluate = load_config(CONFIGS / "msmarco.yaml").evaluate
    assert evaluate.primary_of("dev") == "RR@10"
    assert evaluate.primary_of("dl19") == "nDCG@10"
    assert {"RR(rel=2)@10", "AP(rel=2)"} < set(evaluate.measures_of("dl19"))
    assert not any("rel" in name for name in evaluate.measures_of("dev"))


def test_a_grade_above_those_of_gdeval_is_refused():
    qrels = {"a-1": {"p": 4}, "a-2": {"p": 5, "x": 1}}
    assert values(["ERR@10"], {"a-1": {"p": 4}}, {"a-1": ["p"]})["ERR@10"] == [15 / 16]
    assert values(["nDCG@10"], qrels, {"a-2": ["p"]})["nDCG@10"][1] > 0
    with pytest.raises(KdscaleError, match=r"ERR@10: query a-2 has a passage of grade 5.* up to 4"):
        values(["nDCG@10", "ERR@10"], qrels, {"a-1": ["p"]})


def test_a_grade_that_would_fill_the_memory_is_refused():
    """trec_eval keeps a place for every grade: 16 GB for this one."""
    with pytest.raises(KdscaleError, match=r"query q has a passage of grade 2000000000"):
        values(["nDCG@10"], {"q": {"p": 2_000_000_000}}, {"q": ["p"]})


def test_measures_with_parameters_do_not_change_those_beside_them():
    """In one call ir-measures computes nDCG@10 with the gains of the other, in most processes."""
    names = ["nDCG@10", "nDCG(gains={1: 5})@10", "AP(rel=2)", "AP", "nDCG(judged_only=True)@10"]
    together = values(names)
    for name in names:
        np.testing.assert_array_equal(together[name], values([name])[name])
    assert together["nDCG@10"][0] != together["nDCG(gains={1: 5})@10"][0]


def test_a_name_like_no_other():
    with pytest.raises(KdscaleError, match=r"'xqzw'; known ones are nDCG@10"):
        parse_measures(["xqzw"])
