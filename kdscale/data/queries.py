"""Which queries belong to a split: division, relevance, and the cap."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

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


def divide_queries(qids: Iterable[str], fractions: dict[str, float]) -> dict[str, list[str]]:
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
