"""What an artifact is: a directory with a manifest, and the digests that make it trustworthy."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from kdscale.errors import KdscaleError

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Artifact:
    """A committed artifact.

    `path` is a local directory with its files (for a local store the artifact itself).
    `digest` covers kind, config, inputs and every file: equal digests mean equal artifacts.
    """

    kind: str
    key: str
    manifest: dict[str, Any]
    path: Path

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.key}"

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
        files = [(f["path"], int(f["bytes"]), str(f["sha256"])) for f in manifest["files"]]
        facts_ok = isinstance(manifest["facts"], dict)
        digest = manifest["digest"]
    except (ValueError, KeyError, TypeError) as error:
        raise KdscaleError(
            f"{where} is not a kdscale manifest ({error!r}); remove that artifact and run again"
        ) from None
    if not facts_ok or sha256_json(identity) != digest:
        raise KdscaleError(f"{where} was changed after it was written; remove it and run again")
    if manifest["schema"] != SCHEMA_VERSION:
        raise KdscaleError(
            f"{where} has format {manifest['schema']}, this kdscale reads {SCHEMA_VERSION}; "
            "use the release that wrote it, or run again into another folder"
        )
    check_paths([path for path, _, _ in files], where)
    return manifest


def check_paths(paths: list[Any], where: str) -> None:
    """Raise KdscaleError for a path of a manifest that leads out of its directory."""
    for path in paths:
        pure = PurePosixPath(path) if isinstance(path, str) else PurePosixPath()
        if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\\" in path:
            raise KdscaleError(f"{where} names a file outside its artifact: {path!r}; refused")


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
