"""Manifests whose digest is right and whose content is not: whoever writes one can hash it."""

import json
import os

import pytest

from kdscale.errors import KdscaleError
from kdscale.store import LocalStore
from kdscale.store.artifact import build_manifest, list_files, parse_manifest, verify_files

FILE = {"path": "a.txt", "bytes": 1, "sha256": "0" * 64}


def _manifest(files, **changes):
    values = {
        "kind": "things",
        "stage": "make",
        "config": {},
        "inputs": {},
        "facts": {},
        "created": "2026-01-01T00:00:00+00:00",
        "version": "0",
    }
    return build_manifest(files=files, **{**values, **changes})


def _parse(manifest):
    return parse_manifest(json.dumps(manifest).encode(), "m")


def _refused(manifest, message):
    with pytest.raises(KdscaleError, match=message) as caught:
        _parse(manifest)
    assert "\n" not in str(caught.value)


def test_an_honest_one_is_read():
    paths = ["a.txt", "sub/manifest.json", "sub/b c.txt", "runs/x--y.trec", "größe.txt", ".hidden"]
    manifest = _manifest([{**FILE, "path": path} for path in paths])
    assert _parse(manifest) == manifest


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "../x",
        "a/../../x",
        "a/..",
        "/etc/passwd",
        "//server/share",
        "",
        ".",
        "./a",
        "a/.",
        "a//b",
        "folder/",
        "a\\..\\x",
        "\\\\server\\share",
        "C:/x",
        "c:x",
        "a\0b",
        "a\nb",
        "\x1b[2J",
        "\ud800",
        "x" * 256,
        "/".join(["x" * 200] * 6),
        "manifest.json",
        "Manifest.JSON",
        "manifest.json/x",
        ".parts/x",
    ],
    ids=ascii,
)
def test_a_path_that_leads_out_or_is_unsafe_is_refused(path):
    _refused(_manifest([{**FILE, "path": path}]), "outside its artifact, or by an unsafe path")


@pytest.mark.parametrize(
    "paths",
    [
        ("a", "a"),
        ("a.txt", "A.txt"),
        ("stra\u00dfe", "STRASSE"),
        ("\u00e9", "e\u0301"),
        ("a", "a/b"),
        ("A/b", "a"),
        ("a/b/c", "a/B"),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_two_paths_that_some_file_system_takes_for_one_are_refused(paths, turned):
    paths = reversed(paths) if turned else paths
    _refused(_manifest([{**FILE, "path": path} for path in paths]), "twice, or as file and folder")


@pytest.mark.parametrize(
    ("change", "value"),
    [
        *(("bytes", v) for v in (True, -1, 1.0, 1.5, "1", None, 2**63, 10**400, float("inf"))),
        *(("bytes", v) for v in ([1], {}, float("nan"))),
        *(("sha256", v) for v in (None, 0, "", "0" * 63, "0" * 65, "A" * 64, "g" * 64, ["0" * 64])),
        *(("path", v) for v in (None, 3, True, ["a"], {"a": 1})),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_file_with_a_value_of_the_wrong_kind_is_refused(change, value):
    _refused(_manifest([{**FILE, change: value}]), r"not a kdscale manifest \(in files\)")


@pytest.mark.parametrize("files", [{}, None, "a", 3, ["a"], [[]], [None], [{}], [{"path": "a"}]])
def test_files_that_are_no_list_of_files_are_refused(files):
    _refused(_manifest(files), r"not a kdscale manifest \(in files\)")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", 3),
        ("stage", None),
        ("config", []),
        ("inputs", []),
        ("inputs", {"a": "things/k"}),
        ("inputs", {"a": {"name": 3, "digest": "d"}}),
        ("inputs", {"a": {"name": "n"}}),
        ("facts", None),
        ("created", 3),
        ("version", None),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused(field, value):
    shown = {"version": "kdscale"}.get(field, field)
    _refused(_manifest([FILE], **{field: value}), rf"not a kdscale manifest \(in {shown}\)")


@pytest.mark.parametrize("field", ["digest", "created", "facts", "files", "kind"])
def test_a_missing_field_is_refused(field):
    manifest = _manifest([FILE])
    del manifest[field]
    _refused(manifest, "not a kdscale manifest")


@pytest.mark.parametrize("schema", [0, 2, "1", None, [1], 1e400])
def test_another_format_is_refused(schema):
    from kdscale.store.artifact import sha256_json

    manifest = {**_manifest([FILE]), "schema": schema}
    fields = ("schema", "kind", "stage", "config", "inputs", "files")
    manifest["digest"] = sha256_json({k: manifest[k] for k in fields})
    _refused(manifest, "has format")


def _nested(levels):
    value = {}
    for _ in range(levels):
        value = {"a": [value]}
    return value


@pytest.mark.parametrize("field", ["config", "facts"])
def test_json_nested_deeper_than_any_config_is_refused(field):
    _refused(_manifest([FILE], **{field: _nested(100)}), rf"\(in {field}\)")


@pytest.mark.parametrize(
    "data",
    [b"[" * 100_000, b'{"a":' * 100_000, b"null", b"3", b'"x"', b"\xff\xfe", b"\0", b"9" * 5000],
    ids=lambda data: ascii(data)[:12],
)
def test_what_is_no_manifest_at_all_is_refused(data):
    with pytest.raises(KdscaleError, match="not a kdscale manifest") as caught:
        parse_manifest(data, "m")
    assert "\n" not in str(caught.value)


@pytest.fixture
def committed(tmp_path):
    """The directory of a committed artifact with one file, and its manifest."""
    store = LocalStore(tmp_path / "store")
    with store.staging("things", "k") as out:
        (out / "sub").mkdir()
        (out / "sub" / "a.txt").write_text("hello")
        manifest = _manifest(list_files(out))
        store.commit(out, "things", "k", manifest)
    return tmp_path / "store/things/k", manifest


def test_a_link_out_of_the_artifact_is_refused_though_its_content_fits(committed, tmp_path):
    directory, manifest = committed
    verify_files(directory, manifest)
    os.rename(directory / "sub", tmp_path / "elsewhere")
    (directory / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KdscaleError, match="link that leads out"):
        verify_files(directory, manifest)


def test_a_store_that_is_itself_a_link_is_a_store(committed, tmp_path):
    _, manifest = committed
    (tmp_path / "link").symlink_to(tmp_path / "store")
    verify_files(tmp_path / "link/things/k", manifest)


@pytest.mark.parametrize("instead", ["folder", "fifo", "loop", "dangling"])
def test_what_is_no_file_is_missing(committed, instead):
    directory, manifest = committed
    path = directory / "sub" / "a.txt"
    path.unlink()
    if instead == "folder":
        path.mkdir()
    elif instead == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(path if instead == "loop" else "nowhere")
    with pytest.raises(KdscaleError, match=r"a\.txt is missing"):
        verify_files(directory, manifest)
