"""Which queries belong to a split: division, relevance, the cap; and query ids that are one number
written in two ways, as TREC's own files have them: topics "051" and judgments "51".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from kdscale.data.readers.base import Reject
from kdscale.errors import KdscaleError

ALL = "all"  # the split name of a source with one undivided query set
TRAIN = "train"
DEV = "dev"

Judgments = dict[str, dict[str, int]]  # qid -> pid -> grade


def _digest(seed: object, qid: str) -> bytes:
    return hashlib.sha256(f"{seed}:{qid}".encode()).digest()


def choose_queries(qids: list[str], limit: int | None, seed: int) -> list[str]:
    """At most `limit` queries, in the order given. A smaller limit chooses a subset of a larger."""
    if limit is None or limit >= len(qids):
        return qids
    chosen = set(sorted(qids, key=lambda qid: _digest(seed, qid))[:limit])
    return [qid for qid in qids if qid in chosen]


def divide_queries(qids: Iterable[str], fractions: Mapping[str, float]) -> dict[str, list[str]]:
    """Split -> its queries, by a hash of the qid: a query keeps its split when others come or go.

    Fractions that sum to less than one leave the rest of the queries out.
    """
    divided: dict[str, list[str]] = {split: [] for split in fractions}
    for qid in qids:
        place = int.from_bytes(_digest("split", qid)[:8], "big") / 2**64
        for split, fraction in fractions.items():
            if place < fraction:
                divided[split].append(qid)
                break
            place -= fraction
    return divided


def check_splits(source: list[str], fractions: dict[str, float], capped: Iterable[str]) -> None:
    """Raise KdscaleError where prepare.split or prepare.max_queries do not fit the source."""
    if source == [ALL] and not fractions:
        raise KdscaleError(
            "the source has one undivided query set; set prepare.split, for example to "
            "{train: 0.8, dev: 0.1, test: 0.1}"
        )
    if fractions and source != [ALL]:
        raise KdscaleError(
            f"prepare.split divides an undivided query set, but the source has its own splits "
            f"({', '.join(source)}); leave prepare.split empty"
        )
    if any(f <= 0 for f in fractions.values()) or sum(fractions.values()) > 1 + 1e-9:
        raise KdscaleError(
            f"prepare.split {fractions}: fractions must be above 0 and sum to at most 1"
        )
    names = list(fractions) or source
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise KdscaleError(
                f"split name {name!r}: use letters, digits, '_', '-' and '.' (it names files)"
            )
    for name in capped:
        if name not in names:
            raise KdscaleError(
                f"prepare.max_queries names the split {name!r}, the source has "
                f"{', '.join(names)}; correct the name"
            )


def usable_queries(
    split: str, qids: list[str], judgments: Judgments, min_grade: int
) -> tuple[list[str], dict[str, int]]:
    """The queries of a split that something can be done with, and counts of the others.

    A training query needs a relevant passage (grade >= min_grade); an evaluation query needs a
    judgment, since one judged to have nothing relevant is a result too.
    Raises KdscaleError if none is left.
    """
    without_judgment = [q for q in qids if not judgments.get(q)]
    without_relevant = [
        q for q in qids if judgments.get(q) and max(judgments[q].values()) < min_grade
    ]
    dropped = set(without_judgment)
    if split == TRAIN:
        dropped.update(without_relevant)
    kept = [q for q in qids if q not in dropped]
    if not kept:
        what = f"relevant passage (grade >= {min_grade})" if split == TRAIN else "judgment"
        raise KdscaleError(
            f"split {split}: none of its {len(qids)} queries has a {what}; check that the query "
            "ids of queries and qrels agree"
        )
    return kept, {
        "read": len(qids),
        "without_judgment": len(without_judgment),
        "without_relevant": len(without_relevant),
        "dropped": len(dropped),
    }


_NUMBERED = re.compile(r"(\D*)0*(\d+)")


def same_numbers(known: Collection[str], named: Iterable[str]) -> dict[str, str]:
    """Of the ids that are named and not known: the known id of the same number.

    {} unless it is certain: every id of both sides is a number behind one and the same prefix (of
    which one side may have none), and no two ids of a side are one number.
    """
    known, named = set(known), set(named)
    if named <= known:
        return {}
    theirs, mine = _by_number(known), _by_number(named)
    if theirs is None or mine is None or (theirs[0] != mine[0] and theirs[0] and mine[0]):
        return {}
    found = {name: theirs[1][number] for number, name in mine[1].items() if number in theirs[1]}
    return {name: other for name, other in found.items() if name != other}


def ids_of(items: Iterable[tuple | Reject]) -> set[str]:
    return {item[0] for item in items if not isinstance(item, Reject)}


def renamed(items: Iterable[Any], names: dict[str, str]) -> Iterator[Any]:
    """The items, which begin with a query's id (or are Rejects), with the other name of those that
    have one."""
    for item in items:
        if isinstance(item, Reject) or item[0] not in names:
            yield item
        else:
            yield (names[item[0]], *item[1:])


def describe(names: dict[str, str], of: str, known: str) -> str:
    """names: as `same_numbers` gives them; of, known: whose ids they are, and whose others."""
    one, other = min(names.items())
    return f"{len(names)} query ids of {of} are those of {known} by their number ({one} is {other})"


def _by_number(ids: set[str]) -> tuple[str, dict[str, str]] | None:
    """The prefix of all ids, and number (without zeros before it) -> id; None where they have no
    such thing in common."""
    prefixes, numbers = set(), {}
    for identifier in ids:
        match = _NUMBERED.fullmatch(identifier)
        if match is None or match[2] in numbers:
            return None
        prefixes.add(match[1])
        numbers[match[2]] = identifier
    return (prefixes.pop(), numbers) if len(prefixes) == 1 else None
