"""Parquet tables in files whose bytes depend on the rows alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from kdscale.errors import KdscaleError

ROW_GROUP = 65_536


def write_table(path: Path, table: pa.Table, schema: pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # One chunk: how the rows came in (from how many workers) must not show in the file's bytes.
    pq.write_table(
        table.cast(schema).combine_chunks(), path, compression="zstd", row_group_size=ROW_GROUP
    )


def write_shards(directory: Path, table: pa.Table, schema: pa.Schema, shards: int) -> None:
    """`part-00000.parquet` and so on, at most `shards` files of equal rows but for the last.

    An empty table is one file without rows, so that its schema can be read.
    """
    size = max(1, -(-table.num_rows // max(1, shards)))
    for part, start in enumerate(range(0, max(1, table.num_rows), size)):
        path = directory / f"part-{part:05d}.parquet"
        write_table(path, table.slice(start, size), schema)


def read_shards(directory: Path, schema: pa.Schema) -> pa.Table:
    paths = sorted(directory.glob("part-*.parquet"))
    if not paths:
        raise KdscaleError(f"{directory} has no part-*.parquet; remove its artifact and run again")
    return pa.concat_tables([read_table(path, schema) for path in paths])


def sample_column(
    directory: Path, schema: pa.Schema, column: str, count: int
) -> Iterator[list[Any]]:
    """At most `count` values of a column, evenly spread over all rows: those of each file."""
    paths = sorted(directory.glob("part-*.parquet"))
    with _faults_of(directory):
        sizes = [pq.read_metadata(path).num_rows for path in paths]
    total = sum(sizes)
    count = min(count, total)
    rows = np.arange(count) * total // max(1, count)
    start = 0
    for path, size in zip(paths, sizes, strict=True):
        mine = rows[(rows >= start) & (rows < start + size)] - start
        yield read_table(path, schema)[column].take(pa.array(mine)).to_pylist()
        start += size


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Raises KdscaleError for a file that is absent, damaged or has other columns."""
    if not path.is_file():
        raise KdscaleError(f"{path} is missing; remove its artifact and run again")
    with _faults_of(path):
        table = pq.read_table(path)
    _check_schema(path, table.schema, schema)
    return table


def read_where(path: Path, schema: pa.Schema, column: str, wanted: Iterable[str]) -> pa.Table:
    """The rows of Parquet files (one, or a folder of them) whose `column` is one of `wanted`:
    filtered while they are read, since a collection can be larger than the memory. As
    `read_table`."""
    with _faults_of(path):
        files = pads.dataset(path, format="parquet")
        for part in files.get_fragments():
            _check_schema(Path(part.path), part.physical_schema, schema)
        values = pa.array(
            sorted(wanted), schema.field(column).type
        )  # else none would be of no type
        return files.to_table(filter=pads.field(column).isin(values))


@contextmanager
def _faults_of(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise KdscaleError(
            f"cannot read {path} ({reason}); remove its artifact and run again"
        ) from None


def _check_schema(path: Path, found: pa.Schema, schema: pa.Schema) -> None:
    """The types are checked as well: Ray gives Arrow a type whose values are pickles, which
    would run code of whoever wrote the file as soon as one of its values is looked at."""
    if not found.equals(schema):
        raise KdscaleError(
            f"{path} has the columns {_shown(found)}, not {_shown(schema)}; it was written by "
            "another release: remove its artifact and run again"
        )


def _shown(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
