"""The passages that a first stage found for each query, as a table, or brought by the source."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdscale.data.clean import DUPLICATE_PAIR, UNKNOWN_PASSAGE, UNKNOWN_QUERY, RejectLog
from kdscale.data.queries import Judgments
from kdscale.data.runfiles import as_numbers, query_scores
from kdscale.data.schema import CANDIDATES


def id_places(ids: pa.Array) -> np.ndarray:
    """[N] the place of each id among all in ascending order: the tie-breaker as a number."""
    places = np.empty(len(ids), dtype=np.int64)
    places[pc.sort_indices(ids).to_numpy()] = np.arange(len(ids))
    return places


def candidate_table(
    qids: pa.Array, pids: pa.Array, counts: Sequence[int] | np.ndarray, scores: np.ndarray
) -> pa.Table:
    """CANDIDATES from columns in order; counts: candidates of each query in turn."""
    ranks: np.ndarray | list[int] = []
    if len(counts):
        ranks = np.concatenate([np.arange(1, n + 1) for n in counts])
    columns = [qids, pids, pa.array(ranks, pa.int32()), pa.array(scores, pa.float32())]
    return pa.table(columns, schema=CANDIDATES)


@dataclass(frozen=True)
class SourceCandidates:
    """What a source brings for some queries: pairs of a query and a passage, each once, query by
    query, best first as far as the source says.

    qids: [Q]; numbers: of the passages by their ids; query, passage: [N] numbers of both; score:
    [N], NaN where the passages of a query are a set that nothing ranks.
    """

    qids: list[str]
    numbers: dict[str, int]
    query: np.ndarray
    passage: np.ndarray
    score: np.ndarray

    def unranked(self) -> list[str]:
        """The ids of the queries whose passages nothing ranks."""
        return [self.qids[i] for i in np.unique(self.query[np.isnan(self.score)])]

    def ranked(self, score: Callable[[dict[str, int], np.ndarray, np.ndarray], np.ndarray]) -> Self:
        """With the sets ranked. score: of `numbers`, the query of each pair as a place in
        `unranked()`, and its passage, the pairs' scores."""
        rows = np.flatnonzero(np.isnan(self.score))
        scores = self.score.copy()
        place = np.unique(self.query[rows], return_inverse=True)[1]
        scores[rows] = score(self.numbers, place, self.passage[rows])
        return replace(self, score=scores)

    def table(self, depth: int) -> pa.Table:
        """CANDIDATES, cut at `depth`: score descending, then passage id, as every evaluation tool
        reads a run."""
        pids = pa.array(self.numbers, pa.string())
        ties = id_places(pids)[self.passage]
        order = np.lexsort((ties, -self.score, self.query))
        order = order[_places(self.query[order]) < depth]
        counts = np.bincount(self.query[order], minlength=len(self.qids))
        return candidate_table(
            pa.array(self.qids, pa.string()).take(pa.array(self.query[order])),
            pids.take(pa.array(self.passage[order])),
            counts,
            self.score[order],
        )


def source_candidates(
    items: Iterable[Any],
    kind: str,
    log: RejectLog,
    known: dict[str, str],
    wanted: list[str],
    passages: Container[str],
    own: Container[str] = (),
) -> SourceCandidates:
    """What a source brings for the queries `wanted`.

    items: (qid, pid, rank, score) or Reject; known: every query id of the split (a candidate of
    a query that was left out is passed over, one of an unknown query refused); passages: every
    passage id; own: the queries that are no candidates of themselves (see `own_passages`).
    """
    numbers: dict[str, int] = {}  # of the passages that are candidates
    rows_of = {qid: i for i, qid in enumerate(wanted)}
    rows, values = array("q"), array("d")  # (number, query, passage) and (rank, score) in turn
    lines = np.zeros(len(wanted), np.int64)
    for number, (qid, pid, rank, score) in log.accepted(kind, items):
        row = rows_of.get(qid)
        if row is not None:
            lines[row] += 1
        if qid not in known:
            log.reject(kind, number, UNKNOWN_QUERY, f"{qid} {pid}")
        elif pid not in numbers and pid not in passages:
            log.reject(kind, number, UNKNOWN_PASSAGE, f"{qid} {pid}")
        elif row is not None and not (qid == pid and qid in own):
            rows.extend((number, row, numbers.setdefault(pid, len(numbers))))
            values.extend(as_numbers(rank, score))
    line_of, query, passage = np.array(rows).reshape(-1, 3).T
    ranks, scores = np.array(values).reshape(-1, 2).T
    first = np.unique(query * len(numbers) + passage, return_index=True)[1]
    pids = list(numbers)
    for i in np.setdiff1d(np.arange(len(query)), first):
        text = f"{wanted[query[i]]} {pids[passage[i]]}"
        log.reject(kind, int(line_of[i]), DUPLICATE_PAIR, text)
    query, passage, ranks, scores = (c[first] for c in (query, passage, ranks, scores))
    bounds = np.searchsorted(query, np.arange(len(wanted) + 1))
    for row, (start, end) in enumerate(pairwise(bounds)):
        if start < end:
            found = query_scores(ranks[start:end], scores[start:end], int(lines[row]))
            scores[start:end] = np.nan if found is None else found
    return SourceCandidates(wanted, numbers, query, passage, scores)


def own_passages(
    queries: Mapping[str, str],
    judgments: Judgments,
    min_grade: int,
    pids: Container[str],
    passages: Callable[[], Iterable[pa.Table]],
    max_chars: int,
) -> set[str]:
    """The queries that are a passage of the collection: of the same id and text, as in ArguAna and
    Quora, where each query would find itself first. The id alone says nothing: in a collection of
    numbers query 7 has nothing to do with passage 7. A title may stand before the text. A passage
    that is judged relevant to itself is none of these.

    queries: qid -> text; pids: every passage id; passages: PASSAGES, in all the collection, read
    only where an id is one of both; max_chars: where texts were cut (`cut_text`).
    """
    both = [
        q for q in queries if q in pids and judgments.get(q, {}).get(q, min_grade - 1) < min_grade
    ]
    found: set[str] = set()
    if not both:
        return found
    wanted = pa.array(both, pa.string())
    for table in passages():
        table = table.filter(pc.is_in(table["pid"], value_set=wanted))
        for pid, text in zip(*(column.to_pylist() for column in table.columns), strict=True):
            if _is_same(text, queries[pid], max_chars):
                found.add(pid)
    return found


def _is_same(passage: str, query: str, max_chars: int) -> bool:
    # The cut may have taken the space before it away.
    was_cut = len(passage) >= max_chars - 1
    passage, query = passage.casefold(), query.casefold()
    # A title is shorter than its text: a passage that ends like a short query is not the query.
    if passage == query or (passage.endswith(f" {query}") and len(passage) < 2 * len(query)):
        return True
    # A cut passage with a title has less of the text than the query has.
    spaces = re.finditer(" ", passage[: len(passage) // 2]) if was_cut else ()
    return any(query.startswith(passage[space.end() :]) for space in spaces)


def without_own(table: pa.Table, own: set[str], depth: int) -> pa.Table:
    """CANDIDATES cut at `depth`, without passages that are the query itself. own: those queries."""
    if own:
        is_own = pc.and_(
            pc.equal(table["qid"], table["pid"]),
            pc.is_in(table["qid"], value_set=pa.array(sorted(own), pa.string())),
        )
        table = table.filter(pc.invert(is_own))
        qids = table["qid"].combine_chunks().dictionary_encode().indices.to_numpy()
        ranks = pa.array(_places(qids) + 1, pa.int32())
        table = table.set_column(2, CANDIDATES.field("rank"), ranks)
    return table.filter(pc.less_equal(table["rank"], depth))


def _places(groups: np.ndarray) -> np.ndarray:
    """[N] the place, from 0, of each row in its group; the rows of a group stand together, groups
    are numbered in order."""
    return np.arange(len(groups)) - np.searchsorted(groups, groups)


def candidates_by_query(table: pa.Table) -> dict[str, list[str]]:
    """qid -> its passage ids, best first. The queries of the table stand together, by rank."""
    starts = np.flatnonzero(table["rank"].to_numpy() == 1)
    bounds = np.append(starts, table.num_rows)
    qids, pids = table["qid"].take(starts).to_pylist(), table["pid"].combine_chunks()
    return {
        qid: pids[start:end].to_pylist()
        for qid, start, end in zip(qids, bounds[:-1], bounds[1:], strict=True)
    }
