"""Where the table of trials and the costs of what students share come from."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa

from kdscale.advice.candidates import Shared
from kdscale.errors import KdscaleError
from kdscale.evaluation.trials import read_trials
from kdscale.paths import user_path
from kdscale.store import Store, open_store
from kdscale.sweep.record import KIND, Record


def load(uri: str) -> tuple[pa.Table, dict[str, Any], str, Store | None]:
    """The table, what is told of it, where it was found, and the store if `uri` is one.

    uri: a table's Parquet file, or a store, whose newest sweep it then is, or one sweep of a
    store, as `kdscale sweep` names it at its end; a folder or s3://. Raises KdscaleError where
    there is none.
    """
    if not uri.endswith(".parquet"):
        of_store, _, key = uri.rstrip("/").rpartition(f"/{KIND}/")
        is_sweep = bool(of_store) and "/" not in key
        store = open_store(of_store if is_sweep else uri)
        store.preflight(writing=False)
        return (*(_sweep(store, key) if is_sweep else newest_sweep(store)), store)
    if uri.startswith("s3://"):
        folder, _, name = uri.rpartition("/")
        return (*_from_bucket(folder, name, uri), None)
    path = user_path(uri.removeprefix("file://"), "the table of trials")
    if not path.is_file():
        raise KdscaleError(f"no file {path}; give a table of trials, or a store with a sweep")
    return (*read_trials(path), str(path), None)


def newest_sweep(store: Store) -> tuple[pa.Table, dict[str, Any], str]:
    """The table of the sweep that was begun last, of those at work, or else of the one that ended
    last."""
    ended = next(iter(store.list(KIND)), None)
    begun = [Record(store, key) for key in store.unfinished(KIND)]
    at_work = [(b["created"], r) for r in begun if (b := r.begun()) is not None]
    records = [r for created, r in sorted(at_work, key=lambda w: w[0], reverse=True)
               if ended is None or created > ended.manifest["created"]]  # fmt: skip
    if ended is not None:
        records.append(Record(store, ended.key))
    for record in records:
        found = record.read()
        if found is not None:
            return *found, record.uri
    raise KdscaleError(
        f"no sweep in {store.uri} has trials yet; run kdscale sweep, or give what storage.uri of "
        "the sweep file names, or a table of trials"
    )


def _sweep(store: Store, key: str) -> tuple[pa.Table, dict[str, Any], str]:
    record = Record(store, key)
    found = record.read()
    if found is None:
        raise KdscaleError(
            f"no sweep {record.uri} has trials; kdscale artifacts {store.uri} lists them"
        )
    return *found, record.uri


def _from_bucket(uri: str, key: str, where: str) -> tuple[pa.Table, dict[str, Any], str]:
    from kdscale.store.s3.client import Bucket

    data = Bucket(uri).get(key)
    if data is None:
        raise KdscaleError(f"there is no {where}; give a table of trials, or a store with a sweep")
    with tempfile.TemporaryDirectory(prefix="kdscale-trials-") as folder:
        path = Path(folder, Path(key).name)
        path.write_bytes(data)
        return (*read_trials(path), where)


def shared_costs(store: Store, table: pa.Table) -> dict[str, Shared]:
    """What each student's language model and teacher scores cost, by the student's name, as the
    manifests have it. A student that the store has not is left out."""
    costs = {}
    for name in {name for name in table["artifact"].to_pylist() if name}:
        kind, _, key = name.partition("/")
        student = store.find(kind, key) if kind == "students" else None
        if student is not None:
            seconds = {role: _seconds(store, student.manifest, role) for role in ("lm", "scores")}
            costs[name] = Shared(seconds["lm"], seconds["scores"])
    return costs


def _seconds(store: Store, manifest: dict[str, Any], role: str) -> float | None:
    entry = manifest["inputs"].get(role)
    made = entry and store.find(*entry["name"].split("/", 1))
    return made.facts.get("seconds") if made else None
