"""Parquet tables in files whose bytes depend on the rows alone."""

from __future__ import annotations

import tempfile
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
COMPRESSION = "zstd"


def write_table(path: Path, table: pa.Table, schema: pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    one_chunk = table.cast(schema).combine_chunks()  # as `_Rows.take`
    pq.write_table(one_chunk, path, compression=COMPRESSION, row_group_size=ROW_GROUP)


def write_shards(directory: Path, table: pa.Table, schema: pa.Schema, shards: int) -> None:
    """`part-00000.parquet` and so on, at most `shards` files of equal rows but for the last.

    An empty table is one file without rows, so that its schema can be read.
    """
    _write_parts(directory, _Rows([table], schema), table.num_rows, shards)


def stream_shards(
    directory: Path, tables: Iterable[pa.Table], schema: pa.Schema, shards: int, scratch: Path
) -> int:
    """The same files of tables that are too many for the memory; the number of rows.

    Equal files need the number of rows: until it is known, the rows are in a file of `scratch`.
    """
    rows = 0
    packed = pa.ipc.IpcWriteOptions(compression="zstd")
    with tempfile.TemporaryFile(dir=scratch) as file:
        with pa.ipc.new_stream(pa.PythonFile(file, "w"), schema, options=packed) as spool:
            for table in tables:
                spool.write_table(table.cast(schema))
                rows += table.num_rows
        file.seek(0)
        spooled = pa.ipc.open_stream(pa.PythonFile(file, "r"))
        tables = (pa.Table.from_batches([batch]) for batch in spooled)
        _write_parts(directory, _Rows(tables, schema), rows, shards)
    return rows


class _Rows:
    """The rows of tables, to be taken so many at a time."""

    def __init__(self, tables: Iterable[pa.Table], schema: pa.Schema):
        self.schema = schema
        self._tables = iter(tables)
        self._held = schema.empty_table()

    def take(self, count: int) -> pa.Table:
        """The next `count` rows; there have to be so many. In one chunk: how they came in (from
        how many workers) must not show in a file's bytes."""
        parts = [self._held]
        have = self._held.num_rows
        while have < count:
            parts.append(next(self._tables).cast(self.schema))
            have += parts[-1].num_rows
        whole = pa.concat_tables(parts)
        self._held = whole.slice(count)
        return whole.slice(0, count).combine_chunks()


def _write_parts(directory: Path, rows: _Rows, count: int, shards: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    size = max(1, -(-count // max(1, shards)))
    for part, start in enumerate(range(0, max(1, count), size)):
        path = directory / f"part-{part:05d}.parquet"
        end = min(start + size, count)
        with pq.ParquetWriter(path, rows.schema, compression=COMPRESSION) as writer:
            for first in range(start, max(end, 1), ROW_GROUP):
                writer.write_table(rows.take(min(ROW_GROUP, end - first)), row_group_size=ROW_GROUP)


def read_shards(directory: Path, schema: pa.Schema) -> pa.Table:
    return pa.concat_tables([read_table(path, schema) for path in _parts(directory)])


def read_batches(
    directory: Path, schema: pa.Schema, rows: int, columns: list[str] | None = None
) -> Iterator[pa.Table]:
    """All rows in order, at most so many at a time; columns: these alone are read."""
    for path in _parts(directory):
        with _faults_of(path), pq.ParquetFile(path) as file:
            _check_schema(path, file.schema_arrow, schema)
            for batch in file.iter_batches(rows, columns=columns):
                yield pa.Table.from_batches([batch])


def count_rows(directory: Path) -> int:
    with _faults_of(directory):
        return sum(pq.read_metadata(path).num_rows for path in _parts(directory))


def sample_column(
    directory: Path, schema: pa.Schema, column: str, count: int
) -> Iterator[list[Any]]:
    """At most `count` values of a column, evenly spread over all rows: those of each batch."""
    total = count_rows(directory)
    count = min(count, total)
    rows = np.arange(count) * total // max(1, count)
    start = 0
    for table in read_batches(directory, schema, ROW_GROUP):
        first, last = np.searchsorted(rows, [start, start + table.num_rows])
        yield table[column].take(pa.array(rows[first:last] - start)).to_pylist()
        start += table.num_rows


def _parts(directory: Path) -> list[Path]:
    paths = sorted(directory.glob("part-*.parquet"))
    if not paths:
        raise KdscaleError(f"{directory} has no part-*.parquet; remove its artifact and run again")
    return paths


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Raises KdscaleError for a file that is absent, damaged or has other columns."""
    if not path.is_file():
        raise KdscaleError(f"{path} is missing; remove its artifact and run again")
    with _faults_of(path):
        # Else a folder of the user's named `lr=0.001` would be taken for a column.
        table = pq.read_table(path, partitioning=None)
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
        found = files.to_table(
            filter=pads.field(column).isin(values), batch_readahead=1, fragment_readahead=1
        )
    # Else what was read and passed over stays with Arrow for as long as the process lives.
    pa.default_memory_pool().release_unused()
    return found


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
