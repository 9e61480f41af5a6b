"""The forms that a student is exported in, each measured on dev queries when it is made: quality,
bytes, milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from kdscale.data.dataset import Dataset, check_split
from kdscale.data.queries import DEV, choose_queries
from kdscale.data.tokenise import TextTokens
from kdscale.errors import KdscaleError
from kdscale.evaluation.collection import Collection
from kdscale.evaluation.latency import count_parameters, measure_latency, weight_bytes
from kdscale.evaluation.measures import parse_measures
from kdscale.models.encode import PairEncoder
from kdscale.models.onnx_ranker import MODEL_FILE, OnnxModel, OnnxScorer
from kdscale.models.ranker import PairScorer, Scorer
from kdscale.progress import Reporter
from kdscale.training.validate import SAMPLE_SEED, Sample

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


SAME_SCORE = 1e-4  # fp32 in two engines: this far apart, of a score of 1 and below


class Forms:
    """The forms of a student, measured as they are made; quality: name -> MEASURE. The first is
    what the others are compared with: the student in torch, or its teacher."""

    def __init__(self, judge: Judge):
        self._judge = judge
        self.quality: dict[str, float] = {}
        self._rankers: dict[str, tuple[Any, PairEncoder]] = {}
        self._facts: dict[str, dict[str, Any]] = {}
        self._torch: np.ndarray | None = None  # scores of the newest form in torch

    def add_torch(
        self, name: str, model: PreTrainedModel, encoder: PairEncoder, folder: Path
    ) -> None:
        self.quality[name], self._torch = self._judge.scores(name, Scorer(model, encoder))
        self._rankers[name] = model, encoder
        self._facts[name] = {
            "backend": "torch",
            "parameters": count_parameters(model)[0],
            "bytes": weight_bytes(folder),
        }

    def add_onnx(
        self, name: str, encoder: PairEncoder, folder: Path, is_same: bool
    ) -> dict[str, float]:
        """The largest difference of a score from torch's, and of a pair's score alone from that in
        a batch. is_same: Raises KdscaleError where the first is more than rounding."""
        scorer = OnnxScorer(folder, encoder)
        self.quality[name], scores = self._judge.scores(name, scorer)
        assert self._torch is not None  # a form in torch goes before
        largest = float(np.abs(scores - self._torch).max(initial=0))
        if is_same and not np.allclose(scores, self._torch, rtol=SAME_SCORE, atol=SAME_SCORE):
            raise KdscaleError(
                f"export: a score of the ONNX model is {largest:.2g} from torch's; nothing was "
                "written: please report this, with the versions of torch and onnxruntime"
            )
        self._rankers[name] = OnnxModel(folder, THREADS), encoder
        size = Path(folder, MODEL_FILE).stat().st_size
        self._facts[name] = {"backend": "onnx", "bytes": size}
        return {
            "largest_difference": largest,
            "batch_difference": self._judge.batch_difference(scorer),
        }

    def finish(self, reporter: Reporter) -> list[dict[str, Any]]:
        """A row a form, told as well; the times of all are taken in turns.

        speedup: how many times faster than the first; share: of the first's MEASURE.
        """
        times = self._judge.milliseconds(self._rankers)
        first = next(iter(times))
        rows = []
        for name, facts in self._facts.items():
            row = {
                "form": name,
                **facts,
                MEASURE: round(self.quality[name], 6),
                "share": round(self.quality[name] / max(self.quality[first], 1e-9), 4),
                "ms": times[name],
                "speedup": round(times[first] / times[name], 2),
            }
            rows.append(row)
            reporter.info(
                f"  {name:8} {row['bytes'] / 1e6:8.2f} MB   {MEASURE} {row[MEASURE]:.4f} "
                f"({row['share']:.1%})   {row['ms']:8.1f} ms a query   {row['speedup']:.2f}x"
            )
        return rows
