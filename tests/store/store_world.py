"""Artifacts for the tests of stores."""

from __future__ import annotations

import os
from pathlib import Path

from kdscale.store import Store
from kdscale.store.artifact import build_manifest, list_files

MIB = 2**20


def write_files(directory: Path, sizes: dict[str, int]) -> Path:
    """Files of random bytes, by relative path."""
    for path, size in sizes.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(os.urandom(size))
    return directory


def manifest_of(directory: Path, **changes: object) -> dict:
    values = {
        "kind": "students",
        "stage": "make",
        "config": {"a": 1},
        "inputs": {},
        "files": list_files(directory),
        "facts": {"seconds": 1.5},
        "created": "2026-01-01T00:00:00+00:00",
        "version": "0",
    }
    return build_manifest(**{**values, **changes})


def commit(store: Store, name: str, text: str = "hello", inputs: tuple[str, ...] = ()) -> bool:
    """An artifact "kind/key" with two small files, made from the named ones."""
    kind, _, key = name.partition("/")
    made_from = {f"input {i}": {"name": n, "digest": "d"} for i, n in enumerate(inputs)}
    with store.staging(kind, key) as out:
        (out / "sub").mkdir()
        (out / "sub" / "a.txt").write_text(text)
        (out / "b.txt").write_text(text * 2)
        return store.commit(out, kind, key, manifest_of(out, kind=kind, inputs=made_from))


def texts(directory: Path) -> list[str]:
    return [(directory / path).read_text() for path in ("sub/a.txt", "b.txt")]
