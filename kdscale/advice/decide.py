"""What a user needs of a student, which candidates meet that, which one to take, and where none
does: what stands in the way.

The needs of cost (latency, training) are looked at first, and quality is then tested of those that
meet them: they are one family for Holm's correction. That is fair, since costs are known without
the values of any query.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from kdscale.advice.candidates import (
    Candidate,
    Shared,
    candidates_of,
    measure_of,
    measured_candidates,
    teacher_row,
)
from kdscale.bounds import Count, Positive, ProperShare, check_options
from kdscale.errors import KdscaleError
from kdscale.evaluation.significance import Comparison, compare, holm, noninferiority

HOUR_S = 3600.0
SECONDS = {"s": 1.0, "min": 60.0, "h": HOUR_S, "d": 24 * HOUR_S, "w": 168 * HOUR_S}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h|d|w)")


@dataclass(frozen=True)
class Needs:
    """None: no such need.

    max_drop: below this a loss against the teacher does not matter, in the measure; latency_ms: of
    one query; update_every_s: from one training of the student to the next; train_hours: that one
    training may take; candidates: of a query, where another count than the table's is meant.
    """

    max_drop: float = 0.01
    latency_ms: float | None = None
    update_every_s: float | None = None
    train_hours: float | None = None
    candidates: int | None = None
    measure: str | None = None

    def __post_init__(self) -> None:
        check_options(
            self, max_drop=ProperShare, latency_ms=Positive, train_hours=Positive, candidates=Count
        )
        limit = self.train_hours and self.train_hours * HOUR_S
        if limit and self.update_every_s and limit > self.update_every_s:
            raise KdscaleError(
                f"--train-hours {self.train_hours:g} is longer than --update-every "
                f"({span(self.update_every_s)}): a training would not end before the next begins; "
                "lower the one or raise the other"
            )

    @property
    def train_limit_s(self) -> float | None:
        """Seconds of one training: at most until the next update."""
        return self.train_hours * HOUR_S if self.train_hours else self.update_every_s


def parse_duration(text: str, option: str) -> float:
    """Seconds of "90s", "30min", "12h", "7d" or "2w". Raises KdscaleError naming the option."""
    match = _DURATION.fullmatch(text.strip())
    if not match or float(match[1]) <= 0:
        raise KdscaleError(
            f"{option} {text!r}: give a number and one of {', '.join(SECONDS)}, such as 12h or 7d"
        )
    return float(match[1]) * SECONDS[match[2]]


def span(seconds: float) -> str:
    """A duration in the unit that suits it, two digits or more."""
    for unit, length in (("d", SECONDS["d"]), ("h", HOUR_S), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


ALPHA = 0.05
LATENCY, TRAINING, DROP = "latency", "training", "drop"
OPTIONS = {LATENCY: "--latency-ms", TRAINING: "--train-hours", DROP: "--max-drop"}


@dataclass(frozen=True)
class Judged:
    """A candidate against the needs.

    test: against the teacher; worse_p: one-sided, of "it loses max_drop or more", corrected over
    the `family` candidates that meet the needs of cost, as it is for the others (family None);
    ms: of a query, for the number of candidates asked for; misses: need -> why it is not met;
    excess: need -> how many times the limit, at least 1.
    """

    candidate: Candidate
    test: Comparison
    worse_p: float | None
    family: int | None
    ms: float | None
    misses: Mapping[str, str]
    excess: Mapping[str, float]


@dataclass(frozen=True)
class Advice:
    """chosen: the student to take, None where none qualifies; nearest: what then comes nearest;
    without: need -> the student that would be taken without that need alone."""

    needs: Needs
    measure: str
    about: Mapping[str, Any]
    teacher: Mapping[str, Any]
    queries: int
    candidates: int | None  # of a query, that the times are for
    extrapolated_from: int | None  # the measured number of candidates, where it is another
    judged: Sequence[Judged]
    chosen: Judged | None
    nearest: Judged | None
    without: Mapping[str, Judged] = field(default_factory=dict)

    @property
    def best(self) -> Judged:
        """The chosen one, or else the nearest."""
        best = self.chosen or self.nearest
        assert best is not None  # there is one of the two
        return best


def advise(
    table: pa.Table, about: Mapping[str, Any], needs: Needs, shared: Mapping[str, Shared]
) -> Advice:
    """From a table of trials (`kdscale.evaluation.trials`) to a choice. shared: by artifact.

    Raises KdscaleError for a table without rows, teacher or students, for an unknown measure, and
    where latencies are to be rescaled and the table does not say what they are of.
    """
    measure = measure_of(table, about, needs.measure)
    teacher = teacher_row(table, measure)
    baseline = np.asarray(teacher["values"], dtype=np.float64)
    candidates = candidates_of(table, measure, len(baseline), shared)
    measured = measured_candidates(about)
    if needs.candidates is not None and measured is None:
        raise KdscaleError(
            "--candidates: the table does not say how many candidates its latencies are of; leave "
            "the option out"
        )
    scale = needs.candidates / measured if needs.candidates and measured else 1.0
    judged = judge(candidates, baseline, needs, scale)
    chosen = pick(judged)
    without: dict[str, Judged] = {}
    if chosen is None:
        relaxed = {
            LATENCY: needs.latency_ms and replace(needs, latency_ms=None),
            TRAINING: needs.train_limit_s and replace(needs, train_hours=None, update_every_s=None),
        }
        for need, left in relaxed.items():
            found = pick(judge(candidates, baseline, left, scale)) if left else None
            if found is not None:
                without[need] = found
        affordable = [j for j in judged if j.family]
        if affordable:
            without[DROP] = max(affordable, key=_worth)
    return Advice(
        needs,
        measure,
        about,
        teacher,
        len(baseline),
        needs.candidates or measured,
        measured if scale != 1.0 else None,
        judged,
        chosen,
        None if chosen else min(judged, key=_distance),
        without,
    )


def judge(
    candidates: Sequence[Candidate], baseline: np.ndarray, needs: Needs, scale: float = 1.0
) -> list[Judged]:
    """baseline: [queries], of the teacher; scale: of all latencies."""
    judged = []
    for candidate in candidates:
        misses, excess = _cost_misses(candidate, needs, scale)
        ms = None if candidate.ms is None else candidate.ms * scale
        test = compare(candidate.values, baseline)
        p = noninferiority(candidate.values, baseline, needs.max_drop)
        judged.append(Judged(candidate, test, p, None, ms, misses, excess))
    family = [j for j in judged if not j.misses]
    corrected = iter(holm([j.worse_p for j in family]))
    return [
        _with_drop(
            j if j.misses else replace(j, worse_p=next(corrected), family=len(family)),
            needs.max_drop,
        )
        for j in judged
    ]


def _cost_misses(
    candidate: Candidate, needs: Needs, scale: float
) -> tuple[dict[str, str], dict[str, float]]:
    misses, excess = {}, {}
    if needs.latency_ms is not None:
        if candidate.ms is None:
            misses[LATENCY], excess[LATENCY] = "its latency was not measured", math.e
        elif candidate.ms * scale > needs.latency_ms:
            ms = candidate.ms * scale
            misses[LATENCY] = f"{ms:.3g} ms a query, above {needs.latency_ms:g}"
            excess[LATENCY] = ms / needs.latency_ms
    limit = needs.train_limit_s
    if limit is not None:
        seconds = candidate.training_s(first=needs.update_every_s is None)
        if seconds is None:
            misses[TRAINING], excess[TRAINING] = "its training was not timed", math.e
        elif seconds > limit:
            misses[TRAINING] = f"a training takes {span(seconds)}, above {span(limit)}"
            excess[TRAINING] = seconds / limit
    return misses, excess


def _with_drop(judged: Judged, max_drop: float) -> Judged:
    """The need of quality, once its p-value is what it will be."""
    if judged.worse_p is not None and judged.worse_p < ALPHA:
        return judged
    drop = -judged.test.delta
    if drop >= max_drop:
        why = f"it loses {drop:.3f}, not less than {max_drop:g}"
    else:
        p = "one query alone" if judged.worse_p is None else f"p {judged.worse_p:.2g}"
        change = f"it loses {drop:.3f}" if drop > 0 else f"it gains {-drop:.3f}"
        why = f"{change}, but that it loses less than {max_drop:g} is not shown ({p})"
    return replace(
        judged,
        misses={**judged.misses, DROP: why},
        excess={**judged.excess, DROP: max(1.0, drop / max_drop)},
    )


def pick(judged: Sequence[Judged]) -> Judged | None:
    """Of those that meet every need the best, of equals the faster and then the cheaper one."""
    return max((j for j in judged if not j.misses), key=_worth, default=None)


def _worth(judged: Judged) -> tuple[float, float, float]:
    candidate = judged.candidate
    return (
        round(candidate.mean, 6),
        -(judged.ms or math.inf),
        -(candidate.training_s(first=False) or math.inf),
    )


def _distance(judged: Judged) -> tuple[float, int, float]:
    """How far from qualifying: by how much needs are missed, and how many."""
    over = sum(math.log(times) for times in judged.excess.values())
    return over, len(judged.misses), -judged.candidate.mean


def queries_needed(judged: Judged, baseline: np.ndarray, max_drop: float) -> int | None:
    """About how many queries would show, at a power of 80 %, that the loss is less than max_drop,
    if it is what these queries have it to be; None where it is not below that."""
    from scipy import stats

    room = judged.test.delta + max_drop
    if room <= 0 or judged.test.n < 2:
        return None
    sd = float(np.std(judged.candidate.values - baseline, ddof=1))
    z = stats.norm.ppf(1 - ALPHA) + stats.norm.ppf(0.8)
    return math.ceil((z * sd / room) ** 2)
