"""What a sweep keeps in the store: one piece a trial, written once by whoever saw it end; and
whether a sweep may start or resume.

    .work/sweeps/KEY/sweep           what was asked for, and when it began
    .work/sweeps/KEY/base            BM25, the teacher, and what each shape costs
    .work/sweeps/KEY/trial-0007      how that trial ended; of a finished one its rows
    .work/sweeps/KEY/failed-0007     that it failed once, so that it is tried once more
    .work/sweeps/KEY/table-000012    all of it in one table, replaced as trials end
    sweeps/KEY                       the artifact, when every trial has ended

The pieces of the trials are the truth, and Ray Tune's own state is never read: a sweep that was
killed resumes with the trials that have none.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeGuard

import psutil
import pyarrow as pa

import kdscale
from kdscale.data.shards import read_table, write_table
from kdscale.errors import KdscaleError
from kdscale.evaluation.trials import TRIALS, read_trials, write_trials
from kdscale.progress import Reporter
from kdscale.store import Artifact, DamagedError, Store
from kdscale.store.artifact import build_manifest, list_files, sha256_json
from kdscale.sweep.spec import Sweep

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
        summary = {"identity": identity, "created": datetime.now(UTC).isoformat(timespec="seconds")}
        with _folder() as folder:
            (folder / STATE).write_text(json.dumps(summary))
            self._pieces.publish(folder, BEGUN)

    def begun(self) -> dict[str, Any] | None:
        """{"identity", "created"} of an unfinished sweep, or None."""
        if BEGUN not in self._pieces.names():
            return None
        return _read_json(self._pieces.fetch(BEGUN) / STATE)

    def put_base(self, rows: pa.Table, summary: dict[str, Any]) -> None:
        with _folder() as folder:
            write_table(folder / TABLE, rows, TRIALS)
            (folder / STATE).write_text(json.dumps(summary))
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
        found: dict[str, tuple[Result, pa.Table | None]] = {}
        for name in self._pieces.names():
            if not name.startswith("trial-"):
                continue
            trial = name.removeprefix("trial-")
            try:
                result = self.result(trial)
            except DamagedError as error:
                reporter.warn(f"{error}; trial {trial} is measured again")
                self._pieces.remove(name)
                continue
            if result is not None:  # None: another process removed it just now
                found[trial] = result
        return found

    def put_table(self, tables: list[pa.Table], summary: dict[str, Any]) -> None:
        """The table and the state of everything, in place of the one before."""
        old = self._tables()
        number = int(old[-1].removeprefix("table-")) + 1 if old else 1
        with _folder() as folder:
            _write(folder, tables, summary)
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
        summary: dict[str, Any],
        facts: dict[str, Any],
    ) -> Artifact:
        """The artifact, with its page; the pieces are removed."""
        from kdscale.report.sweep_page import render_sweep

        with self.store.staging(KIND, self.key) as out:
            _write(out, tables, summary)
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
        artifact = self.artifact()
        assert artifact is not None  # it was committed above
        return artifact

    def _tables(self) -> list[str]:
        return [name for name in self._pieces.names() if name.startswith("table-")]


def sweep_key(label: str, identity: dict[str, Any]) -> str:
    return f"{label}-{sha256_json(identity)[:12]}"


def _write(folder: Path, tables: list[pa.Table], summary: dict[str, Any]) -> None:
    write_trials(folder / TABLE, tables, **summary)
    (folder / STATE).write_text(json.dumps(summary, indent=1))


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


def begin(
    sweep: Sweep, record: Record, identity: dict[str, Any], resume: bool, reporter: Reporter
) -> dict[str, Any]:
    """What was written when the sweep began. Raises KdscaleError where --resume is missing or
    wrong, or another process is at it."""
    begun = record.begun()
    others = unfinished_others(record.store, sweep.base.name, record.key)
    if begun is None and resume:
        if not others:
            raise KdscaleError(
                f"--resume: no sweep {sweep.base.name} of this file was begun in "
                f"{record.store.uri}; run it without --resume"
            )
        # The one that this file most likely was.
        summary, was = min(
            (
                (changes(then["identity"], identity), other)
                for other in others
                if (then := other.begun()) is not None
            ),
            key=lambda found: len(found[0]),
        )
        more = f", and {len(summary) - 3} more" if len(summary) > 3 else ""
        raise KdscaleError(
            f"--resume: the sweep file has changed since {was.key} was begun: "
            f"{'; '.join(summary[:3])}{more}; put that back to resume it, or run without --resume "
            "for a new sweep (students and language models that it shares are not made again)"
        )
    # Until something was measured there is nothing that a new start could lose.
    if begun is not None and not resume and record.base() is not None:
        raise KdscaleError(f"{record.uri} was begun and has not ended; add --resume to resume it")
    if begun is None:
        for other in others:
            reporter.info(f"unfinished, of an earlier version of this file: {other.uri}")
        record.begin(identity)
        begun = record.begun()
        assert begun is not None  # by the line above
        return begun
    at_work = (record.state() or {}).get("process")
    if is_alive(at_work):
        raise KdscaleError(
            f"process {at_work['pid']} is running this sweep; wait for it, or stop it first"
        )
    return begun


def unfinished_others(store: Store, label: str, key: str) -> list[Record]:
    """Unfinished sweeps of the same name: of the same file, as it was before a change."""
    length = len(label) + 13  # a dash and twelve digits
    keys = [k for k in store.unfinished(KIND) if k.startswith(f"{label}-") and len(k) == length]
    others = [Record(store, k) for k in keys if k != key]
    return [record for record in others if record.begun() is not None]


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two identities, in words, setting by setting."""
    old, new = _flat(before), _flat(now)
    summary = []
    for key in dict.fromkeys([*old, *new]):
        if old.get(key) != new.get(key):
            was, is_ = (json.dumps(v[key]) if key in v else "not set" for v in (old, new))
            summary.append(f"{key} was {was}, is {is_}")
    return summary


def process() -> dict[str, Any]:
    """What tells this process from all others, now and later."""
    own = psutil.Process()
    return {"host": platform.node(), "pid": own.pid, "began": own.create_time()}


def is_alive(summary: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a process told by `process` is at work on this machine."""
    if not isinstance(summary, dict) or summary.get("host") != platform.node():
        return False
    try:
        other = psutil.Process(summary.get("pid"))
        return other.pid != os.getpid() and abs(other.create_time() - summary["began"]) < 1
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {key: value}
    below = [_flat(v, f"{key}.{k}" if key else str(k)) for k, v in value.items()]
    return {k: v for part in below for k, v in part.items()}
