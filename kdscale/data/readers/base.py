"""What every source looks like to the stage that prepares a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

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

    columns: str

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
