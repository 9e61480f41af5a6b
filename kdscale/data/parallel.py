"""A function over the tables of a collection, in order: in the calling process, or in Ray's
workers.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Protocol

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


class Calls(Protocol):
    """A handle stands for a value; functions are given handles where they expect values."""

    processors: int

    def put(self, value: Any) -> Any:
        """A handle of a value that several calls are given."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A handle of what the function returns."""

    def wait(self, handle: Any) -> None:
        """Until its call has ended, without fetching what it returned."""

    def get(self, handle: Any) -> Any:
        """The value."""

    def in_order(self, handles: Iterable[Any], at_a_time: int) -> Iterator[Any]:
        """The value of each handle. No more than `at_a_time` calls are begun and not yet taken."""


class InProcess:
    """At once, in the calling process."""

    processors = 1

    def put(self, value: Any) -> Any:
        return value

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def wait(self, handle: Any) -> None:
        pass

    def get(self, handle: Any) -> Any:
        return handle

    def in_order(self, handles: Iterable[Any], at_a_time: int) -> Iterator[Any]:
        yield from handles


class OnRay:
    """Each call a task of a running Ray session.

    ray: the module, as `ray_session` yields it
    """

    def __init__(self, ray: Any):
        self._ray = ray
        self._remote: dict[Callable[..., Any], Any] = {}
        self.processors = max(1, int(ray.cluster_resources().get("CPU", 1)))

    def put(self, value: Any) -> Any:
        return self._ray.put(value)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if function not in self._remote:
            self._remote[function] = self._ray.remote(function)
        return self._remote[function].remote(*arguments)

    def wait(self, handle: Any) -> None:
        self._ray.wait([handle], fetch_local=False)

    def get(self, handle: Any) -> Any:
        return self._ray.get(handle)

    def in_order(self, handles: Iterable[Any], at_a_time: int) -> Iterator[Any]:
        begun: deque[Any] = deque()
        for handle in handles:
            begun.append(handle)
            if len(begun) == at_a_time:
                yield self.get(begun.popleft())
        while begun:
            yield self.get(begun.popleft())
