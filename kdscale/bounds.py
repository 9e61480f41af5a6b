"""What is said of a setting in its type: the bounds of a number, as in `workers: Count = 1`, and
NO_RESULT, that no result depends on it.

`kdscale.experiment.load` checks them where a config or a sweep file is loaded, the commands those
of their options.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from kdscale.errors import KdscaleError

NO_RESULT = "no result"  # marks a field that changes no result: it is in no cache key
LARGEST = 2**31 - 1  # what the columns of a table hold


@dataclass(frozen=True)
class Bound:
    """From `least`, or above `above`, to `most`, or below `below`; None: no such bound."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def check(self, value: float, where: str) -> None:
        """Raise KdscaleError naming `where`, the bound that is broken, and the value. NaN and
        infinity are within no bounds."""
        for sound, words in (
            (math.isfinite(value), "a finite number"),
            (self.least is None or value >= self.least, f"{self.least} or more"),
            (self.above is None or value > self.above, f"above {self.above}"),
            (self.most is None or value <= self.most, f"at most {self.most}"),
            (self.below is None or value < self.below, f"below {self.below}"),
        ):
            if not sound:
                raise KdscaleError(f"{where}: {words}, not {value}")


Count = Annotated[int, Bound(least=1, most=LARGEST)]
AtLeast2 = Annotated[int, Bound(least=2, most=LARGEST)]
Natural = Annotated[int, Bound(least=0, most=LARGEST)]
Percent = Annotated[int, Bound(least=0, most=100)]
Seed = Annotated[int, Bound(least=0, most=2**32 - 1)]  # what NumPy's and Optuna's take
Amount = Annotated[float, Bound(least=0)]
Positive = Annotated[float, Bound(above=0)]
Share = Annotated[float, Bound(least=0, most=1)]
ProperShare = Annotated[float, Bound(above=0, below=1)]


def check_number(hint: Any, value: float | None, where: str) -> None:
    """hint: a type such as Count. Raises KdscaleError naming `where`; None is no number."""
    if value is None:
        return
    for bound in hint.__metadata__:
        if isinstance(bound, Bound):
            bound.check(value, where)


def check_options(args: Any, **hints: Any) -> None:
    """The numbers of a command's options.

    args: what has them by their names; hints: by name. Raises KdscaleError naming the option.
    """
    for name, hint in hints.items():
        check_number(hint, getattr(args, name), f"--{name.replace('_', '-')}")
