"""The scores of several teachers as those of one.

A teacher's logits have a zero and a unit of their own: the losses on labels look at differences
within a query only, so any constant may be in them, and the longer a teacher was trained the
further apart they are. Logits that are added as they come let the teacher with the largest spread
decide. So each teacher's are brought to the first one's mean and standard deviation, and then
averaged: all have one say, and a student's losses see numbers of the first teacher's size.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from kdscale.data.dataset import read_json
from kdscale.errors import KdscaleError

SCALES = "scales.json"


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of one teacher's logits over the training pairs."""

    mean: float
    std: float

    @classmethod
    def of(cls, scores: np.ndarray, who: str) -> Scale:
        """Raises KdscaleError where all scores are one: there is no order in them to keep."""
        scores = scores.astype(np.float64)
        scale = cls(float(scores.mean()), float(scores.std()))
        if not scale.std > 0:
            raise KdscaleError(
                f"{who} are all {scale.mean:g}: that teacher tells no pair from another; train it "
                "with another train.lr or more steps, or take it out of `ensemble`"
            )
        return scale


def combine(scores: Sequence[np.ndarray], scales: Sequence[Scale]) -> np.ndarray:
    """[pairs] float64: the mean of the teachers' scores, each [pairs], on the first one's scale."""
    first = scales[0]
    parts = [
        first.mean + first.std * (own.astype(np.float64) - scale.mean) / scale.std
        for own, scale in zip(scores, scales, strict=True)
    ]
    return np.mean(parts, axis=0)


def write_scales(directory: Path, scales: Sequence[Scale]) -> None:
    text = json.dumps([asdict(scale) for scale in scales], indent=1)
    (directory / SCALES).write_text(text, encoding="utf-8")


def read_scales(directory: Path) -> list[Scale]:
    """In the order of the teachers."""
    return [Scale(**entry) for entry in read_json(directory / SCALES)]
