"""The forms that a student is exported in, each measured when it is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from kdscale.errors import KdscaleError
from kdscale.evaluation.flops import count_parameters, weight_bytes
from kdscale.export.judge import MEASURE, THREADS, Judge
from kdscale.models.encode import PairEncoder
from kdscale.models.onnx_ranker import MODEL_FILE, OnnxModel, OnnxScorer
from kdscale.models.ranker import Scorer
from kdscale.progress import Reporter

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
