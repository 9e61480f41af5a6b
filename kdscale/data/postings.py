"""BM25's postings of one part of a collection, and what is searched and scored in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdscale.data.candidates import id_places
from kdscale.data.words import words_of

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
