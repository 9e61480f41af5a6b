"""How a directory becomes objects, and what lies below a store's prefix in a bucket.

A directory's files are put first, its manifest last, once:

    {base}/manifest.json             put with If-None-Match: *, so that one writer of many wins
    {base}/{attempt}/{path}          the files of the writer whose attempt the manifest names

A base without a manifest is nothing; every writer has its own attempt, so files never mix.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdscale.store.artifact import KINDS, MANIFEST
from kdscale.store.fetch import FILES_AT_ONCE, Advance, Fetch, in_parallel
from kdscale.store.protocol import Holding, Sort
from kdscale.store.s3.client import Bucket, Object
from kdscale.store.s3.transfers import Transfers
from kdscale.store.workspace import DamagedError

ATTEMPT = re.compile("[0-9a-f]{32}")


def send(
    bucket: Bucket,
    base: str,
    directory: Path,
    manifest: dict[str, Any],
    attempt: str,
    advance: Advance,
) -> bool:
    """Send a directory's listed files, then the manifest. False: another writer was first.

    Files of this attempt that are there already, with equal size and digest, are not sent again.
    The loser's files are removed. Raises KdscaleError as `Bucket` does.
    """
    below = f"{base}/{attempt}/"
    present = {o.key: o.bytes for o in bucket.objects(below)}

    with Transfers(bucket) as transfers:

        def bring(entry: dict[str, Any]) -> None:
            key, digest = below + entry["path"], entry["sha256"]
            if present.get(key) == entry["bytes"] and bucket.sha256_of(key) == digest:
                advance(entry["bytes"])
            else:
                transfers.upload(directory / entry["path"], key, digest, advance)

        in_parallel(bring, manifest["files"], FILES_AT_ONCE)
    stored = json.dumps({**manifest, "attempt": attempt}, indent=1, sort_keys=True)
    if bucket.put_new(f"{base}/{MANIFEST}", stored.encode()):
        return True
    # Refused: by another's manifest, or by our own, whose answer was lost on its way.
    theirs = bucket.get(f"{base}/{MANIFEST}")
    if theirs is not None and stored_attempt(theirs) == attempt:
        return True
    bucket.delete([below + entry["path"] for entry in manifest["files"]])
    return False


@contextmanager
def fetching(bucket: Bucket, base: str, manifest: dict[str, Any]) -> Iterator[Fetch]:
    """A `Fetch` of a base's files; leaving the context by an exception stops what is under way."""
    with Transfers(bucket) as transfers:

        def fetch(entry: dict[str, Any], target: Path, advance: Advance) -> bool:
            key = f"{base}/{manifest['attempt']}/{entry['path']}"
            return transfers.download(key, target, entry["bytes"], advance)

        yield fetch


def check_attempt(manifest: dict[str, Any], where: str) -> None:
    """Raise DamagedError unless a stored manifest says where its files are.

    The attempt stands outside the manifest's digest: it is where the files are, not what.
    """
    attempt = manifest.get("attempt")
    if not isinstance(attempt, str) or not ATTEMPT.fullmatch(attempt):
        raise DamagedError(f"{where} does not say where its files are; remove it and run again")


def stored_attempt(data: bytes) -> Any:
    """The attempt that a stored manifest names; None where it names none."""
    try:
        return json.loads(data)["attempt"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None  # whatever it is, it is not ours


_KIND = "|".join(KINDS)
_MANIFEST = re.compile(rf"((?:{_KIND})/[^/]+)/{re.escape(MANIFEST)}")
_FILE = re.compile(rf"((?:{_KIND})/[^/]+/([0-9a-f]{{32}}))/.+")
_WORK = re.compile(r"(\.work/[^/]+/[^/]+)/.+")
_PROBE = re.compile(r"(\.preflight/[0-9a-f]{32})")
_UPLOAD = "upload:"  # a part that is a multi-part upload: upload:ID:KEY


def holdings(bucket: Bucket) -> list[Holding]:
    """One listing of everything; an object that no store of ours writes belongs to nothing."""
    manifests: dict[str, Object] = {}
    groups: dict[tuple[Sort, str], list[Object]] = defaultdict(list)
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


def _holding(sort: Sort, name: str, objects: list[Object]) -> Holding:
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
