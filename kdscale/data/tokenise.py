"""Token ids of whole collections, and the token blocks of the language-model stage.

No model library is imported here: Ray's workers load this module, and the tokenizers library
alone is ready in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from itertools import chain

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from kdscale.data.raymap import map_tables
from kdscale.data.schema import BLOCKS
from kdscale.progress import Task

ROWS_PER_CHUNK = 100_000


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


def pack_blocks(
    flat: np.ndarray,
    lengths: np.ndarray,
    cls_id: int,
    sep_id: int,
    block_length: int,
    seed: int,
    max_tokens: int | None = None,
) -> np.ndarray:
    """[N, block_length] int32: documents in an order drawn from `seed`, end to end, no padding.

    A row is CLS, text, SEP; inside, SEP stands between documents, and a document may go on in
    the next row. The tail that fills no row is left out. max_tokens cuts the number of rows, and
    a smaller budget gives the first rows of a larger one.

    flat, lengths: the token ids of the documents laid end to end, and how many each has.
    """
    content = block_length - 2
    starts = np.cumsum(lengths) - lengths
    order = np.random.default_rng(seed).permutation(len(lengths))
    order = order[lengths[order] > 0]
    if max_tokens is not None:
        enough = np.searchsorted(np.cumsum(lengths[order] + 1), max_tokens) + 1
        order = order[:enough]
    stream = np.full(int((lengths[order] + 1).sum()), sep_id, dtype=np.int32)
    at = 0
    for document in order:
        n = lengths[document]
        stream[at : at + n] = flat[starts[document] : starts[document] + n]
        at += n + 1
    rows = len(stream) // content
    if max_tokens is not None:
        rows = min(rows, max_tokens // block_length)
    blocks = np.empty((rows, block_length), dtype=np.int32)
    blocks[:, 0], blocks[:, -1] = cls_id, sep_id
    blocks[:, 1:-1] = stream[: rows * content].reshape(rows, content)
    return blocks


def tokenise_tables(tables: Iterable[pa.Table], tokenizer_json: str, task: Task) -> pa.Table:
    """`tokenise_table` of every table by Ray Data, in order, as one table."""
    done = []
    for table in map_tables(tables, tokenise_table, tokenizer_json=tokenizer_json):
        done.append(table)
        task.advance(table.num_rows)
    return pa.concat_tables(done)


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
    """BLOCKS of [N, block_length] ids, in chunks whose offsets fit Arrow's int32."""
    chunks = [
        ragged_column(part.reshape(-1), np.full(len(part), part.shape[1]))
        for part in (blocks[i : i + ROWS_PER_CHUNK] for i in range(0, len(blocks), ROWS_PER_CHUNK))
    ]
    return pa.table([pa.chunked_array(chunks, pa.list_(pa.int32()))], schema=BLOCKS)
