"""Where a sweep stands: which trials wait, run and have ended, the best so far, the time left; and
how that is shown: a live table on a terminal, a line a trial elsewhere, and the last table.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kdscale.progress import LINE_EVERY_S, Reporter
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

    def note(self, summary: dict[str, Any]) -> None:
        """told: what the trial has reported."""
        self.step, self.steps = summary.get("step", self.step), summary.get("steps", self.steps)
        if "dev" in summary:
            self.dev = summary["dev"]
            self.curve.append([summary["dev_step"], self.dev])


def _best_first(result: Result) -> tuple[float, str]:
    """What finished trials are sorted by."""
    assert result.value is not None  # it has finished
    return -result.value, result.id


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
        best = sorted(finished, key=_best_first)
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
        summary = []
        for trial in self.trials.values():
            result = self.results.get(trial.id)
            if result is not None:
                ended = {k: v for k, v in vars(result).items() if k not in ("id", "settings")}
            else:
                ended = {"status": "running" if trial.id in self.running else "waiting"}
            summary.append({**trial.as_json(), "variant": trial.variant, **ended})
        return summary


BEST_SHOWN = 5
REFRESH_S = 1.0
WIDTH = 100


class View:
    """Shows a board while trials run; a context manager."""

    def __init__(self, board: Board, reporter: Reporter):
        self._board, self._reporter = board, reporter
        self._live: Live | None = None
        self._shown_at = time.monotonic()

    def __enter__(self) -> View:
        if self._reporter.console.is_terminal:
            self._live = Live(console=self._reporter.console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, trial: Trial) -> None:
        if self._live is None:
            self._reporter.info(f"  trial {trial.id}: {describe(trial)} begins")

    def ended(self, trial: Trial, result: Result) -> None:
        how = {
            "finished": f"{self._board.metric} {result.value or 0:.3f}",
            "stopped": f"stopped at step {result.step}, {self._board.metric} "
            f"{'?' if result.value is None else format(result.value, '.3f')}",
            "failed": f"failed: {result.reason}",
        }[result.status]
        line = f"  trial {trial.id}: {describe(trial)}: {how} ({result.seconds:.0f} s)"
        if result.status == "failed":
            self._reporter.warn(line.strip())
        else:
            self._reporter.info(line)
        self._shown_at = 0.0  # where the sweep stands is news
        self.tick()

    def tick(self) -> None:
        """Called often: draws at times."""
        every = REFRESH_S if self._live is not None else LINE_EVERY_S
        if time.monotonic() - self._shown_at < every:
            return
        self._shown_at = time.monotonic()
        if self._live is not None:
            self._live.update(_table(self._board), refresh=True)
        else:
            self._reporter.info(f"  {standing(self._board)}")


def describe(trial: Trial) -> str:
    set_ = "" if trial.variant == "default" else f", {trial.variant}"
    return f"{trial.system}, data {trial.data}, seed {trial.seed}{set_}"


def standing(board: Board) -> str:
    """One line: how many have ended, run and wait, the best so far, and the time left."""
    counts = board.counts()
    parts = [f"{counts['finished']} of {counts['trials']} finished"]
    parts += [f"{counts[k]} {k}" for k in ("stopped", "failed", "running") if counts[k]]
    parts.append(f"{counts['waiting']} waiting")
    left = board.seconds_left()
    if counts["running"] or counts["waiting"]:
        parts.append("time left unknown yet" if left is None else f"about {minutes(left)} left")
    ranked = board.ranked()
    best = ""
    if ranked:
        trial, result = ranked[0]
        best = f"; best {board.metric} {result.value:.3f}, {describe(trial)}"
    return ", ".join(parts) + best


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _table(board: Board) -> Group:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for title in ("trial", "", "student", "data", "seed", "set"):
        table.add_column(title, overflow="fold")
    for title in (board.metric, "step", "s"):
        table.add_column(title, justify="right", no_wrap=True)
    for trial, result in board.ranked()[:BEST_SHOWN]:
        table.add_row(
            *_cells(trial, "best" if trial is board.ranked()[0][0] else ""),
            f"{result.value:.3f}",
            str(result.step or ""),
            f"{result.seconds:.0f}",
        )
    for running in board.running.values():
        dev = "" if running.dev is None else f"{running.dev:.3f}"
        step = f"{running.step}/{running.steps}" if running.steps else "starts"
        seconds = f"{time.monotonic() - running.began:.0f}"
        table.add_row(*_cells(running.trial, "running"), dev, step, seconds)
    return Group(table, Text(standing(board)))


def _cells(trial: Trial, mark: str) -> list[Text]:
    words = (trial.id, mark, trial.system, trial.data, str(trial.seed), trial.variant)
    return [Text(word) for word in words]


def results_table(rows: pa.Table, summary: dict[str, Any]) -> Table:
    """The finished trials, the best first, BM25 and the teacher above them; then the others."""
    metric = summary["metric"]
    table = Table(
        title=f"{summary['split']}, {summary['queries']} queries",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("system", overflow="fold")
    for title in ("data", "seed", "set"):
        table.add_column(title, overflow="fold")
    for title in (metric, "params", "MB", "ms", "faster", "train s"):
        table.add_column(title, justify="right", no_wrap=True)
    of_metric = [row for row in rows.to_pylist() if row["measure"] == metric]
    for row in sorted(of_metric, key=lambda r: (r["strategy"] is not None, -r["mean"])):
        table.add_row(*(Text(cell) for cell in _row(row)))
    for trial in summary["trials"]:
        if trial["status"] != "finished":
            value = trial.get("value")
            table.add_row(
                Text(f"{trial['strategy']}/{trial['shape']}"),
                Text(f"{trial['budget']:g}"),
                Text(str(trial["seed"])),
                Text(trial["variant"]),
                Text(f"{trial['status']}" + ("" if value is None else f" {value:.3f}")),
                *[""] * 5,
            )
    return table


def _row(row: dict[str, Any]) -> list[str]:
    def shown(name: str, form: str, scale: float = 1.0) -> str:
        return "" if row[name] is None else format(row[name] / scale, form)

    variant = row["variant"] if row["variant"] not in (None, "default") else ""
    return [
        row["system"],
        shown("budget", ".2%"),
        "" if row["seed"] is None else str(row["seed"]),
        variant,
        f"{row['mean']:.3f}",
        shown("parameters", ".1f", 1e6) + ("M" if row["parameters"] else ""),
        shown("bytes", ".1f", 1e6),
        shown("ms", ".3g"),
        shown("speedup", ".1f") + ("x" if row["speedup"] else ""),
        shown("train_seconds", ".0f"),
    ]


def print_results(rows: pa.Table, summary: dict[str, Any]) -> None:
    console = Console(highlight=False)
    # A pipe, or a narrow terminal, must not cut numbers.
    console.width = max(WIDTH, console.width)
    console.print(results_table(rows, summary))
    for line in summary_lines(summary):
        console.print(line, markup=False, soft_wrap=True)


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """What the sweep was and how much its trials shared."""
    counts = summary["counts"]
    ended = ", ".join(f"{counts[k]} {k}" for k in ("finished", "stopped", "failed") if counts[k])
    rest = ", ".join(f"{counts[k]} {k}" for k in ("running", "waiting") if counts[k])
    lines = [f"{counts['trials']} trials: {', '.join(filter(None, (ended, rest)))}"]
    if summary.get("left_out"):
        lines.append(f"left out: {summary['left_out']}")
    shared = ", ".join(
        f"{count['made']:,} {name.replace('_', ' ')}"
        + (f" (and {count['found']:,} found in the store)" if count["found"] else "")
        for name, count in summary["shared"].items()
    )
    lines.append(f"shared by all of them: {shared}")
    return lines
