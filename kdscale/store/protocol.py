"""What every store can do, be it a folder or a bucket."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from kdscale.store.artifact import Artifact
from kdscale.store.fetch import Advance, Fetch
from kdscale.store.workspace import Workspace

Sort = Literal["artifact", "work", "half"]


@dataclass(frozen=True)
class Holding:
    """Something below a store that can be removed as a whole.

    An artifact is named "kind/key"; work is the workspace of one; a half is what a writer has
    left that was killed, or is still at work. modified: seconds since 1970, of the newest part.
    """

    sort: Sort
    name: str
    bytes: int
    modified: float
    parts: tuple[str, ...] = ()  # for the store alone: what is to be removed


class Store(Protocol):
    """Artifacts by kind and key. One is there whole, with its manifest, or not at all."""

    uri: str  # a folder's path or s3://bucket/prefix
    disk: Path  # the local folder that is written to while a stage runs

    def preflight(self, writing: bool = True) -> None:
        """Write, read and delete, so that a bad store fails at once and before any work.

        Raises KdscaleError within 10 s, saying what to set. writing=False: only see that the
        store answers, for a command that reads.
        """
        ...

    def find(self, kind: str, key: str) -> Artifact | None:
        """The artifact if it is committed, else None."""
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

    def unfinished(self, kind: str) -> list[str]:
        """The keys of a kind that have a workspace, sorted."""
        ...

    def fetching(self, artifact: Artifact) -> AbstractContextManager[Fetch]:
        """A context that gives a `Fetch` of the artifact's files; it checks no digest itself."""
        ...

    def add(
        self, directory: Path, kind: str, key: str, manifest: dict[str, Any], advance: Advance
    ) -> bool:
        """Make a copy of a directory's listed files the artifact. False: another is there.

        A call that was killed is resumed by the next one. The digests are the caller's to
        check.
        """
        ...

    def holdings(self) -> list[Holding]:
        """Everything below the store that is ours, by name; files that are not are left out."""
        ...

    def discard(self, holding: Holding) -> None:
        """Remove it; an artifact is gone at once, its files after that."""
        ...

    # Last of the methods that name a list: behind it, `list` is this one.
    def list(self, kind: str) -> list[Artifact]:
        """Every committed artifact of a kind, newest first; only manifests are read."""
        ...
