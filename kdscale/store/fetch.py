"""Node-local copies of what lies in an object store ($KDSCALE_CACHE, else ~/.cache/kdscale), and
how a directory comes to hold the files that a manifest lists.

A copy is found by the digest of its manifest, so one that is out of date is never taken. Processes
of a node share it. The folder may be removed whenever no run is at work on the node.

A file is written under a side name, checked, and renamed: what bears its final name is whole. A
fetch that was killed is resumed by calling it again: finished files stay as they are, and so do the
finished parts of a large one, where its source can be asked for parts.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from kdscale.errors import KdscaleError
from kdscale.paths import allow_by_umask, user_path
from kdscale.store.artifact import MANIFEST, PARTS, sha256_file
from kdscale.store.workspace import DamagedError

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


FILES_AT_ONCE = 4
_COPY_BYTES = 2**22

Advance = Callable[[int], None]  # so many bytes more, or fewer where a try has to be repeated
# Write a listed file to a local path. True: some of it is what an earlier, stopped call left there.
Fetch = Callable[[dict[str, Any], Path, Advance], bool]
T = TypeVar("T")


def fetch_files(
    files: list[dict[str, Any]], directory: Path, fetch: Fetch, where: str, advance: Advance
) -> None:
    """Fetch every listed file that `directory` does not have yet; `where` names the source.

    Nothing is written outside `directory`: a symbolic link in it is refused, not followed. Two
    callers for one directory must take turns. Raises DamagedError for a file that is not what
    the list says, KdscaleError for a link or a folder in the way, OSError for a full disk.
    """
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    parts = _parts_folder(directory, files)

    def bring(entry: dict[str, Any]) -> None:
        target = _target(directory, entry["path"])
        if is_whole(target, entry):
            advance(entry["bytes"])
            return
        part = parts / _part_name(entry)
        resumed = fetch(entry, part, advance)
        whole = is_whole(part, entry)
        if resumed and not whole:
            # After a power cut, parts on record may not be on the disk.
            _forget(part)
            advance(-entry["bytes"])
            fetch(entry, part, advance)
            whole = is_whole(part, entry)
        if not whole:
            _forget(part)
            raise DamagedError(
                f"{where}/{entry['path']} does not match its manifest (damaged in the store); "
                f"remove {where} and run again"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        part.rename(_target(directory, entry["path"]))
        _forget(part)

    in_parallel(bring, files, FILES_AT_ONCE)
    with suppress(OSError):  # not empty where the caller keeps something in it
        parts.rmdir()


def fetch_from(source: Path) -> Fetch:
    """A `Fetch` that copies from a local directory."""

    def fetch(entry: dict[str, Any], target: Path, advance: Advance) -> bool:
        path = source / entry["path"]
        try:
            reading = path.open("rb")
        except OSError as error:
            raise DamagedError(f"{path} cannot be read ({error.strerror})") from None
        with reading, target.open("wb") as writing:
            while block := reading.read(_COPY_BYTES):
                writing.write(block)
                advance(len(block))
        return False

    return fetch


def record_of(part: Path) -> Path:
    """Where a source that gives parts keeps which of them a side file has."""
    return part.with_suffix(".done")


def is_whole(path: Path, entry: dict[str, Any]) -> bool:
    """Whether the file is there as listed, size and digest."""
    return (
        path.is_file()
        and path.stat().st_size == entry["bytes"]
        and sha256_file(path) == entry["sha256"]
    )


def in_parallel(work: Callable[[Any], T], items: Iterable[Any], threads: int) -> list[T]:
    """`[work(i) for i in items]` on threads; the first failure ends it, and so does Ctrl-C."""
    pool = ThreadPoolExecutor(threads)
    try:
        futures = [pool.submit(work, item) for item in items]
        wait(futures, return_when=FIRST_EXCEPTION)
        failed = next((f for f in futures if f.done() and f.exception() is not None), None)
        if failed is not None:
            failed.result()
        results = [future.result() for future in futures]
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    return results


def _parts_folder(directory: Path, files: list[dict[str, Any]]) -> Path:
    """The side folder, with what a killed fetch of these very files left in it."""
    parts = directory / PARTS
    if parts.is_symlink():
        raise KdscaleError(f"{parts} is a symbolic link; remove it and run again")
    ours = {_part_name(entry) for entry in files}
    for left in parts.glob("[0-9a-f]*"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        elif left.is_symlink() or left.stem not in ours:
            left.unlink()
    parts.mkdir(exist_ok=True)
    return parts


def _part_name(entry: dict[str, Any]) -> str:
    return sha256(f"{entry['path']}\0{entry['sha256']}".encode()).hexdigest()[:32]


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    record_of(part).unlink(missing_ok=True)


def _target(directory: Path, relative: str) -> Path:
    """Where a listed file goes. Raises KdscaleError where a link or a folder is in the way."""
    target = directory
    for part in relative.split("/"):
        target = target / part
        if target.is_symlink():
            raise KdscaleError(
                f"{target} is a symbolic link, nothing is written through it; remove it, or give "
                "an empty folder"
            )
    if target.is_dir():
        raise KdscaleError(f"{target} is a folder where a file has to go; remove it")
    return target
