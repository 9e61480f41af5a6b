import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from kdscale.errors import KdscaleError
from kdscale.store import DamagedError, LocalStore, LocalWorkspace
from kdscale.store.workspace import parse_piece, piece_manifest


@pytest.fixture
def workspace(tmp_path):
    return LocalStore(tmp_path / "store").workspace("things", "k")


def _files(directory, text="hello"):
    (directory / "sub").mkdir(parents=True)
    (directory / "sub" / "a.txt").write_text(text)
    return directory


def test_a_piece_is_published_whole_and_found_again(workspace, tmp_path):
    assert workspace.names() == []
    assert workspace.publish(_files(tmp_path / "x"), "step-2")
    assert workspace.publish(_files(tmp_path / "y", "other"), "step-10")
    assert workspace.names() == ["step-10", "step-2"]
    again = pickle.loads(pickle.dumps(workspace))
    assert (again.fetch("step-2") / "sub" / "a.txt").read_text() == "hello"
    assert (tmp_path / "x" / "sub" / "a.txt").exists()  # a copy was published


def test_of_many_writers_of_a_piece_one_wins(workspace, tmp_path):
    folders = [_files(tmp_path / str(i), f"w{i}") for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda folder: workspace.publish(folder, "export"), folders))
    assert won.count(True) == 1
    assert (workspace.fetch("export") / "sub" / "a.txt").read_text() == f"w{won.index(True)}"
    assert [p.name for p in workspace.directory.iterdir()] == ["export"]


def test_half_a_piece_is_none(workspace, tmp_path):
    workspace.publish(_files(tmp_path / "x"), "whole")
    _files(workspace.directory / ".half-1234.part")
    _files(workspace.directory / "no-manifest")
    assert workspace.names() == ["whole"]
    with pytest.raises(KdscaleError, match="no-manifest is gone"):
        workspace.fetch("no-manifest")


def test_remove_and_clear(workspace, tmp_path):
    for name in ("a", "b"):
        workspace.publish(_files(tmp_path / name), name)
    workspace.remove("a")
    workspace.remove("never-there")
    assert workspace.names() == ["b"]
    workspace.clear()
    assert workspace.names() == [] and not workspace.directory.exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest"])
def test_a_damaged_piece_is_found_before_use(workspace, tmp_path, damage):
    workspace.publish(_files(tmp_path / "x"), "piece")
    path = workspace.directory / "piece" / "sub" / "a.txt"
    if damage == "flip":
        path.write_text("hellp")
    elif damage == "cut":
        path.write_text("hel")
    elif damage == "remove":
        path.unlink()
    else:
        manifest = workspace.directory / "piece" / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"bytes": 5', '"bytes": 6'))
    with pytest.raises(DamagedError):
        workspace.fetch("piece")


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a\\..\\x", "", 3])
def test_a_piece_never_names_a_file_outside(path):
    files = [{"path": path, "bytes": 1, "sha256": "0" * 64}]
    with pytest.raises(KdscaleError, match="outside" if isinstance(path, str) else "in files"):
        parse_piece(json.dumps(piece_manifest("p", files)).encode(), "m")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b'{"files": 3}', b"[" * 100_000])
def test_what_is_no_manifest_of_a_piece_is_refused(data):
    with pytest.raises(DamagedError):
        parse_piece(data, "m")


@pytest.mark.parametrize("name", ["", ".hidden", "../x", "a/b", "a b"])
def test_names_that_no_piece_can_have(tmp_path, name):
    with pytest.raises(ValueError):
        LocalWorkspace(tmp_path).publish(_files(tmp_path / "x"), name)
