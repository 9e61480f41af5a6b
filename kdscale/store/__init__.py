"""Artifacts and where they are kept."""

from __future__ import annotations

from pathlib import Path

from kdscale.errors import KdscaleError
from kdscale.store.artifact import Artifact
from kdscale.store.local import LocalStore
from kdscale.store.workspace import DamagedError, LocalWorkspace, Workspace

__all__ = [
    "Artifact",
    "DamagedError",
    "LocalStore",
    "LocalWorkspace",
    "Workspace",
    "open_store",
]


def open_store(uri: str) -> LocalStore:
    """The store at `uri`. Raises KdscaleError for a scheme that this release cannot open."""
    scheme, sep, _ = uri.partition("://")
    if sep and scheme != "file":
        raise KdscaleError(
            f"storage.uri {uri!r}: {scheme}:// is not supported by this release; use a folder "
            "(on a cluster, one that every node mounts)"
        )
    return LocalStore(Path(uri.removeprefix("file://")).expanduser())
