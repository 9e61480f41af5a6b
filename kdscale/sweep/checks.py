"""What a sweep file may not say: each mistake is one line that names its place."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from kdscale.bounds import Seed
from kdscale.config import Config
from kdscale.configload import build, check_config, coerce, to_dict
from kdscale.errors import KdscaleError
from kdscale.sweep.space import CELL_AXES, SECTION, put_setting

if TYPE_CHECKING:
    from kdscale.sweep.spec import Sweep


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
