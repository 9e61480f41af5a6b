"""Manifests, as bytes and as values with a right digest, and the files that they speak of."""

import copy
import json
import os
import shutil

import pytest
from hypothesis import strategies as st

from kdscale.store.artifact import (
    build_manifest,
    list_files,
    parse_manifest,
    sha256_json,
    verify_files,
)
from tests.fuzz.fuzzing import damage, edits, places

pytestmark = pytest.mark.slow
SIGNED = {
    "digest": ("schema", "kind", "stage", "config", "inputs", "files"),
    "seal": ("facts", "created", "kdscale"),
}
CONTENT = {"a.txt": b"one", "sub/b.txt": b"two", "sub/deep/c.txt": b""}


def nested(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


PATHS = [
    "a.txt", "sub/b.txt", "../beside/file", "/etc/passwd", "..", ".", "", "sub", "sub/", "a\0b",
    "a\\b", "C:\\x", "c:x", "A.TXT", "manifest.json", "x" * 300, "\ud800", "a\nb", "sub/../a.txt",
    "//a.txt", "./a.txt", "\u202e", "e\u0301", "\u00e9", "NUL", "~/x", "$HOME", "a" + "/b" * 600,
]  # fmt: skip
VALUES = [
    None, True, False, -1, 0, 3, 2**63, 10**400, 1.5, float("nan"), float("inf"), "", "x", "0" * 64,
    [], {}, [[]], {"a": 1}, nested(40), nested(400), *PATHS,
]  # fmt: skip
json_values = st.recursive(
    st.sampled_from(VALUES) | st.text(max_size=5) | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def honest(directory) -> dict:
    return build_manifest(
        kind="things", stage="make", config={"a": 1, "b": {"c": [2.5]}},
        inputs={"dataset": {"name": "datasets/k", "digest": "0" * 64}},
        files=list_files(directory), facts={"seconds": 1.5, "rows": 3},
        created="2026-01-01T00:00:00+00:00", version="0",
    )  # fmt: skip


def stays_below(directory, path: str) -> bool:
    at = os.path.normpath(os.path.join(directory, path))
    return at.startswith(f"{directory}{os.sep}") and at != str(directory / "manifest.json")


def test_manifests(sandbox):
    manifest = honest(sandbox.refill(CONTENT))
    ways = list(places(manifest))[1:]
    changes = st.lists(
        st.tuples(st.sampled_from(ways), json_values | st.sampled_from(PATHS), st.booleans()),
        max_size=3,
    )

    def case(changes, is_resigned, edits, added):
        changed = copy.deepcopy(manifest)
        for way, value, is_removed in changes:
            inner = changed
            try:
                for key in way[:-1]:
                    inner = inner[key]
                if is_removed:
                    del inner[way[-1]]
                else:
                    inner[way[-1]] = value
            except (KeyError, IndexError, TypeError):
                pass  # an earlier change took that place away
        if isinstance(changed.get("files"), list):
            changed["files"] += [{"path": p, "bytes": 0, "sha256": "0" * 64} for p in added]
        for name, fields in SIGNED.items() if is_resigned else ():
            if all(key in changed for key in fields):
                changed[name] = sha256_json({key: changed[key] for key in fields})
        found = parse_manifest(damage(json.dumps(changed).encode(), edits), "m")
        paths = [entry["path"] for entry in found["files"]]
        assert all(stays_below(sandbox.target, path) for path in paths)
        assert len({path.casefold() for path in paths}) == len(paths)
        sum(entry["bytes"] for entry in found["files"])
        json.dumps(found["config"]), json.dumps(found["facts"])
        verify_files(sandbox.target, found)

    mostly = st.sampled_from([True, True, True, False])
    some = st.sampled_from([True] * 7 + [False]).flatmap(lambda no: st.just([]) if no else edits)
    added = st.just([]) | st.just([]) | st.lists(st.sampled_from(PATHS), max_size=2)
    sandbox.fuzz("manifest", changes, mostly, some, added, case=case)


STATES = (
    "as it was", "as it was", "touched", "cut", "flipped", "longer", "gone", "folder", "link out",
    "link inside", "link to itself", "fifo", "hard link", "folder linked out", "one more",
)  # fmt: skip


def test_files_of_an_artifact(sandbox):
    manifest = honest(sandbox.refill(CONTENT))
    same = sandbox.root / "beside" / "same"  # with the content that the manifest tells
    for name, content in CONTENT.items():
        (same / name).parent.mkdir(parents=True, exist_ok=True)
        (same / name).write_bytes(content)
    sandbox.outside = sandbox.listing()

    def case(states):
        target = sandbox.refill(CONTENT)
        for name, state in states.items():
            change(target / name, state, same / name)
        verify_files(target, manifest)
        for name, content in CONTENT.items():
            assert (target / name).read_bytes() == content
            assert (target / name).resolve().is_relative_to(target)

    states = st.dictionaries(st.sampled_from(list(CONTENT)), st.sampled_from(STATES), max_size=2)
    sandbox.fuzz("files of an artifact", states, case=case)


def change(path, state, same):
    if not path.exists() or path.parent.is_symlink():
        return
    content = path.read_bytes()
    if state == "touched":
        os.utime(path, (0, 0))
    elif state == "one more":
        path.with_name("more").write_bytes(b"x")
    elif state == "folder linked out" and path.parent.name == "deep":
        shutil.rmtree(path.parent)
        path.parent.symlink_to(same.parent)
    elif state in ("cut", "flipped", "longer"):
        flipped = bytes([content[0] ^ 1]) + content[1:] if content else b"x"
        path.write_bytes({"cut": content[:-1], "flipped": flipped}.get(state, content + b"x"))
    elif state not in ("as it was", "folder linked out"):
        path.unlink()
        if state == "folder":
            path.mkdir()
        elif state == "fifo":
            os.mkfifo(path)
        elif state == "hard link":
            path.write_bytes(content)
            os.link(path, path.with_name("another name"))
        elif state == "link inside":
            path.with_name("elsewhere").write_bytes(content)
            path.symlink_to("elsewhere")
        elif state.startswith("link"):
            path.symlink_to(same if state == "link out" else path)
