"""Query ids that are one number written in two ways, as TREC's own files have them: topics "051"
and judgments "51", topics "MB001" and judgments "1"."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from kdscale.data.readers.base import Reject

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
