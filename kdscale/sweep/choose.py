"""Optuna, through its ask-and-tell interface: a study for each cell, so that what is good for one
strategy and shape is not held to be good for another."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

from kdscale.sweep.record import Result
from kdscale.sweep.space import Axis, Trial


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
        params, ranges = {}, {}
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
