"""Work in progress in a bucket: pieces by the protocol of `kdscale.store.s3files`."""

from __future__ import annotations

import uuid
from pathlib import Path

from kdscale.errors import KdscaleError
from kdscale.store.artifact import NAME, list_files
from kdscale.store.cache import Cache
from kdscale.store.filelist import MANIFEST
from kdscale.store.s3 import Bucket
from kdscale.store.s3files import check_attempt, fetching, send
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
