"""An ensemble of teachers as a system: what it ranks, and what it costs, from its members'."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from kdscale.data.ensemble import Scale, combine
from kdscale.data.runs import read_run
from kdscale.evaluation.latency import Timings
from kdscale.evaluation.ranking import Scored


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
