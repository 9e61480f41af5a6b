"""What is evaluated: the queries of a query set, their judgments and their candidates, and how a
ranker scores them, a few queries at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from kdscale.data.candidates import candidates_by_query
from kdscale.data.dataset import Dataset, PairTokens
from kdscale.data.runs import ranked
from kdscale.errors import KdscaleError
from kdscale.evaluation.latency import Request
from kdscale.evaluation.measures import per_query
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


class Collection:
    """One split: judgments, and candidates cut to the depth that is evaluated.

    name: the split's, or TRANSFER/SPLIT of another collection (transfer: None or its name);
    qrels: qid -> pid -> grade; candidates: qid -> pids, best first; pairs: how many candidates
    there are. Raises KdscaleError for a split without judgments.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokens: PairTokens,
        split: str,
        depth: int,
        transfer: str | None = None,
    ):
        self._dataset, self._tokens = dataset, tokens
        self.split, self.depth, self.transfer = split, depth, transfer
        self.name = f"{transfer}/{split}" if transfer else split
        self.qrels: dict[str, dict[str, int]] = {}
        for qid, pid, grade in zip(*dataset.qrels(split).to_pydict().values(), strict=True):
            self.qrels.setdefault(qid, {})[pid] = grade
        if not self.qrels:
            raise KdscaleError(
                f"split {split!r} has no judged query to evaluate on; mend its qrels, or leave it "
                "out of evaluate.splits"
            )
        table = dataset.candidates(split)
        table = table.filter(pc.less_equal(table["rank"], depth))
        self.candidates = candidates_by_query(table)
        self._scores = table["score"].to_numpy()  # in the order of `candidates`
        self.pairs = table.num_rows

    def query_texts(self) -> dict[str, str]:
        """qid -> text."""
        return self._dataset.query_texts(self.split, set(self.qrels))

    def found(self) -> Iterator[Scored]:
        """The candidates with the scores of the system that found them."""
        start = 0
        for qid, pids in self.candidates.items():
            scores = self._scores[start : start + len(pids)].tolist()
            yield qid, list(zip(pids, scores, strict=True))
            start += len(pids)

    def values(
        self, measures: Mapping[str, Any], scored: Iterable[Scored]
    ) -> dict[str, np.ndarray]:
        """measure -> [judged queries], of candidates with scores in any order. measures: as
        `parse_measures` gives them."""
        run = {qid: [pid for pid, _ in ranked(found)] for qid, found in scored}
        return per_query(measures, self.qrels, run)

    def query_ids(self, qid: str) -> np.ndarray:
        """[tokens] int32."""
        return self._tokens.query_ids(self.split, qid)

    def token_pairs(self, tokens: PairTokens | None = None) -> Iterator[Query]:
        """tokens: as another tokenizer cuts the texts; None: the collection's own."""
        tokens = tokens or self._tokens
        passages = tokens.passage_ids(chain.from_iterable(self.candidates.values()))
        for qid, pids in self.candidates.items():
            query = tokens.query_ids(self.split, qid)
            yield qid, pids, [(query, passages[pid]) for pid in pids]

    def requests(self, count: int) -> list[Request]:
        """The texts of at most `count` queries and their candidates.

        The queries are spread evenly over those with the most candidates, so that every request
        is of one size. Raises KdscaleError where no query has a candidate.
        """
        most = max((len(pids) for pids in self.candidates.values()), default=0)
        if not most:
            raise KdscaleError(
                f"no query of split {self.split!r} has candidates to rank; check its queries"
            )
        full = [qid for qid, pids in self.candidates.items() if len(pids) == most]
        count = min(count, len(full))
        chosen = [full[i * len(full) // count] for i in range(count)]
        texts = self._dataset.passage_texts({pid for qid in chosen for pid in self.candidates[qid]})
        queries = dict(zip(*self._dataset.queries(self.split).to_pydict().values(), strict=True))
        return [(queries[qid], [texts[pid] for pid in self.candidates[qid]]) for qid in chosen]
