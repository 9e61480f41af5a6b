"""Is a system better or worse than the baseline, or not worse by a margin: paired tests, corrected
for many systems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

EQUAL = 1e-9  # values that differ by less are one value: sums in another order, not an effect
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Comparison:
    """A system against the baseline on one measure, over the same queries.

    delta: mean of (system - baseline); ci: its 95 % confidence interval; p: two-sided paired
    t-test. Of fewer than two queries ci and p are None.
    """

    delta: float
    ci: tuple[float, float] | None
    p: float | None
    n: int
    wins: int
    losses: int
    ties: int


def compare(system: np.ndarray, baseline: np.ndarray) -> Comparison:
    """Compare two systems' values for the same queries, [n] each."""
    difference = np.asarray(system, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    difference[np.abs(difference) < EQUAL] = 0.0
    n = len(difference)
    delta = float(difference.mean()) if n else 0.0
    ci, p = _interval_and_p(difference, delta) if n > 1 else (None, None)
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    return Comparison(delta, ci, p, n, wins, losses, n - wins - losses)


def _interval_and_p(difference: np.ndarray, delta: float) -> tuple[tuple[float, float], float]:
    from scipy import stats

    if np.ptp(difference) < EQUAL:
        # No variance: t is 0/0 where the systems agree on every query, infinite elsewhere.
        return (delta, delta), 1.0 if delta == 0.0 else 0.0
    test = stats.ttest_1samp(difference, 0.0)
    interval = test.confidence_interval(CONFIDENCE)
    return (float(interval.low), float(interval.high)), float(test.pvalue)


def noninferiority(system: np.ndarray, baseline: np.ndarray, margin: float) -> float | None:
    """p of the test that a system is not worse than the baseline by `margin` or more, [n] each.

    One-sided paired t-test of H0: mean(system - baseline) <= -margin (Walker and Nowacki 2011,
    doi 10.1007/s11606-010-1513-8). A small p shows that whatever the system loses is less than
    the margin; a large p shows nothing. None of fewer than two queries.
    """
    from scipy import stats

    difference = np.asarray(system, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    if len(difference) < 2:
        return None
    if np.ptp(difference) < EQUAL:
        # No variance, as in `compare`: only a loss of the margin or more speaks for H0.
        return 0.0 if difference.mean() > EQUAL - margin else 1.0
    return float(stats.ttest_1samp(difference, -margin, alternative="greater").pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction (1979) of the p-values of one family; None stays None and
    does not count."""
    from statsmodels.stats.multitest import multipletests

    known = [p for p in p_values if p is not None]
    if not known:
        return list(p_values)
    corrected = iter(multipletests(known, method="holm")[1].tolist())
    return [None if p is None else next(corrected) for p in p_values]


def compare_all(
    values: Mapping[str, np.ndarray], baseline: str, alpha: float, margin: float | None = None
) -> dict[str, dict[str, Any]]:
    """Every system but the baseline against it, on one measure of one split.

    values: system -> [n]. The compared systems are one family for Holm's correction. A result
    has "baseline", the fields of `Comparison`, "p_holm", and "significant" (p_holm < alpha); with
    a margin, in the units of the measure, also "margin", "noninferior_p", "noninferior_p_holm"
    (a family of its own) and "noninferior" (the last below alpha).
    """
    results = {
        system: compare(of_system, values[baseline])
        for system, of_system in values.items()
        if system != baseline
    }
    corrected = holm([c.p for c in results.values()])
    tests = {
        system: {
            "baseline": baseline,
            **asdict(comparison),
            "p_holm": p_holm,
            "significant": p_holm is not None and p_holm < alpha,
        }
        for (system, comparison), p_holm in zip(results.items(), corrected, strict=True)
    }
    if margin is not None:
        p_values = [noninferiority(values[s], values[baseline], margin) for s in tests]
        for test, p, p_holm in zip(tests.values(), p_values, holm(p_values), strict=True):
            test["margin"], test["noninferior_p"], test["noninferior_p_holm"] = margin, p, p_holm
            test["noninferior"] = p_holm is not None and p_holm < alpha
    return tests
