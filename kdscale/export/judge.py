"""What an export is worth and costs, on dev queries: quality, bytes, milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kdscale.data.dataset import Dataset, check_split
from kdscale.data.queries import DEV, choose_queries
from kdscale.data.text_tokens import TextTokens
from kdscale.evaluation.collection import Collection
from kdscale.evaluation.latency import measure_latency
from kdscale.evaluation.measures import parse_measures
from kdscale.models.encode import PairEncoder
from kdscale.models.ranker import PairScorer
from kdscale.progress import Reporter
from kdscale.training.watch import SAMPLE_SEED, Sample

MEASURE = "nDCG@10"
QUERIES = 500
DEPTH = 50
LATENCY_QUERIES = 10
ALONE = 256
CHUNK_PAIRS = 1_024  # scored between two looks at the progress
THREADS = 1


class Judge:
    """At most QUERIES dev queries of a dataset, each with at most DEPTH candidates.

    Raises KdscaleError for a dataset without a dev split.
    """

    def __init__(self, dataset: Dataset, reporter: Reporter):
        check_split(DEV, dataset.splits())
        self._dataset, self._reporter = dataset, reporter
        self._qids = choose_queries(dataset.queries(DEV)["qid"].to_pylist(), QUERIES, SAMPLE_SEED)
        self._measures = parse_measures([MEASURE])
        self._samples: dict[PairEncoder, Sample] = {}  # by what cut the texts

    @property
    def terms(self) -> dict[str, Any]:
        """How it judges."""
        return {"split": DEV, "queries": len(self._qids), "depth": DEPTH, "threads": THREADS}

    def scores(self, name: str, scorer: PairScorer) -> tuple[float, np.ndarray]:
        """The mean of MEASURE, and the [P] logits of all candidates."""
        sample = self._sample(scorer.encoder)
        with self._reporter.task(f"{name} on {DEV}", len(sample.pairs)) as task:
            parts = [np.empty(0, np.float32)]
            for start in range(0, len(sample.pairs), CHUNK_PAIRS):
                parts.append(scorer.score(sample.pairs[start : start + CHUNK_PAIRS]))
                task.advance(len(parts[-1]))
        scores = np.concatenate(parts)
        return sample.mean(self._measures, scores), scores

    def batch_difference(self, scorer: PairScorer) -> float:
        """How far the score of a pair alone is from that among others, at most, of ALONE pairs."""
        pairs = self._sample(scorer.encoder).pairs
        pairs = pairs[:: max(1, len(pairs) // ALONE)][:ALONE]
        alone = [scorer.score([pair])[0] for pair in pairs]
        return float(np.abs(scorer.score(pairs) - alone).max(initial=0))

    def milliseconds(
        self, rankers: dict[str, tuple[Callable[..., Any], PairEncoder]]
    ) -> dict[str, float]:
        """Median of a query, tokenising with it, THREADS threads."""
        encoder = next(iter(rankers.values()))[1]
        tokens = TextTokens(self._dataset, encoder, {})
        requests = Collection(self._dataset, tokens, DEV, DEPTH).requests(LATENCY_QUERIES)
        with self._reporter.task("latency", len(requests) * len(rankers)) as task:
            timings = measure_latency(rankers, requests, THREADS, task)
        return {name: t.summary()["total_ms"]["median"] for name, t in timings.items()}

    def _sample(self, encoder: PairEncoder) -> Sample:
        if encoder not in self._samples:
            tokens = TextTokens(self._dataset, encoder, {DEV: self._qids})
            self._samples[encoder] = Sample(self._dataset, tokens, DEV, self._qids, DEPTH)
        return self._samples[encoder]
