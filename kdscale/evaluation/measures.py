"""Effectiveness measures by their ir-measures names, a value a judged query."""

from __future__ import annotations

import difflib
import re
import subprocess
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdscale.errors import KdscaleError

if TYPE_CHECKING:
    from ir_measures.measures import Measure

    from kdscale.config import Config

Qrels = Mapping[str, Mapping[str, int]]  # qid -> pid -> grade

BLOCK = 1_000  # queries handed over at a time: the libraries hold several copies of a run
LARGEST = 2**31 - 1  # a cutoff: the libraries abort the process above what they can hold
TOP_GRADE = 1_000_000  # trec_eval keeps a place for every grade up to the highest one
GDEVAL_GRADE = 4  # its script refuses higher ones
# One judged query, to see at once whether a measure can be computed here.
_PROBE_QRELS = {"q": {"p": 1}}
_PROBE_RUN = {"q": ["p"]}


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _is_bool(value: Any) -> bool:
    return type(value) is bool


# Of each parameter that a measure can have: whether a value will do, and which ones do. trec_eval
# ends the process at some of the others.
_PARAMETERS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "cutoff": (_whole(1, LARGEST), f"a whole number from 1 up, at most {LARGEST}"),
    "rel": (_whole(1, TOP_GRADE), f"a grade from 1 to {TOP_GRADE}"),
    "min_rel": (_whole(0, TOP_GRADE), f"a grade from 0 to {TOP_GRADE}"),
    "max_rel": (_whole(1, TOP_GRADE), f"a grade from 1 to {TOP_GRADE}"),
    "p": (lambda v: type(v) is float and 0 < v < 1, "a number between 0 and 1, such as 0.8"),
    "T": (lambda v: type(v) is float and 0 < v < 1e9, "a number above 0, such as 1.0"),
    "beta": (lambda v: type(v) is float and 0 < v < 1e9, "a number above 0, such as 1.0"),
    "recall": (
        # trec_eval is given two digits, and two recalls of the same digits would be one.
        lambda v: type(v) is float and 0 <= v <= 1 and round(v, 2) == v,
        "a number from 0.0 to 1.0 in steps of 0.01",
    ),
    "gains": (
        lambda v: (
            isinstance(v, dict)
            and bool(v)
            and all(_whole(0, TOP_GRADE)(n) for pair in v.items() for n in pair)
        ),
        f"from grade to gain, both from 0 to {TOP_GRADE}, such as {{1: 1, 2: 3}}",
    ),
    "judged_only": (_is_bool, "True or False"),
    "relative": (_is_bool, "True or False"),
    "normalize": (_is_bool, "True or False"),
}


def parse_measures(names: Iterable[str], setting: str = "evaluate.measures") -> dict[str, Measure]:
    """Each name with its measure, in order, each once. Raises KdscaleError for a name that
    ir-measures does not know, naming near ones, for a parameter that cannot be, and for a measure
    that cannot be computed on this machine.

    setting: where the names were given, for the message.
    """
    return {name: _parse(name, setting) for name in names}


def check_measures(config: Config) -> None:
    """Raise KdscaleError for a measure of a config that cannot be computed, naming its key."""
    evaluate = config.evaluate
    for key, setting in (
        ("evaluate.primary", evaluate.primary),
        ("evaluate.measures", evaluate.measures),
    ):
        by_place = setting if isinstance(setting, dict) else {"": setting}
        for place, names in by_place.items():
            names = [names] if isinstance(names, str) else names
            parse_measures(names, f"{key}.{place}".rstrip("."))
    parse_measures([config.ranker.watch.measure], "ranker.watch.measure")


def _parse(name: str, setting: str) -> Measure:
    measure = _read(name, setting)
    _check_parameters(measure, name, setting)
    _check_providers(measure, name, setting)
    try:
        per_query({name: measure}, _PROBE_QRELS, _PROBE_RUN)
    except KdscaleError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError, subprocess.SubprocessError) as e:
        raise KdscaleError(
            f"{setting}: {_shown(name)} cannot be computed: ir-measures fails at one query with "
            f"one relevant passage ({type(e).__name__}); use another measure, such as nDCG@10"
        ) from None
    return measure


def _read(name: str, setting: str) -> Measure:
    import ir_measures

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python's own parser, which reads the name
            return ir_measures.parse_measure(name)
    except NameError:
        raise KdscaleError(f"{setting}: unknown measure {_shown(name)}; {_near(name)}") from None
    except (ValueError, TypeError, RecursionError, MemoryError):
        raise KdscaleError(
            f"{setting}: {_shown(name)} cannot be computed: it is not written like nDCG@10 or "
            "AP(rel=2), with a cutoff from 1 up"
        ) from None


def _shown(name: str) -> str:
    return repr(name if len(name) <= 60 else f"{name[:57]}...")


def _near(name: str) -> str:
    from ir_measures.measures import registry

    parts = re.match(r"([^@(]*)(.*)", name, re.DOTALL)
    assert parts is not None  # either part may be empty
    stem, rest = parts.groups()
    by_folded: dict[str, str] = {}
    for known in registry:
        by_folded.setdefault(known.casefold(), known)  # of nDCG and its alias NDCG the first
    folded = difflib.get_close_matches(stem.casefold(), by_folded, n=3, cutoff=0.5)
    if not folded:
        return "known ones are nDCG@10, RR@10, AP, R@50, P@10"
    return f"did you mean {' or '.join(by_folded[f] + rest for f in folded)}?"


def _check_parameters(measure: Measure, name: str, setting: str) -> None:
    supported = measure.SUPPORTED_PARAMS
    for key, value in measure.params.items():
        if key not in supported:
            raise KdscaleError(
                f"{setting}: {_shown(name)} cannot be computed: {measure.NAME} has no parameter "
                f"{key}, only {', '.join(supported) or 'none'}"
            )
        sound, words = _PARAMETERS.get(key, (supported[key].validate, _choices(supported[key])))
        if not sound(value):
            raise KdscaleError(
                f"{setting}: {_shown(name)} cannot be computed: {key} is {words}, not {value!r}"
            )
    missing = [k for k, info in supported.items() if info.required and k not in measure.params]
    if missing:
        at = f"{measure.NAME}@10" if measure.AT_PARAM == "cutoff" else f"{measure.NAME}@0.5"
        how = f"write it like {at}" if missing[0] == measure.AT_PARAM else f"add {missing[0]}=..."
        raise KdscaleError(
            f"{setting}: {_shown(name)} cannot be computed: it needs a {missing[0]}; {how}"
        )


def _choices(info: Any) -> str:
    choices = info.choices if isinstance(info.choices, list | tuple) else ()
    return f"one of {', '.join(choices)}" if choices else "of another kind"


def _check_providers(measure: Measure, name: str, setting: str) -> None:
    """Raise KdscaleError unless something on this machine computes the measure."""
    able = _supporting(measure)
    if not able:
        raise KdscaleError(
            f"{setting}: {_shown(name)} cannot be computed: nothing that ir-measures knows "
            "supports it with these parameters; write it like nDCG@10 or AP(rel=2)"
        )
    if not any(provider.is_available() for provider in able):
        ways = [f"{p.NAME}: {p.install_instructions()}" for p in able]
        raise KdscaleError(
            f"{setting}: {_shown(name)} cannot be computed: it needs a program that is not "
            f"installed ({'; or '.join(ways)})"
        )


def _supporting(measure: Measure) -> list[Any]:
    """ir-measures' providers of a measure, the one that is taken first."""
    import ir_measures

    return [p for p in ir_measures.DefaultPipeline.providers if p.supports(measure)]


def check_grades(measures: Mapping[str, Measure], qrels: Qrels) -> None:
    """Raise KdscaleError for a grade that a measure's library cannot take, naming the query."""
    highest, qid = max(
        ((max(grades.values(), default=0), qid) for qid, grades in qrels.items()),
        key=lambda found: found[0],
        default=(0, ""),
    )
    if highest > TOP_GRADE:
        raise KdscaleError(
            f"query {qid} has a passage of grade {highest}, above {TOP_GRADE}, the highest that "
            "measures are computed with; mend its qrels"
        )
    if highest <= GDEVAL_GRADE:
        return
    for name, measure in measures.items():
        if next(p for p in _supporting(measure) if p.is_available()).NAME == "gdeval":
            raise KdscaleError(
                f"{name}: query {qid} has a passage of grade {highest}, and gdeval, which computes "
                f"this measure, knows grades up to {GDEVAL_GRADE}; leave it out, or map the grades"
            )


def per_query(
    measures: Mapping[str, Measure], qrels: Qrels, run: Mapping[str, Sequence[str]]
) -> dict[str, np.ndarray]:
    """The value of every measure for every judged query.

    run: each query's passages, best first. That order alone counts: measures are computed by
    different providers, which would each break ties of scores in their own way.
    Returns, by the measure's name, [len(qrels)] float64 in the order of `qrels`; a judged query
    that the run lacks has 0. Raises KdscaleError for a grade that a measure's library cannot take.
    """
    check_grades(measures, qrels)
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

    grades, scored = {}, {}
    for row, qid in enumerate(block):
        grades[str(row)], ranking = _numbered(qrels[qid], run.get(qid, ()))
        if ranking:
            scored[str(row)] = ranking
    by_measure = {measure: np.zeros(len(block)) for measure in measures.values()}
    for alike in _computed_together(by_measure):
        for metric in ir_measures.iter_calc(alike, grades, scored):
            by_measure[metric.measure][int(metric.query_id)] = metric.value
    return {name: by_measure[measure] for name, measure in measures.items()}


def _numbered(
    grades: Mapping[str, int], ranking: Sequence[str]
) -> tuple[dict[str, int], dict[str, float]]:
    """The grades and the scores of a query by numbers that stand for its passages.

    The libraries see no id of ours: gdeval cuts a query's at a dash and wants a number, and reads
    columns that end at white space.
    """
    numbers = {pid: str(rank) for rank, pid in enumerate(ranking, 1)}
    scores = {number: -float(number) for number in numbers.values()}
    further = (str(n) for n in range(len(numbers) + 1, len(numbers) + len(grades) + 1))
    return {numbers.get(p) or next(further): grade for p, grade in grades.items()}, scores


def _computed_together(measures: Iterable[Measure]) -> list[list[Measure]]:
    """The measures by their parameters but the cutoff.

    In one call ir-measures may compute nDCG@10 with the gains of the nDCG(gains=...)@10 beside it:
    it walks through a set, whose order is another in each process.
    """
    groups: dict[str, list[Measure]] = {}
    for measure in measures:
        others = {k: v for k, v in measure.params.items() if k != measure.AT_PARAM}
        groups.setdefault(repr(sorted(others.items())), []).append(measure)
    return list(groups.values())
