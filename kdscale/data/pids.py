"""The passage ids of a collection, on disk: a collection can have more than memory holds."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

CACHE_KB = 32_000


class PassageIds(Sequence[str]):
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
        self._file.execute("CREATE TABLE passages (row INTEGER PRIMARY KEY, pid TEXT UNIQUE)")
        self._file.execute("BEGIN")
        self._count = 0

    def add(self, pid: str) -> bool:
        """False for an id that was there."""
        insert = "INSERT OR IGNORE INTO passages VALUES (?, ?)"
        added = self._file.execute(insert, (self._count, pid)).rowcount == 1
        self._count += added
        return added

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
