"""BEIR folders: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv, each plain or packed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdscale.config import BeirSource
from kdscale.data.lines import SUFFIXES
from kdscale.data.readers.base import Reject, digests
from kdscale.data.records import read_json_passages, read_json_queries
from kdscale.data.runs import qrels_lines
from kdscale.errors import KdscaleError
from kdscale.paths import user_path
from kdscale.store.artifact import sha256_file


class BeirReader:
    """queries.jsonl holds the queries of every split; a split has those that its qrels name."""

    def __init__(self, source: BeirSource):
        root = user_path(source.path, "source.path")
        if not source.path or not root.is_dir():
            fault = (
                f"{root} is a file; unpack it" if root.is_file() else f"no folder {source.path!r}"
            )
            raise KdscaleError(
                f"source.path: {fault}; give a BEIR folder, with corpus.jsonl, "
                "queries.jsonl and qrels/"
            )
        if not source.splits:
            raise KdscaleError("source.splits is empty; map a split to a file in qrels/")
        self._corpus = _plain_or_packed(root / "corpus.jsonl", "source.path")
        self._queries = _plain_or_packed(root / "queries.jsonl", "source.path")
        self._qrels = {
            split: _plain_or_packed(root / "qrels" / f"{stem}.tsv", f"source.splits.{split}")
            for split, stem in source.splits.items()
        }

    def fingerprint(self) -> dict[str, Any]:
        return {
            "corpus": sha256_file(self._corpus),
            "queries": sha256_file(self._queries),
            "qrels": digests(self._qrels),
        }

    def passages(self) -> Iterator[tuple[str, str] | Reject]:
        return read_json_passages(self._corpus)

    def splits(self) -> list[str]:
        return list(self._qrels)

    def queries(self, split: str) -> Iterator[tuple[str, str] | Reject]:
        """Malformed lines belong to no split: they are reported with the first, once."""
        judged = {item[0] for item in self.qrels(split) if not isinstance(item, Reject)}
        for item in read_json_queries(self._queries):
            if split == self.splits()[0] if isinstance(item, Reject) else item[0] in judged:
                yield item

    def qrels(self, split: str) -> Iterator[tuple[str, str, int] | Reject]:
        return qrels_lines(self._qrels[split])

    def candidates(self, split: str) -> None:
        return None

    def negatives(self) -> None:
        return None


def _plain_or_packed(path: Path, key: str) -> Path:
    for suffix in ("", *SUFFIXES):
        name = f"{path}{suffix}"
        found = user_path(name, key)
        if found.is_file():
            return found
    there = sorted({p.name for p in path.parent.glob("*") if p.is_file()})[:8]
    raise KdscaleError(
        f"{key}: no file {path} (nor {', '.join(SUFFIXES)}); that folder has "
        f"{', '.join(there) or 'no files'}"
    )
