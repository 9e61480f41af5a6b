"""What is done to every text and id before it enters a dataset, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from kdscale.data.lines import NOT_UTF8, is_utf8
from kdscale.data.readers.base import Reject
from kdscale.data.same_text import text_key
from kdscale.errors import KdscaleError
from kdscale.store import Workspace

REJECTED = "rejected"  # the piece of a workspace that keeps refused lines

EMPTY_TEXT = "empty text"
DUPLICATE_ID = "duplicate id (the first stays)"
DUPLICATE_PAIR = "query and passage named twice (the first stays)"
BAD_ID = "id with white space (a run file cannot hold it)"
UNKNOWN_QUERY = "unknown query id"
UNKNOWN_PASSAGE = "unknown passage id"

# C0 and C1 controls separate words in the wild (form feeds, record marks), so they become
# spaces. Soft hyphens, zero-width spaces, word joiners and byte-order marks stand inside words,
# so they go. Joiners that carry meaning in Indic and Persian text stay.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")
_WHITE = re.compile(r"\s")


def clean_text(text: str) -> str:
    """Unicode NFC, without control characters, every run of white space one space."""
    text = _CONTROL.sub(" ", text)
    if not text.isascii():
        text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text))
    return " ".join(text.split())


def cut_text(text: str, max_chars: int) -> tuple[str, bool]:
    """The text, at most so long, and whether it was longer."""
    return (text[:max_chars].rstrip(), True) if len(text) > max_chars else (text, False)


def fault_of(identifier: str, text: str = "") -> str | None:
    """Why a line cannot be taken in, by its id and raw text; None if it can."""
    if not (is_utf8(identifier) and is_utf8(text)):
        return NOT_UTF8
    if not identifier or _WHITE.search(identifier):
        return BAD_ID
    return None


def clean_table(table: pa.Table, max_chars: int) -> pa.Table:
    """Clean the column "text"; the new columns "cut" (where max_chars was exceeded) and "key" (of
    the text that is left, `text_key`)."""
    done = [cut_text(clean_text(text), max_chars) for text in table["text"].to_pylist()]
    index = table.schema.get_field_index("text")
    table = table.set_column(index, "text", pa.array([text for text, _ in done], pa.string()))
    table = table.append_column("cut", pa.array([cut for _, cut in done], pa.bool_()))
    return table.append_column("key", pa.array([text_key(text) for text, _ in done], pa.int64()))


class RejectLog:
    """Counts every line read and writes each refused one, with its reason, to a jsonl file.

    A kind is what the lines are: "passages", "queries/dev", "qrels/train", ... A line that a
    reader refused has its own file and line; one refused later has the kind as its file and its
    number among the lines of that kind.
    """

    def __init__(self, path: Path, max_fraction: float):
        self._path = path
        self._max_fraction = max_fraction
        self._lines_read: Counter[str] = Counter()
        self._reasons: dict[str, Counter[str]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = path.open("w", encoding="utf-8")

    def __enter__(self) -> RejectLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()

    def accepted(self, kind: str, items: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """(number, item) of what a reader yields, its rejects counted and written."""
        for number, item in enumerate(items, 1):
            self._lines_read[kind] += 1
            if isinstance(item, Reject):
                self._write(kind, item)
            else:
                yield number, item

    def reject(self, kind: str, number: int, reason: str, text: str) -> None:
        self._write(kind, Reject.of(kind, number, reason, text))

    def _write(self, kind: str, reject: Reject) -> None:
        self._reasons.setdefault(kind, Counter())[reject.reason] += 1
        # ASCII, its escapes can hold a text that is not UTF-8.
        self._handle.write(json.dumps(asdict(reject)) + "\n")

    def check(self, kind: str, keep: Workspace) -> None:
        """Raise KdscaleError if too many lines of a kind were refused; the file of refused lines
        is then kept as a piece of the workspace, which outlives the failed stage."""
        reasons = self._reasons.get(kind, Counter())
        refused, read = reasons.total(), self._lines_read[kind]
        if refused <= self._max_fraction * read:
            return
        self._handle.flush()
        keep.remove(REJECTED)  # of an earlier run
        with tempfile.TemporaryDirectory() as alone:
            shutil.copy2(self._path, alone)
            keep.publish(Path(alone), REJECTED)
        copy = keep.fetch(REJECTED) / self._path.name
        reason, count = min(reasons.items(), key=lambda item: (-item[1], item[0]))
        raise KdscaleError(
            f"{refused} of {read} lines of {kind} were refused, most often ({count}): {reason}; "
            f"see {copy}, mend the input or raise prepare.max_reject_fraction "
            f"({self._max_fraction:g})"
        )

    def counts(self) -> dict[str, dict[str, Any]]:
        """kind -> {"read", "rejected", "reasons"}."""
        return {
            kind: {
                "read": read,
                "rejected": self._reasons.get(kind, Counter()).total(),
                "reasons": dict(sorted(self._reasons.get(kind, Counter()).items())),
            }
            for kind, read in self._lines_read.items()
        }
