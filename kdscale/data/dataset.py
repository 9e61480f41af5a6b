"""Reading what the prepare stages wrote."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa

from kdscale.data.schema import (
    BLOCKS,
    CANDIDATES,
    PAIRS,
    PASSAGE_TOKENS,
    PASSAGES,
    QRELS,
    QUERIES,
    QUERY_TOKENS,
)
from kdscale.data.shards import (
    count_rows,
    read_batches,
    read_shards,
    read_table,
    read_where,
    sample_column,
)
from kdscale.errors import KdscaleError

if TYPE_CHECKING:
    from kdscale.models.encode import PairEncoder

STATS = "stats.json"
TOKENS_INFO = "tokens.json"
BLOCKS_AT_A_TIME = 8_192


class Dataset:
    """A dataset artifact. Every method reads its table from the files anew."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self._splits: list[str] = read_json(self.path / STATS)["splits"]

    def splits(self) -> list[str]:
        """In the order of the source or of prepare.split."""
        return list(self._splits)

    def passages(self, rows: int) -> Iterator[pa.Table]:
        """PASSAGES in order, at most so many rows at a time; no more are held."""
        return read_batches(self.path / "passages", PASSAGES, rows)

    def passage_count(self) -> int:
        return count_rows(self.path / "passages")

    def sample_passages(self, count: int) -> Iterator[list[str]]:
        """The texts of at most `count` passages, spread evenly over the collection, of which
        little is held at a time."""
        return sample_column(self.path / "passages", PASSAGES, "text", count)

    def text_batches(self, size: int = 10_000) -> Iterator[list[str]]:
        """Every text of the dataset, at most `size` at a time."""
        for table in self.passages(size):
            yield table["text"].to_pylist()
        for split in self._splits:
            texts = self.queries(split)["text"].to_pylist()
            for start in range(0, len(texts), size):
                yield texts[start : start + size]

    def queries(self, split: str) -> pa.Table:
        return self._of_split("queries", split, QUERIES)

    def qrels(self, split: str, qids: set[str] | None = None) -> pa.Table:
        """qids: of these queries only, without the rest in memory."""
        return self._of_split("qrels", split, QRELS, qids)

    def candidates(self, split: str, qids: set[str] | None = None) -> pa.Table:
        """By query in the order of `queries`, by rank within a query; qids as for `qrels`."""
        return self._of_split("candidates", split, CANDIDATES, qids)

    def pairs(self) -> pa.Table:
        """The training pairs, by pair_id (0, 1, ...), a query's pairs together."""
        return read_shards(self.path / "pairs", PAIRS)

    def passages_of(self, pids: set[str]) -> pa.Table:
        """PASSAGES in order, without the rest of the collection."""
        return read_where(self.path / "passages", PASSAGES, "pid", pids)

    def passage_texts(self, pids: set[str]) -> dict[str, str]:
        """pid -> text."""
        return _texts(self.passages_of(pids))

    def query_texts(self, split: str, qids: set[str]) -> dict[str, str]:
        """qid -> text."""
        path = self.path / "queries" / f"{split}.parquet"
        return _texts(read_where(path, QUERIES, "qid", qids))

    def _of_split(
        self, table: str, split: str, schema: pa.Schema, qids: set[str] | None = None
    ) -> pa.Table:
        check_split(split, self._splits)
        path = self.path / table / f"{split}.parquet"
        return read_table(path, schema) if qids is None else read_where(path, schema, "qid", qids)


def _texts(table: pa.Table) -> dict[str, str]:
    return dict(zip(*(column.to_pylist() for column in table.columns), strict=True))


class PairTokens(Protocol):
    """Token ids: of a tokens artifact, or of texts that are cut as they are asked for."""

    def passage_ids(self, pids: Iterable[str], /) -> Mapping[str, np.ndarray]: ...

    def query_ids(self, split: str, qid: str, /) -> np.ndarray: ...

    def encoder(self) -> PairEncoder: ...


class Tokens:
    """A tokens artifact: token ids without special tokens."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.info = read_json(self.path / TOKENS_INFO)
        self._queries: dict[str, TokenIds] = {}

    def passage_ids(self, pids: Iterable[str]) -> TokenIds:
        """Of these passages, without the rest of the collection. Raises KdscaleError where the
        tokens lack one."""
        wanted = set(pids)
        found = TokenIds(read_where(self.path / "passages", PASSAGE_TOKENS, "pid", wanted))
        if len(found) < len(wanted):
            lacking = min(wanted.difference(found))
            raise KdscaleError(
                f"the tokens lack {lacking!r}; run the prepare stage again for this dataset"
            )
        return found

    def query_ids(self, split: str, qid: str) -> np.ndarray:
        """[tokens] int32."""
        if split not in self._queries:
            check_split(split, self.info["splits"])
            path = self.path / "queries" / f"{split}.parquet"
            self._queries[split] = TokenIds(read_table(path, QUERY_TOKENS))
        try:
            return self._queries[split][qid]
        except KeyError:
            raise KdscaleError(
                f"the tokens lack {qid!r}; run the prepare stage again for this dataset"
            ) from None

    def blocks(self) -> np.ndarray:
        """[N, block_length] int32, special tokens included: mapped from a file that goes with the
        array, since there can be more of them than the memory holds."""
        folder, length = self.path / "blocks", self.info["block_length"]
        count = count_rows(folder)
        if not count:
            return np.empty((0, length), dtype=np.int32)
        with tempfile.TemporaryFile() as file:
            for table in read_batches(folder, BLOCKS, BLOCKS_AT_A_TIME):
                file.write(flatten(table["ids"])[0].tobytes())
            file.flush()
            return np.memmap(file, np.int32, "r", shape=(count, length))

    def encoder(self) -> PairEncoder:
        """What puts pairs together, for the tokenizer and max_length of these tokens."""
        from kdscale.models.encode import PairEncoder

        return PairEncoder.load(self.path / "tokenizer", self.info["max_length"])


class TokenIds(Mapping[str, np.ndarray]):
    """id -> [tokens] int32, end to end in one array: a table's worth of arrays would be larger."""

    def __init__(self, table: pa.Table):
        self._flat, self._offsets = flatten(table["ids"])
        self._row = {key: i for i, key in enumerate(table[0].to_pylist())}

    def __getitem__(self, key: str) -> np.ndarray:
        row = self._row[key]
        return self._flat[self._offsets[row] : self._offsets[row + 1]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._row)

    def __len__(self) -> int:
        return len(self._row)


def flatten(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """A list<int32> column of N rows as flat values (int32) and offsets [N + 1] (int64).

    Chunk by chunk, since the offsets inside Arrow are int32 and a collection has more tokens.
    """
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    lengths = [chunk.value_lengths().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    offsets = np.zeros(len(column) + 1, dtype=np.int64)
    np.cumsum(np.concatenate([np.empty(0, np.int64), *lengths]), out=offsets[1:])
    return np.concatenate([np.empty(0, np.int32), *values]), offsets


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KdscaleError(
            f"cannot read {path} ({error}); remove its artifact and run again"
        ) from None


def check_split(split: str, splits: list[str]) -> None:
    if split not in splits:
        raise KdscaleError(
            f"the dataset has no split {split!r}, only {', '.join(splits)}; correct the name "
            "(evaluate.splits) or the source"
        )
