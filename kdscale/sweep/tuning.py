"""Ray Tune: which trial starts when, which is stopped, and who hears of it.

Tune is given trials one by one as there is room for them, keeps its state in a folder that goes
with this process, and is never asked what has been done: `kdscale.sweep.record` knows that. Optuna
chooses settings through its ask-and-tell interface, with a study for each cell, so that what is
good for one strategy and shape is not held to be good for another.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
import zlib
from collections import deque
from dataclasses import replace
from typing import Any, Protocol

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler
from ray.tune.search import Searcher

from kdscale.sweep.placement import Orphans, Room
from kdscale.sweep.record import Result
from kdscale.sweep.space import CELL_AXES, Axis, Trial
from kdscale.sweep.spec import Search, Wandb
from kdscale.sweep.trial import Work, run_trial, settings_for_tune, trial_from_tune


class Chooser:
    """Chooses the open settings of a trial from what the ended ones were worth."""

    def __init__(self, axes: list[Axis], seed: int):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna
        self._axes = {axis.key: axis for axis in axes if axis.sampled}
        self._seed = seed
        self._studies: dict[str, Any] = {}
        self._asked: dict[str, Any] = {}

    def ask(self, trial: Trial) -> Trial:
        """The trial with every setting chosen."""
        asked = self._study(trial).ask()
        self._asked[trial.id] = asked
        settings = dict(trial.settings)
        for key in (k for k, value in settings.items() if value is None):
            axis = self._axes[key]
            if axis.kind == "choice":
                place = asked.suggest_categorical(key, list(range(len(axis.values))))
                settings[key] = axis.values[place]
            else:
                value = asked.suggest_float(key, *axis.values, log=axis.kind == "loguniform")
                settings[key] = float(f"{value:.4g}")
        return replace(trial, settings=settings)

    def tell(self, trial: Trial, result: Result) -> None:
        """How a trial that was asked for ended."""
        state = self._optuna.trial.TrialState
        asked = self._asked.pop(trial.id)
        if result.status == "finished":
            self._study(trial).tell(asked, result.value)
        else:
            ended = state.PRUNED if result.status == "stopped" else state.FAIL
            self._study(trial).tell(asked, state=ended)

    def learn(self, trial: Trial, result: Result) -> None:
        """What an earlier session of the sweep found out. trial: with its settings."""
        if result.status != "finished":
            return
        params: dict[str, Any] = {}
        ranges: dict[str, Any] = {}
        for key, value in trial.settings.items():
            axis = self._axes.get(key)
            if axis is None:
                continue
            if axis.kind == "choice":
                choices = list(range(len(axis.values)))
                params[key] = axis.values.index(value)
                ranges[key] = self._optuna.distributions.CategoricalDistribution(choices)
            else:
                low, high = axis.values
                params[key] = min(high, max(low, value))  # it was rounded
                ranges[key] = self._optuna.distributions.FloatDistribution(
                    low, high, log=axis.kind == "loguniform"
                )
        known = self._optuna.trial.create_trial(
            params=params, distributions=ranges, value=result.value
        )
        self._study(trial).add_trial(known)

    def _study(self, trial: Trial) -> Any:
        """Of a trial's cell and of those of its settings that are listed."""
        listed = {k: v for k, v in trial.settings.items() if k not in self._axes}
        name = repr((trial.cell, sorted(listed.items())))
        if name not in self._studies:
            seed = zlib.crc32(name.encode()) ^ self._seed
            sampler = self._optuna.samplers.TPESampler(seed=seed)
            self._studies[name] = self._optuna.create_study(direction="maximize", sampler=sampler)
        return self._studies[name]


LOOK_EVERY_S = 15.0  # for places that nobody uses any more
MAX_DEATHS = 2  # of a trial's process, each gone on from the last checkpoint

_ENVIRONMENT = {
    # Relative paths of a config are meant from where the command was given.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Ctrl-C and SIGTERM are the command's.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # which prints, however quiet it was told to be
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # The snapshots of its state that nobody reads.
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
}


class Listener(Protocol):
    """Who hears of the trials, in the driver's thread."""

    def may_start(self) -> bool:
        """Whether what the sweep may use allows another trial."""
        ...

    def choose(self, trial: Trial) -> Trial:
        """The trial with every setting chosen."""
        ...

    def started(self, trial: Trial) -> None: ...

    def reported(self, trial: Trial, message: dict[str, Any]) -> None: ...

    def ended(self, trial: Trial, message: dict[str, Any]) -> None:
        """told: its last report, which has no "status" where the scheduler stopped it."""
        ...

    def died(self, trial: Trial, reason: str) -> None:
        """Its process did, more often than it was started again."""
        ...

    def tick(self) -> None: ...


def run_trials(work: Work, trials: list[Trial], room: Room, listener: Listener) -> None:
    """Run the trials, as many at once as there is room for."""
    section = work.sweep.section
    os.environ.update(_ENVIRONMENT)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    cluster = work.sweep.base.cluster
    resources = {room.node: 0.001}
    callbacks = [_Events(listener), *_wandb(section.wandb, work.key)]
    if cluster.engine == "deepspeed":
        callbacks.append(_Places())
    else:
        resources |= {"CPU": cluster.cpus_per_worker or 0.0, "GPU": cluster.gpus_per_worker}

    def trainable(config: dict[str, Any]) -> None:
        run_trial(work, trial_from_tune(config))

    with tempfile.TemporaryDirectory(prefix="kdscale-tune-") as scratch:
        tune.Tuner(
            tune.with_resources(
                trainable,
                tune.PlacementGroupFactory([{k: v for k, v in resources.items() if v}]),
            ),
            tune_config=tune.TuneConfig(
                search_alg=_Feed(trials, listener),
                scheduler=_AshaInCells(section.search)
                if section.search.scheduler == "asha"
                else FIFOScheduler(),
                num_samples=len(trials),
                max_concurrent_trials=room.trials,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name=work.key,
                storage_path=scratch,
                failure_config=tune.FailureConfig(max_failures=MAX_DEATHS),
                callbacks=callbacks,
                verbose=0,
            ),
        ).fit()


def _name(trial: Any) -> str:
    return f"trial-{trial.config['id']}"


def _wandb(wandb: Wandb | None, group: str) -> list[tune.Callback]:
    if wandb is None:
        return []
    from ray.air.integrations.wandb import WandbLoggerCallback

    return [WandbLoggerCallback(project=wandb.project, group=group)]


class _Unsaved:
    """What Tune would copy and write down for a resumption of its own, which nobody asks for."""

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Feed(_Unsaved, Searcher):
    """Hands the trials out in their order, until there are none or the budget is used."""

    def __init__(self, trials: list[Trial], listener: Listener):
        super().__init__()
        self._waiting = deque(trials)
        self._listener = listener

    def suggest(  # type: ignore[override] # Ray's own type has no FINISHED
        self, trial_id: str
    ) -> dict[str, Any] | str:
        if not self._waiting or not self._listener.may_start():
            return Searcher.FINISHED
        trial = self._listener.choose(self._waiting.popleft())
        self._listener.started(trial)
        return settings_for_tune(trial)

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """The listener hears of it from `_Events`."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: see the module."""


class _AshaInCells(FIFOScheduler):
    """ASHA (arXiv 1810.05934) within each cell: a large shape's settings are compared with each
    other, and no small shape is stopped for being worse than a large one.

    Time is the share of a trial's own training, in percent, so that budgets and epochs may differ.
    """

    def __init__(self, search: Search):
        super().__init__()
        self._search = search
        self._cells: dict[tuple, AsyncHyperBandScheduler] = {}

    def _cell(self, trial: Any) -> AsyncHyperBandScheduler:
        key = tuple(trial.config[name] for name in CELL_AXES)
        if key not in self._cells:
            self._cells[key] = AsyncHyperBandScheduler(
                time_attr="progress",
                metric="dev",
                mode="max",
                max_t=100,
                grace_period=100 * self._search.grace,  # type: ignore[arg-type] # a fraction too
                reduction_factor=self._search.factor,
            )
        return self._cells[key]

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        self._cell(trial).on_trial_add(controller, trial)

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return self._cell(trial).on_trial_result(controller, trial, result)

    def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """What it was worth at its looks is known to its cell already."""

    def on_trial_remove(self, controller: Any, trial: Any) -> None:
        """As above."""

    def on_trial_error(self, controller: Any, trial: Any) -> None:
        """As above."""


class _Events(_Unsaved, tune.Callback):
    """Tells the listener what happens to trials."""

    def __init__(self, listener: Listener):
        self._listener = listener

    def on_trial_result(
        self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "status" not in result and "trouble" not in result:
            self._listener.reported(trial_from_tune(trial.config), result)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._listener.ended(trial_from_tune(trial.config), trial.last_result or {})

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        trouble = (trial.last_result or {}).get("trouble") or "its process went"
        self._listener.died(trial_from_tune(trial.config), trouble.strip().splitlines()[0])

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        self._listener.tick()


class _Places(_Unsaved, tune.Callback):
    """Frees what stopped trials have left, at times."""

    def __init__(self) -> None:
        self._orphans, self._looked_at = Orphans(), time.monotonic()

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        if time.monotonic() - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = time.monotonic()
            self._orphans.look()
