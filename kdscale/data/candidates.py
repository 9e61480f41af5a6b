"""The passages that a first stage found for each query: by BM25, or brought by the source."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdscale.data.clean import DUPLICATE_PAIR, UNKNOWN_PASSAGE, UNKNOWN_QUERY, RejectLog
from kdscale.data.schema import CANDIDATES

STOPWORDS = "english"
MIN_CHUNK, CHUNKS_PER_CPU = 64, 4


def import_bm25s() -> Any:
    """The library. It tries out JAX where that is installed, which would take three quarters of a
    GPU's memory; it is kept on the CPU, unless the user has chosen for it."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import bm25s

    return bm25s


def id_places(ids: pa.Array) -> np.ndarray:
    """[N] the place of each id among all in ascending order: the tie-breaker as a number."""
    places = np.empty(len(ids), dtype=np.int64)
    places[pc.sort_indices(ids).to_numpy()] = np.arange(len(ids))
    return places


class Bm25:
    """A BM25 index (Lucene's variant, doi 10.1561/1500000019) over a whole collection.

    The ranking is exact and its own order: score descending, ties by passage id ascending, at
    the cutoff too, whatever the backend and its selection would do.
    """

    def __init__(self, pids: pa.Array, texts: Sequence[str], k1: float, b: float):
        self._pids = pids
        self._places = id_places(pids)
        self._bm25s = bm25s = import_bm25s()
        self._index = bm25s.BM25(k1=k1, b=b, method="lucene", backend="numpy")
        corpus = bm25s.tokenize(texts, stopwords=STOPWORDS, show_progress=False)
        self._index.index(corpus, show_progress=False)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a worker. Unpickled arrays have dtype objects of their own, with which numpy's
        `add.at` misses its fast path and takes ten times as long: view them as built-in ones."""
        self.__dict__.update(state)
        for name, value in self._index.scores.items():
            if isinstance(value, np.ndarray):
                self._index.scores[name] = value.view(np.dtype(value.dtype.str))

    def search(self, qids: Sequence[str], texts: Sequence[str], depth: int) -> pa.Table:
        """CANDIDATES of some queries, in their order; passages without a term of the query are
        left out, so a query can have fewer than `depth`, or none."""
        tokens = self._bm25s.tokenize(
            list(texts), stopwords=STOPWORDS, return_ids=False, show_progress=False
        )
        found = [self._top(self._index.get_tokens_ids(query), depth) for query in tokens]
        rows = np.concatenate([rows for rows, _ in found])
        counts = [len(rows) for rows, _ in found]
        return candidate_table(
            pa.array(qids, pa.string()).take(pa.array(np.repeat(np.arange(len(qids)), counts))),
            self._pids.take(pa.array(rows)),
            counts,
            np.concatenate([scores for _, scores in found]),
        )

    def _top(self, token_ids: list[int], depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and scores of the best passages."""
        scores = self._index.get_scores_from_ids(token_ids)
        hits = np.flatnonzero(scores > 0)
        if len(hits) > depth:
            # Everything that ties with the last place stays in until ids decide.
            last = np.partition(scores[hits], len(hits) - depth)[len(hits) - depth]
            hits = hits[scores[hits] >= last]
        hits = hits[np.lexsort((self._places[hits], -scores[hits]))][:depth]
        return hits, scores[hits]


def candidate_table(
    qids: pa.Array, pids: pa.Array, counts: Sequence[int], scores: np.ndarray
) -> pa.Table:
    """CANDIDATES from columns in order; counts: candidates of each query in turn."""
    ranks = np.concatenate([np.arange(1, n + 1) for n in counts]) if len(counts) else []
    columns = [qids, pids, pa.array(ranks, pa.int32()), pa.array(scores, pa.float32())]
    return pa.table(columns, schema=CANDIDATES)


def search_with_ray(
    ray: Any, index: Any, queries: pa.Table, depth: int
) -> Iterator[tuple[int, pa.Table]]:
    """(queries done, CANDIDATES of those) in the order of the queries, found by Ray tasks.

    index: the object reference of a Bm25, which each node reads from shared memory.
    """
    cpus = int(ray.cluster_resources().get("CPU", 1))
    size = max(MIN_CHUNK, -(-queries.num_rows // (CHUNKS_PER_CPU * cpus)))
    chunks = [queries.slice(start, size) for start in range(0, queries.num_rows, size)]
    search = ray.remote(_search)
    waiting = [search.remote(index, chunk, depth) for chunk in chunks]
    for chunk, result in zip(chunks, waiting, strict=True):
        yield chunk.num_rows, ray.get(result)


def _search(index: Bm25, queries: pa.Table, depth: int) -> pa.Table:
    return index.search(queries["qid"].to_pylist(), queries["text"].to_pylist(), depth)


def source_candidates(
    items: Iterable[Any],
    kind: str,
    log: RejectLog,
    known: dict[str, int],
    wanted: list[str],
    passages: dict[str, int],
    depth: int,
) -> pa.Table:
    """CANDIDATES that a source brings, for the queries `wanted`, cut at `depth`.

    items: (qid, pid, rank, score) or Reject; known: every query id of the split (a candidate of
    a query that was left out is passed over, one of an unknown query refused); passages: pid ->
    row. Order: score descending, then passage id, as every evaluation tool reads a run.
    """
    rows_of = {qid: i for i, qid in enumerate(wanted)}
    columns = {name: array("q") for name in ("number", "query", "passage")}
    scores = array("d")
    for number, (qid, pid, _, score) in log.accepted(kind, items):
        if qid not in known:
            log.reject(kind, number, UNKNOWN_QUERY, f"{qid} {pid}")
        elif pid not in passages:
            log.reject(kind, number, UNKNOWN_PASSAGE, f"{qid} {pid}")
        elif qid in rows_of:
            row = (number, rows_of[qid], passages[pid])
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
            scores.append(score)
    number, query, passage = (np.array(c) for c in columns.values())
    score = np.array(scores)
    qids, pids = pa.array(wanted, pa.string()), pa.array(passages, pa.string())
    first = np.unique(query * len(passages) + passage, return_index=True)[1]
    for i in np.setdiff1d(np.arange(len(query)), first):
        text = f"{qids[query[i]]} {pids[passage[i]]}"
        log.reject(kind, int(number[i]), DUPLICATE_PAIR, text)
    ties = id_places(pids)[passage[first]]
    order = first[np.lexsort((ties, -score[first], query[first]))]
    position = np.arange(len(order)) - np.searchsorted(query[order], query[order])
    order = order[position < depth]
    counts = np.bincount(query[order], minlength=len(wanted))
    return candidate_table(qids.take(query[order]), pids.take(passage[order]), counts, score[order])


def candidates_by_query(table: pa.Table) -> dict[str, list[str]]:
    """qid -> its passage ids, best first. The queries of the table stand together, by rank."""
    starts = np.flatnonzero(table["rank"].to_numpy() == 1)
    bounds = np.append(starts, table.num_rows)
    qids, pids = table["qid"].take(starts).to_pylist(), table["pid"].combine_chunks()
    return {
        qid: pids[start:end].to_pylist()
        for qid, start, end in zip(qids, bounds[:-1], bounds[1:], strict=True)
    }
