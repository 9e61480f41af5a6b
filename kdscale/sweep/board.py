"""Where a sweep stands: which trials wait, run and have ended, the best so far, the time left."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from kdscale.sweep.record import Result
from kdscale.sweep.space import Trial


@dataclass
class Running:
    """A trial at work."""

    trial: Trial
    began: float = field(default_factory=time.monotonic)
    step: int = 0
    steps: int = 0
    dev: float | None = None  # of the last look
    curve: list[list[float]] = field(default_factory=list)

    def note(self, told: dict[str, Any]) -> None:
        """told: what the trial has reported."""
        self.step, self.steps = told.get("step", self.step), told.get("steps", self.steps)
        if "dev" in told:
            self.dev = told["dev"]
            self.curve.append([told["dev_step"], self.dev])


class Board:
    """trials: all that are to run, by id; sizes: the pairs that each is trained on;
    side_by_side: so many run at once, at most."""

    def __init__(
        self,
        trials: list[Trial],
        results: dict[str, Result],
        sizes: dict[str, int],
        metric: str,
        side_by_side: int = 1,
    ):
        self.trials = {trial.id: trial for trial in trials}
        self.results = dict(results)
        self.running: dict[str, Running] = {}
        self._side_by_side = side_by_side
        self.metric = metric
        self._sizes = sizes
        for result in results.values():
            self.settle(result)

    @property
    def waiting(self) -> list[Trial]:
        ended = self.results.keys() | self.running.keys()
        return [trial for trial in self.trials.values() if trial.id not in ended]

    def start(self, trial: Trial) -> None:
        """trial: with all of its settings."""
        self.trials[trial.id] = trial
        self.running[trial.id] = Running(trial)

    def end(self, result: Result) -> None:
        self.running.pop(result.id, None)
        self.results[result.id] = result
        self.settle(result)

    def settle(self, result: Result) -> None:
        """The settings that a trial had: those that were left open are known then."""
        trial = self.trials[result.id]
        self.trials[result.id] = Trial(**{**vars(trial), "settings": result.settings})

    def ranked(self) -> list[tuple[Trial, Result]]:
        """The finished ones, the best first."""
        finished = [r for r in self.results.values() if r.status == "finished"]
        best = sorted(finished, key=lambda r: (-r.value, r.id))
        return [(self.trials[r.id], r) for r in best]

    def counts(self) -> dict[str, int]:
        statuses = [r.status for r in self.results.values()]
        ended = {name: statuses.count(name) for name in ("finished", "stopped", "failed")}
        running, waiting = len(self.running), len(self.waiting)
        return {"trials": len(self.trials), **ended, "running": running, "waiting": waiting}

    def mean_seconds(self) -> float | None:
        """Of a trial that has ended; None before the first."""
        took = [r.seconds for r in self.results.values() if r.seconds]
        return sum(took) / len(took) if took else None

    def seconds_left(self) -> float | None:
        """By the seconds a pair of the finished trials, of the shape where there are some; None
        before the first."""
        if not self.ranked():
            return None
        left = sum(self._expected(trial) for trial in self.waiting)
        for running in self.running.values():
            spent = time.monotonic() - running.began
            left += max(0.0, self._expected(running.trial) - spent)
        return left / self._side_by_side

    def _expected(self, trial: Trial) -> float:
        done = self.ranked()
        same = [(t, r) for t, r in done if t.shape == trial.shape] or done
        pairs = sum(self._sizes[t.id] for t, _ in same)
        return sum(r.seconds for _, r in same) / max(1, pairs) * self._sizes[trial.id]

    def as_json(self) -> list[dict[str, Any]]:
        """Every trial, its status and how it ended."""
        told = []
        for trial in self.trials.values():
            result = self.results.get(trial.id)
            if result is not None:
                ended = {k: v for k, v in vars(result).items() if k not in ("id", "settings")}
            else:
                ended = {"status": "running" if trial.id in self.running else "waiting"}
            told.append({**trial.as_json(), "variant": trial.variant, **ended})
        return told
