"""What the page is made from: the artifacts of an experiment, read once into plain values."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdscale.config import STRATEGIES, Config
from kdscale.data.schema import METRICS
from kdscale.data.shards import read_where
from kdscale.errors import KdscaleError
from kdscale.evaluation.significance import EQUAL
from kdscale.store import Artifact

FIRST_STAGE = "bm25"
TEACHER = "teacher"


@dataclass(frozen=True)
class Paired:
    """A system's per-query differences from the baseline in the split's primary measure.

    delta: float64 [queries], system minus baseline, in the order of qids
    """

    qids: list[str]
    delta: np.ndarray


@dataclass(frozen=True)
class Curve:
    """One loss term of one training run, as logged: unweighted means over a step's batch."""

    run: str  # the role of the artifact: "teacher", "lm:SHAPE", "student:STRATEGY:SHAPE"
    term: str
    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Evidence:
    """Everything the page shows but the passages."""

    config: Config
    inputs: dict[str, Artifact]
    systems: list[dict[str, Any]]  # the rows of systems.json in page order
    paired: dict[str, dict[str, Paired]]  # split -> system -> differences in the primary measure
    curves: list[Curve]

    @property
    def split(self) -> str:
        """The split that the answer and the plots are about."""
        return self.config.evaluate.splits[0]

    @property
    def primary(self) -> str:
        """The primary measure of that split."""
        return self.config.evaluate.primary_of(self.split)

    @property
    def students(self) -> list[dict[str, Any]]:
        return [s for s in self.systems if s["strategy"] in STRATEGIES]

    def system(self, name: str) -> dict[str, Any] | None:
        return next((s for s in self.systems if s["system"] == name), None)

    def test(self, system: dict[str, Any], split: str | None = None) -> dict[str, Any] | None:
        """The system's test against the baseline; None for the baseline itself."""
        split = split or self.split
        return test_of(system, split, self.config.evaluate.primary_of(split))

    def value(self, system: dict[str, Any]) -> float:
        """The primary measure on the split of the plots."""
        return system["measures"][self.split][self.primary]


def collect(config: Config, inputs: dict[str, Artifact]) -> Evidence:
    """Read the evaluation and every training log. Raises KdscaleError where one is not usable."""
    evaluation = inputs["evaluation"].path
    systems = json.loads((evaluation / "systems.json").read_text(encoding="utf-8"))
    return Evidence(
        config=config,
        inputs=inputs,
        systems=page_order(systems),
        paired=_read_paired(evaluation / "metrics.parquet", config),
        curves=[c for role, a in inputs.items() for c in _read_curves(role, a.path)],
    )


def page_order(systems: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """BM25, the teacher, then shape by shape from large to small, strategies from plain to full."""

    def key(system: dict[str, Any]) -> tuple[int, int, str, int]:
        if system["strategy"] not in STRATEGIES:
            return (0 if system["system"] == FIRST_STAGE else 1, 0, "", 0)
        place = STRATEGIES.index(system["strategy"])
        return (2, -system["parameters"], system["student"], place)

    return sorted(systems, key=key)


def test_of(system: dict[str, Any], split: str, measure: str) -> dict[str, Any] | None:
    return system.get("tests", {}).get(split, {}).get(measure)


def baseline_of(config: Config) -> str:
    """The system that the others are compared with, as a word of a sentence."""
    name = config.evaluate.baseline
    return {TEACHER: "the teacher", FIRST_STAGE: "BM25"}.get(name, name)


def _read_paired(path: Path, config: Config) -> dict[str, dict[str, Paired]]:
    evaluate = config.evaluate
    primary = evaluate.primary
    names = sorted(set(primary.values())) if isinstance(primary, dict) else [primary]
    values: dict[str, dict[str, dict[str, float]]] = {}
    for split, system, qid, measure, value in _rows(read_where(path, METRICS, "measure", names)):
        if measure == evaluate.primary_of(split):
            values.setdefault(split, {}).setdefault(system, {})[qid] = value
    paired = {}
    for split, systems in values.items():
        base = systems.get(evaluate.baseline)
        if base is None:
            raise KdscaleError(
                f"evaluate.baseline: the evaluation has no system {evaluate.baseline!r} in "
                f"{split} (it has {', '.join(sorted(systems))}); name one of these"
            )
        paired[split] = {
            name: _compare(own, base) for name, own in systems.items() if name != evaluate.baseline
        }
    if evaluate.splits[0] not in paired:
        raise KdscaleError(
            f"the evaluation has no {evaluate.primary_of(evaluate.splits[0])} for the split "
            f"{evaluate.splits[0]!r}; "
            "put evaluate.primary into evaluate.measures and run again"
        )
    return paired


def _rows(table: Any) -> Iterator[tuple[str, str, str, str, float]]:
    columns = [table[c].to_pylist() for c in ("split", "system", "qid", "measure", "value")]
    return zip(*columns, strict=True)


def _compare(own: dict[str, float], base: dict[str, float]) -> Paired:
    qids = sorted(own.keys() & base.keys())
    delta = np.array([own[q] - base[q] for q in qids])
    delta[np.abs(delta) < EQUAL] = 0.0
    return Paired(qids, delta)


def _read_curves(role: str, directory: Path) -> list[Curve]:
    path = directory / "metrics.jsonl"
    if not path.is_file():
        return []
    terms: dict[str, list[tuple[int, float]]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            for name, value in row["terms"].items():
                if math.isfinite(value):
                    terms.setdefault(name, []).append((int(row["step"]), float(value)))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise KdscaleError(
                f"{path}, line {number}: not a row of training metrics; remove {directory} "
                "and run again"
            ) from None
    return [
        Curve(role, name, np.array([s for s, _ in points]), np.array([v for _, v in points]))
        for name, points in terms.items()
    ]
