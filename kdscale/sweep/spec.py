"""A sweep file: an experiment's config, or the name of one, and what is to vary in it; and what
such a file may not say, each mistake one line that names its place.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from kdscale.bounds import Bound, Count, Positive, ProperShare, Seed
from kdscale.config import STRATEGIES, Config
from kdscale.data.queries import DEV
from kdscale.errors import KdscaleError, nearest
from kdscale.experiment.load import build, check_config, coerce, make_config, read_settings, to_dict
from kdscale.paths import user_path
from kdscale.sweep.space import (
    CELL_AXES,
    SECTION,
    Axis,
    Trial,
    draw_trials,
    parse_space,
    put_setting,
)


@dataclass
class Search:
    """How the space is searched."""

    type: Literal["grid", "random", "optuna"] = "grid"
    # "grid": every listed value. "random": values are drawn. "optuna": values are chosen by the
    # results of earlier trials.
    metric: str | None = None
    # The measure that is optimised on dev, an ir-measures name. null: evaluate.primary of dev.
    samples: Count = 1
    # Number of draws in each cell, of the settings that are not listed by grid.
    scheduler: Literal["none", "asha"] = "none"
    # "asha" stops the weaker trials of a cell early.
    grace: ProperShare = 0.25  # For asha: the share of its training that every trial gets.
    factor: Annotated[float, Bound(above=1)] = 3.0
    # For asha: of this number of trials in a cell one continues.
    concurrent: Count | None = None
    # Trials at the same time, at most. null: as many as fit the cluster.


@dataclass
class Limits:
    """What a sweep may use, over all its resumptions; null: all that it needs."""

    trials: Count | None = None  # Start no further trial after this number. null: no limit.
    hours: Positive | None = None
    # Start no trial that is expected to end after this number of hours. null: no limit.
    gpu_hours: Positive | None = None
    # Start no trial that is expected to end after this number of GPU hours. null: no limit.


@dataclass
class Wandb:
    """Weights & Biases, by Ray Tune's own callback."""

    project: str = ""  # Required: the name of a Weights & Biases project.


@dataclass
class Section:
    """The section `sweep` without its space."""

    search: Search
    limits: Limits
    seed: Seed = 0  # Seed of the values that are drawn.
    wandb: Wandb | None = None


@dataclass
class Sweep:
    """A checked sweep file.

    base: the experiment, with all shapes and strategies of the space; space: as the file has it,
    with the shapes written out.
    """

    base: Config
    section: Section
    space: dict[str, Any]

    @property
    def search(self) -> Search:
        return self.section.search

    @property
    def metric(self) -> str:
        asked = self.search.metric
        return self.base.evaluate.primary_of(DEV) if asked is None else asked

    @cached_property
    def axes(self) -> list[Axis]:
        return parse_space(self.space)

    @cached_property
    def trials(self) -> list[Trial]:
        """All of the space, whatever the limits. Raises KdscaleError where it is too large."""
        shapes = [shape.name for shape in self.base.students]
        ranker = self.base.ranker
        defaults: dict[str, list[Any]] = {
            "strategy": ranker.strategies,
            "shape": shapes,
            "budget": [1.0 if ranker.max_queries is None else ranker.max_queries],
            "seed": [self.base.seed if ranker.seed is None else ranker.seed],
        }
        axes = [replace(a, values=tuple(shapes)) if a.key == "shape" else a for a in self.axes]
        asks = self.search.type == "optuna"
        return draw_trials(axes, defaults, self.search.samples, self.section.seed, asks)

    def config(self, trial: Trial, train_queries: int | None) -> Config:
        """The experiment of one trial. train_queries: None where it is not known yet and does not
        matter. Raises KdscaleError for a setting that cannot be, or a budget without queries."""
        data = to_dict(self.base)
        for key, value in trial.settings.items():
            if value is not None:
                put_setting(data, key, value)
        config = build(Config, data, "")
        ranker = replace(
            config.ranker,
            strategies=[trial.strategy],
            max_queries=queries_of(trial.budget, train_queries),
            seed=trial.seed,
        )
        shapes = [shape for shape in config.students if shape.name == trial.shape]
        config = replace(config, students=shapes, ranker=ranker)
        check_config(config)
        return config

    def identity(self) -> dict[str, Any]:
        """What makes it this sweep and no other: not where it runs."""
        base = {k: v for k, v in to_dict(self.base).items() if k not in ("storage", "cluster")}
        section = {k: v for k, v in to_dict(self.section).items() if k != "wandb"}
        del section["search"]["concurrent"]
        return {**base, SECTION: {"space": self.space, **section}}

    def document(self) -> dict[str, Any]:
        """A sweep file by itself that says the same: overrides and shapes are in it."""
        section = {k: v for k, v in to_dict(self.section).items() if v is not None}
        return {**to_dict(self.base), SECTION: {"space": self.space, **section}}


def load_sweep(path: Path, overrides: list[str] | None = None) -> Sweep:
    """Read a sweep file, apply overrides, check every axis. Raises KdscaleError."""
    data = read_settings(path, overrides)
    given = data.pop(SECTION, None)
    if not isinstance(given, dict):
        raise KdscaleError(
            f"{path} has no section sweep: say what is to vary under sweep.space (kdscale run "
            "takes a config without it)"
        )
    if "base" in data:
        name = data.pop("base")
        if not isinstance(name, str):
            raise KdscaleError("base: the path of a config, from the sweep file's folder")
        data = _merged(read_settings(user_path(str(path.parent / name), "base")), data)
    given = dict(given)
    space = given.pop("space", None)
    axes = parse_space(space)
    section = build(Section, {"search": {}, "limits": {}, **given}, SECTION)
    for axis in axes:
        if axis.key == "shape":
            data["students"] = list(axis.values)
        if axis.key == "strategy":
            _check_strategies(axis)
            ranker = data.get("ranker", {})
            if isinstance(ranker, dict):  # else what is wrong with it is said below
                data["ranker"] = {**ranker, "strategies": list(axis.values)}
    try:
        base = make_config(data, path)
    except KdscaleError as error:
        of_axis = str(error).startswith("student") and any(a.key == "shape" for a in axes)
        raise KdscaleError(f"{SECTION}.space.shape: {error}" if of_axis else str(error)) from None
    space = dict(space)
    if "shape" in space:
        space["shape"] = {"grid": [to_dict(shape) for shape in base.students]}
    sweep = Sweep(base, section, space)
    check_sweep(sweep)
    return sweep


def queries_of(budget: float | int, train_queries: int | None) -> int | None:
    """The training queries of a budget; None: all. Raises KdscaleError where it is none, or more
    than there are."""
    if isinstance(budget, float):
        if budget == 1 or train_queries is None:
            return None
        if round(budget * train_queries) < 1:
            raise KdscaleError(
                f"{SECTION}.space.budget: {budget:g} of {train_queries:,} training queries is too "
                "small for one trial: not one query; raise it"
            )
        return round(budget * train_queries)
    if train_queries is not None and budget > train_queries:
        raise KdscaleError(
            f"{SECTION}.space.budget: {budget:,} queries, and there are {train_queries:,} to train "
            "on; lower it, or use a share such as 1.0"
        )
    return budget


def _check_strategies(axis: Axis) -> None:
    for strategy in axis.values:
        if strategy not in STRATEGIES:
            raise KdscaleError(
                f"{SECTION}.space.strategy: no strategy {strategy!r}"
                f"{nearest(str(strategy), STRATEGIES)}"
            )


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Settings of two files, group by group; those above win."""
    both = dict(below)
    for key, value in above.items():
        groups = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = _merged(both[key], value) if groups else value
    return both


def check_sweep(sweep: Sweep) -> None:
    """What types cannot say. Raises KdscaleError naming the key."""
    limits = sweep.section.limits
    if limits.gpu_hours and not sweep.base.cluster.gpus_per_worker:
        raise KdscaleError(
            f"{SECTION}.limits.gpu_hours: no trial has a GPU; set cluster.gpus_per_worker, or "
            "limit hours"
        )
    if not sweep.base.students:
        raise KdscaleError(f"{SECTION}.space: no student shapes; add the axis shape, or students")
    _check_search(sweep)
    _check_values(sweep)
    if not sweep.trials:
        raise KdscaleError(f"{SECTION}.space: no strategies; add the axis strategy")
    _check_metric(sweep)
    if sweep.section.wandb is not None:
        if not sweep.section.wandb.project:
            raise KdscaleError(f"{SECTION}.wandb.project: the name of a project")
        _need("wandb", f"{SECTION}.wandb", "remove it")


def _check_search(sweep: Sweep) -> None:
    search = sweep.search
    varied = [axis for axis in sweep.axes if axis.key not in CELL_AXES]
    sampled = [axis for axis in varied if axis.sampled]
    if search.type == "grid" and sampled:
        raise KdscaleError(
            f"{SECTION}.space.{sampled[0].key}: {sampled[0].kind} is drawn from; set "
            f"{SECTION}.search.type to random or optuna, or list the values with grid"
        )
    if search.type != "grid" and not sampled:
        raise KdscaleError(
            f"{SECTION}.search.type {search.type}: every axis is listed by grid, so that there is "
            "nothing to draw; set it to grid, or give a choice or a range"
        )
    if search.type == "grid" and search.samples != 1:
        raise KdscaleError(f"{SECTION}.search.samples: a grid has each trial once; use axis seed")
    if search.type == "optuna":
        _need("optuna", f"{SECTION}.search.type optuna", "set it to random")
        early = next((axis.key for axis in sampled if axis.key.startswith("lm.")), None)
        if early:
            raise KdscaleError(
                f"{SECTION}.space.{early}: language models are made before the first trial, when "
                "optuna has chosen nothing yet; list its values with grid"
            )
    if search.scheduler == "asha":
        if not varied:
            raise KdscaleError(
                f"{SECTION}.search.scheduler asha compares settings of one strategy, shape, budget "
                "and seed, and the space varies none; set it to none"
            )
        if not sweep.base.ranker.watch.every:
            raise KdscaleError(
                f"{SECTION}.search.scheduler asha needs looks at dev while a student trains; set "
                "ranker.watch.every to the steps from one to the next"
            )


def _check_values(sweep: Sweep) -> None:
    """Every value where it is to stand. Raises KdscaleError naming the axis."""
    for axis in sweep.axes:
        for value in axis.values:
            where = f"{SECTION}.space.{axis.key}"
            if axis.key == "budget":
                _check_budget(value, where)
            elif axis.key == "seed":
                coerce(Seed, value, where)
            elif axis.key not in CELL_AXES:
                data = to_dict(sweep.base)
                try:
                    put_setting(data, axis.key, value)
                    check_config(build(Config, data, ""))
                except KdscaleError as error:
                    raise KdscaleError(f"{where}: {error}") from None


def _check_budget(value: Any, where: str) -> None:
    share = type(value) is float and 0 < value <= 1
    if not share and not (type(value) is int and value > 1):
        raise KdscaleError(
            f"{where}: a share of the training queries such as 0.1 or 1.0, or their number, not "
            f"{value!r}"
        )


def _check_metric(sweep: Sweep) -> None:
    from kdscale.evaluation.measures import check_measures, parse_measures

    if sweep.search.metric is not None:
        parse_measures([sweep.search.metric], f"{SECTION}.search.metric")
    check_measures(sweep.base)


def _need(package: str, setting: str, instead: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise KdscaleError(
            f"{setting} needs the package {package}: pip install 'kdscale[sweep]', or {instead}"
        )
