"""What a command shows while it works: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_EVERY_S = 15.0


class Task:
    """One bar. `note` is a short text behind it (a loss, a rate)."""

    def __init__(self, reporter: Reporter, description: str, total: int | None):
        self._reporter = reporter
        self._description = description
        self.total = total
        self.completed = 0
        self.note = ""
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        self._id = None
        if reporter.console.is_terminal:
            self._bar = Progress(
                TextColumn("  {task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
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
            of = f"/{self.total}" if self.total is not None else ""
            seconds = time.monotonic() - self._started
            self._reporter.info(
                f"  {self._description}: {completed}{of}, {seconds:.0f} s {self.note}".rstrip()
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

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Task]:
        task = Task(self, description, total)
        try:
            yield task
        finally:
            task.close()
