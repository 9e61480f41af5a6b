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
from kdscale.store import LocalStore, Store, open_store

SWEEPS, RESULTS = "sweeps", "results.parquet"  # STORE/sweeps/KEY/results.parquet


def load(uri: str) -> tuple[pa.Table, dict[str, Any], str, Store | None]:
    """The table, what is told of it, where it was found, and the store if `uri` is one.

    uri: a table's Parquet file, or a store, whose newest sweep it then is; a folder or s3://.
    Raises KdscaleError where there is none.
    """
    if not uri.endswith(".parquet"):
        store = open_store(uri)
        store.preflight(writing=False)
        return (*newest_sweep(store), store)
    if uri.startswith("s3://"):
        folder, _, name = uri.rpartition("/")
        return (*_from_bucket(folder, name, uri), None)
    path = user_path(uri.removeprefix("file://"), "the table of trials")
    if not path.is_file():
        raise KdscaleError(f"no file {path}; give a table of trials, or a store with a sweep")
    return (*read_trials(path), str(path), None)


def newest_sweep(store: Store) -> tuple[pa.Table, dict[str, Any], str]:
    """The table that was written last, of a sweep that has ended or is running."""
    if isinstance(store, LocalStore):
        found = list((store.root / SWEEPS).glob(f"*/{RESULTS}"))
        if found:
            path = max(found, key=lambda p: p.stat().st_mtime)
            return (*read_trials(path), str(path))
    else:
        from kdscale.store.s3 import Bucket

        objects = Bucket(store.uri).objects(f"{SWEEPS}/")
        tables = [o for o in objects if o.key.endswith(f"/{RESULTS}")]
        if tables:
            newest = max(tables, key=lambda o: o.modified)
            return _from_bucket(store.uri, newest.key, f"{store.uri}/{newest.key}")
    raise KdscaleError(
        f"no sweep in {store.uri} (looked for {SWEEPS}/*/{RESULTS}); run kdscale sweep, or give a "
        "table of trials"
    )


def _from_bucket(uri: str, key: str, where: str) -> tuple[pa.Table, dict[str, Any], str]:
    from kdscale.store.s3 import Bucket

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
