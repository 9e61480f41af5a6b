"""Artifacts and where they are kept."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from kdscale.errors import KdscaleError
from kdscale.paths import user_path
from kdscale.store.artifact import Artifact
from kdscale.store.local import LocalStore
from kdscale.store.protocol import Store
from kdscale.store.workspace import DamagedError, LocalWorkspace, Workspace

__all__ = [
    "Artifact",
    "DamagedError",
    "LocalStore",
    "LocalWorkspace",
    "Store",
    "Workspace",
    "find_named",
    "locate",
    "open_store",
    "split_artifact",
]


def open_store(uri: str) -> Store:
    """The store at `uri`: a folder, or `s3://bucket/prefix`. Nothing is read or written yet.

    Raises KdscaleError for any other scheme, and for an s3:// without a bucket.
    """
    scheme, sep, _ = uri.partition("://")
    if scheme == "s3" and sep:
        from kdscale.store.s3.store import S3Store  # botocore is slow to import

        return S3Store(uri)
    if sep and scheme != "file":
        raise KdscaleError(
            f"the store {uri!r} (storage.uri in a config): {scheme}:// is not supported; use a "
            "folder (on a cluster, one that every node mounts) or s3://bucket/prefix"
        )
    return LocalStore(user_path(uri.removeprefix("file://"), "storage.uri"))


def split_artifact(uri: str) -> tuple[Store, str, str]:
    """Store, kind and key of one artifact's uri, STORE/KIND/KEY. Raises KdscaleError."""
    whole = uri.rstrip("/")
    if "://" not in whole:
        whole = str(user_path(whole, "the artifact").resolve())
    *store, kind, key = whole.rsplit("/", 2)
    if not store or store[0].endswith(":/"):
        raise KdscaleError(
            f"{uri!r} names no artifact; give STORE/KIND/KEY, as kdscale artifacts does"
        )
    return open_store(store[0]), kind, key


def find_named(uri: str) -> tuple[Artifact, Store]:
    """The artifact that a user has named, STORE/KIND/KEY, and its store, which was seen to answer.

    Raises KdscaleError where it is not there.
    """
    store, kind, key = split_artifact(uri)
    store.preflight(writing=False)
    artifact = store.find(kind, key)
    if artifact is None:
        raise KdscaleError(
            f"there is no {kind}/{key} in {store.uri}; see: kdscale artifacts {store.uri}"
        )
    return artifact, store


def locate(ref: dict[str, Any]) -> Path:
    """A local directory with the files of what `Artifact.ref` named, every digest checked.

    Raises KdscaleError where the artifact is gone, or another stands in its place.
    """
    uri, name = ref["uri"], f"{ref['kind']}/{ref['key']}"
    artifact = _opened(uri).find(ref["kind"], ref["key"])
    if artifact is None:
        raise KdscaleError(
            f"{uri} has no {name} here; was it removed, or is the folder not mounted on this node?"
        )
    if artifact.digest != ref["digest"]:
        raise KdscaleError(f"{uri}/{name} is not the artifact that this run began with; run again")
    return artifact.path


@functools.cache
def _opened(uri: str) -> Store:
    """One store a process: files are verified once by it, not at every use."""
    return open_store(uri)
