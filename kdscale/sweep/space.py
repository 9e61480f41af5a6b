"""A search space: its axes as a sweep file writes them, and the trials that are drawn from it.

An axis is `strategy`, `shape`, `budget` or `seed`, whose values make up the cells of a sweep, or
the dotted path of a setting below `lm` or `ranker`, which varies within a cell:

    ranker.train.lr: {loguniform: [1e-4, 1e-3]}
    ranker.temperature: {grid: [1, 2], when: {strategy: [ranker_distill]}}
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from kdscale.config import STRATEGIES
from kdscale.errors import KdscaleError, nearest

SECTION = "sweep"  # of a sweep file
CELL_AXES = ("strategy", "shape", "budget", "seed")
LISTED, RANGES = ("grid", "choice"), ("uniform", "loguniform")
SETTINGS = ("lm", "ranker")  # of the students alone: the data and the teacher are one for all
LARGEST = 10_000  # trials of a sweep: far more than anybody looks at, few enough to be listed
MOST_VALUES = 1_000  # of an axis
# Settings that an axis of their own sets.
TAKEN = {
    "ranker.strategies": "strategy",
    "ranker.max_queries": "budget",
    "ranker.seed": "seed",
}


@dataclass(frozen=True)
class Axis:
    """values: those listed, or the two ends of a range; when: the strategies that have the axis,
    None for all."""

    key: str
    kind: str
    values: tuple[Any, ...]
    when: tuple[str, ...] | None = None

    @property
    def sampled(self) -> bool:
        return self.kind != "grid"

    def applies(self, strategy: str) -> bool:
        return self.when is None or strategy in self.when

    def sample(self, rng: np.random.Generator) -> Any:
        """A value; of a range to four digits, which is all that a table should have to show."""
        if self.kind == "choice":
            return self.values[int(rng.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "uniform":
            return float(f"{rng.uniform(low, high):.4g}")
        return float(f"{math.exp(rng.uniform(math.log(low), math.log(high))):.4g}")


@dataclass(frozen=True)
class Trial:
    """One student to be trained.

    budget: a share of the training queries (a float, at most 1) or their number. settings: dotted
    path -> value; of a sampled one None until it is chosen, where a trial's results choose the
    next one's.
    """

    id: str
    strategy: str
    shape: str
    budget: float | int
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def system(self) -> str:
        return f"{self.strategy}/{self.shape}"

    @property
    def cell(self) -> tuple[str, str, float | int, int]:
        return self.strategy, self.shape, self.budget, self.seed

    @property
    def is_open(self) -> bool:
        """Whether a setting is still to be chosen."""
        return None in self.settings.values()

    @property
    def variant(self) -> str:
        """What else was set, in words."""
        words = (f"{key}={_words(value)}" for key, value in self.settings.items())
        return ", ".join(words) or "default"

    @property
    def data(self) -> str:
        """The budget in words."""
        return f"{self.budget:.4g}" if isinstance(self.budget, int) else f"{self.budget:.2%}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def parse_space(space: Any, where: str = f"{SECTION}.space") -> list[Axis]:
    """The axes, in the order of the file. Raises KdscaleError naming the axis."""
    if not isinstance(space, dict) or not space:
        raise KdscaleError(
            f"{where} is empty: there is nothing to try; give an axis, such as "
            "strategy: {grid: [finetune, ranker_distill]} or ranker.train.lr: {grid: [3e-4, 1e-3]}"
        )
    return [_axis(str(key), value, f"{where}.{key}") for key, value in space.items()]


def _axis(key: str, given: Any, where: str) -> Axis:
    kinds = (*LISTED, *RANGES)
    if not isinstance(given, dict):
        raise KdscaleError(f"{where}: write it as {{grid: [...]}}; there are: {', '.join(kinds)}")
    for name in given:
        if name not in (*kinds, "when"):
            raise KdscaleError(f"unknown key {where}.{name}{nearest(str(name), (*kinds, 'when'))}")
    chosen = [kind for kind in kinds if kind in given]
    if len(chosen) != 1:
        raise KdscaleError(f"{where}: one of {', '.join(kinds)}, not {len(chosen)} of them")
    (kind,) = chosen
    _check_key(key, kind, where)
    values = given[kind]
    if not isinstance(values, list) or not values:
        raise KdscaleError(f"{where}.{kind}: a list of at least one value")
    if len(values) > MOST_VALUES:
        raise KdscaleError(f"{where}.{kind}: {len(values):,} values, at most {MOST_VALUES:,}")
    if kind in RANGES:
        values = _range(values, kind, f"{where}.{kind}")
    for i, value in enumerate(values):
        if value in values[:i]:
            raise KdscaleError(f"{where}.{kind}: {_words(value)} stands there twice")
    return Axis(key, kind, tuple(values), _when(key, given.get("when"), f"{where}.when"))


def _check_key(key: str, kind: str, where: str) -> None:
    if key in CELL_AXES:
        if kind != "grid":
            raise KdscaleError(
                f"{where}: list its values with grid; {kind} is for settings of a training"
            )
        return
    if key in TAKEN:
        raise KdscaleError(f"{where}: the axis {TAKEN[key]} sets this; use it")
    group, dot, _ = key.partition(".")
    if not dot or group not in SETTINGS:
        known = nearest(key, CELL_AXES) if not dot else ""
        raise KdscaleError(
            f"{where}: no axis; an axis is {', '.join(CELL_AXES)}, or a setting below lm or ranker "
            f"(data and teacher are one for all trials){known}"
        )


def _range(values: list[Any], kind: str, where: str) -> list[float]:
    try:
        low, high = (float(v) for v in values)
        sound = low < high and math.isfinite(low) and math.isfinite(high)
    except (TypeError, ValueError):
        sound = False
    if not sound or (kind == "loguniform" and low <= 0):
        above = ", both above 0" if kind == "loguniform" else ""
        raise KdscaleError(f"{where}: two numbers, the lower one first{above}")
    return [low, high]


def _when(key: str, given: Any, where: str) -> tuple[str, ...] | None:
    if given is None:
        return None
    if key in ("strategy", "shape"):
        raise KdscaleError(f"{where}: every trial has a {key}; remove the condition")
    if not isinstance(given, dict) or list(given) != ["strategy"]:
        raise KdscaleError(f"{where}: write it as {{strategy: [...]}}, the one condition there is")
    wanted = given["strategy"]
    if not isinstance(wanted, list) or not wanted:
        raise KdscaleError(f"{where}.strategy: a list of strategies")
    for strategy in wanted:
        if strategy not in STRATEGIES:
            raise KdscaleError(
                f"{where}.strategy: no strategy {strategy!r}{nearest(str(strategy), STRATEGIES)}"
            )
    return tuple(wanted)


def draw_trials(
    axes: list[Axis], defaults: dict[str, list[Any]], samples: int, seed: int, ask: bool
) -> list[Trial]:
    """Every trial of a space; the same ones, under the same names, whenever it is asked.

    defaults: axis of a cell -> the values that it has where the space does not name it, or not
    for a strategy. samples: so many draws of the sampled settings a cell; all cells have their
    first one before any has a second. ask: leave the sampled ones open. Raises KdscaleError for
    more than can be listed.
    """
    by_key = {axis.key: axis for axis in axes}
    combinations = list(itertools.islice(_combinations(by_key, defaults), LARGEST + 1))
    if sum(samples if sampled else 1 for _, sampled in combinations) > LARGEST:
        raise KdscaleError(
            f"{SECTION}.space: more than {LARGEST:,} trials; give the axes fewer values, or draw "
            "from them (sweep.search.type random)"
        )
    trials: list[Trial] = []
    seen: set[str] = set()
    for number in range(samples):
        for place, (values, sampled) in enumerate(combinations):
            if number and not sampled:
                continue
            rng = np.random.default_rng((seed, place, number))
            chosen = {axis.key: None if ask else axis.sample(rng) for axis in sampled}
            cell = {key: values[key] for key in CELL_AXES}
            listed = {key: value for key, value in values.items() if key not in cell}
            trial = Trial("", **cell, settings={**listed, **chosen})
            if ask or repr(trial) not in seen:  # two draws of a short list can be one
                trials.append(trial)
            seen.add(repr(trial))
    return [replace(trial, id=f"{n:04d}") for n, trial in enumerate(trials, 1)]


def _combinations(
    by_key: dict[str, Axis], defaults: dict[str, list[Any]]
) -> Iterable[tuple[dict[str, Any], list[Axis]]]:
    """(the listed values, the axes to be sampled) of every cell and setting that is listed."""
    strategies = by_key["strategy"].values if "strategy" in by_key else defaults["strategy"]
    listed = [axis for axis in by_key.values() if not axis.sampled and axis.key != "strategy"]
    for strategy in strategies:
        here = {axis.key: axis.values for axis in listed if axis.applies(strategy)}
        for key in CELL_AXES[1:]:
            here.setdefault(key, tuple(defaults[key]))
        sampled = [a for a in by_key.values() if a.sampled and a.applies(strategy)]
        for combination in itertools.product(*here.values()):
            yield {"strategy": strategy, **dict(zip(here, combination, strict=True))}, sampled


def put_setting(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted path. Raises KdscaleError where a part of it is no group."""
    *parents, last = key.split(".")
    node = data
    for part in parents:
        if part not in node:
            raise KdscaleError(f"unknown key {part}{nearest(part, node)}")
        node = node[part]
        if not isinstance(node, dict):
            raise KdscaleError(f"{part} is a setting, not a group of them")
    node[last] = value


def _words(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_words(v)}" for k, v in value.items()) + "}"
    return "?" if value is None else str(value)
