"""MS MARCO passage files: collection, queries, qrels, top1000, triples by id."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdscale.config import MsMarcoSource
from kdscale.data.lines import parse_lines, read_tsv_texts
from kdscale.data.readers.base import Reject, check_file, check_files, check_splits, digests
from kdscale.data.runfiles import RunLines, run_lines
from kdscale.data.runs import qrels_lines
from kdscale.errors import KdscaleError
from kdscale.store.artifact import sha256_file

TRAIN = "train"


class MsMarcoReader:
    """Where train has no qrels, the positives of the triples are its qrels, of grade 1."""

    def __init__(self, source: MsMarcoSource):
        self._collection = check_file(source.collection, "source.collection")
        self._queries = check_files(source.queries, "source.queries")
        self._qrels = check_files(source.qrels, "source.qrels")
        self._candidates = check_files(source.candidates, "source.candidates")
        self._triples = check_file(source.triples, "source.triples") if source.triples else None
        check_splits(
            ("source.queries", source.queries),
            ("source.qrels", source.qrels),
            ("source.candidates", source.candidates),
            judged_elsewhere={TRAIN} if self._triples else set(),
        )
        if self._triples and TRAIN not in source.queries:
            raise KdscaleError(
                "source.triples is for the split train, which source.queries does not name; add "
                "source.queries.train or remove source.triples"
            )

    def fingerprint(self) -> dict[str, Any]:
        return {
            "collection": sha256_file(self._collection),
            "queries": digests(self._queries),
            "qrels": digests(self._qrels),
            "candidates": digests(self._candidates),
            "triples": sha256_file(self._triples) if self._triples else None,
        }

    def passages(self) -> Iterator[tuple[str, str] | Reject]:
        return read_tsv_texts(self._collection)

    def splits(self) -> list[str]:
        return list(self._queries)

    def queries(self, split: str) -> Iterator[tuple[str, str] | Reject]:
        return read_tsv_texts(self._queries[split])

    def qrels(self, split: str) -> Iterator[tuple[str, str, int] | Reject]:
        if split in self._qrels:
            return qrels_lines(self._qrels[split])
        assert self._triples is not None  # else train would have had to have qrels
        return _qrels_of(self._triples)

    def candidates(self, split: str) -> RunLines | None:
        path = self._candidates.get(split)
        return run_lines(path) if path else None

    def negatives(self) -> Iterator[tuple[str, str] | Reject] | None:
        return _negatives_of(self._triples) if self._triples else None


def _qrels_of(triples: Path) -> Iterator[tuple[str, str, int] | Reject]:
    seen: set[tuple[str, str]] = set()  # a positive comes back with each of its negatives
    for item in parse_lines(triples, _triple):
        if isinstance(item, Reject):
            yield item
        elif item[:2] not in seen:
            seen.add(item[:2])
            yield *item[:2], 1


def _negatives_of(triples: Path) -> Iterator[tuple[str, str] | Reject]:
    for item in parse_lines(triples, _triple):
        yield item if isinstance(item, Reject) else (item[0], item[2])


def _triple(line: str) -> tuple[str, str, str] | str:
    fields = line.split()
    if len(fields) != 3:
        return "not three ids (qid, positive pid, negative pid)"
    return fields[0], fields[1], fields[2]
