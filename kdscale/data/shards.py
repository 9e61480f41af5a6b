"""Parquet tables in files whose bytes depend on the rows alone."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
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


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Raises KdscaleError for a file that is absent or has other columns."""
    if not path.is_file():
        raise KdscaleError(f"{path} is missing; remove its artifact and run again")
    table = pq.read_table(path)
    if table.schema.names != schema.names:
        raise KdscaleError(
            f"{path} has the columns {table.schema.names}, not {schema.names}; it was written by "
            "another release: remove its artifact and run again"
        )
    return table
