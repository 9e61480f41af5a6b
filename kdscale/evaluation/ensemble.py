"""An ensemble: the scores of several teachers as those of one, and what that system costs.

The losses on labels compare the passages of one query only, so a teacher's logits have a zero and
a unit of their own. If they were averaged as they are, the teacher with the largest spread would
decide. So each teacher's logits are first brought to the first teacher's mean and standard
deviation: all have one say, and a student's losses see numbers of the first teacher's size.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from kdscale.data.dataset import read_json
from kdscale.data.runs import read_run
from kdscale.errors import KdscaleError
from kdscale.evaluation.collection import Scored
from kdscale.evaluation.latency import Timings

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


def ensemble_run(runs: Sequence[Path], scales: Sequence[Scale]) -> Iterator[Scored]:
    """The candidates with the mean of the members' scores, on the scales of the training pairs.

    runs: the members' run files, of the same queries and candidates.
    """
    for rankings in zip(*map(read_run, runs), strict=True):
        (qid,) = {qid for qid, _ in rankings}
        members = [dict(ranking) for _, ranking in rankings]
        pids = sorted(members[0])
        scores = combine([np.array([own[pid] for pid in pids]) for own in members], scales)
        yield qid, list(zip(pids, scores.tolist(), strict=True))


def ensemble_costs(members: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Parameters, bytes and operations: every member is loaded, and reads every pair."""
    return {name: sum(own[name] for own in members) for name in members[0]}


def ensemble_timings(members: Sequence[Timings]) -> Timings:
    """One after the other on the same threads; each member tokenises for itself."""
    return Timings(
        np.sum([own.tokenise_ms for own in members], axis=0),
        np.sum([own.forward_ms for own in members], axis=0),
    )
