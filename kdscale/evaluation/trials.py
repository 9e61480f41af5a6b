"""The table of trials: what many trained systems are worth, in one Parquet file.

A row is a system and a measure, with the value of every query, so that two systems can be tested
against each other whenever they were trained. `kdscale sweep` and `benchmarks/strategies.py` write
it; the page, `kdscale advise` and whoever has a notebook read it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import kdscale
from kdscale.data.shards import read_table
from kdscale.errors import KdscaleError
from kdscale.machine import cpus

PACKAGES = ("torch", "transformers", "ray", "deepspeed", "numpy")
ABOUT = b"about"  # the key of the schema's metadata under which the circumstances are JSON

TRIALS = pa.schema(
    [
        ("system", pa.string()),  # "bm25", "teacher", "STRATEGY/SHAPE"
        ("strategy", pa.string()),  # null, with all that describes a student, for the others
        ("shape", pa.string()),
        ("variant", pa.string()),  # what else was set, in words; "default" for nothing
        ("budget", pa.float64()),  # share of the training queries
        ("seed", pa.int64()),
        ("pairs_seen", pa.int64()),  # in training, repetitions included
        ("train_seconds", pa.float64()),  # of its own training, without what is shared
        ("parameters", pa.int64()),
        ("bytes", pa.int64()),  # of its weights file
        ("ms", pa.float64()),  # median of a query's candidates, tokenising included
        ("speedup", pa.float64()),  # over the teacher, same machine, threads and candidates
        ("artifact", pa.string()),  # KIND/KEY in the store
        ("digest", pa.string()),
        ("measure", pa.string()),  # an ir-measures name
        ("mean", pa.float64()),  # over the queries
        ("values", pa.list_(pa.float32())),  # [queries], in one order for all rows
    ]
)


def trial_rows(values: dict[str, np.ndarray], **fields: Any) -> pa.Table:
    """The rows of one system. values: measure -> [queries]; fields: any other columns by name."""
    count = len(values)
    columns = {name: [fields.pop(name, None)] * count for name in TRIALS.names[:-3]}
    if fields:
        raise TypeError(f"the table of trials has no column {', '.join(fields)}")
    columns |= {
        "measure": list(values),
        "mean": [float(v.mean()) for v in values.values()],
        "values": [v.astype(np.float32).tolist() for v in values.values()],
    }
    return pa.table(columns, schema=TRIALS)


def write_trials(path: Path, tables: list[pa.Table], **about: Any) -> None:
    """One Parquet file, replaced as a whole; `about` says how it was made."""
    circumstances = {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "cpus": cpus(),
        "versions": {"kdscale": kdscale.__version__, **_versions()},
        **about,
    }
    whole = pa.concat_tables([TRIALS.empty_table(), *tables])
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(
        whole.replace_schema_metadata({ABOUT: json.dumps(circumstances)}), part, compression="zstd"
    )
    part.replace(path)


def _versions() -> dict[str, str]:
    """Of those of PACKAGES that there are: plain torch needs neither Ray nor DeepSpeed."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def read_trials(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """The rows and what is told of them. Raises KdscaleError for a file that is no such table."""
    if not path.is_file():
        raise KdscaleError(f"no file {path}; give a Parquet file of trials")
    table = read_table(path, TRIALS)
    try:
        about = json.loads((table.schema.metadata or {})[ABOUT])
    except (KeyError, ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise KdscaleError(f"{path} is no table of trials: it does not say how it was made")
    return table, about
