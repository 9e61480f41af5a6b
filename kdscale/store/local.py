"""The store in a folder.

An artifact is written in `.staging/`, and becomes visible by one rename of the whole directory,
its manifest in it: there is no moment at which half an artifact can be seen, and of two writers
of one artifact exactly one rename succeeds.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from kdscale.errors import KdscaleError
from kdscale.paths import allow_by_umask
from kdscale.store.artifact import (
    KINDS,
    MANIFEST,
    Artifact,
    newest_first,
    parse_manifest,
    verify_files,
)
from kdscale.store.fetch import Advance, Fetch, fetch_files, fetch_from
from kdscale.store.protocol import Holding, Sort
from kdscale.store.workspace import LocalWorkspace

STALE_AFTER_S = 24 * 3600


class LocalStore:
    """Artifacts below a folder: `{root}/{kind}/{key}/`."""

    def __init__(self, root: Path):
        self.root = root.resolve()
        self.uri = str(self.root)
        self.disk = self.root
        self._verified: set[tuple[str, str, str]] = set()

    def preflight(self, writing: bool = True) -> None:
        """Write and delete a file, so that a bad folder fails before any work is done."""
        if not writing:
            return
        probe = self.root / ".staging" / f"preflight-{uuid.uuid4().hex}"
        try:
            probe.parent.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"kdscale")
            probe.unlink()
        except OSError as error:
            raise KdscaleError(
                f"cannot write to the store {self.root} ({error.strerror}); set storage.uri to "
                "a folder that you may write to"
            ) from None
        self._sweep_stale()

    def find(self, kind: str, key: str) -> Artifact | None:
        """The artifact if it is committed, its files checked once a process; else None."""
        directory = self.root / kind / key
        try:
            data = (directory / MANIFEST).read_bytes()
        except FileNotFoundError:
            return None
        artifact = self._artifact(kind, key, data)
        artifact.materialise()
        return artifact

    def _artifact(self, kind: str, key: str, data: bytes) -> Artifact:
        directory = self.root / kind / key
        manifest = parse_manifest(data, str(directory / MANIFEST))

        def materialise() -> Path:
            if (kind, key, manifest["digest"]) not in self._verified:
                verify_files(directory, manifest)
                self._verified.add((kind, key, manifest["digest"]))
            return directory

        return Artifact(kind, key, manifest, self.uri, materialise)

    @contextmanager
    def staging(self, kind: str, key: str) -> Iterator[Path]:
        """A fresh directory to write into; removed on the way out unless it was committed."""
        directory = self.root / ".staging" / f"{kind}-{key}-{uuid.uuid4().hex[:8]}"
        directory.mkdir(parents=True)
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def commit(self, staged: Path, kind: str, key: str, manifest: dict[str, Any]) -> bool:
        """Make a staged directory the artifact. False: another writer was first, theirs stays."""
        (staged / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
        allow_by_umask(staged)
        for path in [p for p in staged.rglob("*") if p.is_file()]:
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
        target = self.root / kind / key
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(staged, target)
        except OSError:
            if (target / MANIFEST).is_file():
                return False
            raise
        self._verified.add((kind, key, manifest["digest"]))
        return True

    def workspace(self, kind: str, key: str) -> LocalWorkspace:
        """What outlives a failed run of this artifact: checkpoints, partial work."""
        return LocalWorkspace(self.root / ".work" / kind / key)

    def unfinished(self, kind: str) -> list[str]:
        """The keys of a kind that have a workspace, sorted."""
        return sorted(path.name for path in (self.root / ".work" / kind).glob("*"))

    def fetching(self, artifact: Artifact) -> AbstractContextManager[Fetch]:
        """A context that gives a `Fetch` of the artifact's files; it checks no digest itself."""
        return nullcontext(fetch_from(self.root / artifact.kind / artifact.key))

    def add(
        self, directory: Path, kind: str, key: str, manifest: dict[str, Any], advance: Advance
    ) -> bool:
        """Make a copy of a directory's listed files the artifact. False: another is there.

        Its place in staging is the same for equal artifacts, so a stopped call is resumed.
        """
        staged = self.root / ".staging" / f"add-{kind}-{key}-{manifest['digest'][:12]}"
        files, fetch = manifest["files"], fetch_from(directory)
        fetch_files(files, staged, fetch, str(directory), advance)
        first = self.commit(staged, kind, key, manifest)
        shutil.rmtree(staged, ignore_errors=True)
        return first

    def holdings(self) -> list[Holding]:
        """Everything below the folder that is ours; what is not is left out."""
        sorts: tuple[tuple[str, Sort], ...] = (
            *((f"{kind}/*/{MANIFEST}", "artifact") for kind in KINDS),
            (".staging/*", "half"),
            (".work/*/*", "work"),
        )
        found = [(p, sort) for pattern, sort in sorts for p in sorted(self.root.glob(pattern))]
        return [self._holding(path, sort) for path, sort in found]

    def _holding(self, path: Path, sort: Sort) -> Holding:
        """path: a directory, or the manifest in it, which alone dates an artifact."""
        directory = path.parent if sort == "artifact" else path
        files = [p for p in directory.rglob("*") if p.is_file()]
        dated = [path] if sort == "artifact" else [path, *files]
        return Holding(
            sort,
            directory.relative_to(self.root).as_posix(),
            sum(p.stat().st_size for p in files),
            max(p.stat().st_mtime for p in dated),
        )

    def discard(self, holding: Holding) -> None:
        """Remove it; it is gone at once, by a rename, its files after that."""
        gone = self.root / ".staging" / f"gone-{uuid.uuid4().hex}"
        gone.parent.mkdir(exist_ok=True)
        try:
            os.rename(self.root / holding.name, gone)
        except OSError as error:
            raise KdscaleError(
                f"cannot remove {self.root / holding.name} ({error.strerror}); see who owns it"
            ) from None
        shutil.rmtree(gone, ignore_errors=True)

    # Last of the methods that name a list: behind it, `list` is this one.
    def list(self, kind: str) -> list[Artifact]:
        """Every committed artifact of a kind, newest first; files are checked on use."""
        artifacts = [
            self._artifact(kind, path.parent.name, path.read_bytes())
            for path in (self.root / kind).glob(f"*/{MANIFEST}")
        ]
        return newest_first(artifacts)

    def _sweep_stale(self) -> None:
        """Remove what a killed process left in staging a day ago or earlier."""
        for path in (self.root / ".staging").iterdir():
            if time.time() - path.stat().st_mtime > STALE_AFTER_S:
                shutil.rmtree(path, ignore_errors=True)
