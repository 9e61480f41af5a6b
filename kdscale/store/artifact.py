"""What an artifact is: a directory with a manifest, and the digests that make it trustworthy."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from kdscale.errors import KdscaleError

MANIFEST = "manifest.json"
PARTS = ".parts"  # below a directory that is being fetched: files not yet whole
SCHEMA_VERSION = 1
# Every kind of artifact there is, in the order in which they are made.
KINDS = (
    "datasets",
    "tokens",
    "teachers",
    "scores",
    "lms",
    "students",
    "evaluations",
    "reports",
)

# What a kind, a key or a piece may be called: nothing that could be taken for a path.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Artifact:
    """A committed artifact.

    `digest` covers kind, config, inputs and every file: equal digests mean equal artifacts.
    `materialise` gives `path`; a store makes it, so that a manifest can be read without the files.
    """

    kind: str
    key: str
    manifest: dict[str, Any]
    store_uri: str
    materialise: Callable[[], Path] = field(repr=False, compare=False)

    @property
    def path(self) -> Path:
        """A local directory with the files, every digest checked; to be read only.

        Raises KdscaleError where a file is gone or is not what the manifest says.
        """
        return self.materialise()

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.key}"

    @property
    def uri(self) -> str:
        return f"{self.store_uri}/{self.name}"

    def ref(self) -> dict[str, str]:
        """What another process, on any node, finds it by (`kdscale.store.locate`); plain JSON."""
        return {
            "uri": self.store_uri,
            "kind": self.kind,
            "key": self.key,
            "digest": self.digest,
        }

    @property
    def digest(self) -> str:
        return self.manifest["digest"]

    @property
    def facts(self) -> dict[str, Any]:
        """What the stage reported of its work (counts, seconds, ...)."""
        return self.manifest["facts"]

    @property
    def bytes(self) -> int:
        return sum(f["bytes"] for f in self.manifest["files"])


def newest_first(artifacts: list[Artifact]) -> list[Artifact]:
    return sorted(artifacts, key=lambda a: (a.manifest["created"], a.key), reverse=True)


def canonical_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def sha256_file(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()


def list_files(directory: Path) -> list[dict[str, Any]]:
    """Every file below `directory` but the manifest: `{"path", "bytes", "sha256"}`, by path."""
    files = []
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        relative = path.relative_to(directory).as_posix()
        if relative != MANIFEST:
            files.append(
                {"path": relative, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
            )
    return files


def build_manifest(
    *,
    kind: str,
    stage: str,
    config: dict[str, Any],
    inputs: dict[str, dict[str, str]],
    files: list[dict[str, Any]],
    facts: dict[str, Any],
    created: str,
    version: str,
) -> dict[str, Any]:
    """`inputs` maps a role to `{"name": "kind/key", "digest": ...}`.

    Facts (seconds, host counts) and the time stay out of the digest: a rerun that wrote the
    same bytes is the same artifact.
    """
    identity = {
        "schema": SCHEMA_VERSION,
        "kind": kind,
        "stage": stage,
        "config": config,
        "inputs": inputs,
        "files": files,
    }
    return {
        **identity,
        "digest": sha256_json(identity),
        "facts": facts,
        "created": created,
        "kdscale": version,
    }


def parse_manifest(data: bytes, where: str) -> dict[str, Any]:
    """Read and check a manifest. Raises KdscaleError; never trusts a path that it names."""
    try:
        manifest = json.loads(data)
        identity = {
            k: manifest[k] for k in ("schema", "kind", "stage", "config", "inputs", "files")
        }
        well_formed = (
            isinstance(manifest["facts"], dict)
            and isinstance(manifest["config"], dict)
            and isinstance(manifest["created"], str)
            and all(
                isinstance(entry["name"], str) and isinstance(entry["digest"], str)
                for entry in manifest["inputs"].values()
            )
        )
        unchanged = sha256_json(identity) == manifest["digest"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise KdscaleError(
            f"{where} is not a kdscale manifest ({type(error).__name__}); remove that artifact "
            "and run again"
        ) from None
    if not well_formed or not unchanged:
        raise KdscaleError(f"{where} was changed after it was written; remove it and run again")
    if manifest["schema"] != SCHEMA_VERSION:
        raise KdscaleError(
            f"{where} has format {manifest['schema']}, this kdscale reads {SCHEMA_VERSION}; "
            "use the release that wrote it, or run again into another folder"
        )
    check_files(manifest["files"], where)
    return manifest


def check_files(files: Any, where: str) -> None:
    """Raise KdscaleError for a list of files that `list_files` cannot have written.

    No path leads outside its directory, however it is spelt; none is there twice, or is the
    folder of another, so that what is written below a directory is what the list says.
    """
    try:
        well_formed = all(
            type(f["bytes"]) is int and f["bytes"] >= 0 and _SHA256.fullmatch(f["sha256"])
            for f in files
        )
        paths = [f["path"] for f in files]
    except (KeyError, TypeError):
        well_formed = False
    if not well_formed:
        raise KdscaleError(f"{where} has a list of files that is none; remove it and run again")
    for path in paths:
        if not _is_inside(path):
            raise KdscaleError(f"{where} names a file outside its artifact: {path!r}; refused")
    folders = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
    if len(set(paths)) < len(paths) or folders & set(paths):
        raise KdscaleError(f"{where} names a file twice, or as a folder; refused")


def _is_inside(path: Any) -> bool:
    """Whether it is a plain relative path, spelt the one way that `list_files` spells it."""
    if not isinstance(path, str) or not path.isprintable() or "\\" in path:
        return False
    pure = PurePosixPath(path)
    return (
        pure.as_posix() == path
        and not pure.is_absolute()
        and bool(pure.parts)
        and ".." not in pure.parts
        and pure.parts[0].casefold() not in (MANIFEST, PARTS)
        and all(len(part.encode()) <= 255 for part in pure.parts)
    )


def verify_files(directory: Path, manifest: dict[str, Any]) -> None:
    """Compare every file with the manifest. Raises KdscaleError on the first difference."""
    for entry in manifest["files"]:
        path = directory / entry["path"]
        if not path.is_file():
            raise KdscaleError(f"{path} is missing; remove {directory} and run again")
        if path.stat().st_size != entry["bytes"] or sha256_file(path) != entry["sha256"]:
            raise KdscaleError(
                f"{path} does not match its manifest (damaged or edited); "
                f"remove {directory} and run again"
            )
