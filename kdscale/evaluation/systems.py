"""What ranks in an evaluation, and what is told of it: the rows of systems.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kdscale.config import Evaluate
from kdscale.evaluation.latency import Timings, speedup
from kdscale.evaluation.significance import compare_all
from kdscale.experiment.context import DATASET, StepId
from kdscale.experiment.context import ENSEMBLE as JOINED
from kdscale.store import Artifact

BM25, TEACHER, ENSEMBLE = "bm25", "teacher", "ensemble"


@dataclass(frozen=True)
class System:
    """Something that ranks.

    artifact: of bm25 the dataset, with its candidates; of the ensemble the joined scores, with its
    scales. reads: the number of the teacher whose tokenizer it has.
    """

    name: str
    artifact: Artifact
    strategy: str | None = None
    student: str | None = None
    reads: int = 1
    is_teacher: bool = False

    @property
    def is_model(self) -> bool:
        return self.name not in (BM25, ENSEMBLE)


def systems_of(inputs: dict[StepId, Artifact]) -> list[System]:
    """BM25, the teachers, their ensemble (which is made of their runs) and every student among the
    inputs of the stage, in this order."""
    systems = [System(BM25, inputs[DATASET])]
    for id_, artifact in inputs.items():
        if id_.kind == "teacher":
            systems.append(System(str(id_), artifact, reads=id_.teacher, is_teacher=True))
    if JOINED in inputs:
        systems.append(System(ENSEMBLE, inputs[JOINED]))
    for id_, artifact in inputs.items():
        if id_.strategy is not None:
            strategy = id_.strategy.name
            systems.append(System(f"{strategy}/{id_.shape}", artifact, strategy, id_.shape))
    return systems


def system_rows(
    settings: Evaluate,
    systems: list[System],
    values: dict[tuple[str, str], dict[str, np.ndarray]],
    costs: dict[str, dict[str, int]],
    timings: dict[str, Timings],
    circumstances: dict[str, Any],
) -> list[dict[str, Any]]:
    """The entries of systems.json.

    values: (collection, measure) -> system -> [judged queries]; costs and timings: of every system
    that reads texts; circumstances: of the timings.
    """
    tests = {
        (split, measure): compare_all(
            of_systems,
            settings.baseline,
            settings.alpha,
            settings.margin if measure == settings.primary_of(split) else None,
        )
        for (split, measure), of_systems in values.items()
    }
    no_costs = dict.fromkeys(costs[TEACHER])
    rows = []
    for system in systems:
        row: dict[str, Any] = {
            "system": system.name,
            "strategy": system.strategy,
            "student": system.student,
            **costs.get(system.name, no_costs),
            "measures": {name: {} for name, _ in values},
            "tests": {name: {} for name, _ in values},
            "latency": None,
            "speedup": None,
            "speedup_forward": None,
            "artifact": system.artifact.name,
            "digest": system.artifact.digest,
        }
        for (split, measure), of_systems in values.items():
            row["measures"][split][measure] = float(of_systems[system.name].mean())
            if system.name != settings.baseline:
                row["tests"][split][measure] = tests[split, measure][system.name]
        if system.name in timings:
            mine, teacher = timings[system.name], timings[TEACHER]
            shared = {k: circumstances[k] for k in ("candidates", "threads", "queries")}
            row["latency"] = {**shared, **mine.summary()}
            row["speedup"] = speedup(teacher.total_ms, mine.total_ms)
            row["speedup_forward"] = speedup(teacher.forward_ms, mine.forward_ms)
        rows.append(row)
    return rows
