"""Queries that are learned from and judged by: then a measure says what was learned by heart.

A query is the same where its text is (`text_key`): ids say nothing, since query logs give one
question many.
"""

from __future__ import annotations

from collections.abc import Mapping

from kdscale.data.clean import clean_text
from kdscale.data.queries import divide_queries
from kdscale.data.readers.base import Reader, Reject
from kdscale.data.same_text import text_key

Texts = Mapping[str, str]  # qid -> text


def leaked(train: Texts, others: Mapping[str, Texts]) -> dict[str, list[str]]:
    """Of each split of `others` that has any: the training queries that are among its queries."""
    keys = {qid: text_key(text) for qid, text in train.items()}
    found = {}
    for split, texts in others.items():
        theirs = {text_key(text) for text in texts.values()}
        same = [qid for qid, key in keys.items() if key in theirs]
        if same:
            found[split] = same
    return found


def repeated(texts: Texts) -> int:
    """How many of the queries ask what an earlier one asks."""
    return len(texts) - len({text_key(text) for text in texts.values()})


def describe(leaks: Mapping[str, int]) -> str:
    """leaks: split -> how many training queries are among its queries."""
    counts = ", ".join(f"{count} in {split}" for split, count in leaks.items())
    return f"training queries that are asked in another split too: {counts}"


def read_texts(reader: Reader, fractions: Mapping[str, float]) -> dict[str, Texts]:
    """Each split's queries as `prepare` reads and divides them, but without its checks."""
    read: dict[str, Texts] = {}
    for name in reader.splits():
        items = (item for item in reader.queries(name) if not isinstance(item, Reject))
        known = {qid: clean_text(text) for qid, text in items}
        parts = divide_queries(known, fractions) if fractions else {name: list(known)}
        for part, qids in parts.items():
            read[part] = {qid: known[qid] for qid in qids}
    return read
