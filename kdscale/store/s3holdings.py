"""What lies below a store's prefix in a bucket, sorted into what can be removed as a whole."""

from __future__ import annotations

import re
from collections import defaultdict

from kdscale.store.artifact import KINDS
from kdscale.store.filelist import MANIFEST
from kdscale.store.protocol import Holding
from kdscale.store.s3 import Bucket, Object
from kdscale.store.s3files import stored_attempt

_KIND = "|".join(KINDS)
_MANIFEST = re.compile(rf"((?:{_KIND})/[^/]+)/{re.escape(MANIFEST)}")
_FILE = re.compile(rf"((?:{_KIND})/[^/]+/([0-9a-f]{{32}}))/.+")
_WORK = re.compile(r"(\.work/[^/]+/[^/]+)/.+")
_PROBE = re.compile(r"(\.preflight/[0-9a-f]{32})")
_UPLOAD = "upload:"  # a part that is a multi-part upload: upload:ID:KEY


def holdings(bucket: Bucket) -> list[Holding]:
    """One listing of everything; an object that no store of ours writes belongs to nothing."""
    manifests: dict[str, Object] = {}
    groups: dict[tuple[str, str], list[Object]] = defaultdict(list)
    for found in bucket.objects(""):
        if match := _MANIFEST.fullmatch(found.key):
            manifests[match[1]] = found
        elif match := _FILE.fullmatch(found.key) or _PROBE.fullmatch(found.key):
            groups["half", match[1]].append(found)
        elif match := _WORK.fullmatch(found.key):
            groups["work", match[1]].append(found)
    result = []
    for name, manifest in manifests.items():
        attempt = stored_attempt(bucket.get(manifest.key) or b"")
        files = groups.pop(("half", f"{name}/{attempt}"), [])
        result.append(_holding("artifact", name, [manifest, *files]))
    result += [_holding(sort, name, objects) for (sort, name), objects in groups.items()]
    return sorted([*result, *_uploads(bucket)], key=lambda h: h.name)


def discard(bucket: Bucket, holding: Holding) -> None:
    uploads = [part for part in holding.parts if part.startswith(_UPLOAD)]
    for part in uploads:
        _, upload, key = part.split(":", 2)
        bucket.abort_upload(key, upload)
    keys = [part for part in holding.parts if part not in uploads]
    # Without its manifest a thing is gone at once, whatever becomes of its files.
    first = [key for key in keys if key.endswith(f"/{MANIFEST}")]
    bucket.delete(first)
    bucket.delete([key for key in keys if key not in first])


def _holding(sort: str, name: str, objects: list[Object]) -> Holding:
    return Holding(
        sort,
        name,
        sum(o.bytes for o in objects),
        max(o.modified for o in objects).timestamp(),
        tuple(o.key for o in objects),
    )


def _uploads(bucket: Bucket) -> list[Holding]:
    """Multi-part uploads that were begun and not ended: their parts cost, and nobody sees them."""
    return [
        Holding(
            "half",
            f"{key} (upload {upload[:8]})",
            sum(part["Size"] for part in bucket.unfinished_parts(key, upload)),
            begun.timestamp(),
            (f"{_UPLOAD}{upload}:{key}",),
        )
        for key, upload, begun in bucket.unfinished_uploads()
        if _FILE.fullmatch(key) or _WORK.fullmatch(key)
    ]
