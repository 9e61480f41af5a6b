"""Making a directory hold the files that a manifest lists, wherever they come from.

A file is written under a side name, checked, and renamed: what bears its final name is whole. So
a fetch that was killed is gone on with by calling it again, and finished files stay as they are.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from kdscale.errors import KdscaleError
from kdscale.store.artifact import sha256_file
from kdscale.store.filelist import PARTS
from kdscale.store.workspace import DamagedError

FILES_AT_ONCE = 4
_COPY_BYTES = 2**22

Advance = Callable[[int], None]  # so many bytes more, or fewer where a try has to be repeated
Fetch = Callable[[str, Path, Advance], None]  # write the file of a listed path to a local path
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
    parts = _fresh_parts(directory)

    def bring(entry: dict[str, Any]) -> None:
        target = _target(directory, entry["path"])
        if is_whole(target, entry):
            advance(entry["bytes"])
            return
        part = parts / uuid.uuid4().hex
        fetch(entry["path"], part, advance)
        if not is_whole(part, entry):
            raise DamagedError(
                f"{where}/{entry['path']} does not match its manifest (damaged in the store); "
                f"remove {where} and run again"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        part.rename(_target(directory, entry["path"]))

    in_parallel(bring, files, FILES_AT_ONCE)
    with suppress(OSError):  # not empty where the caller keeps something in it
        parts.rmdir()


def fetch_from(source: Path) -> Fetch:
    """A `Fetch` that copies from a local directory."""

    def fetch(path: str, target: Path, advance: Advance) -> None:
        try:
            reading = (source / path).open("rb")
        except OSError as error:
            raise DamagedError(f"{source / path} cannot be read ({error.strerror})") from None
        with reading, target.open("wb") as writing:
            while block := reading.read(_COPY_BYTES):
                writing.write(block)
                advance(len(block))

    return fetch


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


def _fresh_parts(directory: Path) -> Path:
    """The side folder, without what a killed fetch left in it."""
    parts = directory / PARTS
    if parts.is_symlink():
        raise KdscaleError(f"{parts} is a symbolic link; remove it and run again")
    for left in parts.glob("[0-9a-f]*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    parts.mkdir(exist_ok=True)
    return parts


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
