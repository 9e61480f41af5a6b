"""What a command shows while it works: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

LINE_EVERY_S = 15.0


class Task:
    """One bar. `note` is a short text behind it (a loss, a rate). in_bytes: it counts bytes."""

    def __init__(
        self, reporter: Reporter, description: str, total: int | None, in_bytes: bool = False
    ):
        self._reporter = reporter
        self._description = description
        self._in_bytes = in_bytes
        self.total = total
        self.completed = 0
        self.note = ""
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        self._id = TaskID(0)  # of the bar, where there is one
        if reporter.console.is_terminal:
            amount = (
                [DownloadColumn(), TransferSpeedColumn()] if in_bytes else [MofNCompleteColumn()]
            )
            self._bar = Progress(
                TextColumn("  {task.description}"),
                BarColumn(bar_width=30),
                *amount,
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("[dim]{task.fields[note]}"),
                console=reporter.console,
                transient=True,
            )
            self._id = self._bar.add_task(description, total=total, note="")
            self._bar.start()

    def update(self, completed: int, note: str = "", total: int | None = None) -> None:
        self.completed = completed
        self.note = note or self.note
        self.total = total if total is not None else self.total
        if self._bar is not None:
            self._bar.update(self._id, completed=completed, total=self.total, note=self.note)
        elif time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            shown = decimal if self._in_bytes else str
            done = f"{shown(completed)}/{shown(self.total)}" if self.total else shown(completed)
            seconds = time.monotonic() - self._started
            self._reporter.info(
                f"  {self._description}: {done}, {seconds:.0f} s {self.note}".rstrip()
            )

    def advance(self, n: int = 1, note: str = "") -> None:
        self.update(self.completed + n, note)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


class Reporter:
    """The console of a command; stages write to it and to nothing else."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(highlight=False, soft_wrap=True)

    def info(self, message: str) -> None:
        self.console.print(message, markup=False)

    def warn(self, message: str) -> None:
        self.console.print(f"warning: {message}", style="yellow", markup=False)

    def logged(self, row: dict[str, Any]) -> None:
        """A row of a training's log, as it comes; for a reporter that follows trainings."""

    @contextmanager
    def task(
        self, description: str, total: int | None = None, in_bytes: bool = False
    ) -> Iterator[Task]:
        task = Task(self, description, total, in_bytes)
        try:
            yield task
        finally:
            task.close()
