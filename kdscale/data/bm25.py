"""BM25 over a collection that is larger than memory, in parts, with the ranking of the whole.

A passage's score needs of the other passages only how many there are, how long they are on
average, and in how many of them each word of the query stands. Those are added up while the parts
are indexed; the parts lie on disk and are searched one after the other, each query's best so far
beside the part's. Only words of the queries are indexed, since no other word counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdscale.data.candidates import candidate_table, id_places
from kdscale.data.parallel import Calls
from kdscale.data.words import words_of
from kdscale.progress import Task

FOUND = pa.schema([("query", pa.int64()), ("pid", pa.string()), ("score", pa.float32())])


def number_terms(queries: Iterable[str]) -> dict[str, int]:
    """Each word of the queries with a number, from 0."""
    words = chain.from_iterable(words_of(queries))
    return {word: number for number, word in enumerate(dict.fromkeys(words))}


@dataclass(frozen=True)
class Part:
    """The postings of N passages for T terms.

    pids: [N]; places: [N], of each pid among them in ascending order; lengths: [N] words;
    rows, values: [P], the passages with term t, and how often it stands in each (or, once
    weighed, what it adds to a score), from starts[t] to starts[t + 1]; starts: [T + 1]
    """

    pids: pa.Array
    places: np.ndarray
    lengths: np.ndarray
    starts: np.ndarray
    rows: np.ndarray
    values: np.ndarray

    def write(self, path: Path) -> None:
        """As an Arrow file of one row, a list a field."""
        lists = {}
        for field in fields(self):
            values = pa.array(getattr(self, field.name))
            ends = pa.array([0, len(values)], pa.int32())
            lists[field.name] = pa.ListArray.from_arrays(ends, values)
        table = pa.table(lists)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    @classmethod
    def read(cls, path: Path) -> Part:
        with pa.OSFile(str(path)) as file:
            (row,) = pa.ipc.open_file(file).read_all().to_batches()
        pids, *rest = (column.values for column in row.columns)
        return cls(pids, *(values.to_numpy() for values in rest))


@dataclass(frozen=True)
class Weights:
    """What of the whole collection bears on a score. idf: [T] float32; mean_length: words."""

    idf: np.ndarray
    mean_length: float
    k1: float
    b: float


def index_part(table: pa.Table, terms: dict[str, int]) -> Part:
    """table: PASSAGES."""
    words = words_of(table["text"].to_pylist())
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    numbers = (terms.get(word, -1) for word in chain.from_iterable(words))
    term = np.fromiter(numbers, np.int64, int(lengths.sum()))
    row = np.repeat(np.arange(len(lengths)), lengths)
    places, counts = np.unique((term * len(lengths) + row)[term >= 0], return_counts=True)
    pids = table["pid"].combine_chunks()
    return Part(
        pids,
        id_places(pids),
        lengths,
        np.searchsorted(places, np.arange(len(terms) + 1) * len(lengths)),
        (places % len(lengths)).astype(np.int32),
        counts.astype(np.float32),
    )


def weigh(part: Part, weights: Weights) -> Part:
    """Counts become scores: Lucene's variant (doi 10.1561/1500000019; Kamphuis et al., ECIR 2020),
    computed as bm25s does, so that the two agree in every bit."""
    ratio = weights.b * part.lengths / weights.mean_length
    norm = (weights.k1 * ((1 - weights.b) + ratio))[part.rows]
    idf = np.repeat(weights.idf, np.diff(part.starts))
    return replace(part, values=(idf * (part.values / (norm + part.values))).astype(np.float32))


def search_part(
    part: Part, queries: Sequence[Sequence[int]], depth: int, best: pa.Table | None
) -> pa.Table:
    """FOUND: the best `depth` of each query among the passages of a weighed part and `best`, the
    same of earlier parts. queries: the terms of each; "query" counts them from 0."""
    hits, scores = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for terms in queries:
        rows, values = _top(part, terms, depth)
        hits.append(rows)
        scores.append(values)
    counts = [len(rows) for rows in hits[1:]]
    found = pa.table(
        [
            np.repeat(np.arange(len(counts)), counts),
            part.pids.take(pa.array(np.concatenate(hits))),
            np.concatenate(scores),
        ],
        schema=FOUND,
    )
    return found if best is None else _merge(best, found, depth)


def _top(part: Part, terms: Sequence[int], depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores of a query's best passages: by score, ties by pid, at the cutoff too."""
    scores = _scores(part, terms)
    hits = np.flatnonzero(scores > 0)
    if len(hits) > depth:
        # Everything that ties with the last place stays in until ids decide.
        last = np.partition(scores[hits], len(hits) - depth)[len(hits) - depth]
        hits = hits[scores[hits] >= last]
    hits = hits[np.lexsort((part.places[hits], -scores[hits]))][:depth]
    return hits, scores[hits]


def score_part(
    part: Part, queries: Sequence[Sequence[int]], query: np.ndarray, row: np.ndarray
) -> np.ndarray:
    """[N] float32: of pairs of a query, as a place in `queries`, and a row of a weighed part.
    query, row: [N], the first ascending."""
    scores = np.empty(len(query), dtype=np.float32)
    bounds = np.flatnonzero(np.diff(query, prepend=-1, append=len(queries)))
    for start, end in pairwise(bounds):
        scores[start:end] = _scores(part, queries[query[start]])[row[start:end]]
    return scores


def _scores(part: Part, terms: Sequence[int]) -> np.ndarray:
    """[rows of the part] float32."""
    scores = np.zeros(len(part.pids), dtype=np.float32)
    for term in terms:
        postings = slice(part.starts[term], part.starts[term + 1])
        scores[part.rows[postings]] += part.values[postings]
    return scores


def _merge(best: pa.Table, found: pa.Table, depth: int) -> pa.Table:
    both = pa.concat_tables([best, found]).combine_chunks()
    keys = [("query", "ascending"), ("score", "descending"), ("pid", "ascending")]
    both = both.take(pc.sort_indices(both, sort_keys=keys))
    query = both["query"].to_numpy()
    rank = np.arange(len(query)) - np.searchsorted(query, query)
    return both.filter(pa.array(rank < depth)).combine_chunks()


PART_ROWS, PART_CHARS = 65_536, 64_000_000
MIN_CHUNK, CHUNKS_PER_CPU = 64, 4
# Ray holds all that a result was made from, to make it again should its node be lost: from time to
# time, in parts, a result becomes a value of its own.
RENEWED = 2


class Bm25:
    """The index of a collection for some queries, in files of a folder.

    The ranking is exact and its own order: score descending, ties by passage id ascending.
    calls: where parts are indexed and searched. One part more than there are processors is held
    while they are indexed, RENEWED and one while they are searched.
    """

    def __init__(self, queries: Iterable[str], k1: float, b: float, folder: Path, calls: Calls):
        self._terms = number_terms(queries)
        self._folder, self._calls, self._k1, self._b = folder, calls, k1, b
        self._with_term = np.zeros(len(self._terms), dtype=np.int64)
        self._passages = self._words = self._parts = 0

    def index(self, tables: Iterable[pa.Table], task: Task | None = None) -> None:
        """tables: PASSAGES, in all the whole collection."""
        terms = self._calls.put(self._terms)
        handles = (self._calls.call(index_part, part, terms) for part in _parts(tables))
        for part in self._calls.in_order(handles, self._calls.processors + 1):
            self._with_term += np.diff(part.starts)
            self._words += int(part.lengths.sum())
            self._passages += len(part.lengths)
            part.write(self._path(self._parts))
            self._parts += 1
            if task is not None:
                task.update(self._passages)

    def search(
        self, qids: Sequence[str], texts: Sequence[str], depth: int, task: Task | None = None
    ) -> pa.Table:
        """CANDIDATES of some of the queries, in their order; passages without a word of the query
        are left out, so a query can have fewer than `depth`, or none. Progress: in searches of a
        query in a part."""
        calls = self._calls
        chunks = self._chunks(texts)
        if task is not None:
            task.update(0, total=len(texts) * self._parts)
        weights, queries = self._weights(), [calls.put(chunk) for chunk in chunks]
        best: list[Any] = [calls.put(None)] * len(chunks)
        for number in range(self._parts):
            if number % RENEWED == 0:
                best = [calls.put(calls.get(found)) for found in best]
            part = calls.put(weigh(Part.read(self._path(number)), weights))
            before, best = best, [
                calls.call(search_part, part, chunk, depth, found)
                for chunk, found in zip(queries, best, strict=True)
            ]  # fmt: skip
            # Until then the part before this one is held.
            for chunk, found in zip(chunks, before, strict=True):
                calls.wait(found)
                if task is not None and number:
                    task.advance(len(chunk))
        tables, counts = [FOUND.empty_table()], [np.empty(0, np.int64)]
        for chunk, found in zip(chunks, best, strict=True):
            tables.append(calls.get(found) if self._parts else FOUND.empty_table())
            counts.append(np.bincount(tables[-1]["query"].to_numpy(), minlength=len(chunk)))
            if task is not None:
                task.advance(len(chunk))
        table, of_query = pa.concat_tables(tables).combine_chunks(), np.concatenate(counts)
        row = np.repeat(np.arange(len(qids)), of_query)
        return candidate_table(
            pa.array(qids, pa.string()).take(pa.array(row)),
            table["pid"].combine_chunks(),
            of_query,
            table["score"].to_numpy(),
        )

    def score(
        self,
        texts: Sequence[str],
        numbers: Mapping[str, int],
        query: np.ndarray,
        passage: np.ndarray,
        task: Task | None = None,
    ) -> np.ndarray:
        """[N] float32: of given pairs of a query and a passage, what `search` would score them; 0
        where the passage has no word of the query.

        texts: of the queries; query: [N] places among them, ascending; numbers: of passages by id;
        passage: [N] such numbers. Progress: in parts.
        """
        calls = self._calls
        chunks = self._chunks(texts)
        if task is not None:
            task.update(0, total=self._parts)
        starts = np.cumsum([0, *map(len, chunks)])
        bounds = np.searchsorted(query, starts)
        weights, queries = self._weights(), [calls.put(chunk) for chunk in chunks]
        scores = np.zeros(len(query), dtype=np.float32)
        begun: list[tuple[np.ndarray, Any]] = []  # of the part before the one that is begun

        def take() -> None:
            for pairs, found in begun:
                scores[pairs] = calls.get(found)

        for number in range(self._parts):
            content = Part.read(self._path(number))
            row_of = np.full(len(numbers) + 1, -1, dtype=np.int64)  # the last: of all others
            named = (numbers.get(pid, -1) for pid in content.pids.to_pylist())
            row_of[np.fromiter(named, np.int64, len(content.pids))] = np.arange(len(content.pids))
            row_of[-1] = -1
            here = np.flatnonzero(row_of[passage] >= 0)
            part, own = calls.put(weigh(content, weights)), []
            for chunk, first, (start, end) in zip(queries, starts, pairwise(bounds), strict=False):
                pairs = here[np.searchsorted(here, start) : np.searchsorted(here, end)]
                if len(pairs):
                    arguments = query[pairs] - first, row_of[passage[pairs]]
                    own.append((pairs, calls.call(score_part, part, chunk, *arguments)))
            take()
            begun = own
            if task is not None:
                task.update(number + 1)
        take()
        return scores

    def _chunks(self, texts: Sequence[str]) -> list[list[list[int]]]:
        """The terms of each query, in lists of a size worth a call."""
        terms = [[self._terms[word] for word in words] for words in words_of(texts)]
        size = max(MIN_CHUNK, -(-len(terms) // (CHUNKS_PER_CPU * self._calls.processors)))
        return [terms[start : start + size] for start in range(0, len(terms), size)]

    def _weights(self) -> Weights:
        n = self._passages
        idf = [math.log(1 + (n - df + 0.5) / (df + 0.5)) for df in self._with_term.tolist()]
        mean = self._words / n if self._words else 1.0
        return Weights(np.array(idf, np.float32), mean, self._k1, self._b)

    def _path(self, number: int) -> Path:
        return self._folder / f"bm25-{number:05d}.arrow"


def _parts(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows of the tables, in tables of a size worth a part."""
    held: list[pa.Table] = []
    rows = chars = 0
    for table in tables:
        held.append(table)
        rows += table.num_rows
        chars += pc.sum(pc.binary_length(table["text"])).as_py() or 0
        if rows >= PART_ROWS or chars >= PART_CHARS:
            yield pa.concat_tables(held)
            held, rows, chars = [], 0, 0
    if held:
        yield pa.concat_tables(held)
