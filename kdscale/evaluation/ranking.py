"""Candidates scored by a ranker, a few queries at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from kdscale.models.encode import Pair
from kdscale.models.ranker import PairScorer
from kdscale.progress import Task

# Pairs scored together: enough to find pairs of like length, few enough to show progress.
CHUNK_PAIRS = 512

Query = tuple[str, Sequence[str], Sequence[Pair]]  # qid, pids, the pairs of token ids
Scored = tuple[str, list[tuple[str, float]]]  # qid, (pid, score) in the order given


def score_queries(scorer: PairScorer, queries: Iterable[Query]) -> Iterator[Scored]:
    """The passages of each query with their scores: raw logits.

    Queries are taken as they come; more are never held than make CHUNK_PAIRS pairs.
    """
    chunk: list[Query] = []
    waiting = 0
    for query in queries:
        chunk.append(query)
        waiting += len(query[1])
        if waiting >= CHUNK_PAIRS:
            yield from _score_chunk(scorer, chunk)
            chunk, waiting = [], 0
    yield from _score_chunk(scorer, chunk)


def _score_chunk(scorer: PairScorer, chunk: list[Query]) -> Iterator[Scored]:
    scores = iter(scorer.score([pair for _, _, pairs in chunk for pair in pairs]).tolist())
    for qid, pids, _ in chunk:
        yield qid, [(pid, next(scores)) for pid in pids]


def count_pairs(scored: Iterable[Scored], task: Task) -> Iterator[Scored]:
    """The same, with the progress shown."""
    for qid, ranking in scored:
        yield qid, ranking
        task.advance(len(ranking))


def scoring_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
