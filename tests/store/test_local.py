import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from kdscale.errors import KdscaleError
from kdscale.store import LocalStore, open_store
from kdscale.store.artifact import parse_manifest
from tests.worlds.artifacts import manifest_of


def _commit(store, key="k", text="hello"):
    with store.staging("things", key) as out:
        (out / "sub").mkdir()
        (out / "sub" / "a.txt").write_text(text)
        return store.commit(out, "things", key, manifest_of(out, kind="things"))


def test_commit_then_find(tmp_path):
    store = LocalStore(tmp_path)
    assert store.find("things", "k") is None
    assert _commit(store)
    found = store.find("things", "k")
    assert (found.path / "sub" / "a.txt").read_text() == "hello"
    assert found.facts == {"seconds": 1.5}
    assert found.bytes == 5
    assert [a.key for a in store.list("things")] == ["k"]


def test_a_staged_directory_is_no_artifact_and_goes_when_the_writer_fails(tmp_path):
    store = LocalStore(tmp_path)
    with pytest.raises(KeyboardInterrupt), store.staging("things", "k") as out:
        (out / "half").write_text("x")
        assert store.find("things", "k") is None
        raise KeyboardInterrupt
    assert list((tmp_path / ".staging").iterdir()) == []
    assert store.list("things") == []


def test_two_writers_end_with_one_whole_artifact(tmp_path):
    stores = [LocalStore(tmp_path) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda pair: _commit(pair[1], text=f"w{pair[0]}"), enumerate(stores)))
    assert won.count(True) == 1
    winner = LocalStore(tmp_path).find("things", "k")
    assert (winner.path / "sub" / "a.txt").read_text() == f"w{won.index(True)}"


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_file_is_found_before_use(tmp_path, damage):
    _commit(LocalStore(tmp_path))
    path = tmp_path / "things" / "k" / "sub" / "a.txt"
    if damage == "flip":
        path.write_text("hellp")
    elif damage == "cut":
        path.write_text("hel")
    else:
        path.unlink()
    with pytest.raises(KdscaleError, match=r"a\.txt"):
        LocalStore(tmp_path).find("things", "k")


def test_an_edited_manifest_is_refused(tmp_path):
    _commit(LocalStore(tmp_path))
    path = tmp_path / "things" / "k" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["config"]["a"] = 2
    path.write_text(json.dumps(manifest))
    with pytest.raises(KdscaleError, match="was changed"):
        LocalStore(tmp_path).find("things", "k")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b'{"files": 3}'])
def test_what_is_no_manifest_is_refused(data):
    with pytest.raises(KdscaleError, match="not a kdscale manifest"):
        parse_manifest(data, "m")


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a\\..\\x", ""])
def test_a_manifest_never_names_a_file_outside(tmp_path, path):
    files = [{"path": path, "bytes": 1, "sha256": "0" * 64}]
    data = json.dumps(manifest_of(tmp_path, files=files)).encode()
    with pytest.raises(KdscaleError, match="outside its artifact"):
        parse_manifest(data, "m")


def test_the_digest_ignores_time_and_facts_and_nothing_else(tmp_path):
    base = manifest_of(tmp_path)["digest"]
    assert manifest_of(tmp_path, facts={"seconds": 9.0}, created="later")["digest"] == base
    assert manifest_of(tmp_path, config={"a": 2})["digest"] != base
    assert manifest_of(tmp_path, inputs={"x": {"name": "n", "digest": "d"}})["digest"] != base


def test_preflight_names_a_folder_that_cannot_be_written(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(KdscaleError, match=r"storage\.uri"):
        LocalStore(blocked / "below").preflight()


def test_an_unsupported_scheme_is_refused():
    with pytest.raises(KdscaleError, match="ftp://"):
        open_store("ftp://host/x")


@pytest.mark.parametrize("uri", ["~no_such_user/x", "file://a\0b", "x" * 300])
def test_a_folder_that_can_be_none_is_refused(uri):
    with pytest.raises(KdscaleError, match=r"storage\.uri: cannot use the path"):
        open_store(uri)
