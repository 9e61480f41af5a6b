"""TREC collections: documents in SGML or JSON lines, topics, qrels, and runs as candidates."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kdscale.config import TrecSource
from kdscale.data.lines import Texts, TextsReader, read_by_first_char, read_tsv_texts
from kdscale.data.queries import describe, ids_of, renamed, same_numbers
from kdscale.data.readers.base import Reject, check_files, check_splits, digests
from kdscale.data.readers.sgml import read_sgml_documents
from kdscale.data.readers.topics import TITLE, read_sgml_topics
from kdscale.data.records import read_json_passages, read_json_queries
from kdscale.data.runfiles import RunLines, run_lines
from kdscale.data.runs import qrels_lines
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
        self._topic_fields = source.topic_fields
        self._remarks: dict[str, None] = {}
        if not source.topic_fields:
            raise KdscaleError("source.topic_fields is empty; name the fields that are the query")
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
        path = self._topics[split]
        formats = {"{": self._plain(read_json_queries), "<": self._read_topics}
        return read_by_first_char(path, formats, self._plain(read_tsv_texts))

    def qrels(self, split: str) -> Iterator[tuple[str, str, int] | Reject]:
        path = self._qrels[split]
        return renamed(qrels_lines(path), self._ids_of_topics(split, path, qrels_lines(path)))

    def candidates(self, split: str) -> RunLines | None:
        path = self._runs.get(split)
        if not path:
            return None
        lines = run_lines(path)
        return lines.renamed(self._ids_of_topics(split, path, lines))

    def negatives(self) -> None:
        return None

    def remarks(self) -> list[str]:
        return list(self._remarks)

    def _read_topics(self, path: Path) -> Texts:
        return read_sgml_topics(path, self._topic_fields, self._remark)

    def _plain(self, read: TextsReader) -> TextsReader:
        """A reader of queries that have no fields."""

        def check(path: Path) -> Texts:
            if tuple(self._topic_fields) != TITLE:
                raise KdscaleError(
                    f"source.topic_fields: {path} is not in SGML or XML, its queries have no "
                    "fields; leave topic_fields out"
                )
            return read(path)

        return check

    def _ids_of_topics(self, split: str, path: Path, lines: Iterable[Any]) -> dict[str, str]:
        names = same_numbers(ids_of(self.queries(split)), ids_of(lines))
        if names:
            self._remark(describe(names, path.name, self._topics[split].name))
        return names

    def _remark(self, remark: str) -> None:
        self._remarks[remark] = None


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
                f"source.documents: no file {pattern}; list files, or globs (folder/*)"
            )
        found.update(dict.fromkeys(files))
    return list(found)
