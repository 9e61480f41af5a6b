"""What a user needs of a student, checked before any table is read."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kdscale.bounds import Count, Positive, ProperShare, check_options
from kdscale.errors import KdscaleError

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
