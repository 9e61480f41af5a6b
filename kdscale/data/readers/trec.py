"""TREC collections: documents in SGML or JSON lines, topics, qrels, and runs as candidates."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdscale.config import TrecSource
from kdscale.data.lines import read_by_first_char, read_tsv_texts
from kdscale.data.readers.base import Reject
from kdscale.data.readers.files import check_files, check_splits, digests
from kdscale.data.readers.sgml import read_sgml_documents, read_sgml_topics
from kdscale.data.records import read_json_passages, read_json_queries
from kdscale.data.runs import qrels_lines, run_lines
from kdscale.errors import KdscaleError
from kdscale.paths import user_path
from kdscale.store.artifact import sha256_file


class TrecReader:
    """The format of a file of documents or topics follows from its first line."""

    def __init__(self, source: TrecSource):
        self._documents = _expand(source.documents)
        self._topics = check_files(source.topics, "source.topics")
        self._qrels = check_files(source.qrels, "source.qrels")
        self._runs = check_files(source.runs, "source.runs")
        check_splits(
            ("source.topics", source.topics),
            ("source.qrels", source.qrels),
            ("source.runs", source.runs),
        )

    def fingerprint(self) -> dict[str, Any]:
        return {
            "documents": [sha256_file(path) for path in self._documents],
            "topics": digests(self._topics),
            "qrels": digests(self._qrels),
            "runs": digests(self._runs),
        }

    def passages(self) -> Iterator[tuple[str, str] | Reject]:
        for path in self._documents:
            yield from read_by_first_char(path, {"{": read_json_passages}, read_sgml_documents)

    def splits(self) -> list[str]:
        return list(self._topics)

    def queries(self, split: str) -> Iterator[tuple[str, str] | Reject]:
        formats = {"{": read_json_queries, "<": read_sgml_topics}
        return read_by_first_char(self._topics[split], formats, read_tsv_texts)

    def qrels(self, split: str) -> Iterator[tuple[str, str, int] | Reject]:
        return qrels_lines(self._qrels[split])

    def candidates(self, split: str) -> Iterator[tuple[str, str, int, float] | Reject] | None:
        path = self._runs.get(split)
        return run_lines(path) if path else None

    def negatives(self) -> None:
        return None


def _expand(patterns: list[str]) -> list[Path]:
    """Every file that the paths and globs name, each once, in a fixed order."""
    if not patterns:
        raise KdscaleError("source.documents is empty; list files or globs of documents")
    found: dict[Path, None] = {}
    for pattern in patterns:
        names = sorted(glob.glob(str(user_path(pattern, "source.documents")), recursive=True))
        files = [Path(name) for name in names if Path(name).is_file()]
        if not files:
            raise KdscaleError(
                f"source.documents: no file {pattern}; list files or globs (folder/*), plain or .gz"
            )
        found.update(dict.fromkeys(files))
    return list(found)
