import numpy as np
import pytest

from kdscale.advice import text
from kdscale.advice.following import next_trials
from kdscale.errors import KdscaleError
from kdscale.evaluation.trials import trial_rows
from tests.advice.tables import ABOUT, QUERIES, SMALL, WHOLE, ask, student, teacher


def test_seeds_are_one_candidate_and_equal_digests_one_seed():
    seeds = [student("finetune", "2l-128", d, 3, 60, seed=s, digest=str(s))
             for s, d in ((1, 0.001), (2, 0.003), (2, 0.003))]  # fmt: skip
    advice = ask([teacher(), *seeds])
    candidate = advice.chosen.candidate
    assert candidate.seeds == (1, 2) and len(candidate.artifacts) == 2
    assert candidate.mean == pytest.approx(0.598, abs=1e-5)
    assert candidate.seed_sd == pytest.approx(np.std([0.001, 0.003], ddof=1), rel=1e-3)
    assert "2 seeds, the mean of them" in "\n".join(text.answer(advice))
    assert next_trials(advice) == []


def test_the_candidates_of_the_timings_are_those_that_the_table_tells_of():
    about = {"latency": {"threads": 1, "candidates": 30}, "depth": 50}
    advice = ask([teacher(), student("finetune", "2l-128", 0.001, 4.0, 60)], about, latency_ms=5)
    assert (advice.chosen.ms, advice.candidates) == (4.0, 30)
    broken = ask([teacher(), SMALL], {"latency": [1], "depth": "x"}, max_drop=0.05)
    assert broken.candidates is None and "how many candidates" in "\n".join(text.answer(broken))


def test_a_table_without_rows_or_teacher_or_students():
    with pytest.raises(KdscaleError, match="no rows yet"):
        ask([])
    with pytest.raises(KdscaleError, match="no row of the teacher for nDCG@10"):
        ask([SMALL])
    with pytest.raises(KdscaleError, match="no student"):
        ask([teacher()])


def test_another_measure():
    assert ask(WHOLE, measure="AP").measure == "AP"
    assert ask(WHOLE, {**ABOUT, "primary": "AP"}).measure == "AP"
    with pytest.raises(KdscaleError, match=r"--measure NDCG@10: .*did you mean nDCG@10"):
        ask(WHOLE, measure="NDCG@10")


def test_systems_of_other_queries_are_not_compared():
    other = trial_rows({"nDCG@10": np.ones(3)}, system="finetune/x", strategy="finetune", seed=1)
    with pytest.raises(KdscaleError, match="3 queries, the teacher has 400"):
        ask([teacher(), other])


def test_a_value_that_is_no_number():
    bad = trial_rows({"nDCG@10": np.full(QUERIES, np.nan)}, system="f/x", strategy="f", seed=1)
    with pytest.raises(KdscaleError, match="is not a number"):
        ask([teacher(), bad])
