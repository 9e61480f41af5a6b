"""What the page is made from: the artifacts of an experiment, read once into plain values; and what
of the data bears on the figures: what was cut off, queries or passages that occur twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdscale.config import STRATEGIES, Evaluate
from kdscale.data.queries import TRAIN
from kdscale.data.schema import METRICS
from kdscale.data.shards import read_where
from kdscale.data.splits import describe as describe_leaks
from kdscale.data.tokenise import describe as describe_cuts
from kdscale.errors import KdscaleError
from kdscale.evaluation.significance import EQUAL
from kdscale.experiment.context import DATASET, EVALUATION, TOKENS, StepId
from kdscale.experiment.settings import ReportSettings
from kdscale.store import Artifact


def cautions(evidence: Evidence) -> list[str]:
    """Sentences for below the table of results; none where there is nothing to say."""
    return [f"{said}." for said in (*_cuts(evidence), *_leaks(evidence), *_unjudged(evidence))]


def _cuts(evidence: Evidence) -> list[str]:
    tokens = evidence.inputs[TOKENS].facts
    pairs = tokens.get("pairs", {})
    shown = [split for split in (*evidence.settings.evaluate.splits, TRAIN) if split in pairs]
    said = [describe_cuts(split, pairs[split], tokens["max_length"]) for split in shown]
    return [sentence for sentence in said if sentence]


def _leaks(evidence: Evidence) -> list[str]:
    train = evidence.inputs[DATASET].facts.get("queries", {}).get(TRAIN, {})
    of_transfers = evidence.inputs[EVALUATION].facts.get("leaked", {})
    own = {} if train.get("dropped_as_leaked") else train.get("leaked", {})
    leaks = {
        split: count
        for split, count in (*own.items(), *of_transfers.items())
        if split in evidence.settings.evaluate.splits or split in of_transfers
    }
    if not leaks:
        return []
    said = describe_leaks(leaks)
    return [f"{said[0].upper()}{said[1:]}; figures there look better than they are"]


def _unjudged(evidence: Evidence) -> list[str]:
    equal = evidence.inputs[DATASET].facts.get("candidates_equal", {})
    return [
        f"Candidates of {split} with the text of a relevant passage, but without a judgment: "
        f"{equal[split]['unjudged']}. They count as not relevant"
        for split in evidence.settings.evaluate.splits
        if equal.get(split, {}).get("unjudged")
    ]


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

    run: StepId
    term: str
    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Evidence:
    """Everything the page shows but the passages."""

    settings: ReportSettings
    inputs: dict[StepId, Artifact]
    systems: list[dict[str, Any]]  # the rows of systems.json in page order
    paired: dict[str, dict[str, Paired]]  # split -> system -> differences in the primary measure
    curves: list[Curve]

    @property
    def split(self) -> str:
        """The split that the answer and the plots are about."""
        return self.settings.evaluate.splits[0]

    @property
    def primary(self) -> str:
        """The primary measure of that split."""
        return self.settings.evaluate.primary_of(self.split)

    @property
    def students(self) -> list[dict[str, Any]]:
        return [s for s in self.systems if s["strategy"] in STRATEGIES]

    def system(self, name: str) -> dict[str, Any] | None:
        return next((s for s in self.systems if s["system"] == name), None)

    def row(self, name: str) -> dict[str, Any]:
        """Of a system that must be there. Raises KdscaleError where it is not."""
        found = self.system(name)
        if found is None:
            raise KdscaleError(f"the evaluation has no system {name!r}; evaluate again")
        return found

    def test(self, system: dict[str, Any], split: str | None = None) -> dict[str, Any] | None:
        """The system's test against the baseline; None for the baseline itself."""
        split = split or self.split
        return test_of(system, split, self.settings.evaluate.primary_of(split))

    def value(self, system: dict[str, Any]) -> float:
        """The primary measure on the split of the plots."""
        return system["measures"][self.split][self.primary]


def collect(settings: ReportSettings, inputs: dict[StepId, Artifact]) -> Evidence:
    """Read the evaluation and every training log. Raises KdscaleError where one is not usable."""
    evaluation = inputs[EVALUATION].path
    systems = json.loads((evaluation / "systems.json").read_text(encoding="utf-8"))
    return Evidence(
        settings=settings,
        inputs=inputs,
        systems=page_order(systems),
        paired=_read_paired(evaluation / "metrics.parquet", settings.evaluate),
        curves=[c for role, a in inputs.items() for c in _read_curves(role, a.path)],
    )


def page_order(systems: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """BM25, the teacher, then shape by shape from large to small, strategies from plain to full."""

    def key(system: dict[str, Any]) -> tuple[int, int, str, int]:
        if system["strategy"] not in STRATEGIES:
            return (0 if system["system"] == FIRST_STAGE else 1, 0, "", 0)
        place = list(STRATEGIES).index(system["strategy"])
        return (2, -system["parameters"], system["student"], place)

    return sorted(systems, key=key)


def test_of(system: dict[str, Any], split: str, measure: str) -> dict[str, Any] | None:
    return system.get("tests", {}).get(split, {}).get(measure)


def baseline_of(evaluate: Evaluate) -> str:
    """The system that the others are compared with, as a word of a sentence."""
    name = evaluate.baseline
    return {TEACHER: "the teacher", FIRST_STAGE: "BM25"}.get(name, name)


def _read_paired(path: Path, evaluate: Evaluate) -> dict[str, dict[str, Paired]]:
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


def _read_curves(run: StepId, directory: Path) -> list[Curve]:
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
        Curve(run, name, np.array([s for s, _ in points]), np.array([v for _, v in points]))
        for name, points in terms.items()
    ]
