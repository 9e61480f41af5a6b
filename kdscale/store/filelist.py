"""The list of files in a manifest: what may stand in it, whoever wrote it."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath
from typing import Any

from kdscale.errors import KdscaleError

MANIFEST = "manifest.json"
PARTS = ".parts"  # below a directory that is being fetched: files not yet whole

_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_files(files: Any, where: str) -> None:
    """Raise KdscaleError for a list of files that `kdscale.store.artifact.list_files` cannot have
    written: a path that leads outside its directory, on any system, a file named twice."""
    if not isinstance(files, list) or not all(map(_is_entry, files)):
        raise KdscaleError(
            f"{where} is not a kdscale manifest (in files); remove that artifact and run again"
        )
    _check_paths([entry["path"] for entry in files], where)


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("path"), str)
        and type(entry.get("bytes")) is int
        and 0 <= entry["bytes"] < 2**63
        and isinstance(entry.get("sha256"), str)
        and _SHA256.fullmatch(entry["sha256"]) is not None
    )


def _check_paths(paths: list[str], where: str) -> None:
    """No path leads outside, however it is spelt; no two are one where large and small letters
    are the same; none is the folder of another."""
    folded = [unicodedata.normalize("NFC", path).casefold() for path in paths]
    folders = {str(parent) for path in folded for parent in PurePosixPath(path).parents}
    seen: set[str] = set()
    for path, same in zip(paths, folded, strict=True):
        parts = path.split("/")
        if (
            not path.isprintable()
            or any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts)
            or len(path.encode()) > 1024
            or "\\" in path
            or path[1:2] == ":"  # a drive of Windows
            or same.split("/")[0] in (MANIFEST, PARTS)
        ):
            raise KdscaleError(
                f"{where} names a file outside its artifact, or by an unsafe path: {path!r}"
            )
        if same in seen or same in folders:
            raise KdscaleError(f"{where} names {path!r} twice, or as file and folder; refused")
        seen.add(same)
