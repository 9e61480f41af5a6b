"""The passage ids of a collection, and which of its texts are the same, on disk: a collection can
have more than memory holds."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

CACHE_KB = 32_000
ASKED = 10_000  # ids in one question: SQLite takes three times as many


class PassageIds(Collection[str]):
    """Distinct ids in the order in which they were added, in an SQLite file that goes with the
    folder it is in. `in` is a look-up, as in a set.

    In memory: SQLite's cache, however many there are, where a dictionary takes more than a hundred
    bytes an id.
    """

    def __init__(self, folder: Path):
        # Nobody else opens the file, and locks are what network file systems do badly.
        uri = f"{(folder / 'pids.sqlite').resolve().as_uri()}?nolock=1"
        self._file = sqlite3.connect(uri, uri=True, isolation_level=None)
        # Nobody reads it after a crash, so nothing has to be written twice or waited for.
        for pragma in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{CACHE_KB}"):
            self._file.execute(f"PRAGMA {pragma}")
        self._file.execute(
            "CREATE TABLE passages (row INTEGER PRIMARY KEY, pid TEXT UNIQUE, text INTEGER)"
        )
        self._file.execute("BEGIN")
        self._count = 0
        self._by_text = False  # whether texts can be looked up: once all are there

    def add(self, pid: str, text: int) -> bool:
        """False for an id that was there. text: its `kdscale.data.same_text.text_key`."""
        insert = "INSERT OR IGNORE INTO passages VALUES (?, ?, ?)"
        added = self._file.execute(insert, (self._count, pid, text)).rowcount == 1
        self._count += added
        return added

    def keys(self, pids: Sequence[str]) -> np.ndarray:
        """[N] int64: of each id, which are all there, the key of its text."""
        found: dict[str, int] = {}
        for some, marks in _in_parts(pids):
            asked = f"SELECT pid, text FROM passages WHERE pid IN ({marks})"
            found.update(self._file.execute(asked, some))
        return np.array([found[pid] for pid in pids], dtype=np.int64)

    def twins(self, pids: Collection[str]) -> set[str]:
        """The ids of the passages whose text one of these has, they themselves among them."""
        self._index_texts()
        twins: set[str] = set()
        for some, marks in _in_parts(pids):
            same = f"SELECT text FROM passages WHERE pid IN ({marks})"
            asked = f"SELECT pid FROM passages WHERE text IN ({same})"
            twins.update(pid for (pid,) in self._file.execute(asked, some))
        return twins

    def texts(self) -> int:
        """How many different texts there are."""
        self._index_texts()
        (count,) = self._file.execute("SELECT COUNT(DISTINCT text) FROM passages").fetchone()
        return count

    def _index_texts(self) -> None:
        if not self._by_text:
            self._file.execute("CREATE INDEX texts ON passages (text)")
            self._by_text = True

    def __len__(self) -> int:
        return self._count

    def __contains__(self, pid: object) -> bool:
        try:
            found = self._file.execute("SELECT 1 FROM passages WHERE pid = ?", (pid,))
        except UnicodeEncodeError:  # half a surrogate pair, of a JSON file: no passage has it
            return False
        return found.fetchone() is not None

    def __getitem__(self, row: int) -> str:
        found = self._file.execute("SELECT pid FROM passages WHERE row = ?", (row,)).fetchone()
        if found is None:
            raise IndexError(row)
        return found[0]

    def __iter__(self) -> Iterator[str]:
        for (pid,) in self._file.execute("SELECT pid FROM passages ORDER BY row"):
            yield pid

    def close(self) -> None:
        self._file.close()


def _in_parts(pids: Collection[str]) -> Iterator[tuple[list[str], str]]:
    """Some of the ids at a time, and a mark for each of them."""
    listed = list(pids)
    for start in range(0, len(listed), ASKED):
        some = listed[start : start + ASKED]
        yield some, ",".join("?" * len(some))
