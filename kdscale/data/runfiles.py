"""Files that name passages for queries, runs and sets of candidates: which format one has, and its
lines."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from kdscale.data.lines import EMPTY_ID, parse_lines, read_lines
from kdscale.data.queries import renamed
from kdscale.data.readers.base import Reject

LARGEST = 2**31  # what the columns of a table hold
SAMPLE = 1_000  # lines by which a format is recognised
WHOLE_SCORES = 10  # whole numbers among scores, at most so many to one that is not whole
NOT_NUMBERS = "rank or score is not a number"

N = TypeVar("N", int, float)

# (qid, pid, rank, score); rank and score are None where the format has none
RunLine = tuple[str, str, int | None, float | None]


@dataclass(frozen=True)
class RunForm:
    """A format. columns: their names, as one tells them to a user; parse: of a line, its content or
    the reason why it is refused."""

    columns: str
    parse: Callable[[str], RunLine | str]


def run_lines(path: Path) -> RunLines:
    """Of a run or a set of candidates, in whatever format of this module."""
    return RunLines(path)


class RunLines:
    """(qid, pid, rank, score) of every line, in the order of the file, or a Reject.

    The format is the one that most of the first lines are in; a line in another one is refused.
    names: query ids of the file that are to be read as another one.
    """

    def __init__(self, path: Path, names: dict[str, str] | None = None):
        self._path, self._names = path, names or {}

    def renamed(self, names: dict[str, str]) -> RunLines:
        return RunLines(self._path, names)

    @cached_property
    def form(self) -> RunForm:
        return recognise(self._path)

    @property
    def columns(self) -> str:
        return self.form.columns

    def __iter__(self) -> Iterator[RunLine | Reject]:
        return renamed(parse_lines(self._path, self.form.parse), self._names)


def recognise(path: Path) -> RunForm:
    """The format of a file by the content of its first lines, not by their number of columns: four
    can be a rank and a score, or two texts. UNKNOWN where no line is in a known one."""
    lines = (item[1] for item in read_lines(path) if not isinstance(item, Reject))
    votes: Counter[RunForm] = Counter()
    like_qrels = 0
    for line in islice(lines, SAMPLE):
        form = _form_of(line)
        if form is not None:
            votes[form] += 1
        like_qrels += _like_qrels(line.split())
    # One line alone may be of a run, unless its passage's id is no number.
    if like_qrels > (max(1, votes.total() / 2) if votes else 0):
        return QRELS
    if not votes:
        return UNKNOWN
    # Scores are whole numbers here and there, and ranks always.
    if votes[RANK] < WHOLE_SCORES * votes[SCORE]:
        votes[SCORE] += votes.pop(RANK, 0)
    return max(votes, key=lambda form: votes[form])  # of equally many the one that came first


def query_scores(ranks: np.ndarray, scores: np.ndarray, lines: int) -> np.ndarray | None:
    """[N] float64 by which a query's candidates are ranked, or None where they are a set that
    nothing in the file ranks.

    ranks, scores: [N], NaN where a line has none; lines: how many the file has of the query. Scores
    that are all equal tell nothing (those of MS MARCO's candidates in ir_datasets are 0, in the
    order of ids); ranks do where they are different places of the query's lines.
    """
    if not np.isnan(scores).any() and (len(scores) == 1 or (scores != scores[0]).any()):
        return scores
    places = np.unique(ranks[~np.isnan(ranks)])
    if len(places) == len(ranks) and len(places) and places[0] >= 0 and places[-1] <= lines:
        return 1 / (1 + np.searchsorted(places, ranks))
    return None


def as_numbers(rank: int | None, score: float | None) -> tuple[float, float]:
    """NaN for None: what `query_scores` takes."""
    return math.nan if rank is None else rank, math.nan if score is None else score


def _form_of(line: str) -> RunForm | None:
    fields, tabbed = line.split(), line.split("\t")
    count = len(fields)
    if len(tabbed) == 4:
        return RANK_AND_SCORE if _ends_in_numbers(tabbed) else TEXTS
    if count == 6 and _is_whole(fields[3]) and _is_number(fields[4]):
        return TREC
    if count == 4 and _ends_in_numbers(fields):
        return RANK_AND_SCORE
    if count == 3 and _is_whole(fields[2]):
        return RANK
    if count == 3 and _is_number(fields[2]):
        return SCORE
    return PAIR if count == 2 else None


def _like_qrels(fields: list[str]) -> bool:
    return len(fields) == 4 and fields[1] in ("0", "Q0") and _is_whole(fields[3])


def _ends_in_numbers(fields: list[str]) -> bool:
    """Whether the last two of four can be rank and score."""
    return _is_whole(fields[2]) and _is_number(fields[3])


def _is_whole(text: str) -> bool:
    return _as(int, text) is not None


def _is_number(text: str) -> bool:
    return _as(float, text) is not None


def _as(kind: Callable[[str], N], text: str) -> N | None:
    try:
        return kind(text)
    except ValueError:
        return None


def _columns(
    columns: str, count: int, *, pid: int = 1, rank: int | None = None, score: int | None = None
) -> RunForm:
    """A format of so many columns, which white space parts; the others: places among them."""
    refused = f"not {count} columns ({columns})"

    def parse(line: str) -> RunLine | str:
        fields = line.split()
        if len(fields) != count:
            return refused
        place = None if rank is None else _as(int, fields[rank])
        value = None if score is None else _as(float, fields[score])
        if (place is None) != (rank is None) or (value is None) != (score is None):
            return NOT_NUMBERS
        if value is not None and not math.isfinite(value):
            return "score is not finite"
        if place is not None and abs(place) >= LARGEST:
            return "rank is too large"
        return fields[0], fields[pid], place, value

    return RunForm(columns, parse)


def _with_texts(line: str) -> RunLine | str:
    fields = line.split("\t")
    if len(fields) != 4 or _ends_in_numbers(fields):
        return f"not 4 columns ({TEXTS.columns})"
    qid, pid = fields[0].strip(), fields[1].strip()
    return (qid, pid, None, None) if qid and pid else EMPTY_ID


TREC = _columns("qid Q0 pid rank score tag", 6, pid=2, rank=3, score=4)
RANK_AND_SCORE = _columns("qid pid rank score", 4, rank=2, score=3)  # ColBERT writes it
RANK = _columns("qid pid rank", 3, rank=2)  # MS MARCO's submissions
SCORE = _columns("qid pid score", 3, score=2)
PAIR = _columns("qid pid", 2)
TEXTS = RunForm("qid pid query passage, parted by tabs", _with_texts)  # MS MARCO's top1000
QRELS = RunForm("qid 0 pid grade", lambda line: "judgments (qid 0 pid grade), not a run")
KNOWN = (TREC, RANK_AND_SCORE, RANK, SCORE, PAIR, TEXTS)
UNKNOWN = RunForm(
    "no known form",
    lambda line: (
        "no line of a run or of candidates: " + ", or ".join(form.columns for form in KNOWN)
    ),
)
