"""Effectiveness measures by their ir-measures names, a value a judged query."""

from __future__ import annotations

import difflib
import re
import subprocess
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kdscale.errors import KdscaleError

if TYPE_CHECKING:
    from ir_measures.measures import Measure

Qrels = Mapping[str, Mapping[str, int]]  # qid -> pid -> grade

BLOCK = 1_000  # queries handed over at a time: the libraries hold several copies of a run
# One judged query, to see at once whether a measure can be computed here.
_PROBE_QRELS = {"q": {"p": 1}}
_PROBE_RUN = {"q": {"p": 1.0}}


def parse_measures(names: Sequence[str], setting: str = "evaluate.measures") -> dict[str, Measure]:
    """Each name with its measure, in order, each once. Raises KdscaleError for a name that
    ir-measures does not know or cannot compute on this machine, naming near ones.

    setting: where the names were given, for the message.
    """
    return {name: _parse(name, setting) for name in names}


def _parse(name: str, setting: str) -> Measure:
    import ir_measures

    try:
        measure = ir_measures.parse_measure(name)
        ir_measures.evaluator([measure], _PROBE_QRELS).calc(_PROBE_RUN)
    except NameError:
        raise KdscaleError(f"{setting}: unknown measure {name!r}; {_near(name)}") from None
    except (ValueError, KeyError, AssertionError, TypeError, subprocess.SubprocessError):
        raise KdscaleError(
            f"{setting}: {name!r} cannot be computed: its parameters are wrong, or one "
            "is missing, or it needs more than ids and grades; write it like nDCG@10 or AP(rel=2)"
        ) from None
    return measure


def _near(name: str) -> str:
    from ir_measures.measures import registry

    stem, rest = re.match(r"([^@(]*)(.*)", name, re.DOTALL).groups()
    by_folded: dict[str, str] = {}
    for known in registry:
        by_folded.setdefault(known.casefold(), known)  # of nDCG and its alias NDCG the first
    folded = difflib.get_close_matches(stem.casefold(), by_folded, n=3, cutoff=0.5)
    if not folded:
        return "known ones are nDCG@10, RR@10, AP, R@50, P@10"
    return f"did you mean {' or '.join(by_folded[f] + rest for f in folded)}?"


def per_query(
    measures: Mapping[str, Measure], qrels: Qrels, run: Mapping[str, Sequence[str]]
) -> dict[str, np.ndarray]:
    """The value of every measure for every judged query.

    run: each query's passages, best first. That order alone counts: measures are computed by
    different providers, which would each break ties of scores in their own way.
    Returns, by the measure's name, [len(qrels)] float64 in the order of `qrels`; a judged query
    that the run lacks has 0.
    """
    qids = list(qrels)
    values = {name: np.zeros(len(qids)) for name in measures}
    for start in range(0, len(qids), BLOCK):
        block = qids[start : start + BLOCK]
        for name, of_block in _of_block(measures, qrels, run, block).items():
            values[name][start : start + len(block)] = of_block
    return values


def _of_block(
    measures: Mapping[str, Measure],
    qrels: Qrels,
    run: Mapping[str, Sequence[str]],
    block: list[str],
) -> dict[str, np.ndarray]:
    import ir_measures

    row = {qid: i for i, qid in enumerate(block)}
    grades = {qid: dict(qrels[qid]) for qid in block}
    scored = {
        qid: {pid: float(-rank) for rank, pid in enumerate(run[qid])}
        for qid in block
        if run.get(qid)
    }
    by_measure = {measure: np.zeros(len(block)) for measure in measures.values()}
    for metric in ir_measures.iter_calc(list(by_measure), grades, scored):
        by_measure[metric.measure][row[metric.query_id]] = metric.value
    return {name: by_measure[measure] for name, measure in measures.items()}
