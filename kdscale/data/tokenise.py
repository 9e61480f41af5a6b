"""Token ids of whole collections, and the token blocks of the language-model stage.

No model library is imported here: Ray's workers load this module, and the tokenizers library
alone is ready in a fraction of a second.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from kdscale.data.raymap import map_tables
from kdscale.data.schema import BLOCKS
from kdscale.progress import Task

ROWS_PER_CHUNK = 8_192


@lru_cache(maxsize=1)
def _tokenizer(path: str) -> Tokenizer:
    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def tokenise_table(table: pa.Table, tokenizer_json: str) -> pa.Table:
    """The column "text" replaced by "ids": list<int32> of all its tokens, no special ones.

    tokenizer_json: the path of a fast tokenizer's file. Once read, a process keeps it.
    """
    encoded = _tokenizer(tokenizer_json).encode_batch_fast(
        table["text"].to_pylist(), add_special_tokens=False
    )
    rows = [e.ids for e in encoded]
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    flat = np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum()))
    index = table.schema.get_field_index("text")
    return table.set_column(index, "ids", ragged_column(flat, lengths))


def ragged_column(flat: np.ndarray, lengths: np.ndarray) -> pa.ListArray:
    """list<int32> of rows with these lengths, laid end to end in `flat`."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, pa.int32()))


class TokenSpool:
    """Token ids of documents, added one after the other, read in any order; in a file, since a
    collection can have more than memory holds. In memory: a few bytes a document."""

    def __init__(self, folder: Path):
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `close`
        self._lengths: list[np.ndarray] = []

    def add(self, column: pa.ChunkedArray) -> None:
        """column: list<int32>, a document a row."""
        for chunk in column.chunks:
            self._file.write(chunk.flatten().to_numpy().tobytes())
            self._lengths.append(chunk.value_lengths().to_numpy(zero_copy_only=False))

    def lengths(self) -> np.ndarray:
        """[documents] int32."""
        return np.concatenate([np.empty(0, np.int32), *self._lengths])

    def read(self, start: int, count: int) -> np.ndarray:
        """[count] int32, from so many ids after the first document's first on."""
        self._file.flush()
        size = np.dtype(np.int32).itemsize
        return np.frombuffer(os.pread(self._file.fileno(), count * size, start * size), np.int32)

    def close(self) -> None:
        self._file.close()


def pack_blocks(
    spool: TokenSpool,
    cls_id: int,
    sep_id: int,
    block_length: int,
    seed: int,
    max_tokens: int | None = None,
) -> Iterator[np.ndarray]:
    """[N, block_length] int32 in all, some rows at a time: the documents of the spool in an order
    drawn from `seed`, end to end, no padding.

    A row is CLS, text, SEP; inside, SEP stands between documents, and a document may go on in
    the next row. The tail that fills no row is left out. max_tokens cuts the number of rows, and
    a smaller budget gives the first rows of a larger one.
    """
    content, lengths = block_length - 2, spool.lengths()
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    left = sys.maxsize if max_tokens is None else max_tokens // block_length  # rows
    sep = np.full(1, sep_id, dtype=np.int32)
    held: list[np.ndarray] = []  # of these, `have` ids
    have = 0
    for document in np.random.default_rng(seed).permutation(len(lengths)):
        count = int(lengths[document])
        if not left:
            break
        if not count:
            continue
        held += [spool.read(int(starts[document]), count), sep]
        have += count + 1
        rows = min(have // content, left)
        if rows >= ROWS_PER_CHUNK or rows == left:
            stream = np.concatenate(held)
            yield _blocks(stream[: rows * content].reshape(rows, content), cls_id, sep_id)
            held, have, left = [stream[rows * content :]], have - rows * content, left - rows
    rows = min(have // content, left)
    if rows:
        stream = np.concatenate(held)[: rows * content]
        yield _blocks(stream.reshape(rows, content), cls_id, sep_id)


def _blocks(content: np.ndarray, cls_id: int, sep_id: int) -> np.ndarray:
    blocks = np.empty((len(content), content.shape[1] + 2), dtype=np.int32)
    blocks[:, 0], blocks[:, -1] = cls_id, sep_id
    blocks[:, 1:-1] = content
    return blocks


def tokenise_tables(
    tables: Iterable[pa.Table], tokenizer_json: str, task: Task
) -> Iterator[pa.Table]:
    """`tokenise_table` of every table by Ray Data, in order."""
    for table in map_tables(tables, tokenise_table, tokenizer_json=tokenizer_json):
        yield table
        task.advance(table.num_rows)


def cut_column(column: pa.ChunkedArray, keep: int) -> pa.ChunkedArray:
    """A list<int32> column with each row cut to at most `keep` values."""
    chunks = []
    for chunk in column.chunks:
        lengths = chunk.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        flat = chunk.flatten().to_numpy(zero_copy_only=False)
        inside = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        chunks.append(ragged_column(flat[inside < keep], np.minimum(lengths, keep)))
    return pa.chunked_array(chunks, pa.list_(pa.int32()))


def block_table(blocks: np.ndarray) -> pa.Table:
    """BLOCKS of [N, block_length] ids."""
    lengths = np.full(len(blocks), blocks.shape[1])
    return pa.table([ragged_column(blocks.reshape(-1), lengths)], schema=BLOCKS)
