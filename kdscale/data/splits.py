"""The query sets of a dataset: read, divided, filtered and capped; and which training queries are
asked in another split too.

A query is the same where its text is (`text_key`): ids say nothing, since query logs give one
question many.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import pyarrow as pa

from kdscale.config import DatasetOptions
from kdscale.data.clean import RejectLog, clean_text
from kdscale.data.ingest import ingest_judgments, ingest_queries
from kdscale.data.queries import (
    TRAIN,
    Judgments,
    check_splits,
    choose_queries,
    divide_queries,
    usable_queries,
)
from kdscale.data.readers.base import Reader, Reject
from kdscale.data.same_text import text_key
from kdscale.data.schema import QRELS, QUERIES
from kdscale.errors import KdscaleError
from kdscale.store import Workspace

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


@dataclass(frozen=True)
class Split:
    """One split: its queries in order, their judgments, and what became of the others.

    counts: in train also "repeated" (queries that ask what an earlier one asks) and "leaked"
    (split -> training queries that are among its queries, by their text)
    """

    name: str
    texts: dict[str, str]  # qid -> text
    judgments: Judgments
    counts: dict[str, Any]

    def queries_table(self) -> pa.Table:
        return pa.table([list(self.texts), list(self.texts.values())], schema=QUERIES)

    def qrels_table(self) -> pa.Table:
        rows = [
            (qid, pid, grade)
            for qid in self.texts
            for pid, grade in self.judgments.get(qid, {}).items()
        ]
        columns = zip(*rows, strict=True) if rows else ([], [], [])
        return pa.table([list(c) for c in columns], schema=QRELS)


@dataclass(frozen=True)
class QuerySet:
    """One query set of the source (a split of its own, or "all") and the splits made of it."""

    name: str
    known: dict[str, str]  # every readable query, also those that no split kept
    texts_cut: int
    splits: list[Split]


def read_query_sets(
    reader: Reader,
    prepare: DatasetOptions,
    seed: int,
    log: RejectLog,
    passages: Container[str],
    keep: Workspace,
) -> list[QuerySet]:
    """Every query set of a source. Raises KdscaleError where too many lines are refused (the
    refused lines then stay in `keep`), or a split is left without queries."""
    names = reader.splits()
    check_splits(names, prepare.split, prepare.max_queries)
    sets = [_read_query_set(reader, name, prepare, log, passages, keep) for name in names]
    whole = {split.name: split.texts for of in sets for split in of.splits}
    leaks = leaked(whole.pop(TRAIN, {}), whole)
    return [
        replace(of, splits=[_chosen(split, leaks, prepare, seed) for split in of.splits])
        for of in sets
    ]


def _read_query_set(
    reader: Reader,
    name: str,
    prepare: DatasetOptions,
    log: RejectLog,
    passages: Container[str],
    keep: Workspace,
) -> QuerySet:
    """With all queries that something can be done with."""
    kind = f"queries/{name}"
    known, cut = ingest_queries(reader.queries(name), kind, log, prepare.max_chars)
    log.check(kind, keep)
    kind = f"qrels/{name}"
    judgments = ingest_judgments(reader.qrels(name), kind, log, known, passages)
    log.check(kind, keep)
    divided = divide_queries(known, prepare.split) if prepare.split else {name: list(known)}
    splits = []
    for split, qids in divided.items():
        usable, counts = usable_queries(split, qids, judgments, prepare.min_grade)
        texts = {qid: known[qid] for qid in usable}
        splits.append(Split(split, texts, {qid: judgments[qid] for qid in usable}, counts))
    return QuerySet(name, known, cut, splits)


def _chosen(split: Split, leaks: dict[str, list[str]], prepare: DatasetOptions, seed: int) -> Split:
    """The split after what `leakage` and `max_queries` leave out of it."""
    left, counts = list(split.texts), split.counts
    if split.name == TRAIN:
        out = set(chain.from_iterable(leaks.values()))
        counts = {
            **counts,
            "repeated": repeated(split.texts),
            "leaked": {other: len(qids) for other, qids in leaks.items()},
            "dropped_as_leaked": len(out) if prepare.leakage == "drop" else 0,
        }
        if prepare.leakage == "drop":
            left = [qid for qid in left if qid not in out]
        if not left:
            raise KdscaleError(
                f"prepare.leakage: all {len(out)} training queries are queries of another split "
                "too; give train queries of its own, or set it to keep"
            )
    chosen = choose_queries(left, prepare.max_queries.get(split.name), seed)
    counts = {**counts, "over_the_cap": len(left) - len(chosen), "kept": len(chosen)}
    return replace(
        split,
        texts={qid: split.texts[qid] for qid in chosen},
        judgments={qid: split.judgments[qid] for qid in chosen},
        counts=counts,
    )
