"""What an artifact is: a directory with a manifest, and the digests that make it trustworthy.

The list of files in a manifest is checked whoever wrote it.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
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
    "sweeps",
)

# What a kind, a key or a piece may be called: nothing that could be taken for a path.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
DEEPEST = 50  # levels of a manifest's JSON

_IDENTITY = ("schema", "kind", "stage", "config", "inputs", "files")  # what the digest covers
_TOLD = ("facts", "created", "kdscale")  # what the seal covers
# seal: missing in what an earlier release wrote; attempt: of a store in a bucket
_FIELDS = {*_IDENTITY, *_TOLD, "digest", "seal", "attempt"}


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
    same bytes is the same artifact. They have a seal of their own, so that damage shows.
    """
    identity = {
        "schema": SCHEMA_VERSION,
        "kind": kind,
        "stage": stage,
        "config": config,
        "inputs": inputs,
        "files": files,
    }
    # As they will be read back: a key of JSON is text.
    told = {"facts": json.loads(json.dumps(facts)), "created": created, "kdscale": version}
    return {**identity, "digest": sha256_json(identity), **told, "seal": sha256_json(told)}


def parse_manifest(data: bytes, where: str) -> dict[str, Any]:
    """Read and check a manifest. Raises KdscaleError; never trusts a path that it names."""
    try:
        manifest = json.loads(data)
        is_whole = sha256_json({k: manifest[k] for k in _IDENTITY}) == manifest["digest"]
        is_sealed = "seal" not in manifest or (
            sha256_json({k: manifest[k] for k in _TOLD}) == manifest["seal"]
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise KdscaleError(
            f"{where} is not a kdscale manifest ({type(error).__name__}); remove that artifact "
            "and run again"
        ) from None
    if not is_whole:
        raise KdscaleError(f"{where} was changed after it was written; remove it and run again")
    if manifest["schema"] != SCHEMA_VERSION:
        raise KdscaleError(
            f"{where} has format {manifest['schema']!r}, this kdscale reads {SCHEMA_VERSION}; "
            "use the release that wrote it, or run again into another folder"
        )
    if not is_sealed or not manifest.keys() <= _FIELDS:
        raise KdscaleError(f"{where} was changed after it was written; remove it and run again")
    fault = _fault_of_fields(manifest)
    if fault:
        raise KdscaleError(
            f"{where} is not a kdscale manifest (in {fault}); remove that artifact and run again"
        )
    check_files(manifest["files"], where)
    return manifest


def _fault_of_fields(manifest: dict[str, Any]) -> str | None:
    """The first field whose value is not of its kind: a digest is no proof of sense."""

    def is_input(entry: Any) -> bool:
        return isinstance(entry, dict) and all(
            isinstance(entry.get(k), str) for k in ("name", "digest")
        )

    kinds: dict[str, type] = {
        **dict.fromkeys(("kind", "stage", "created", "kdscale"), str),
        **dict.fromkeys(("config", "inputs", "facts"), dict),
    }
    for name, kind in kinds.items():
        if not isinstance(manifest.get(name), kind):
            return name
    if not all(map(is_input, manifest["inputs"].values())):
        return "inputs"
    return next((k for k in ("config", "facts") if _is_deeper(manifest[k], DEEPEST)), None)


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether a JSON value is nested deeper: what shows it later need not fear to recurse."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels == 0 or any(_is_deeper(v, levels - 1) for v in inner)


def verify_files(directory: Path, manifest: dict[str, Any]) -> None:
    """Compare every file with the manifest. Raises KdscaleError on the first difference."""
    root = directory.resolve()
    for entry in manifest["files"]:
        path = directory / entry["path"]
        try:
            if not path.is_file():
                raise KdscaleError(f"{path} is missing; remove {directory} and run again")
            if not path.resolve().is_relative_to(root):
                raise KdscaleError(
                    f"{path} is a link that leads out of {directory}; put the file in its place"
                )
            is_same = path.stat().st_size == entry["bytes"] and sha256_file(path) == entry["sha256"]
        except OSError as error:
            raise KdscaleError(
                f"cannot read {path} ({error.strerror}); mend that, or remove {directory} and "
                "run again"
            ) from None
        if not is_same:
            raise KdscaleError(
                f"{path} does not match its manifest (damaged or edited); "
                f"remove {directory} and run again"
            )
