"""What a store has to stand: writers that race, readers, pieces, and an audit of what is left."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdscale.errors import KdscaleError
from kdscale.store import Artifact, Store, open_store
from kdscale.store.artifact import KINDS, list_files
from tests.worlds.artifacts import manifest_of

WRITERS = 3
_CACHE_LOCK = threading.Lock()
TRIES = 20  # of one operation, each begun again after a clear line
LARGE_EVERY = 5  # rounds; a large file goes up in parts
LARGE_BYTES = 20_000_000


@dataclass
class Outcome:
    """What became of an exercise.

    stopped: operations that ended in a KdscaleError and were begun again; wrong: every finding
    that must not be.
    """

    operations: Counter[str] = field(default_factory=Counter)
    stopped: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class Exercise:
    """Rounds of work on the store at `uri`, each with files of its own below `scratch`."""

    def __init__(self, uri: str, scratch: Path, seed: int):
        self.uri, self.scratch = uri, scratch
        self.outcome = Outcome()
        self._rng = random.Random(seed)
        self._round = 0

    def round(self) -> None:
        """Three writers race for one artifact, a reader with an empty cache reads it, and a
        piece is published, fetched and removed."""
        self._round += 1
        key = f"round-{self._round:04d}"
        sources = [self._source(f"{key}-writer-{n}") for n in range(WRITERS)]
        with ThreadPoolExecutor(WRITERS) as pool:
            won = list(pool.map(lambda source: self._write(key, source), sources))
        if sum(won) > 1:
            self.outcome.wrong.append(f"{key}: {sum(won)} writers were told that they had won")
        self._read(key, sources, won)
        self._piece(key, sources[0])
        for source in sources:
            shutil.rmtree(source)

    def _source(self, name: str) -> Path:
        folder = self.scratch / name
        (folder / "sub").mkdir(parents=True)
        (folder / "small.json").write_bytes(self._rng.randbytes(2_000))
        (folder / "sub" / "middle.bin").write_bytes(self._rng.randbytes(300_000))
        if self._round % LARGE_EVERY == 0:
            (folder / "large.bin").write_bytes(self._rng.randbytes(LARGE_BYTES))
        return folder

    def _store(self) -> Store:
        """A store with an empty cache, as on a node of its own."""
        cache = self.scratch / f"cache-{random.randrange(2**60):x}"
        with _CACHE_LOCK:
            os.environ["KDSCALE_CACHE"] = str(cache)
            return open_store(self.uri)

    def _write(self, key: str, source: Path) -> bool:
        store = self._store()
        manifest = manifest_of(source, kind="datasets")

        def commit() -> bool:
            with store.staging("datasets", key) as staged:
                shutil.copytree(source, staged, dirs_exist_ok=True)
                return store.commit(staged, "datasets", key, manifest)

        try:
            return self._until_done("commit", commit)
        finally:
            shutil.rmtree(store.disk, ignore_errors=True)

    def _read(self, key: str, sources: list[Path], won: list[bool]) -> None:
        store = self._store()

        def read() -> list[dict[str, Any]] | None:
            artifact = store.find("datasets", key)
            return None if artifact is None else list_files(artifact.path)

        found = self._until_done("read", read)
        shutil.rmtree(store.disk, ignore_errors=True)
        whole = [list_files(source) for source in sources]
        if found is None:
            self.outcome.wrong.append(f"{key}: lost")
        elif found not in whole:
            self.outcome.wrong.append(f"{key}: is none of what was written")
        elif any(won) and whole[won.index(True)] != found:
            self.outcome.wrong.append(f"{key}: is not the winner's")

    def _piece(self, key: str, source: Path) -> None:
        store = self._store()
        work = store.workspace("teachers", key)
        self._until_done("publish", lambda: work.publish(source, "step-000000001"))
        piece = self._until_done("fetch", lambda: work.fetch("step-000000001"))
        if [f for f in list_files(piece) if f not in list_files(source)]:
            self.outcome.wrong.append(f"{key}: the piece is not what was published")
        self._until_done("clear", work.clear)
        if self._until_done("names", work.names):
            self.outcome.wrong.append(f"{key}: the piece is there after it was removed")
        shutil.rmtree(store.disk, ignore_errors=True)

    def _until_done(self, name: str, operation: Callable[[], Any]) -> Any:
        """Begin again after a clear line, as a user would; anything else is a bug and is raised."""
        for _ in range(TRIES):
            try:
                result = operation()
            except KdscaleError:
                self.outcome.stopped[name] += 1
            else:
                self.outcome.operations[name] += 1
                return result
        raise AssertionError(f"{name} did not succeed in {TRIES} tries")


def audit(uri: str, scratch: Path) -> tuple[int, list[str]]:
    """Fetch and check every artifact with an empty cache: how many there are, and what is wrong."""
    os.environ["KDSCALE_CACHE"] = str(scratch / "audit")
    store, count, wrong = open_store(uri), 0, []
    for kind in KINDS:
        for artifact in store.list(kind):
            count += 1
            try:
                _ = artifact.path
            except KdscaleError as error:
                wrong.append(str(error))
    shutil.rmtree(scratch / "audit", ignore_errors=True)
    return count, wrong


def differences(calm: str, stormy: str) -> list[str]:
    """Models of the two runs that are not equal in every byte."""
    found = []
    for kind in ("teachers", "lms", "students"):
        models = [
            {
                artifact.key.rsplit("-", 1)[0]: _weights(artifact)
                for artifact in open_store(uri).list(kind)
            }
            for uri in (calm, stormy)
        ]
        if not models[0] or models[0] != models[1]:
            found.append(f"{kind}: the disturbed run ended with other weights")
    return found


def _weights(artifact: Artifact) -> list[str]:
    files = artifact.manifest["files"]
    return [f["sha256"] for f in files if f["path"].endswith(".safetensors")]
