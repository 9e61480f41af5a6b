"""The query sets of a dataset: read, divided, filtered and capped."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import pyarrow as pa

from kdscale.config import Prepare
from kdscale.data.clean import RejectLog
from kdscale.data.ingest import ingest_judgments, ingest_queries
from kdscale.data.queries import (
    Judgments,
    check_splits,
    choose_queries,
    divide_queries,
    usable_queries,
)
from kdscale.data.readers.base import Reader
from kdscale.data.schema import QRELS, QUERIES
from kdscale.store import Workspace


@dataclass(frozen=True)
class Split:
    """One split: its queries in order, their judgments, and what became of the others."""

    name: str
    texts: dict[str, str]  # qid -> text
    judgments: Judgments
    counts: dict[str, int]

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
    prepare: Prepare,
    seed: int,
    log: RejectLog,
    passages: Container[str],
    keep: Workspace,
) -> list[QuerySet]:
    """Every query set of a source. Raises KdscaleError where too many lines are refused (the
    refused lines then stay in `keep`), or a split is left without queries."""
    names = reader.splits()
    check_splits(names, prepare.split, prepare.max_queries)
    return [_read_query_set(reader, name, prepare, seed, log, passages, keep) for name in names]


def _read_query_set(
    reader: Reader,
    name: str,
    prepare: Prepare,
    seed: int,
    log: RejectLog,
    passages: Container[str],
    keep: Workspace,
) -> QuerySet:
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
        chosen = choose_queries(usable, prepare.max_queries.get(split), seed)
        counts = {**counts, "over_the_cap": len(usable) - len(chosen), "kept": len(chosen)}
        splits.append(
            Split(
                split,
                {qid: known[qid] for qid in chosen},
                {qid: judgments[qid] for qid in chosen},
                counts,
            )
        )
    return QuerySet(name, known, cut, splits)
