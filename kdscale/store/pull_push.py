"""`kdscale pull` and `kdscale push`: an artifact between a store and a directory of one's own."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kdscale.errors import KdscaleError
from kdscale.progress import Reporter
from kdscale.store import Artifact, find_named, split_artifact
from kdscale.store.artifact import MANIFEST, PARTS, parse_manifest, verify_files
from kdscale.store.fetch import Advance, fetch_files


def pull(uri: str, directory: Path, reporter: Reporter) -> Artifact:
    """Fetch one artifact into a directory, its manifest last.

    The directory must be empty, or hold an earlier pull of the same artifact, which is gone on
    with: files that are whole stay as they are. Nothing is written outside it.

    Raises KdscaleError.
    """
    artifact, store = find_named(uri)
    manifest = {k: v for k, v in artifact.manifest.items() if k != "attempt"}
    with _writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        side = _side_folder(directory, artifact)
        with _alone(side / "lock", directory):
            (side / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
            title = f"pull {artifact.name}"
            with _bytes(reporter, title, artifact.bytes) as advance, store.fetching(artifact) as f:
                fetch_files(manifest["files"], directory, f, artifact.uri, advance)
            (side / MANIFEST).rename(directory / MANIFEST)
        shutil.rmtree(side)
    return artifact


def push(directory: Path, uri: str, reporter: Reporter) -> bool:
    """Send a directory that `pull` or a stage has made. False: the same artifact is there.

    What an earlier, stopped push has sent is not sent again. Raises KdscaleError for a directory
    that is no artifact or does not match its manifest, and where another artifact stands.
    """
    store, kind, key = split_artifact(uri)
    manifest = _read_manifest(directory)
    if manifest["kind"] != kind:
        raise KdscaleError(
            f"{directory} is one of {manifest['kind']}, {uri} one of {kind}; push it to "
            f"{store.uri}/{manifest['kind']}/{key}"
        )
    verify_files(directory, manifest)
    store.preflight()
    if _there(store.find(kind, key), manifest, uri):
        return False
    total = sum(entry["bytes"] for entry in manifest["files"])
    with _writing(store.disk), _bytes(reporter, f"push {kind}/{key}", total) as advance:
        first = store.add(directory, kind, key, manifest, advance)
    if not first:
        _there(store.find(kind, key), manifest, uri)
    return first


def _there(artifact: Artifact | None, manifest: dict[str, Any], uri: str) -> bool:
    if artifact is None:
        return False
    if artifact.digest != manifest["digest"]:
        raise KdscaleError(
            f"{uri} is another artifact (digest {artifact.digest[:12]}, not "
            f"{manifest['digest'][:12]}), and stays; push under another key"
        )
    return True


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    try:
        data = path.read_bytes()
    except OSError:
        raise KdscaleError(
            f"{directory} has no {MANIFEST}; push takes an artifact, a folder STORE/KIND/KEY or "
            "one that kdscale pull has made"
        ) from None
    return parse_manifest(data, str(path))


def _side_folder(directory: Path, artifact: Artifact) -> Path:
    """Where what is unfinished lies. Raises KdscaleError for a directory with anything else."""
    side = directory / PARTS
    if side.is_symlink():
        raise KdscaleError(f"{side} is a symbolic link; remove it, or give an empty folder")
    if any(path != side for path in directory.iterdir()):
        marks = [path for path in (side / MANIFEST, directory / MANIFEST) if path.is_file()]
        if not any(_digest(mark) == artifact.digest for mark in marks):
            raise KdscaleError(
                f"{directory} is not empty and no pull of {artifact.name} (digest "
                f"{artifact.digest[:12]}); give an empty folder"
            )
    side.mkdir(exist_ok=True)
    return side


def _digest(path: Path) -> str | None:
    try:
        return parse_manifest(path.read_bytes(), str(path))["digest"]
    except KdscaleError:
        return None


@contextmanager
def _alone(lock: Path, directory: Path) -> Iterator[None]:
    try:
        with FileLock(lock, timeout=0):
            yield
    except Timeout:
        raise KdscaleError(f"another kdscale pull is at work in {directory}; wait for it") from None


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or directory
        raise KdscaleError(
            f"{where}: {error.strerror or error}; free some space, or give another folder, and run "
            "again: finished files are kept"
        ) from None


@contextmanager
def _bytes(reporter: Reporter, title: str, total: int) -> Iterator[Advance]:
    """A bar that counts bytes, advanced by many threads."""
    counting = threading.Lock()
    with reporter.task(title, total, in_bytes=True) as task:

        def advance(count: int) -> None:
            with counting:
                task.advance(count)

        yield advance
