"""The students of a table of trials: all seeds of one setting are one candidate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdscale.config import STRATEGIES, Strategy
from kdscale.errors import KdscaleError, nearest
from kdscale.evaluation.trials import FULL, Group, group_trials

TEACHER = "teacher"
PRIMARY = "nDCG@10"  # the measure where neither the user nor the table names one


@dataclass(frozen=True)
class Shared:
    """Seconds of what a student was made from; None where that is not known.

    lm_s: its language model's distillation; scores_s: the teacher's scoring of the pairs
    """

    lm_s: float | None = None
    scores_s: float | None = None


@dataclass(frozen=True)
class Candidate:
    """One setting. values: [queries], the mean over its seeds; seed_sd: of the seeds' means."""

    strategy: str
    shape: str
    variant: str
    budget: float
    seeds: tuple[int | None, ...]
    artifacts: tuple[str, ...]
    values: np.ndarray
    seed_sd: float | None
    ms: float | None
    speedup: float | None
    parameters: int | None
    bytes: int | None
    train_s: float | None
    shared: Shared

    @property
    def setting(self) -> tuple[str, str, str, float]:
        return self.strategy, self.shape, self.variant, self.budget

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def known(self) -> Strategy | None:
        """None for a strategy of someone else's."""
        return STRATEGIES.get(self.strategy)

    @property
    def uses_lm(self) -> bool:
        return self.known is not None and self.known.from_lm

    @property
    def uses_scores(self) -> bool:
        return self.known is not None and self.known.soft

    @property
    def lm_s(self) -> float | None:
        return self.shared.lm_s if self.uses_lm else 0.0

    @property
    def scores_s(self) -> float | None:
        return self.shared.scores_s if self.uses_scores else 0.0

    def training_s(self, first: bool) -> float | None:
        """Seconds of one training: the first one distils the language model too, later ones start
        from it again. At least: what is not known is left out (`unknown_costs`). None where its
        own training was not timed."""
        if self.train_s is None:
            return None
        return self.train_s + (self.scores_s or 0.0) + (self.lm_s or 0.0 if first else 0.0)

    def unknown_costs(self, first: bool) -> list[str]:
        """What `training_s` had to leave out, in words."""
        unknown = ["the teacher's scoring"] if self.scores_s is None else []
        return unknown + (
            ["its language model's distillation"] if first and self.lm_s is None else []
        )


def measure_of(table: pa.Table, about: Mapping[str, Any], wanted: str | None) -> str:
    """The measure to judge by. Raises KdscaleError for one that the table has not."""
    known = sorted(set(table["measure"].to_pylist()))
    if not known:
        raise KdscaleError(
            "the table of trials has no rows yet; wait until the first trials have ended, or run "
            "kdscale sweep"
        )
    if wanted is None:
        summary = about.get("primary")
        wished = [m for m in (summary, PRIMARY) if isinstance(m, str)]
        return next((m for m in wished if m in known), known[0])
    if wanted not in known:
        raise KdscaleError(f"--measure {wanted}: not in the table{nearest(wanted, known)}")
    return wanted


def teacher_row(table: pa.Table, measure: str) -> dict[str, Any]:
    """Raises KdscaleError where the table has none."""
    rows = [r for r in table.to_pylist() if r["system"] == TEACHER and r["measure"] == measure]
    if not rows or not rows[-1]["values"]:
        raise KdscaleError(
            f"the table has no row of the teacher for {measure}, which --max-drop is tested "
            "against; measure the teacher on the same queries and add it"
        )
    _check_finite(rows[-1])
    return rows[-1]


def _check_finite(row: dict[str, Any]) -> None:
    if not np.isfinite(np.asarray(row["values"], dtype=np.float64)).all():
        raise KdscaleError(
            f"{row['system']}, seed {row['seed']}: a value of {row['measure']} is not a number; "
            "measure it again"
        )


def candidates_of(
    table: pa.Table, measure: str, queries: int, shared: Mapping[str, Shared]
) -> list[Candidate]:
    """shared: by the artifact's name. Raises KdscaleError where there is no student, or where one
    was measured on other queries than the teacher's `queries`."""
    for row in table.to_pylist():
        if row["measure"] != measure or row["strategy"] is None:
            continue
        if len(row["values"] or ()) != queries:
            raise KdscaleError(
                f"{row['system']}, seed {row['seed']}: {len(row['values'] or ())} queries, the "
                f"teacher has {queries}; measure all systems on the same ones"
            )
        _check_finite(row)
    of_measure = table.filter(pc.equal(table["measure"], measure))
    found = [g for g in group_trials(of_measure) if g.strategy is not None]
    if not found:
        raise KdscaleError(
            f"the table has no student with {measure} yet; wait until the first trials have ended"
        )
    return [_candidate(group, measure, shared) for group in found]


def _candidate(group: Group, measure: str, shared: Mapping[str, Shared]) -> Candidate:
    costs = group.costs
    assert group.strategy is not None  # the others were left out
    return Candidate(
        group.strategy,
        str(group.shape),  # a student has one
        group.variant or "default",
        FULL if group.budget is None else group.budget,
        seeds=group.seeds,
        artifacts=group.artifacts,
        values=group.values[measure],
        seed_sd=group.spread(measure),
        ms=costs["ms"],
        speedup=costs["speedup"],
        parameters=_whole(costs["parameters"]),
        bytes=_whole(costs["bytes"]),
        train_s=costs["train_seconds"],
        shared=next((shared[a] for a in group.artifacts if a in shared), Shared()),
    )


def _whole(number: float | None) -> int | None:
    return None if number is None else round(number)


def measured_candidates(about: Mapping[str, Any]) -> int | None:
    """How many candidates a query of the timings had; None where the table does not say."""
    latency = about.get("latency")
    timed = latency.get("candidates") if isinstance(latency, dict) else None
    summary = (about.get("candidates"), timed, about.get("depth"))
    return next((n for n in summary if isinstance(n, int) and n > 0), None)
