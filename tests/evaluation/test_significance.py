import json
import math

import numpy as np
import pytest
from scipy import stats

from kdscale.evaluation.significance import compare, compare_all, holm, noninferiority


def test_a_paired_t_test_by_hand():
    """Differences 0.1, 0.2, 0.3, 0.4: mean 1/4, standard error sqrt(0.05 / 3 / 4), so t = sqrt(15)
    with 3 degrees of freedom, whose distribution has a closed form."""
    baseline = np.array([0.5, 0.1, 0.3, 0.0])
    result = compare(baseline + np.array([0.1, 0.2, 0.3, 0.4]), baseline)
    p = 1 - 2 / math.pi * (math.sqrt(5) / 6 + math.atan(math.sqrt(5)))
    assert result.delta == pytest.approx(0.25)
    assert result.p == pytest.approx(p) == pytest.approx(0.030466, abs=1e-6)
    half = 3.182446 * math.sqrt(0.05 / 12)  # the t table's 97.5 % point
    assert result.ci == pytest.approx((0.25 - half, 0.25 + half), abs=1e-6)
    assert (result.n, result.wins, result.losses, result.ties) == (4, 4, 0, 0)


def test_the_sign_is_system_minus_baseline():
    result = compare(np.array([0.0, 0.2, 0.5, 0.5]), np.array([1.0, 0.1, 0.5, 0.9]))
    assert result.delta == pytest.approx(-0.325)
    assert (result.wins, result.losses, result.ties) == (1, 2, 1)
    assert result.ci[0] < result.delta < result.ci[1]


def test_equal_systems():
    result = compare(np.array([0.3, 0.7]), np.array([0.3, 0.7 + 1e-15]))
    assert (result.p, result.delta, result.ci) == (1.0, 0.0, (0.0, 0.0))
    assert (result.wins, result.losses, result.ties) == (0, 0, 2)


def test_one_difference_on_every_query():
    result = compare(np.array([0.4, 0.8, 0.6]), np.array([0.3, 0.7, 0.5]))
    assert result.p == 0.0
    assert result.ci == pytest.approx((0.1, 0.1))


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_queries_have_no_p(n):
    result = compare(np.ones(n), np.zeros(n))
    assert (result.p, result.ci, result.n, result.wins) == (None, None, n, n)


def test_holm_by_hand():
    """Sorted 0.005, 0.01, 0.03, 0.04, times 4, 3, 2, 1, never falling: .02, .03, .06, .06."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_stops_at_one_and_passes_over_what_is_unknown():
    assert holm([0.6, None, 0.9]) == [1.0, None, 1.0]
    assert holm([None]) == [None]
    assert holm([]) == []


def test_all_systems_are_one_family():
    rng = np.random.default_rng(0)
    teacher = rng.random(40)
    values = {
        "bm25": teacher - 0.2 + rng.normal(0, 0.1, 40),
        "teacher": teacher,
        "student": teacher - 0.04 + rng.normal(0, 0.1, 40),
        "twin": teacher.copy(),
    }
    results = compare_all(values, "teacher", alpha=0.05)
    assert list(results) == ["bm25", "student", "twin"]
    p = {name: r["p"] for name, r in results.items()}
    assert p["bm25"] < p["student"] < p["twin"] == 1.0
    assert results["bm25"]["p_holm"] == pytest.approx(3 * p["bm25"])
    assert results["student"]["p_holm"] == pytest.approx(2 * p["student"])
    assert results["bm25"]["significant"] is True
    assert results["twin"]["significant"] is False
    assert all(r["baseline"] == "teacher" and r["n"] == 40 for r in results.values())
    json.dumps(results, allow_nan=False)


def test_the_correction_can_take_significance_away():
    difference = np.array([0.1, 0.2, 0.3, 0.4])  # p = 0.0305, as above
    zero = np.zeros(4)
    alone = compare_all({"base": zero, "a": difference}, "base", 0.05)
    assert alone["a"]["significant"]
    two = compare_all({"base": zero, "a": difference, "b": difference}, "base", 0.05)
    assert two["a"]["p_holm"] == pytest.approx(2 * two["a"]["p"])
    assert not two["a"]["significant"]


def test_noninferiority_by_hand():
    """Differences -0.04, 0.02, -0.01, 0.03 and a margin of 0.05: their mean is 0, the standard
    error sqrt(0.003 / 3 / 4), so t = 0.05 / sqrt(0.00025) = sqrt(10) with 3 degrees of freedom."""
    baseline = np.array([0.5, 0.1, 0.3, 0.2])
    system = baseline + np.array([-0.04, 0.02, -0.01, 0.03])
    t = math.sqrt(10)
    upper = 0.5 - (t / math.sqrt(3) / (1 + t * t / 3) + math.atan(t / math.sqrt(3))) / math.pi
    p = noninferiority(system, baseline, 0.05)
    assert p == pytest.approx(upper) == pytest.approx(0.025391, abs=1e-6)
    second = stats.ttest_1samp(system - baseline, -0.05, alternative="greater").pvalue
    assert p == pytest.approx(second)
    # The other side: the p-values of a test and of its opposite add up to one.
    assert noninferiority(baseline, system, -0.05) == pytest.approx(1 - p)


def test_a_smaller_margin_is_harder_to_show():
    rng = np.random.default_rng(1)
    baseline = rng.random(50)
    system = baseline + rng.normal(0, 0.05, 50)
    p = [noninferiority(system, baseline, margin) for margin in (0.05, 0.02, 0.01, 0.001)]
    assert p == sorted(p) and p[0] < 0.001


@pytest.mark.parametrize(
    ("difference", "p"), [(0.0, 0.0), (0.1, 0.0), (-0.009, 0.0), (-0.01, 1.0), (-0.02, 1.0)]
)
def test_noninferiority_without_variance(difference, p):
    baseline = np.array([0.3, 0.5, 0.6])
    assert noninferiority(baseline + difference, baseline, 0.01) == p


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_queries_show_nothing(n):
    assert noninferiority(np.ones(n), np.zeros(n), 0.01) is None
    tests = compare_all({"base": np.zeros(n), "a": np.ones(n)}, "base", 0.05, margin=0.01)
    assert (tests["a"]["noninferior_p_holm"], tests["a"]["noninferior"]) == (None, False)


def test_noninferiority_is_corrected_over_the_systems():
    baseline = np.array([0.5, 0.1, 0.3, 0.2])
    system = baseline + np.array([-0.04, 0.02, -0.01, 0.03])  # p = 0.0254, as above
    alone = compare_all({"base": baseline, "a": system}, "base", 0.05, margin=0.05)
    assert alone["a"]["noninferior"] is True and alone["a"]["margin"] == 0.05
    two = compare_all({"base": baseline, "a": system, "b": system}, "base", 0.05, margin=0.05)
    assert two["a"]["noninferior_p_holm"] == pytest.approx(2 * two["a"]["noninferior_p"])
    assert two["a"]["noninferior"] is False
    # No difference is significant either: that alone is no proof of being as good.
    assert not two["a"]["significant"]
    assert "noninferior" not in compare_all({"base": baseline, "a": system}, "base", 0.05)["a"]
