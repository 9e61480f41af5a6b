"""One session of a sweep's trials, from its start or a resumption to its end: the driver's part."""

from __future__ import annotations

import time
from typing import Any

import pyarrow as pa

from kdscale.progress import Reporter
from kdscale.sweep.board import Board, View
from kdscale.sweep.rates import HOUR_S
from kdscale.sweep.record import Record, Result, process
from kdscale.sweep.space import Trial
from kdscale.sweep.spec import Sweep


class Session:
    """Hears of every trial (`kdscale.sweep.tuning.Listener`), and keeps the record, the board, the
    view and TensorBoard's events up to date.

    told: what is known of the sweep beside its trials; rows: those of BM25 and the teacher; began:
    when, on the monotonic clock, the sweep would have begun without what was between its sessions
    """

    def __init__(
        self,
        sweep: Sweep,
        record: Record,
        board: Board,
        rows: dict[str, pa.Table],
        summary: dict[str, Any],
        began: float,
        reporter: Reporter,
    ):
        self._sweep, self.record, self.board, self.summary = sweep, record, board, summary
        self._rows, self._began = dict(rows), began
        self.events = record.store.disk / ".tensorboard" / record.key
        self._writers: dict[str, Any] = {}
        self.view = View(board, reporter)
        self._chooser = None
        self.left_out = ""  # why trials were not started, if any
        if sweep.search.type == "optuna":
            from kdscale.sweep.tuning import Chooser

            self._chooser = Chooser(sweep.axes, sweep.section.seed)
            for trial, result in board.ranked():
                self._chooser.learn(trial, result)

    def may_start(self) -> bool:
        limits, gpus = self._sweep.section.limits, self._gpus()
        expected = self.board.mean_seconds() or 0.0
        spent = time.monotonic() - self._began
        if limits.hours is not None and spent + expected > limits.hours * HOUR_S:
            self.left_out = f"{len(self.board.waiting)} trials by limits.hours {limits.hours:g}"
        running = [time.monotonic() - r.began for r in self.board.running.values()]
        used = sum(r.seconds for r in self.board.results.values())
        # Those at work are counted as what they are expected to take, or have taken already.
        used += sum(max(expected, seconds) for seconds in running) + expected
        if limits.gpu_hours is not None and used * gpus > limits.gpu_hours * HOUR_S:
            self.left_out = (
                f"{len(self.board.waiting)} trials by limits.gpu_hours {limits.gpu_hours:g}"
            )
        return not self.left_out

    def choose(self, trial: Trial) -> Trial:
        """With every setting; one that a killed session had chosen is kept."""
        if self._chooser is not None:
            return self._chooser.ask(trial)
        return trial

    def started(self, trial: Trial) -> None:
        self.board.start(trial)
        self.view.started(trial)
        self.write()

    def reported(self, trial: Trial, summary: dict[str, Any]) -> None:
        running = self.board.running.get(trial.id)
        if running is None:
            return
        running.note(summary)
        writer = self._writer(trial)
        for name in ("loss", "lr", "tokens_per_s", "dev"):
            if name in summary:
                writer.add_scalar(name, summary[name], summary["step"])
        self.view.tick()

    def ended(self, trial: Trial, summary: dict[str, Any]) -> None:
        there = self.record.result(trial.id)
        if there is not None:
            result, rows = there
            if rows is not None:
                self._rows[trial.id] = rows
        elif summary.get("status") == "failed":
            result = self._of_running(trial, "failed", reason=summary.get("reason"))
        else:
            result = self._of_running(trial, "stopped")
            self.record.put(result)
        self._settle(trial, result)

    def died(self, trial: Trial, reason: str) -> None:
        result = self._of_running(trial, "failed", reason=reason)
        self.record.put(result)
        self._settle(trial, result)

    def tick(self) -> None:
        self.view.tick()

    def write(self) -> None:
        """The table and the state, for whoever looks while the sweep runs."""
        self.record.put_table(self.tables(), self.state())

    def tables(self) -> list[pa.Table]:
        return [self._rows[key] for key in sorted(self._rows)]

    def state(self) -> dict[str, Any]:
        return {
            **self.summary,
            "counts": self.board.counts(),
            "left_out": self.left_out,
            "spent_s": round(time.monotonic() - self._began, 1),
            "process": process(),
            "trials": self.board.as_json(),
        }

    def _of_running(self, trial: Trial, status: str, reason: str | None = None) -> Result:
        running = self.board.running[trial.id]
        return Result(
            trial.id,
            status,
            trial.settings,
            value=running.dev if status == "stopped" else None,
            step=running.step,
            seconds=round(time.monotonic() - running.began, 1),
            curve=running.curve,
            reason=reason,
        )

    def _settle(self, trial: Trial, result: Result) -> None:
        self.board.end(result)
        if self._chooser is not None:
            self._chooser.tell(trial, result)
        writer = self._writers.pop(trial.id, None)
        if writer is not None:
            writer.close()
        self.view.ended(trial, result)
        self.write()

    def _writer(self, trial: Trial) -> Any:
        if trial.id not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            name = f"{trial.id}-{trial.strategy}-{trial.shape}"
            self._writers[trial.id] = SummaryWriter(str(self.events / name))
        return self._writers[trial.id]

    def _gpus(self) -> float:
        cluster = self._sweep.base.cluster
        return cluster.gpus_per_worker * cluster.workers
