"""The table of trials: what many trained systems are worth, in one Parquet file.

A row is a system and a measure, with the value of every query, so that two systems can be tested
against each other whenever they were trained. `kdscale sweep` and `benchmarks/strategies.py` write
it; the page, `kdscale advise` and notebooks read it.

Trials that differ only in their seed form a group. The value of a group for a query is the mean
over its seeds, so a test over queries is about the recipe and not about one lucky run. The spread
over seeds is given beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import kdscale
from kdscale.cluster.machine import cpus
from kdscale.config import STRATEGIES
from kdscale.data.shards import read_table
from kdscale.errors import KdscaleError
from kdscale.evaluation.significance import Comparison, compare, holm, noninferiority

PACKAGES = ("torch", "transformers", "ray", "deepspeed", "numpy")
ABOUT = b"about"  # the key of the schema's metadata under which the circumstances are JSON

TRIALS = pa.schema(
    [
        ("system", pa.string()),  # "bm25", "teacher", "STRATEGY/SHAPE"
        ("strategy", pa.string()),  # null, with all that describes a student, for the others
        ("shape", pa.string()),
        ("variant", pa.string()),  # what else was set, in words; "default" for nothing
        ("budget", pa.float64()),  # share of the training queries
        ("seed", pa.int64()),
        ("pairs_seen", pa.int64()),  # in training, repetitions included
        ("train_seconds", pa.float64()),  # of its own training, without what is shared
        ("parameters", pa.int64()),
        ("bytes", pa.int64()),  # of its weights file
        ("ms", pa.float64()),  # median of a query's candidates, tokenising included
        ("speedup", pa.float64()),  # over the teacher, same machine, threads and candidates
        ("artifact", pa.string()),  # KIND/KEY in the store
        ("digest", pa.string()),
        ("measure", pa.string()),  # an ir-measures name
        ("mean", pa.float64()),  # over the queries
        ("values", pa.list_(pa.float32())),  # [queries], in one order for all rows
    ]
)


def trial_rows(values: dict[str, np.ndarray], **fields: Any) -> pa.Table:
    """The rows of one system. values: measure -> [queries]; fields: any other columns by name."""
    count = len(values)
    columns = {name: [fields.pop(name, None)] * count for name in TRIALS.names[:-3]}
    if fields:
        raise TypeError(f"the table of trials has no column {', '.join(fields)}")
    columns |= {
        "measure": list(values),
        "mean": [float(v.mean()) for v in values.values()],
        "values": [v.astype(np.float32).tolist() for v in values.values()],
    }
    return pa.table(columns, schema=TRIALS)


def write_trials(path: Path, tables: list[pa.Table], **about: Any) -> None:
    """One Parquet file, replaced as a whole; `about` says how it was made."""
    circumstances = {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "cpus": cpus(),
        "versions": {"kdscale": kdscale.__version__, **_versions()},
        **about,
    }
    whole = pa.concat_tables([TRIALS.empty_table(), *tables])
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(
        whole.replace_schema_metadata({ABOUT: json.dumps(circumstances)}), part, compression="zstd"
    )
    part.replace(path)


def _versions() -> dict[str, str]:
    """Of those of PACKAGES that there are: plain torch needs neither Ray nor DeepSpeed."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def read_trials(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """The rows and what is told of them. Raises KdscaleError for a file that is no such table."""
    if not path.is_file():
        raise KdscaleError(f"no file {path}; give a Parquet file of trials")
    table = read_table(path, TRIALS)
    try:
        about = json.loads((table.schema.metadata or {})[ABOUT])
    except (KeyError, ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise KdscaleError(f"{path} is no table of trials: it does not say how it was made")
    return table, about


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

    shape: str | None
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
    system, strategy, shape, variant, budget = key  # as _SAME names them
    return Group(
        system,
        strategy,
        shape,
        variant,
        budget,
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
    return [
        Claim(shape, better, worse, test, p)
        for (shape, better, worse), test, p in zip(pairs, tests, corrected, strict=True)
    ]
