"""The store in a bucket: the protocol of `kdscale.store.s3.holdings`, a node-local cache, and work
in progress as pieces by the same protocol.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from kdscale.errors import KdscaleError, by_proxy
from kdscale.store.artifact import (
    MANIFEST,
    NAME,
    Artifact,
    list_files,
    newest_first,
    parse_manifest,
)
from kdscale.store.fetch import Advance, Cache, Fetch, in_parallel
from kdscale.store.protocol import Holding
from kdscale.store.s3.client import Bucket
from kdscale.store.s3.holdings import check_attempt, discard, fetching, holdings, send
from kdscale.store.s3.retry import QUICK
from kdscale.store.workspace import check_name, parse_piece, piece_manifest


class S3Workspace:
    """Pieces below `{uri}/.work/{kind}/{key}/`. May be pickled."""

    def __init__(self, uri: str, kind: str, key: str):
        self._address = (uri, kind, key)
        self._base = f".work/{kind}/{key}"
        self._bucket = Bucket(uri)
        self._cache = Cache(uri)
        self._swept = False

    def __reduce__(self) -> tuple:
        return S3Workspace, self._address

    def publish(self, directory: Path, name: str) -> bool:
        base = f"{self._base}/{check_name(name)}"
        if self._bucket.get(f"{base}/{MANIFEST}") is not None:
            return False
        manifest = piece_manifest(name, list_files(directory))
        return send(self._bucket, base, directory, manifest, uuid.uuid4().hex, lambda count: None)

    def names(self) -> list[str]:
        below, end = f"{self._base}/", f"/{MANIFEST}"
        keys = [o.key.removeprefix(below) for o in self._bucket.objects(below)]
        return sorted(k.removesuffix(end) for k in keys if NAME.fullmatch(k.removesuffix(end)))

    def fetch(self, name: str) -> Path:
        base = f"{self._base}/{check_name(name)}"
        where = f"{self._bucket.uri}/{base}"
        data = self._bucket.get(f"{base}/{MANIFEST}")
        if data is None:
            raise KdscaleError(f"{where} is gone; run again")
        manifest = parse_piece(data, f"{where}/{MANIFEST}")
        check_attempt(manifest, f"{where}/{MANIFEST}")
        if not self._swept:
            # Another node's `clear` does not reach the copies on this one.
            self._cache.sweep(".work/*/*/*")
            self._swept = True
        return self._cache.materialise(
            base, manifest, where, lambda: fetching(self._bucket, base, manifest)
        )

    def remove(self, name: str) -> None:
        self._discard(f"{self._base}/{check_name(name)}")

    def clear(self) -> None:
        self._discard(self._base)

    def _discard(self, base: str) -> None:
        """Manifests first: a piece that is half removed is no piece."""
        keys = [o.key for o in self._bucket.objects(f"{base}/")]
        self._bucket.delete(sorted(keys, key=lambda k: not k.endswith(f"/{MANIFEST}")))
        self._cache.forget(base)


PREFLIGHT_S = 7.0
_READERS = 16


class S3Store:
    """Artifacts below s3://bucket/prefix; may be pickled, and used by threads."""

    def __init__(self, uri: str):
        self._bucket = Bucket(uri)
        self._cache = Cache(self._bucket.uri)
        self.uri = self._bucket.uri
        self.disk = self._cache.root

    def __reduce__(self) -> tuple:
        return S3Store, (self.uri,)

    def preflight(self, writing: bool = True) -> None:
        """List, write, read and delete, hardly retried; see that the cache is writable.

        Raises KdscaleError within 10 s, saying what to set. writing=False: only list.
        """
        _within(PREFLIGHT_S, self._probe if writing else self._look, self.uri)
        self._cache.preflight()

    def _look(self) -> None:
        Bucket(self.uri, QUICK).folders("")

    def _probe(self) -> None:
        bucket = Bucket(self.uri, QUICK)
        key = f".preflight/{uuid.uuid4().hex}"
        bucket.put_new(key, b"kdscale")
        try:
            if bucket.get(key) != b"kdscale" or not bucket.objects(key):
                raise KdscaleError(
                    f"{self.uri} does not give back what was written to it; use another store "
                    "(AWS_ENDPOINT_URL)"
                )
            if bucket.put_new(key, b"again"):
                raise KdscaleError(
                    f"{self.uri} overwrites in spite of If-None-Match, so two writers could spoil "
                    "an artifact; use a store with conditional writes (AWS S3, MinIO, SeaweedFS)"
                )
        finally:
            bucket.delete([key])

    def find(self, kind: str, key: str) -> Artifact | None:
        """The artifact if it is committed; its files are fetched, and checked, on first use."""
        if not (NAME.fullmatch(kind) and NAME.fullmatch(key)):
            return None
        data = self._bucket.get(f"{kind}/{key}/{MANIFEST}")
        return None if data is None else self._artifact(kind, key, data)

    def _artifact(self, kind: str, key: str, data: bytes) -> Artifact:
        base = f"{kind}/{key}"
        where = f"{self.uri}/{base}"
        manifest = parse_manifest(data, f"{where}/{MANIFEST}")
        check_attempt(manifest, f"{where}/{MANIFEST}")

        def materialise() -> Path:
            return self._cache.materialise(base, manifest, where, lambda: self.fetching(artifact))

        artifact = Artifact(kind, key, manifest, self.uri, materialise)
        return artifact

    def staging(self, kind: str, key: str) -> AbstractContextManager[Path]:
        """A fresh local directory, on the cache's disk; removed on the way out."""
        return self._cache.staging(f"{kind}-{key}")

    def commit(self, staged: Path, kind: str, key: str, manifest: dict[str, Any]) -> bool:
        """Make a staged directory the artifact. False: another writer was first, theirs stays."""
        base = f"{kind}/{key}"
        attempt = uuid.uuid4().hex
        if not send(self._bucket, base, staged, manifest, attempt, lambda count: None):
            return False
        self._cache.adopt(staged, base, manifest)
        return True

    def workspace(self, kind: str, key: str) -> S3Workspace:
        """What outlives a failed run of this artifact: checkpoints, partial work."""
        return S3Workspace(self.uri, kind, key)

    def unfinished(self, kind: str) -> list[str]:
        """The keys of a kind that have a workspace, sorted."""
        return self._bucket.folders(f".work/{kind}/")

    def fetching(self, artifact: Artifact) -> AbstractContextManager[Fetch]:
        """A context that gives a `Fetch` of the artifact's files; it checks no digest itself."""
        return fetching(self._bucket, artifact.name, artifact.manifest)

    def add(
        self, directory: Path, kind: str, key: str, manifest: dict[str, Any], advance: Advance
    ) -> bool:
        """Make a copy of a directory's listed files the artifact. False: another is there.

        Equal artifacts have one attempt, so that what a stopped call has sent is found again.
        """
        return send(
            self._bucket, f"{kind}/{key}", directory, manifest, manifest["digest"][:32], advance
        )

    def holdings(self) -> list[Holding]:
        """Everything that gc may remove."""
        return holdings(self._bucket)

    def discard(self, holding: Holding) -> None:
        discard(self._bucket, holding)

    # Last of the methods that name a list: behind it, `list` is this one.
    def list(self, kind: str) -> list[Artifact]:
        """Every committed artifact of a kind, newest first; only manifests are read."""
        keys = self._bucket.folders(f"{kind}/")
        found = in_parallel(lambda key: self.find(kind, key), keys, _READERS)
        return newest_first([artifact for artifact in found if artifact is not None])


def _endpoint() -> str:
    """Where the requests of a client go that could not be made yet; for messages."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    return next(filter(None, map(os.environ.get, names)), "https://s3.amazonaws.com")


def _within(seconds: float, work: Callable[[], None], uri: str) -> None:
    """Run `work` and raise what it raises. Raises KdscaleError where it takes longer.

    No setting of botocore bounds all of it: name servers and credential helpers have their own.
    """
    outcome: list[BaseException | None] = []

    def run() -> None:
        try:
            work()
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise KdscaleError(
            f"{uri}: no answer in {seconds:.0f} s; see whether the store is running, and set "
            f"AWS_ENDPOINT_URL{by_proxy(_endpoint())}"
        )
    if outcome[0] is not None:
        raise outcome[0]
