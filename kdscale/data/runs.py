"""Runs and qrels: read query by query and line by line, and TREC runs written."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from kdscale.data.lines import EMPTY_ID, parse_lines
from kdscale.data.readers.base import Reject
from kdscale.data.runfiles import LARGEST, as_numbers, query_scores, run_lines
from kdscale.errors import KdscaleError

QRELS_COLUMNS = "not as many columns as qrels have (qid 0 pid grade, or qid pid grade)"
GRADE = "grade is not a whole number"

_GRADE_NAMES = {"score", "grade", "label", "relevance", "rel"}
_WHITE = re.compile(r"\s")
_UNSIGNED = 2**31 - 1  # the bits of a 32-bit number but its sign
_MOST = float(np.finfo(np.float32).max)
_LARGEST_BITS = int(np.float32(_MOST).view(np.int32))
_SUBNORMAL = int(np.finfo(np.float32).smallest_normal.view(np.int32)) - 1  # so many above 0
T = TypeVar("T")


def run_tag(system: str) -> str:
    """A system's name as it stands in run files and in the names of them."""
    return system.replace("/", "--").replace(":", "-")


def read_run(path: Path) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """(qid, [(pid, score)]) query by query, scores descending, ties by pid ascending; see
    `read_rankings`."""
    return ((qid, ranking) for qid, ranking, _ in read_rankings(path))


def read_rankings(path: Path) -> Iterator[tuple[str, list[tuple[str, float]], bool]]:
    """(qid, [(pid, score)], whether the file ranks them) query by query, best first, ties by pid
    ascending.

    What ranks them is said by `query_scores`: as in trec_eval not the rank where scores differ
    (trec_eval gives ties to the larger pid; a run of ours has none). Where the file has no scores,
    they follow from the ranks, or are 0 for what nothing ranks. Holds one query at a time. Raises
    KdscaleError for a malformed line, for a passage ranked twice, and for a query whose lines do
    not stand together.
    """
    done: set[str] = set()
    current: str | None = None
    rows: dict[str, tuple[float, float]] = {}
    for qid, pid, rank, score in accepted(run_lines(path)):
        if qid != current:
            if current is not None:
                yield current, *_ranking(rows)
                done.add(current)
            if qid in done:
                raise KdscaleError(
                    f"{path}: the lines of query {qid} do not stand together; sort the file by qid"
                )
            current, rows = qid, {}
        if pid in rows:
            raise KdscaleError(f"{path}: query {qid} ranks {pid} twice; remove one of the lines")
        rows[pid] = as_numbers(rank, score)
    if current is not None:
        yield current, *_ranking(rows)


def _ranking(rows: dict[str, tuple[float, float]]) -> tuple[list[tuple[str, float]], bool]:
    ranks, scores = np.array(list(rows.values())).T
    found = query_scores(ranks, scores, len(rows))
    order = np.zeros(len(rows)) if found is None else found
    by_order = ranked(zip(rows, order.tolist(), strict=True))
    if np.isnan(scores).any():
        return by_order, found is not None
    return [(pid, rows[pid][1]) for pid, _ in by_order], found is not None


def write_run(
    path: Path, rankings: Iterable[tuple[str, Iterable[tuple[str, float]]]], tag: str
) -> None:
    """Write (qid, [(pid, score)]) query by query, ranks from 1 by `read_run`'s order.

    The scores of a query strictly decrease (`distinct_scores`), so that every program reads the
    order that is measured here. Raises KdscaleError for a score that is not finite and for an id
    or tag that the format cannot hold.
    """
    _check_word(tag, "tag")
    with path.open("w", encoding="utf-8") as handle:
        for qid, ranking in rankings:
            _check_word(qid, "query id")
            ordered = ranked(ranking)
            for pid, score in ordered:
                _check_word(pid, "passage id")
                if not math.isfinite(score):
                    raise KdscaleError(
                        f"{tag} gave passage {pid} of query {qid} the score {score}; "
                        "a ranking needs finite scores"
                    )
            written = distinct_scores([score for _, score in ordered])
            for rank, ((pid, _), score) in enumerate(zip(ordered, written, strict=True), 1):
                handle.write(f"{qid} Q0 {pid} {rank} {score!r} {tag}\n")


def distinct_scores(scores: Sequence[float]) -> list[float]:
    """The scores as 32-bit numbers, each below the one before: where two would be equal, the later
    one becomes the next lower number.

    Of equal scores trec_eval takes the larger id first and MS MARCO's script the smaller, and
    trec_eval reads 32 bits. scores: [n] finite, descending. Numbers below the least normal one are
    0 (some programs take them for it), and those that 32 bits cannot hold the nearest that can.
    """
    numbers = np.clip(np.asarray(scores, dtype=np.float64), -_MOST, _MOST).astype(np.float32)
    # The bits of a number without its sign count the numbers from 0 up to it.
    bits = numbers.view(np.int32).astype(np.int64) & _UNSIGNED
    steps = np.where(numbers < 0, -1, 1) * np.maximum(bits - _SUBNORMAL, 0)
    place = np.arange(len(steps))
    steps = np.minimum.accumulate(steps + place) - place
    steps = np.maximum(steps, place[::-1] - (_LARGEST_BITS - _SUBNORMAL))
    bits = np.where(steps == 0, 0, np.abs(steps) + _SUBNORMAL).astype(np.int32)
    return np.copysign(bits.view(np.float32), steps).astype(np.float64).tolist()


def ranked(ranking: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """Scores descending, ties by pid ascending."""
    return sorted(ranking, key=lambda item: (-item[1], item[0]))


def _check_word(word: str, what: str) -> None:
    if not word or _WHITE.search(word):
        raise KdscaleError(
            f"{what} {word!r} cannot stand in a TREC run, whose columns end at white space; "
            "rename it in the input"
        )


def qrels_lines(path: Path) -> Iterator[tuple[str, str, int] | Reject]:
    """(qid, pid, grade) of every line: TREC and MS MARCO (four columns), or BEIR (three).

    The first line tells which; where its last column is the name of a grade, it is a header. A
    grade may be written `1.0`, as tables of floating-point numbers have it.
    """
    width = 0

    def parse(line: str) -> tuple[str, str, int] | str | None:
        nonlocal width
        fields = _qrels_fields(line)
        if not width and fields[-1].casefold() in _GRADE_NAMES:
            return None
        width = width or len(fields)
        return _qrel(fields) if len(fields) == width else QRELS_COLUMNS

    return parse_lines(path, parse)


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """qid -> pid -> grade. Raises KdscaleError for a malformed line."""
    qrels: dict[str, dict[str, int]] = {}
    for qid, pid, grade in accepted(qrels_lines(path)):
        qrels.setdefault(qid, {})[pid] = grade
    return qrels


def _qrels_fields(line: str) -> list[str]:
    tabbed = [field.strip() for field in line.split("\t")]
    return tabbed if len(tabbed) in (3, 4) else line.split()


def _qrel(fields: list[str]) -> tuple[str, str, int] | str:
    if len(fields) not in (3, 4):
        return QRELS_COLUMNS
    qid, pid, grade = fields[0], fields[-2], fields[-1]
    if not qid or not pid:
        return EMPTY_ID
    try:
        number = float(grade)
    except ValueError:
        return GRADE
    if number % 1 != 0:  # what is not finite has no rest either
        return GRADE
    return (qid, pid, int(number)) if abs(number) < LARGEST else "grade is too large"


def accepted(items: Iterable[T | Reject]) -> Iterator[T]:
    """The items, none refused: raises KdscaleError naming file and line of the first Reject."""
    for item in items:
        if isinstance(item, Reject):
            raise KdscaleError(
                f"{item.file}, line {item.line}: {item.reason}: {item.text!r}; mend that line"
            )
        yield item
