"""The node-local copies of what lies in an object store: $KDSCALE_CACHE, else ~/.cache/kdscale.

A copy is found by the digest of its manifest, so one that is out of date is never taken. Processes
of a node share it. The folder may be removed whenever no run is at work on the node.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock

from kdscale.errors import KdscaleError
from kdscale.paths import allow_by_umask, user_path
from kdscale.store.fetch import Fetch, fetch_files
from kdscale.store.filelist import MANIFEST

STALE_AFTER_S = 24 * 3600


def cache_root() -> Path:
    folder = os.environ.get("KDSCALE_CACHE") or "~/.cache/kdscale"
    return user_path(folder, "KDSCALE_CACHE").resolve()


class Cache:
    """The copies of one store. Every file is checked once by each `Cache` before it is used."""

    def __init__(self, uri: str):
        self.root = cache_root()
        self._copies = self.root / sha256(uri.encode()).hexdigest()[:16]
        self._whole: set[Path] = set()
        self._checking = threading.Lock()

    def materialise(
        self,
        name: str,
        manifest: dict[str, Any],
        where: str,
        fetching: Callable[[], AbstractContextManager[Fetch]],
    ) -> Path:
        """A directory with the files of a manifest and the manifest; fetched where it lacks them.

        name: "kind/key", a folder of the cache; where: the source, for messages. A file that was
        damaged in the cache is fetched again. Raises DamagedError where the source is damaged.
        """
        directory = self._directory(name, manifest)
        with self._checking:
            if directory in self._whole and (directory / MANIFEST).is_file():
                return directory
            with self._writing():
                directory.mkdir(parents=True, exist_ok=True)
                with FileLock(directory.with_suffix(".lock")), fetching() as fetch:
                    fetch_files(manifest["files"], directory, fetch, where, lambda count: None)
                    _write_manifest(directory, manifest)
            self._whole.add(directory)
        return directory

    def adopt(self, staged: Path, name: str, manifest: dict[str, Any]) -> None:
        """Move what was just written and sent into its place, to spare its way back."""
        directory = self._directory(name, manifest)
        with self._writing():
            directory.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(directory.with_suffix(".lock")):
                if not directory.exists():
                    _write_manifest(staged, manifest)
                    allow_by_umask(staged)
                    staged.rename(directory)
                    self._whole.add(directory)

    def forget(self, name: str) -> None:
        """Remove the copies of `name` and of everything below it."""
        shutil.rmtree(self._copies / name, ignore_errors=True)

    @contextmanager
    def staging(self, label: str) -> Iterator[Path]:
        """A fresh directory on the cache's disk; removed on the way out."""
        directory = self.root / ".staging" / f"{label}-{uuid.uuid4().hex[:8]}"
        with self._writing():
            directory.mkdir(parents=True)
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def preflight(self) -> None:
        """See that it can be written to; remove what killed processes left a day ago or earlier."""
        with self.staging("preflight") as directory, self._writing():
            (directory / "probe").write_bytes(b"kdscale")
        _sweep(self.root.glob(".staging/*"))

    def sweep(self, pattern: str) -> None:
        """Remove copies that were made a day ago or earlier."""
        _sweep(self._copies.glob(pattern))

    def _directory(self, name: str, manifest: dict[str, Any]) -> Path:
        return self._copies / name / manifest["digest"][:16]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise KdscaleError(
                f"cannot write below {self.root} ({error.strerror}); set KDSCALE_CACHE to a folder "
                "on this node with free space"
            ) from None


def _sweep(folders: Iterable[Path]) -> None:
    for folder in folders:
        with suppress(FileNotFoundError):  # another process sweeps as well
            if time.time() - folder.stat().st_mtime > STALE_AFTER_S:
                shutil.rmtree(folder, ignore_errors=True)


def _write_manifest(directory: Path, manifest: dict[str, Any]) -> None:
    part = directory / f".{MANIFEST}.{uuid.uuid4().hex}"
    part.write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
    part.rename(directory / MANIFEST)
