"""Which student to take, and how sure one can be of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kdscale.config import STRATEGIES
from kdscale.report.evidence import FIRST_STAGE, TEACHER, Evidence, baseline_of, test_of


@dataclass(frozen=True)
class Verdict:
    """The student to take, if any is worth it, and the paragraph that says why.

    standing: "level" (not significantly worse than the baseline), "worse" (every student is),
    "useless" (none beats BM25) or "none" (there are no students)
    """

    system: dict[str, Any] | None
    standing: str
    text: str


def pick(
    systems: list[dict[str, Any]], split: str, primary: str
) -> tuple[dict[str, Any] | None, str]:
    """The student to take and its standing, from the rows of systems.json.

    Only a student above BM25 is worth taking. Of those that are not significantly worse than the
    baseline it is the best one of the cheapest shape; without such, the best of all. Latencies
    of one shape differ by noise alone, so the arithmetic of a pair, not the clock, says which
    shape is cheapest.
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
    level = [s for s in useful if not _worse(s, split, primary)]
    if not level:
        return max(useful, key=quality), "worse"
    cheapest = min(s["flops_per_pair"] for s in level)
    return max((s for s in level if s["flops_per_pair"] == cheapest), key=quality), "level"


def judge(evidence: Evidence) -> Verdict:
    """The answer of an evaluation, in sentences."""
    split, primary = evidence.split, evidence.config.evaluate.primary
    system, standing = pick(evidence.systems, split, primary)
    if system is None:
        return Verdict(None, standing, "This experiment has no students to choose from.")
    base = evidence.system(evidence.config.evaluate.baseline)
    baseline = baseline_of(evidence.config)
    test = evidence.test(system)
    sentences = [
        _opening(system, standing),
        f"On the {test['n']:,} queries of {split} it reaches {evidence.value(system):.3f} "
        f"{primary} where {baseline} reaches {evidence.value(base):.3f}"
        f"{_speed(system, evidence.system(TEACHER))}.",
        _certainty(test, baseline),
    ]
    first = evidence.system(FIRST_STAGE)
    if first is not None and standing == "useless":
        teacher_too = evidence.value(evidence.system(TEACHER)) <= evidence.value(first)
        whom = "the teacher, which is not above it either," if teacher_too else "the student"
        sentences.append(
            f"The BM25 order that it reranks already has {evidence.value(first):.3f}: "
            f"give {whom} more data, more steps or another shape first."
        )
    return Verdict(system, standing, " ".join(sentences))


def _worse(system: dict[str, Any], split: str, primary: str) -> bool:
    test = test_of(system, split, primary)
    return test["significant"] and test["delta"] < 0


def _opening(system: dict[str, Any], standing: str) -> str:
    name = system["system"]
    return {
        "level": f"Take {name}.",
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


def _certainty(test: dict[str, Any], baseline: str) -> str:
    if test["ci"] is None:
        return "With fewer than two queries nothing can be said of significance."
    low, high = test["ci"]
    how = (
        f"95 % interval {signed(low)} to {signed(high)}; paired t-test, Holm's correction, "
        f"{p_words(test['p_holm'])}"
    )
    if test["significant"]:
        side = "below" if test["delta"] < 0 else "above"
        return (
            f"It is significantly {side} {baseline}: the mean difference is "
            f"{signed(test['delta'])} ({how})."
        )
    caution = "the interval leaves no room for a loss."
    if low < 0:
        caution = f"from {test['n']:,} queries a true loss of up to {-low:.3f} cannot be ruled out."
    return (
        f"The mean difference of {signed(test['delta'])} is not significant ({how}). "
        f"That does not prove the two equal: {caution}"
    )


def signed(value: float) -> str:
    """Three places, with a sign as it is typeset."""
    return f"{value:+.3f}".replace("-", "−")


def p_words(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
