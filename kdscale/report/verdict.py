"""Which student to take, and how sure one can be of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kdscale.config import STRATEGIES
from kdscale.report.evidence import FIRST_STAGE, TEACHER, Evidence, baseline_of, test_of


@dataclass(frozen=True)
class Verdict:
    """The student to take, if any is worth it, and the paragraph that says why.

    standing: "noninferior" (shown to lose less than the margin), "level" (no difference from the
    baseline was shown, nor that there is none), "worse" (every student is significantly worse),
    "useless" (none beats BM25) or "none" (there are no students)
    """

    system: dict[str, Any] | None
    standing: str
    text: str


def pick(
    systems: list[dict[str, Any]], split: str, primary: str
) -> tuple[dict[str, Any] | None, str]:
    """The student to take and its standing, from the rows of systems.json.

    Only a student above BM25 is worth taking. Of those shown not to be worse than the baseline by
    the margin it is the best one of the cheapest shape; without such, the same of those that are
    not significantly worse; without these, the best of all. Latencies of one shape differ by
    noise alone, so the arithmetic of a pair, not the clock, says which shape is cheapest.
    """

    def quality(system: dict[str, Any]) -> float:
        return system["measures"][split][primary]

    students = [s for s in systems if s["strategy"] in STRATEGIES and test_of(s, split, primary)]
    if not students:
        return None, "none"
    floor = max((quality(s) for s in systems if s["system"] == FIRST_STAGE), default=0.0)
    useful = [s for s in students if quality(s) > floor]
    if not useful:
        return max(students, key=quality), "useless"
    for standing, able in (
        ("noninferior", [s for s in useful if _kept(s, split, primary)]),
        ("level", [s for s in useful if not _worse(s, split, primary)]),
    ):
        if able:
            cheapest = min(s["flops_per_pair"] for s in able)
            return max((s for s in able if s["flops_per_pair"] == cheapest), key=quality), standing
    return max(useful, key=quality), "worse"


def judge(evidence: Evidence) -> Verdict:
    """The answer of an evaluation, in sentences."""
    split, primary = evidence.split, evidence.primary
    system, standing = pick(evidence.systems, split, primary)
    if system is None:
        return Verdict(None, standing, "This experiment has no students to choose from.")
    base = evidence.row(evidence.settings.evaluate.baseline)
    baseline = baseline_of(evidence.settings.evaluate)
    test = evidence.test(system)
    assert test is not None  # as of every student that can be picked
    sentences = [
        _opening(system, standing, baseline),
        f"On the {test['n']:,} queries of {split} it reaches {evidence.value(system):.3f} "
        f"{primary} where {baseline} reaches {evidence.value(base):.3f}"
        f"{_speed(system, evidence.row(TEACHER))}.",
        _certainty(test, standing, primary, baseline),
    ]
    first = evidence.system(FIRST_STAGE)
    if first is not None and standing == "useless":
        teacher_too = evidence.value(evidence.row(TEACHER)) <= evidence.value(first)
        whom = "the teacher, which is not above it either," if teacher_too else "the student"
        sentences.append(
            f"The BM25 order that it reranks already has {evidence.value(first):.3f}: "
            f"give {whom} more data, more steps or another shape first."
        )
    return Verdict(system, standing, " ".join(sentences))


def _kept(system: dict[str, Any], split: str, primary: str) -> bool:
    test = test_of(system, split, primary)
    return test is not None and bool(test.get("noninferior"))


def _worse(system: dict[str, Any], split: str, primary: str) -> bool:
    test = test_of(system, split, primary)
    return test is not None and test["significant"] and test["delta"] < 0


def _opening(system: dict[str, Any], standing: str, baseline: str) -> str:
    name = system["system"]
    return {
        "noninferior": f"Take {name}: it is not measurably worse than {baseline}.",
        "level": f"Take {name}, with a doubt: no difference from {baseline} was shown, "
        "and that it is not worse was not shown either.",
        "worse": f"If you can pay for speed with quality, take {name}: "
        "every student is measurably worse, this one the least.",
        "useless": f"None of the students is worth taking yet; the best is {name}.",
    }[standing]


def _speed(system: dict[str, Any], teacher: dict[str, Any]) -> str:
    if not system["speedup"]:
        return ""
    own, slow = (s["latency"]["total_ms"]["median"] for s in (system, teacher))
    return (
        f", and it is {system['speedup']:.1f} times as fast as the teacher "
        f"({own:,.1f} ms a query instead of {slow:,.1f}, tokenising included)"
    )


def _certainty(test: dict[str, Any], standing: str, primary: str, baseline: str) -> str:
    if test["ci"] is None:
        return "With fewer than two queries nothing can be said of significance."
    low, high = test["ci"]
    how = (
        f"95 % interval {signed(low)} to {signed(high)}; paired t-test, Holm's correction, "
        f"{p_words(test['p_holm'])}"
    )
    if not test["significant"]:
        difference = f"The mean difference of {signed(test['delta'])} is not significant ({how})."
    else:
        side = "below" if test["delta"] < 0 else "above"
        difference = (
            f"It is significantly {side} {baseline}: the mean difference is "
            f"{signed(test['delta'])} ({how})."
        )
    loss = f"a loss of {test['margin']:g} {primary} or more"
    shown = f"one-sided test of non-inferiority, {p_words(test['noninferior_p_holm'])}"
    if standing == "noninferior":
        return f"A{loss[1:]} is ruled out ({shown}). {difference}"
    if standing == "level":
        return (
            f"{difference} That does not prove the two equal: {loss} is not ruled out ({shown}), "
            f"and from {test['n']:,} queries a true loss of up to {max(0.0, -low):.3f} remains "
            "possible."
        )
    return difference


def signed(value: float) -> str:
    """Three places, with a sign as it is typeset."""
    return f"{value:+.3f}".replace("-", "−")


def p_words(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
