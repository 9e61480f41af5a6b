"""Work in progress of one artifact: named pieces, each complete or not there.

What a stage has to show before its artifact is committed (a training's checkpoints, the scores of
a block of pairs) is a piece: a few files and a manifest of their sizes and digests, written last.
A killed process loses what it had not published, and nothing that it had.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kdscale.errors import KdscaleError
from kdscale.paths import allow_by_umask
from kdscale.store.artifact import (
    MANIFEST,
    NAME,
    SCHEMA_VERSION,
    check_files,
    list_files,
    sha256_json,
    verify_files,
)


class DamagedError(KdscaleError):
    """A piece whose files are not what its manifest says."""


class Workspace(Protocol):
    """The pieces of one unfinished artifact. Picklable, and usable from a worker on any node."""

    def publish(self, directory: Path, name: str) -> bool:
        """Make a copy of the directory's files the piece `name`, all of them or nothing.

        False: a complete piece of that name is there already, and stays.
        """
        ...

    def names(self) -> list[str]:
        """The complete pieces, sorted."""
        ...

    def fetch(self, name: str) -> Path:
        """A local directory with the piece's files, every digest checked; to be read only.

        Raises DamagedError where a file or the manifest does not match, KdscaleError where there
        is no such piece.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a piece; it is no error when there is none."""
        ...

    def clear(self) -> None:
        """Remove everything, half-written pieces as well."""
        ...


@dataclass(frozen=True)
class LocalWorkspace:
    """Pieces below a folder: `{directory}/{name}/`, complete from one rename on."""

    directory: Path

    def publish(self, directory: Path, name: str) -> bool:
        target = self.directory / check_name(name)
        if (target / MANIFEST).is_file():
            return False
        manifest = piece_manifest(name, list_files(directory))
        staged = self._hidden(name)
        shutil.copytree(directory, staged)
        (staged / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
        allow_by_umask(staged)  # the directory may be one of tempfile's, and the copy is as it
        for path in [p for p in staged.rglob("*") if p.is_file()]:
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
        try:
            os.rename(staged, target)
        except OSError:
            shutil.rmtree(staged, ignore_errors=True)
            if (target / MANIFEST).is_file():
                return False
            raise
        return True

    def names(self) -> list[str]:
        return sorted(
            path.parent.name
            for path in self.directory.glob(f"*/{MANIFEST}")
            if NAME.fullmatch(path.parent.name)
        )

    def fetch(self, name: str) -> Path:
        piece = self.directory / check_name(name)
        try:
            data = (piece / MANIFEST).read_bytes()
        except FileNotFoundError:
            raise KdscaleError(f"{piece} is gone; run again") from None
        manifest = parse_piece(data, str(piece / MANIFEST))
        try:
            verify_files(piece, manifest)
        except KdscaleError as error:
            raise DamagedError(str(error)) from None
        return piece

    def remove(self, name: str) -> None:
        gone = self._hidden(name)
        try:
            os.rename(self.directory / check_name(name), gone)
        except FileNotFoundError:
            return
        shutil.rmtree(gone, ignore_errors=True)

    def clear(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def _hidden(self, name: str) -> Path:
        """A fresh path beside the pieces that is none of them."""
        self.directory.mkdir(parents=True, exist_ok=True)
        return self.directory / f".{name}-{uuid.uuid4().hex[:8]}.part"


def check_name(name: str) -> str:
    """`name` if it can be a piece's. Raises ValueError: names are ours, never a user's."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a piece")
    return name


def piece_manifest(name: str, files: list[dict[str, Any]]) -> dict[str, Any]:
    """files: as of `list_files`."""
    identity = {"schema": SCHEMA_VERSION, "piece": name, "files": files}
    return {**identity, "digest": sha256_json(identity)}


def parse_piece(data: bytes, where: str) -> dict[str, Any]:
    """Read and check a piece's manifest. Raises DamagedError for one that was not written whole,
    KdscaleError for one that names a file outside its piece."""
    try:
        manifest = json.loads(data)
        identity = {k: manifest[k] for k in ("schema", "piece", "files")}
        whole = sha256_json(identity) == manifest["digest"]
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole or manifest["schema"] != SCHEMA_VERSION:
        raise DamagedError(f"{where} is damaged or of another release")
    check_files(manifest["files"], where)
    return manifest
