"""The passages that a first stage found for each query, as a table, or brought by the source."""

from __future__ import annotations

from array import array
from collections.abc import Container, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdscale.data.clean import DUPLICATE_PAIR, UNKNOWN_PASSAGE, UNKNOWN_QUERY, RejectLog
from kdscale.data.schema import CANDIDATES


def id_places(ids: pa.Array) -> np.ndarray:
    """[N] the place of each id among all in ascending order: the tie-breaker as a number."""
    places = np.empty(len(ids), dtype=np.int64)
    places[pc.sort_indices(ids).to_numpy()] = np.arange(len(ids))
    return places


def candidate_table(
    qids: pa.Array, pids: pa.Array, counts: Sequence[int], scores: np.ndarray
) -> pa.Table:
    """CANDIDATES from columns in order; counts: candidates of each query in turn."""
    ranks = np.concatenate([np.arange(1, n + 1) for n in counts]) if len(counts) else []
    columns = [qids, pids, pa.array(ranks, pa.int32()), pa.array(scores, pa.float32())]
    return pa.table(columns, schema=CANDIDATES)


def source_candidates(
    items: Iterable[Any],
    kind: str,
    log: RejectLog,
    known: dict[str, int],
    wanted: list[str],
    passages: Container[str],
    depth: int,
) -> pa.Table:
    """CANDIDATES that a source brings, for the queries `wanted`, cut at `depth`.

    items: (qid, pid, rank, score) or Reject; known: every query id of the split (a candidate of
    a query that was left out is passed over, one of an unknown query refused); passages: every
    passage id. Order: score descending, then passage id, as every evaluation tool reads a run.
    """
    numbers: dict[str, int] = {}  # of the passages that are candidates
    rows_of = {qid: i for i, qid in enumerate(wanted)}
    columns = {name: array("q") for name in ("number", "query", "passage")}
    scores = array("d")
    for number, (qid, pid, _, score) in log.accepted(kind, items):
        if qid not in known:
            log.reject(kind, number, UNKNOWN_QUERY, f"{qid} {pid}")
        elif pid not in numbers and pid not in passages:
            log.reject(kind, number, UNKNOWN_PASSAGE, f"{qid} {pid}")
        elif qid in rows_of:
            row = (number, rows_of[qid], numbers.setdefault(pid, len(numbers)))
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
            scores.append(score)
    number, query, passage = (np.array(c) for c in columns.values())
    score = np.array(scores)
    qids, pids = pa.array(wanted, pa.string()), pa.array(numbers, pa.string())
    first = np.unique(query * len(numbers) + passage, return_index=True)[1]
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
