"""Token ids of texts, the token blocks of the language-model stage, and what
`prepare.max_length` cuts off.

No model library is imported here: Ray's workers load this module, and the tokenizers library
alone is ready in a fraction of a second.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from kdscale.data.dataset import Dataset
from kdscale.data.parallel import map_tables
from kdscale.data.queries import TRAIN
from kdscale.data.schema import BLOCKS, PASSAGE_TOKENS
from kdscale.data.shards import read_batches
from kdscale.progress import Task

if TYPE_CHECKING:
    from kdscale.models.encode import PairEncoder


class TextTokens:
    """Token ids of passages and of the queries named, by the methods of `Tokens`."""

    def __init__(self, dataset: Dataset, encoder: PairEncoder, qids: dict[str, Iterable[str]]):
        """qids: split -> queries of it."""
        self._dataset, self._encoder = dataset, encoder
        self._queries = {
            split: self._cut(dataset.query_texts(split, set(of_split)))
            for split, of_split in qids.items()
        }

    def passage_ids(self, pids: Iterable[str]) -> dict[str, np.ndarray]:
        """pid -> [tokens] int32."""
        return self._cut(self._dataset.passage_texts(set(pids)))

    def query_ids(self, split: str, qid: str) -> np.ndarray:
        """[tokens] int32."""
        return self._queries[split][qid]

    def encoder(self) -> PairEncoder:
        return self._encoder

    def _cut(self, texts: dict[str, str]) -> dict[str, np.ndarray]:
        return dict(zip(texts, self._encoder.tokenise(list(texts.values())), strict=True))


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


ROWS = 1_000_000  # ids looked up at a time
MANY = 0.25  # a share of cut pairs to warn of


def count_cuts(
    dataset: Dataset,
    encoder: PairEncoder,
    passages: Path,
    lengths: np.ndarray,
    query_lengths: Mapping[str, Mapping[str, int]],
) -> dict[str, dict[str, Any]]:
    """Of the training pairs ("train"), and of each other split's candidates: how many "pairs",
    "queries", "passages" and "tokens" (of all pairs) there are, and of each, under "cut", how many
    are cut (a text: in any of its pairs) or, of tokens, lost.

    passages: PASSAGE_TOKENS, whose rows had `lengths` [N] tokens; query_lengths: split -> qid ->
    tokens. Both before anything was cut. In memory: the ids that pairs name, and a split's pairs.
    """
    named = pa.chunked_array([_pids(table) for _, table in _parts(dataset)], pa.string()).unique()
    tokens = _lengths_of(named, passages, lengths)
    found = {}
    for split, table in _parts(dataset):
        qids = table["qid"].combine_chunks().dictionary_encode()
        of_query = query_lengths[split]
        by_number = np.array([of_query[q] for q in qids.dictionary.to_pylist()], dtype=np.int64)
        query, passage = qids.indices.to_numpy(), pc.index_in(_pids(table), named).to_numpy()
        q_lens, p_lens = by_number[query], tokens[passage]
        q_kept, p_kept = encoder.kept(q_lens, p_lens)
        q_cut, p_cut = q_kept < q_lens, p_kept < p_lens
        found[split] = {
            "pairs": len(query),
            "queries": len(by_number),
            "passages": len(np.unique(passage)),
            "tokens": int((q_lens + p_lens).sum()),
            "cut": {
                "pairs": int((q_cut | p_cut).sum()),
                "queries": len(np.unique(query[q_cut])),
                "passages": len(np.unique(passage[p_cut])),
                "tokens": int((q_lens - q_kept + p_lens - p_kept).sum()),
            },
        }
    return found


def describe(split: str, counts: Mapping[str, Any], max_length: int) -> str | None:
    """What was cut, in a sentence; None where nothing was."""
    cut = counts["cut"]
    if not cut["pairs"]:
        return None
    pairs = "training pairs" if split == TRAIN else f"pairs of {split}"
    queries = f", {cut['queries']} of {counts['queries']} queries too" * bool(cut["queries"])
    return (
        f"{_share(cut['pairs'], counts['pairs'])} of the {pairs} are longer than "
        f"prepare.max_length ({max_length} tokens) and are cut{queries}; "
        f"{_share(cut['tokens'], counts['tokens'])} of all tokens are lost"
    )


def are_many(counts: Mapping[str, Any]) -> bool:
    return counts["cut"]["pairs"] >= MANY * counts["pairs"]


def _share(part: int, whole: int) -> str:
    percent = 100 * part / whole
    return f"{percent:.0f} %" if percent >= 1 else f"{percent:.1g} %"


def _parts(dataset: Dataset) -> Iterator[tuple[str, pa.Table]]:
    """What has qid and pid, of each split with any."""
    for split in dataset.splits():
        table = dataset.pairs() if split == TRAIN else dataset.candidates(split)
        if table.num_rows:
            yield split, table


def _pids(table: pa.Table) -> pa.Array:
    return table["pid"].combine_chunks()


def _lengths_of(named: pa.Array, passages: Path, lengths: np.ndarray) -> np.ndarray:
    """[named] int64: the length of each."""
    found, start = np.zeros(len(named), dtype=np.int64), 0
    for table in read_batches(passages, PASSAGE_TOKENS, ROWS, ["pid"]):
        places = pc.index_in(_pids(table), named)
        rows = np.flatnonzero(places.is_valid().to_numpy(zero_copy_only=False))
        found[places.drop_null().to_numpy()] = lengths[start + rows]
        start += table.num_rows
    return found
