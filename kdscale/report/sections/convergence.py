"""How the students converge: what their training saw on dev and training queries."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from kdscale.errors import KdscaleError
from kdscale.experiment.context import StepId
from kdscale.report import figures
from kdscale.report.evidence import FIRST_STAGE, TEACHER, Evidence

LOG = "watch.jsonl"
DEV = "dev"
COLUMNS = ("step", "queries_seen", "elapsed_s", "dev", "train")


@dataclass(frozen=True)
class Watched:
    """The looks of one training run at its ranker, in order; all arrays [looks] float64."""

    strategy: str
    shape: str
    measure: str
    step: np.ndarray
    queries_seen: np.ndarray
    elapsed_s: np.ndarray
    dev: np.ndarray
    train: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.strategy}/{self.shape}"


def read_watched(run: StepId, directory: Path) -> list[Watched]:
    """The run of a student by measure: more than one where it was changed while a run was
    stopped. Raises KdscaleError for a line that is no look."""
    path = directory / LOG
    if not path.is_file():
        return []
    looks: dict[str, list[list[float]]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            looks.setdefault(str(row["measure"]), []).append([float(row[c]) for c in COLUMNS])
        except (ValueError, KeyError, TypeError):
            raise KdscaleError(
                f"{path}, line {number}: not what a watched run logs; remove {directory} and run "
                "again"
            ) from None
    assert run.strategy is not None and run.shape is not None  # as of every student
    return [
        Watched(run.strategy.name, run.shape, m, *np.array(rows).T) for m, rows in looks.items()
    ]


def convergence(evidence: Evidence) -> list[dict[str, Any]]:
    """A group of panels a measure: dev against queries and against seconds, and the gap of train
    and dev. Empty where no run was watched."""
    groups: dict[str, list[Watched]] = {}
    for id_, artifact in evidence.inputs.items():
        if id_.kind == "student":
            for run in read_watched(id_, artifact.path):
                groups.setdefault(run.measure, []).append(run)
    shapes = [shape.name for shape in evidence.settings.students]
    return [
        {
            "measure": measure,
            "levels": _levels(evidence, measure),
            "panels": _panels(measure, runs, shapes, _levels(evidence, measure)),
        }
        for measure, runs in groups.items()
    ]


def _levels(evidence: Evidence, measure: str) -> dict[str, float]:
    """What the systems that do not train here reach on dev, where the evaluation has it."""
    found = {name: evidence.system(name) for name in (FIRST_STAGE, TEACHER)}
    return {
        name: system["measures"][DEV][measure]
        for name, system in found.items()
        if system and measure in system["measures"].get(DEV, {})
    }


def _panels(
    measure: str, runs: list[Watched], shapes: list[str], levels: dict[str, float]
) -> list[dict[str, Any]]:
    on_dev = f"{measure} on dev"

    def panel(title: str, x: Callable[[Watched], np.ndarray], gap: bool, words: str) -> dict:
        lines = [
            figures.Line(
                x(run),
                run.train - run.dev if gap else run.dev,
                run.strategy,
                shapes.index(run.shape) % figures.SHAPES,
            )
            for run in runs
        ]
        slug = figures.slug(f"convergence-{title}")
        said = "; ".join(
            f"{run.name} from {line.y[0]:.3f} to {line.y[-1]:.3f}"
            for run, line in zip(runs, lines, strict=True)
        )
        return {
            "title": title,
            "svg": Markup(
                figures.progress_panel(
                    lines, slug, words, f"Δ {measure}" if gap else on_dev, {} if gap else levels
                )
            ),
            "label": f"{title}: {said}.",
            "lines": [
                {
                    "name": run.name,
                    "color": line.color,
                    "dash": figures.SVG_DASHES[line.dash],
                    "last": line.y[-1],
                }
                for run, line in zip(runs, lines, strict=True)
            ],
        }

    return [
        panel(f"{on_dev}, by training queries", lambda r: r.queries_seen, False, "queries seen"),
        panel(f"{on_dev}, by training time", lambda r: r.elapsed_s, False, "seconds of training"),
        panel(f"{measure} on train minus dev", lambda r: r.step, True, "step"),
    ]
