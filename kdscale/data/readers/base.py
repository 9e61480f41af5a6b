"""What every source looks like to the stage that prepares a dataset, and the files that it names:
checked when it is opened, identified by their content.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from kdscale.errors import KdscaleError
from kdscale.paths import user_path
from kdscale.store.artifact import sha256_file

SHOWN_CHARS = 200


@dataclass(frozen=True)
class Reject:
    """A line that could not be read. `line` counts from 1; 0 stands for the whole file.

    `reason` has no variable part, so that rejects can be counted by it.
    """

    file: str
    line: int
    reason: str
    text: str

    @classmethod
    def of(cls, file: object, line: int, reason: str, text: str) -> Reject:
        return cls(str(file), line, reason, text[:SHOWN_CHARS])


class Candidates(Protocol):
    """(qid, pid, rank, score) in any order, a higher score is better; rank and score are None where
    the source has none. columns: in which format they are, for the user."""

    @property
    def columns(self) -> str: ...

    def __iter__(self) -> Iterator[tuple[str, str, int | None, float | None] | Reject]: ...


class Reader(Protocol):
    """One source. Every method streams: no method holds the collection in memory.

    A reader refuses what it cannot parse (a malformed line, bytes that are not UTF-8, an empty
    id); what needs the whole dataset (duplicate or unknown ids, empty or over-long texts) is
    checked by its caller. Each call reads the files afresh and gives the same items in the same
    order.
    """

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the input, as JSON: digests of files, or versions. Never a path."""

    def passages(self) -> Iterator[tuple[str, str] | Reject]:
        """(pid, text)."""

    def splits(self) -> list[str]:
        """Names of the query sets; ["all"] where the source has one undivided set."""

    def queries(self, split: str) -> Iterator[tuple[str, str] | Reject]:
        """(qid, text)."""

    def qrels(self, split: str) -> Iterator[tuple[str, str, int] | Reject]:
        """(qid, pid, grade)."""

    def candidates(self, split: str) -> Candidates | None:
        """None where the source has none."""

    def negatives(self) -> Iterator[tuple[str, str] | Reject] | None:
        """(qid, pid that is not relevant) for "train"; None where the source has none."""


@runtime_checkable
class RemarkingReader(Protocol):
    """A reader that sometimes has to choose what a file means, and says what it chose."""

    def remarks(self) -> list[str]:
        """A line each, of what has been read so far; no line twice."""


@runtime_checkable
class ParallelReader(Protocol):
    """A reader whose cost is parsing many files, so that its caller may spread the work.

        if isinstance(reader, ParallelReader):
            reader.feed(ray.data.from_items(reader.units()).flat_map(reader.parse).take_all())

    Without `feed`, the reader parses its units itself when it is first asked for anything.
    """

    def units(self) -> list[dict[str, Any]]:
        """One JSON object a file."""

    @staticmethod
    def parse(unit: dict[str, Any]) -> list[dict[str, Any]]:
        """Pure and picklable: the flat rows of one unit, all with the same keys."""

    def feed(self, rows: Iterable[dict[str, Any]]) -> None:
        """Take the rows of all units, in any order: the outcome does not depend on it."""


def check_file(path: str, key: str) -> Path:
    """The path of a file that the config names under `key`. Raises KdscaleError."""
    if not path:
        raise KdscaleError(f"{key} is empty; set it to the path of a file")
    found = user_path(path, key)
    if not found.is_file():
        what = "is a folder" if found.is_dir() else "does not exist"
        raise KdscaleError(f"{key}: {path} {what}; give a file (plain, gzip, bzip2 or xz)")
    return found


def check_files(paths: Mapping[str, str], key: str) -> dict[str, Path]:
    """split -> path. Raises KdscaleError for a missing file."""
    return {split: check_file(path, f"{key}.{split}") for split, path in paths.items()}


def check_splits(
    queries: tuple[str, Mapping[str, str]],
    qrels: tuple[str, Mapping[str, str]],
    candidates: tuple[str, Mapping[str, str]],
    judged_elsewhere: Container[str] = (),
) -> None:
    """Raise KdscaleError where a split has no qrels, or files but no queries.

    Each argument is (config key, split -> path); `judged_elsewhere`: splits that need no qrels.
    """
    queries_key, query_splits = queries
    if not query_splits:
        raise KdscaleError(f"{queries_key} is empty; map a split (train, dev, ...) to a file")
    for key, mapping in (qrels, candidates):
        for split in mapping:
            if split not in query_splits:
                raise KdscaleError(
                    f"{key}.{split}: {queries_key} has no split {split!r} (it has "
                    f"{', '.join(query_splits)}); give its queries or remove it"
                )
    for split in query_splits:
        if split not in qrels[1] and split not in judged_elsewhere:
            raise KdscaleError(
                f"{queries_key}.{split}: {qrels[0]} has no split {split!r}; give its qrels"
            )


def digests(paths: Mapping[str, Path]) -> dict[str, str]:
    """split -> SHA-256 of its file."""
    return {split: sha256_file(path) for split, path in paths.items()}
