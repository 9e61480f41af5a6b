"""What a sweep has to show, in the store: one piece a trial, written once by whoever saw it end.

    .work/sweeps/KEY/sweep           what was asked for, and when it began
    .work/sweeps/KEY/base            BM25, the teacher, and what each shape costs
    .work/sweeps/KEY/trial-0007      how that trial ended; of a finished one its rows
    .work/sweeps/KEY/failed-0007     that it failed once, so that it is tried once more
    .work/sweeps/KEY/table-000012    all of it in one table, replaced as trials end
    sweeps/KEY                       the artifact, when every trial has ended

The pieces of the trials are the truth, and Ray Tune's own state is never read: a sweep that was
killed goes on with the trials that have none.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

import kdscale
from kdscale.data.shards import read_table, write_table
from kdscale.errors import KdscaleError
from kdscale.evaluation.trials import TRIALS, read_trials, write_trials
from kdscale.progress import Reporter
from kdscale.store import Artifact, DamagedError, Store
from kdscale.store.artifact import build_manifest, list_files, sha256_json

KIND = "sweeps"
TABLE, STATE, PAGE = "results.parquet", "sweep.json", "index.html"
BEGUN, BASE = "sweep", "base"
ENDED = ("finished", "stopped", "failed")


@dataclass(frozen=True)
class Result:
    """How a trial ended.

    status: finished, stopped (early, by the scheduler) or failed; value: the metric on dev, of a
    stopped one that of its last look, at `step`; curve: [step, metric] of each look; seconds: of
    this trial; student: what it made, {"name": KIND/KEY, "digest"}; settings: those it had.
    """

    id: str
    status: str
    settings: dict[str, Any]
    value: float | None = None
    step: int | None = None
    pairs: int | None = None
    seconds: float = 0.0
    student: dict[str, str] | None = None
    curve: list[list[float]] = field(default_factory=list)
    reason: str | None = None


class Record:
    """The pieces and the artifact of one sweep. Picklable, if the store is."""

    def __init__(self, store: Store, key: str):
        self.store, self.key = store, key
        self._pieces = store.workspace(KIND, key)

    @property
    def uri(self) -> str:
        return f"{self.store.uri}/{KIND}/{self.key}"

    def artifact(self) -> Artifact | None:
        return self.store.find(KIND, self.key)

    def begin(self, identity: dict[str, Any]) -> None:
        told = {"identity": identity, "created": datetime.now(UTC).isoformat(timespec="seconds")}
        with _folder() as folder:
            (folder / STATE).write_text(json.dumps(told))
            self._pieces.publish(folder, BEGUN)

    def begun(self) -> dict[str, Any] | None:
        """{"identity", "created"} of an unfinished sweep, or None."""
        if BEGUN not in self._pieces.names():
            return None
        return _read_json(self._pieces.fetch(BEGUN) / STATE)

    def put_base(self, rows: pa.Table, told: dict[str, Any]) -> None:
        with _folder() as folder:
            write_table(folder / TABLE, rows, TRIALS)
            (folder / STATE).write_text(json.dumps(told))
            self._pieces.publish(folder, BASE)

    def base(self) -> tuple[pa.Table, dict[str, Any]] | None:
        if BASE not in self._pieces.names():
            return None
        folder = self._pieces.fetch(BASE)
        return read_table(folder / TABLE, TRIALS), _read_json(folder / STATE)

    def put(self, result: Result, rows: pa.Table | None = None) -> None:
        """For ever, but for a first failure; a result that is there already stays."""
        name = f"trial-{result.id}"
        if result.status == "failed" and f"failed-{result.id}" not in self._pieces.names():
            name = f"failed-{result.id}"
        with _folder() as folder:
            (folder / STATE).write_text(json.dumps(asdict(result)))
            if rows is not None:
                write_table(folder / TABLE, rows, TRIALS)
            self._pieces.publish(folder, name)

    def result(self, trial: str) -> tuple[Result, pa.Table | None] | None:
        """Of one trial, or None. Raises DamagedError."""
        name = f"trial-{trial}"
        if name not in self._pieces.names():
            return None
        folder = self._pieces.fetch(name)
        rows = folder / TABLE
        return _result(folder / STATE), read_table(rows, TRIALS) if rows.is_file() else None

    def results(self, reporter: Reporter) -> dict[str, tuple[Result, pa.Table | None]]:
        """Trial -> how it ended. A damaged piece is removed: its trial is measured again."""
        found = {}
        for name in self._pieces.names():
            if not name.startswith("trial-"):
                continue
            trial = name.removeprefix("trial-")
            try:
                found[trial] = self.result(trial)
            except DamagedError as error:
                reporter.warn(f"{error}; trial {trial} is measured again")
                self._pieces.remove(name)
        return found

    def put_table(self, tables: list[pa.Table], told: dict[str, Any]) -> None:
        """The table and the state of everything, in place of the one before."""
        old = self._tables()
        number = int(old[-1].removeprefix("table-")) + 1 if old else 1
        with _folder() as folder:
            _write(folder, tables, told)
            self._pieces.publish(folder, f"table-{number:06d}")
        for name in old:
            self._pieces.remove(name)

    def state(self) -> dict[str, Any] | None:
        """What was last told of the sweep, ended or not; None before its first trial."""
        return None if (found := self.read()) is None else found[1]

    def read(self) -> tuple[pa.Table, dict[str, Any]] | None:
        """The newest table and what is told of it: of the artifact, or of a sweep at work."""
        artifact = self.artifact()
        if artifact is not None:
            return read_trials(artifact.path / TABLE)
        for name in reversed(self._tables()):
            try:
                return read_trials(self._pieces.fetch(name) / TABLE)
            except KdscaleError:  # the sweep at work has just replaced it
                if name in self._tables():
                    raise
                return self.read()
        return None

    def commit(
        self,
        identity: dict[str, Any],
        inputs: dict[str, dict[str, str]],
        tables: list[pa.Table],
        told: dict[str, Any],
        facts: dict[str, Any],
    ) -> Artifact:
        """The artifact, with its page; the pieces are removed."""
        from kdscale.report.sweep_page import render_sweep

        with self.store.staging(KIND, self.key) as out:
            _write(out, tables, told)
            (out / PAGE).write_text(render_sweep(*read_trials(out / TABLE)), encoding="utf-8")
            manifest = build_manifest(
                kind=KIND,
                stage="sweep",
                config=identity,
                inputs=inputs,
                files=list_files(out),
                facts=facts,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                version=kdscale.__version__,
            )
            self.store.commit(out, KIND, self.key, manifest)
        self._pieces.clear()
        return self.artifact()

    def _tables(self) -> list[str]:
        return [name for name in self._pieces.names() if name.startswith("table-")]


def sweep_key(label: str, identity: dict[str, Any]) -> str:
    return f"{label}-{sha256_json(identity)[:12]}"


def _write(folder: Path, tables: list[pa.Table], told: dict[str, Any]) -> None:
    write_trials(folder / TABLE, tables, **told)
    (folder / STATE).write_text(json.dumps(told, indent=1))


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kdscale-sweep-") as folder:
        yield Path(folder)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
        if isinstance(value, dict):
            return value
    except (OSError, ValueError, RecursionError):
        pass
    raise DamagedError(f"{path} is not what a sweep writes")


def _result(path: Path) -> Result:
    try:
        result = Result(**_read_json(path))
    except TypeError:
        result = None
    if result is None or result.status not in ENDED:
        raise DamagedError(f"{path} is not what a sweep writes")
    return result
