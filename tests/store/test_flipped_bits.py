"""One bit of any stored file is flipped: it is found before use, or nothing has changed."""

import json
import random
import shutil
from pathlib import Path

import pytest

from kdscale.errors import KdscaleError
from kdscale.store import LocalStore, open_store
from kdscale.store.artifact import parse_manifest
from kdscale.store.workspace import parse_piece, piece_manifest
from tests.worlds.artifacts import manifest_of, write_files

FLIPS = 4  # of each stored file
FILES = {"model.safetensors": 5_000, "sub/config.json": 40, "one": 1}


def flipped(data, bit):
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


@pytest.fixture
def stored(store, cache, tmp_path, request):
    """An artifact and a piece of work; the names of all that is stored, to read and to write."""
    files = write_files(tmp_path / "files", FILES)
    assert store.add(files, "students", "k", manifest_of(files), lambda count: None)
    assert store.workspace("lms", "w").publish(files, "step-1")
    if isinstance(store, LocalStore):
        root = Path(store.uri)
        names = [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]
        return names, lambda n: (root / n).read_bytes(), lambda n, d: (root / n).write_bytes(d)
    raw = request.getfixturevalue("raw")
    return raw.names(), raw.get, raw.put


def test_in_any_stored_file(store, cache, stored):
    names, get, put = stored
    work = store.workspace("lms", "w")
    assert len(names) == 2 * (len(FILES) + 1)

    def read():
        """All that there is, as a node with nothing in its cache reads it."""
        shutil.rmtree(cache, ignore_errors=True)
        # A store in a folder remembers what it has verified.
        fresh = open_store(store.uri) if isinstance(store, LocalStore) else store
        artifact = fresh.find("students", "k")
        folders = artifact.path, work.fetch("step-1")
        return artifact.manifest, [(f / path).read_bytes() for f in folders for path in FILES]

    whole, rng, refused = read(), random.Random(1), 0
    for name in names:
        data = get(name)
        for _ in range(FLIPS):
            put(name, flipped(data, rng.randrange(8 * len(data))))
            try:
                # As where a letter of an exponent is made a capital: the same is read.
                assert read() == whole and name.endswith("manifest.json")
            except KdscaleError:
                refused += 1
        put(name, data)
    assert read() == whole
    assert refused >= 0.9 * FLIPS * len(names)


def test_of_every_bit_of_a_manifest(tmp_path):
    files = write_files(tmp_path, FILES)
    facts = {"seconds": 1.5, "rate": 1e-05, "note": "é", "by_grade": {2: 10, 10: 2}}
    artifact = {**manifest_of(files, facts=facts), "attempt": "0123456789abcdef" * 2}
    piece = piece_manifest("p", artifact["files"])
    for manifest, parse in ((artifact, parse_manifest), (piece, parse_piece)):
        data = json.dumps(manifest, indent=1, sort_keys=True).encode()
        assert (before := parse(data, "m")) == json.loads(data)
        same = 0
        for bit in range(8 * len(data)):
            try:
                found = parse(flipped(data, bit), "m")
            except KdscaleError:
                continue
            # Where its files are is no part of what it says, and is found out when they are read.
            assert {**found, "attempt": None} == {**before, "attempt": None}
            same += 1
        assert same < 8 * 32 + 8


def test_a_manifest_of_an_earlier_release_has_no_seal(tmp_path):
    manifest = manifest_of(write_files(tmp_path, {"a": 3}))
    del manifest["seal"]
    assert parse_manifest(json.dumps(manifest).encode(), "m") == manifest
    with pytest.raises(KdscaleError, match="was changed"):
        parse_manifest(json.dumps({**manifest, "sbal": "x"}).encode(), "m")
