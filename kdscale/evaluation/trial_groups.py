"""Trials that differ in their seed alone, as one; and what the paper says of them, tested.

The value of a group for a query is the mean over its seeds, so that a test over queries is of the
recipe and not of one lucky run; the spread over seeds is given beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from kdscale.config import STRATEGIES
from kdscale.evaluation.significance import Comparison, compare, holm, noninferiority

FULL = 1.0  # the budget that is all training queries
# (better, worse): the order that "Understanding BERT Rankers Under Distillation" found.
PAPER = (
    ("lm_distill_ranker_distill", "lm_distill_finetune"),
    ("lm_distill_finetune", "finetune"),
    ("lm_distill_ranker_distill", "ranker_distill"),
)
_SAME = ("system", "strategy", "shape", "variant", "budget")
_COSTS = ("parameters", "bytes", "ms", "speedup", "pairs_seen", "train_seconds")


@dataclass(frozen=True)
class Group:
    """One system, or one recipe with all its seeds.

    values: measure -> [queries], the mean over seeds; by_seed: measure -> [seeds], the mean over
    queries; costs: the median over the seeds of each numeric column, None where it is not known:
    one training beside other work says nothing of the recipe
    """

    system: str
    strategy: str | None
    shape: str | None
    variant: str | None
    budget: float | None
    seeds: tuple[int | None, ...]  # of a student
    artifacts: tuple[str, ...]
    values: dict[str, np.ndarray]
    by_seed: dict[str, np.ndarray]
    costs: dict[str, float | None]

    def mean(self, measure: str) -> float:
        return float(self.values[measure].mean())

    def spread(self, measure: str) -> float | None:
        """The standard deviation over seeds; None of fewer than two."""
        return float(np.std(self.by_seed[measure], ddof=1)) if len(self.seeds) > 1 else None


@dataclass(frozen=True)
class Claim:
    """That one strategy beats another, for one shape and variant at one budget."""

    shape: str
    better: str
    worse: str
    test: Comparison
    p_holm: float | None


def group_trials(table: pa.Table) -> list[Group]:
    """The groups of a table of trials, in the order in which they first stand there. A student
    that stands there twice, by its digest, counts once."""
    found: dict[tuple, dict[str, list[dict[str, Any]]]] = {}
    for row in table.to_pylist():
        of_measure = found.setdefault(tuple(row[c] for c in _SAME), {})
        rows = of_measure.setdefault(row["measure"], [])
        if row["digest"] is None or row["digest"] not in [r["digest"] for r in rows]:
            rows.append(row)
    return [_group(key, of_measure) for key, of_measure in found.items()]


def _group(key: tuple, of_measure: dict[str, list[dict[str, Any]]]) -> Group:
    rows = next(iter(of_measure.values()))
    return Group(
        *key,
        seeds=tuple(r["seed"] for r in rows if r["strategy"] is not None),
        artifacts=tuple(r["artifact"] for r in rows if r["artifact"]),
        values={m: np.mean([r["values"] for r in rs], axis=0) for m, rs in of_measure.items()},
        by_seed={m: np.array([r["mean"] for r in rs]) for m, rs in of_measure.items()},
        costs={name: _median([r[name] for r in rows]) for name in _COSTS},
    )


def _median(values: list[Any]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.median(known)) if known else None


def students(groups: Sequence[Group]) -> list[Group]:
    return [g for g in groups if g.strategy in STRATEGIES]


def against(
    groups: Sequence[Group], baseline: Group, measure: str, margin: float
) -> list[tuple[Comparison, float | None, float | None]]:
    """For each group: its difference from the baseline, the p of that, and the p of the test that
    it loses less than the margin; both corrected (Holm) over the groups."""
    tests = [compare(g.values[measure], baseline.values[measure]) for g in groups]
    kept = [noninferiority(g.values[measure], baseline.values[measure], margin) for g in groups]
    return list(zip(tests, holm([t.p for t in tests]), holm(kept), strict=True))


def claims_of_paper(groups: Sequence[Group], measure: str, budget: float = FULL) -> list[Claim]:
    """The paper's order, shape by shape at one budget; Holm's correction over all of it."""
    found = {
        (g.shape, g.strategy): g
        for g in students(groups)
        if g.budget == budget and g.variant in (None, "default")
    }
    pairs = [
        (shape, better, worse)
        for shape in dict.fromkeys(shape for shape, _ in found)
        for better, worse in PAPER
        if (shape, better) in found and (shape, worse) in found
    ]
    tests = [
        compare(found[shape, better].values[measure], found[shape, worse].values[measure])
        for shape, better, worse in pairs
    ]
    corrected = holm([t.p for t in tests])
    return [Claim(*pair, *rest) for pair, *rest in zip(pairs, tests, corrected, strict=True)]
