"""What every store can do, be it a folder or a bucket."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from kdscale.store.artifact import Artifact
from kdscale.store.workspace import Workspace


class Store(Protocol):
    """Artifacts by kind and key. One is there whole, with its manifest, or not at all."""

    uri: str  # a folder's path or s3://bucket/prefix
    disk: Path  # the local folder that is written to while a stage runs

    def preflight(self) -> None:
        """Write, read and delete, so that a bad store fails at once and before any work.

        Raises KdscaleError within 10 s, saying what to set.
        """
        ...

    def find(self, kind: str, key: str) -> Artifact | None:
        """The artifact if it is committed, else None."""
        ...

    def list(self, kind: str) -> list[Artifact]:
        """Every committed artifact of a kind, newest first; only manifests are read."""
        ...

    def staging(self, kind: str, key: str) -> AbstractContextManager[Path]:
        """A fresh local directory to write into; removed on the way out."""
        ...

    def commit(self, staged: Path, kind: str, key: str, manifest: dict[str, Any]) -> bool:
        """Make a staged directory the artifact. False: another writer was first, theirs stays."""
        ...

    def workspace(self, kind: str, key: str) -> Workspace:
        """What outlives a failed run of this artifact: checkpoints, partial work."""
        ...
