"""A function over the tables of a collection, by Ray Data, in order."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import pyarrow as pa

BLOCK_ROWS = 2_048
BLOCK_CHARS = 8_000_000
WINDOW = 64  # blocks handed to Ray Data at a time: bounds what is in memory


def in_blocks(rows: Iterable[tuple], schema: pa.Schema, text: int) -> Iterator[pa.Table]:
    """Tables of at most BLOCK_ROWS rows, closed early where their texts get large.

    text: the place in a row of its text.
    """
    block: list[tuple] = []
    chars = 0
    for row in rows:
        block.append(row)
        chars += len(row[text])
        if len(block) == BLOCK_ROWS or chars >= BLOCK_CHARS:
            yield _table(block, schema)
            block, chars = [], 0
    if block:
        yield _table(block, schema)


def _table(rows: list[tuple], schema: pa.Schema) -> pa.Table:
    columns = zip(*rows, strict=True)
    return pa.table([list(column) for column in columns], schema=schema)


def map_tables(
    tables: Iterable[pa.Table], function: Callable[..., pa.Table], **arguments: Any
) -> Iterator[pa.Table]:
    """`function(table, **arguments)` of each table, in the order of the tables.

    The tables go to Ray's shared memory from here, since a read task per file costs more than
    the work itself for a collection that fits one machine. Needs a running Ray session.
    """
    import ray.data

    tables = iter(tables)
    while window := list(islice(tables, WINDOW)):
        blocks = ray.data.from_arrow(window)
        blocks.context.execution_options.preserve_order = True
        mapped = blocks.map_batches(
            function, batch_format="pyarrow", batch_size=None, fn_kwargs=arguments
        )
        yield from mapped.iter_batches(batch_format="pyarrow", batch_size=None)
        # Ray Data's plans are cycles: what they refer to would stay in shared memory until Python
        # happens to look for such.
        del window, blocks, mapped
        gc.collect()
