import json
import pickle
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kdscale.errors import KdscaleError
from kdscale.store import DamagedError, locate, open_store
from kdscale.store.s3.client import split_uri
from tests.worlds.artifacts import MIB, manifest_of, put_texts, texts, write_files

SCRIPT = Path(__file__).parents[2] / "scripts" / "object-store"


def test_commit_then_find(store):
    assert store.find("students", "k") is None
    assert store.list("students") == []
    assert put_texts(store, "students/k")
    found = store.find("students", "k")
    assert texts(found.path) == ["hello", "hellohello"]
    assert found.facts == {"seconds": 1.5} and found.bytes == 15
    assert found.uri == f"{store.uri}/students/k"
    assert [a.key for a in store.list("students")] == ["k"]


def test_the_files_come_first_and_below_the_attempt_that_the_manifest_names(s3_uri, raw):
    put_texts(open_store(s3_uri), "students/k")
    attempt = json.loads(raw.get("students/k/manifest.json"))["attempt"]
    files = [f"students/k/{attempt}/{path}" for path in ("b.txt", "sub/a.txt")]
    assert raw.names() == sorted([*files, "students/k/manifest.json"])
    times = {
        key: raw.client.head_object(Bucket=raw.bucket, Key=f"{raw.prefix}/{key}")["LastModified"]
        for key in raw.names()
    }
    assert times["students/k/manifest.json"] == max(times.values())


def test_files_without_a_manifest_are_no_artifact(s3_uri, raw):
    raw.put(f"students/k/{'a' * 32}/b.txt", b"x")
    raw.put("students/manifest.json", b"{}")
    store = open_store(s3_uri)
    assert store.find("students", "k") is None and store.list("students") == []


@pytest.mark.slow
def test_of_16_writers_one_wins_whole_and_the_others_are_told(s3_uri, raw):
    stores = [open_store(s3_uri) for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        won = list(
            pool.map(lambda i: put_texts(stores[i], "students/k", text=f"writer {i};"), range(16))
        )
    assert won.count(True) == 1
    mine = f"writer {won.index(True)};"
    assert texts(open_store(s3_uri).find("students", "k").path) == [mine, mine * 2]
    assert len(raw.names()) == 3  # the losers have taken their files away


def test_a_writer_whose_answer_was_lost_is_not_told_that_it_lost(s3_uri, raw, tmp_path):
    """The put is repeated and meets itself: the attempt in the manifest says whose it is."""
    files = write_files(tmp_path / "x", {"a": 10})
    store = open_store(s3_uri)
    for _ in range(2):
        assert store.add(files, "students", "k", manifest_of(files), lambda count: None)
    assert len(raw.names()) == 2


def test_artifacts_are_listed_newest_first_and_never_fetched(s3_uri, raw, cache):
    store = open_store(s3_uri)
    for key in ("a-b", "a", "a.b"):
        put_texts(store, f"students/{key}")
    shutil.rmtree(cache)
    listed = open_store(s3_uri).list("students")
    assert [a.key for a in listed] == ["a.b", "a-b", "a"]
    assert listed[0].manifest["files"] and not cache.exists()


@pytest.mark.slow
def test_more_objects_than_one_page_of_a_listing(s3_uri, raw):
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: raw.put(f".work/scores/k/p{i}/manifest.json", b"x"), range(1100)))
    workspace = open_store(s3_uri).workspace("scores", "k")
    names = workspace.names()
    assert len(names) == 1100 and names == sorted(names)
    workspace.clear()
    assert workspace.names() == raw.names() == []


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest", "attempt"])
def test_a_damaged_object_is_found_before_use(s3_uri, raw, cache, damage):
    put_texts(open_store(s3_uri), "students/k")
    shutil.rmtree(cache)
    key = raw.find("sub/a.txt")
    if damage == "flip":
        raw.put(key, b"hellp")
    elif damage == "cut":
        raw.put(key, b"hell")
    elif damage == "remove":
        raw.delete(key)
    else:
        manifest = json.loads(raw.get("students/k/manifest.json"))
        if damage == "manifest":
            manifest["config"]["a"] = 2
        else:
            manifest["attempt"] = "../../elsewhere"
        raw.put("students/k/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(KdscaleError, match=r"a\.txt does not match|is gone|was changed|not say"):
        _ = open_store(s3_uri).find("students", "k").path
    assert not list(cache.rglob("a.txt"))


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_in_the_cache_is_found_and_mended(s3_uri, cache, damage):
    put_texts(open_store(s3_uri), "students/k")
    path = open_store(s3_uri).find("students", "k").path
    assert path.is_relative_to(cache)
    file = path / "sub" / "a.txt"
    if damage == "remove":
        file.unlink()
    else:
        file.write_text("hellp" if damage == "flip" else "hel")
    assert texts(open_store(s3_uri).find("students", "k").path) == ["hello", "hellohello"]


def test_an_artifact_of_the_same_name_that_was_made_anew_is_not_taken_from_the_cache(s3_uri, raw):
    store = open_store(s3_uri)
    put_texts(store, "students/k", text="old")
    old = store.find("students", "k")
    assert texts(old.path)[0] == "old"
    for key in raw.names():
        raw.delete(key)
    put_texts(open_store(s3_uri), "students/k", text="new")
    assert texts(open_store(s3_uri).find("students", "k").path)[0] == "new"
    with pytest.raises(KdscaleError, match="not the artifact that this run began with"):
        locate(old.ref())


@pytest.mark.slow
def test_threads_of_a_node_share_one_download(s3_uri, cache):
    put_texts(open_store(s3_uri), "students/k")
    shutil.rmtree(cache)
    stores = [open_store(s3_uri) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda s: s.find("students", "k").path, stores))
    assert len(set(paths)) == 1 and texts(paths[0]) == ["hello", "hellohello"]
    assert not list(paths[0].glob(".parts"))


def test_a_reference_is_plain_json_and_is_located_anywhere(store, cache):
    put_texts(store, "students/k")
    found = store.find("students", "k")
    ref = json.loads(json.dumps(found.ref()))
    assert texts(locate(ref))[0] == "hello"
    assert pickle.loads(pickle.dumps(store)).find("students", "k").digest == ref["digest"]
    with pytest.raises(KdscaleError, match="has no students/gone here"):
        locate({**ref, "key": "gone"})


def test_a_store_that_is_staged_into_leaves_nothing_behind(store, cache):
    with pytest.raises(KeyboardInterrupt), store.staging("students", "k") as out:
        (out / "half").write_text("x")
        raise KeyboardInterrupt
    assert not out.exists() and store.find("students", "k") is None


def test_a_cache_that_cannot_be_written(s3_uri, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KDSCALE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(KdscaleError, match="set KDSCALE_CACHE to a folder"):
        open_store(s3_uri).preflight()


@pytest.mark.slow
def test_a_large_object_in_parts(s3_uri, raw, cache, tmp_path):
    files = write_files(tmp_path / "x", {"large": 40 * MIB, "empty": 0})
    store = open_store(s3_uri)
    manifest = manifest_of(files)
    counted = []
    assert store.add(files, "students", "k", manifest, counted.append)
    assert sum(counted) == 40 * MIB
    fetched = open_store(s3_uri).find("students", "k").path
    assert (fetched / "large").read_bytes() == (files / "large").read_bytes()
    assert (fetched / "empty").read_bytes() == b""


@pytest.mark.parametrize("uri", ["s3://", "s3:///x", "s3://bucket/../x"])
def test_a_uri_that_names_no_bucket_and_prefix(uri):
    with pytest.raises(KdscaleError, match="give s3://bucket/prefix"):
        split_uri(uri)


SCRIPTED = ("b", "AmznS3Bucket")  # tried with scripts/object-store too


# The examples of the Amazon S3 User Guide, "General purpose bucket naming rules", and the like.
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("b", "has 1 characters, not 3 to 63"),
        ("a" * 64, "has 64 characters"),
        ("bu cket", "small letters"),
        ("amzn_s3_bucket", "small letters"),
        ("AmznS3Bucket", "small letters"),
        ("bucket-", "a letter or digit at both ends"),
        (".bucket", "a letter or digit at both ends"),
        ("example..bucket", "two dots"),
        ("192.168.5.4", "is an IP address"),
        ("xn--bucket", "begins with one of xn--"),
    ],
)
def test_a_bucket_name_that_s3_refuses_is_one_line(name, fault):
    with pytest.raises(KdscaleError, match=fault) as error:
        open_store(f"s3://{name}/prefix")
    assert name in str(error.value)
    if name in SCRIPTED:
        assert fault in refused_by_script(name)


def test_a_bucket_cannot_be_made_where_s3_keeps_the_name_for_itself():
    assert split_uri("s3://mine-s3alias/x")  # of an access point
    assert "ends with one of -s3alias" in refused_by_script("mine-s3alias")


def refused_by_script(name):
    """What scripts/object-store says of a bucket's name: one line, at once."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, SCRIPT, "--bucket", name], capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("object-store: --bucket: ") and done.stderr.count("\n") == 1
    assert time.monotonic() - began < 20
    return done.stderr


@pytest.mark.parametrize("name", ["abc", "a" * 63, "log-delivery.march.2020", "1.2.3", "x--y"])
def test_a_bucket_name_that_s3_takes(name):
    assert split_uri(f"s3://{name}/a//b/") == (name, "a/b")


def test_a_uri_with_credentials_is_refused_and_not_shown():
    with pytest.raises(KdscaleError, match="takes no credentials") as error:
        open_store("s3://AKIAKEY:hidden@bucket/prefix")
    assert "hidden" not in str(error.value) and "AKIAKEY" not in str(error.value)


def test_pieces_of_work(s3_uri, raw, cache, tmp_path):
    workspace = open_store(s3_uri).workspace("students", "k")
    assert workspace.names() == []
    step = write_files(tmp_path / "x", {"model": 100, "sub/manifest.json": 10})
    assert workspace.publish(step, "step-2") and workspace.publish(step, "step-10")
    assert not workspace.publish(step, "step-2")
    again = pickle.loads(pickle.dumps(workspace))
    assert again.names() == ["step-10", "step-2"]
    assert (again.fetch("step-2") / "model").read_bytes() == (step / "model").read_bytes()
    workspace.remove("step-2")
    workspace.remove("never-there")
    assert workspace.names() == ["step-10"]
    with pytest.raises(KdscaleError, match="step-2 is gone"):
        workspace.fetch("step-2")
    workspace.clear()
    assert raw.names() == workspace.names() == []
    assert not list(cache.rglob("model"))


def test_of_many_writers_of_a_piece_one_wins(s3_uri, raw, tmp_path):
    folders = [write_files(tmp_path / str(i), {"a": 10}) for i in range(8)]
    workspace = open_store(s3_uri).workspace("students", "k")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda folder: workspace.publish(folder, "export"), folders))
    assert won.count(True) == 1
    winner = folders[won.index(True)]
    assert (workspace.fetch("export") / "a").read_bytes() == (winner / "a").read_bytes()
    assert len(raw.names()) == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest"])
def test_a_damaged_piece_is_found_before_use(s3_uri, raw, cache, tmp_path, damage):
    workspace = open_store(s3_uri).workspace("students", "k")
    workspace.publish(write_files(tmp_path / "x", {"a": 5}), "piece")
    key = raw.find("/a")
    if damage == "flip":
        data = raw.get(key)
        raw.put(key, bytes([data[0] ^ 1]) + data[1:])
    elif damage == "cut":
        raw.put(key, b"")
    elif damage == "remove":
        raw.delete(key)
    else:
        raw.put(raw.find("manifest.json"), b"{}")
    with pytest.raises(DamagedError):
        workspace.fetch("piece")
