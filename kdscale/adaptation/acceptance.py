"""Whether an updated student is taken: better on the new queries, and not worse on the old."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdscale.data.dataset import Dataset, Tokens
from kdscale.errors import KdscaleError
from kdscale.evaluation.collection import Collection, count_pairs, score_queries, scoring_device
from kdscale.evaluation.measures import parse_measures
from kdscale.evaluation.significance import Comparison, compare, noninferiority
from kdscale.models.ranker import Scorer, load_ranker
from kdscale.progress import Reporter

NEW, OLD = "new", "old"  # the splits that decide


class KeptError(Exception):
    """The update is not taken; the student stays as it was."""

    def __init__(self, verdict: Verdict):
        super().__init__(verdict.text())
        self.verdict = verdict


@dataclass(frozen=True)
class Verdict:
    """new, old: the update against the student as it was, on queries that neither has seen in
    training; before, after: means by split; worse_p: one-sided, of "the old queries lose the margin
    or more". Both conditions must hold, so that neither test needs a correction."""

    measure: str
    margin: float
    alpha: float
    before: dict[str, float]
    after: dict[str, float]
    new: Comparison
    old: Comparison
    worse_p: float | None

    @property
    def improves(self) -> bool:
        return self.new.delta > 0 and self.new.p is not None and self.new.p < self.alpha

    @property
    def holds(self) -> bool:
        return self.worse_p is not None and self.worse_p < self.alpha

    @property
    def accepted(self) -> bool:
        return self.improves and self.holds

    def lines(self) -> list[str]:
        """What was found on the new and on the old queries."""
        improved = "improve" if self.improves else "are not shown to improve"
        held = "lose less than" if self.holds else "are not shown to lose less than"
        return [
            f"new queries {improved}: {self._change(NEW, self.new)}, p {_p(self.new.p)}",
            f"old queries {held} {self.margin:g}: {self._change(OLD, self.old)}, p "
            f"{_p(self.worse_p)} (one-sided)",
        ]

    def _change(self, split: str, test: Comparison) -> str:
        interval = "" if test.ci is None else f" (95 % {test.ci[0]:+.3f} to {test.ci[1]:+.3f})"
        return (
            f"{self.measure} {self.before[split]:.3f} to {self.after[split]:.3f}, "
            f"{test.delta:+.3f}{interval} over {test.n}"
        )

    def text(self) -> str:
        return "; ".join(self.lines())

    def facts(self) -> dict[str, Any]:
        return {**asdict(self), "accepted": self.accepted, "lines": self.lines()}


def _p(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2g}"


def decide(
    before: dict[str, np.ndarray],
    after: dict[str, np.ndarray],
    measure: str,
    margin: float,
    alpha: float,
) -> Verdict:
    """before, after: [queries] of NEW and of OLD."""
    return Verdict(
        measure,
        margin,
        alpha,
        {split: float(values.mean()) for split, values in before.items()},
        {split: float(values.mean()) for split, values in after.items()},
        compare(after[NEW], before[NEW]),
        compare(after[OLD], before[OLD]),
        noninferiority(after[OLD], before[OLD], margin),
    )


def measure_ranker(
    path: Path, dataset: Dataset, tokens: Tokens, measure: str, depth: int, reporter: Reporter
) -> dict[str, np.ndarray]:
    """Of the ranker in a directory: [queries] of NEW and of OLD."""
    measures = parse_measures([measure])
    scorer = Scorer(load_ranker(path), tokens.encoder(), device=scoring_device())
    values = {}
    for split in (NEW, OLD):
        collection = Collection(dataset, tokens, split, depth)
        with reporter.task(f"ranking {split} queries", collection.pairs) as task:
            scored = count_pairs(score_queries(scorer, collection.token_pairs()), task)
            values[split] = collection.values(measures, scored)[measure]
        if not np.isfinite(values[split]).all():
            raise KdscaleError(f"{path}: {measure} of a query is not a number")
    return values
