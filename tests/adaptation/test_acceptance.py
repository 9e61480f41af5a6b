import numpy as np
import pytest

from kdscale.adaptation.acceptance import NEW, OLD, decide


def verdict(new_gain, old_gain, queries=50, margin=0.02):
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.02, (4, queries))
    before = {NEW: 0.5 + noise[0], OLD: 0.6 + noise[1]}
    after = {NEW: before[NEW] + new_gain + noise[2], OLD: before[OLD] + old_gain + noise[3]}
    return decide(before, after, "nDCG@10", margin, 0.05)


def test_better_on_the_new_and_not_worse_on_the_old_is_accepted():
    found = verdict(0.1, 0.0)
    assert found.accepted and found.facts()["accepted"]
    assert "new queries improve: nDCG@10 0.5" in found.text()
    assert "old queries lose less than 0.02" in found.text()


@pytest.mark.parametrize(
    "new_gain, old_gain, why",
    [
        (0.0, 0.0, "new queries are not shown to improve"),
        (-0.1, 0.0, "new queries are not shown to improve"),
        (0.1, -0.05, "old queries are not shown to lose less than 0.02"),
        (0.1, -0.02, "old queries are not shown to lose less than 0.02"),
    ],
)
def test_else_the_student_is_kept_and_it_is_said_why(new_gain, old_gain, why):
    found = verdict(new_gain, old_gain)
    assert not found.accepted and why in found.text()


def test_one_query_shows_nothing():
    found = verdict(0.1, 0.0, queries=1)
    assert not found.accepted and "p not known" in found.text()


def test_equal_rankings_are_no_improvement_and_no_loss():
    values = {NEW: np.full(9, 0.5), OLD: np.full(9, 0.5)}
    found = decide(values, values, "AP", 0.01, 0.05)
    assert found.holds and not found.improves
