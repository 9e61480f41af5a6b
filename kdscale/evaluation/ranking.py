"""Candidates put in a ranker's order, a few queries at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from kdscale.errors import KdscaleError
from kdscale.models.encode import Pair
from kdscale.models.ranker import Scorer

# Pairs scored together: enough to find pairs of like length, few enough to show progress.
CHUNK_PAIRS = 512

Ranking = tuple[str, list[str], list[float]]  # qid, passage ids best first, their scores


def rank_queries(
    scorer: Scorer, queries: Iterable[tuple[str, Sequence[str], Sequence[Pair]]]
) -> Iterator[Ranking]:
    """Rank each query's passages: score descending, ties by passage id.

    queries: (qid, pids, their pairs of token ids); taken as they come, and never more of them
    held than make CHUNK_PAIRS pairs. Raises KdscaleError for a score that is no finite number.
    """
    chunk: list[tuple[str, Sequence[str], Sequence[Pair]]] = []
    waiting = 0
    for query in queries:
        chunk.append(query)
        waiting += len(query[1])
        if waiting >= CHUNK_PAIRS:
            yield from _rank_chunk(scorer, chunk)
            chunk, waiting = [], 0
    yield from _rank_chunk(scorer, chunk)


def _rank_chunk(
    scorer: Scorer, chunk: list[tuple[str, Sequence[str], Sequence[Pair]]]
) -> Iterator[Ranking]:
    scores = scorer.score([pair for _, _, pairs in chunk for pair in pairs])
    start = 0
    for qid, pids, _ in chunk:
        of_query = scores[start : start + len(pids)]
        start += len(pids)
        if not np.isfinite(of_query).all():
            raise KdscaleError(
                f"the ranker's score of a passage of query {qid} is not a finite number; "
                "its weights are unusable: train it again with a lower learning rate"
            )
        ranked = sorted(zip(pids, of_query.tolist(), strict=True), key=lambda x: (-x[1], x[0]))
        yield qid, [pid for pid, _ in ranked], [score for _, score in ranked]
