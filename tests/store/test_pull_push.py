import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdscale.cli import main
from kdscale.store import open_store
from kdscale.store.artifact import list_files, sha256_json
from kdscale.store.s3.client import Bucket
from kdscale.store.s3.transfers import PART_BYTES, Transfers, spans
from tests.worlds.artifacts import MIB, manifest_of, put, put_texts, texts, write_files
from tests.worlds.world import make_encoder


def failed(capsys, *command):
    """The one line of a command that fails."""
    assert main([str(word) for word in command]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("kdscale: ") and errors.count("\n") == 1
    return errors


@pytest.fixture
def moved(monkeypatch):
    """The transfers that really take place, as (direction, key)."""
    seen = []
    for name, key in (("download", 0), ("upload", 1)):
        real = getattr(Transfers, name)

        def spy(self, *args, real=real, name=name, key=key):
            seen.append((name, args[key]))
            return real(self, *args)

        monkeypatch.setattr(Transfers, name, spy)
    return seen


def test_there_and_back(store, tmp_path, cache):
    put_texts(store, "students/k")
    pulled = tmp_path / "pulled"
    assert main(["pull", f"{store.uri}/students/k", str(pulled)]) == 0
    assert texts(pulled) == ["hello", "hellohello"]
    assert sorted(p.name for p in pulled.iterdir()) == ["b.txt", "manifest.json", "sub"]
    assert "attempt" not in json.loads((pulled / "manifest.json").read_text())
    assert main(["push", str(pulled), f"{store.uri}/students/copy"]) == 0
    found = open_store(store.uri).find("students", "copy")
    assert found.digest == store.find("students", "k").digest
    assert texts(found.path) == ["hello", "hellohello"]


def test_between_a_folder_and_a_bucket(s3_uri, tmp_path, cache, capsys):
    folder = open_store(str(tmp_path / "store"))
    put_texts(folder, "students/k")
    assert main(["push", f"{folder.uri}/students/k", f"{s3_uri}/students/k"]) == 0
    assert main(["push", f"{folder.uri}/students/k", f"{s3_uri}/students/k"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1].endswith(f"was already in {s3_uri}/students/k")
    assert main(["pull", f"{s3_uri}/students/k", str(tmp_path / "out")]) == 0
    assert texts(tmp_path / "out") == ["hello", "hellohello"]


def test_a_second_pull_fetches_what_is_missing_or_damaged(s3_uri, tmp_path, cache, moved):
    store = open_store(s3_uri)
    put_texts(store, "students/k")
    pulled, uri = tmp_path / "pulled", f"{s3_uri}/students/k"
    moved.clear()
    assert main(["pull", uri, str(pulled)]) == 0
    assert len(moved) == 2
    assert main(["pull", uri, str(pulled)]) == 0
    assert len(moved) == 2
    (pulled / "b.txt").write_text("hellohellp")
    assert main(["pull", uri, str(pulled)]) == 0
    assert [key.rsplit("/", 1)[1] for _, key in moved[2:]] == ["b.txt"]
    assert texts(pulled) == ["hello", "hellohello"]


LARGE = 208 * MIB


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """An artifact with one object above 200 MB and six small ones."""
    small = {f"shards/{i}.bin": 2 * MIB for i in range(6)}
    directory = write_files(tmp_path_factory.mktemp("large"), {"model.bin": LARGE, **small})
    (directory / "manifest.json").write_text(json.dumps(manifest_of(directory)))
    return directory


def kill_when(command, ready):
    """Run a command in a process of its own; SIGKILL it as soon as `ready` says so."""
    process = subprocess.Popen([sys.executable, "-m", "kdscale", *map(str, command)])
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_push_and_a_pull_that_are_killed_go_on_where_they_were(
    large, s3_uri, raw, tmp_path, cache, moved
):
    uri = f"{s3_uri}/students/large"
    kill_when(["push", large, uri], lambda: len(raw.names("students/large/")) >= 2)
    sent = raw.names("students/large/")
    assert not any(name.endswith(("manifest.json", "model.bin")) for name in sent)
    assert main(["push", str(large), uri]) == 0
    again = {key for direction, key in moved if direction == "upload"}
    # No count of these: the server may store what was on its way seconds after the sender died.
    assert not again & set(sent)
    assert any(name.endswith("model.bin") for name in again)

    pulled = tmp_path / "pulled"
    kill_when(["pull", uri, pulled], lambda: len(list(pulled.glob("shards/*.bin"))) >= 2)
    finished = {p: p.stat() for p in pulled.rglob("*.bin") if ".parts" not in p.parts}
    assert not (pulled / "model.bin").exists() and not (pulled / "manifest.json").exists()
    assert list(pulled.glob(".parts/*"))
    moved.clear()
    assert main(["pull", uri, str(pulled)]) == 0
    assert len(moved) == 7 - len(finished)
    for path, before in finished.items():
        after = path.stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    for entry in json.loads((large / "manifest.json").read_text())["files"]:
        assert (pulled / entry["path"]).read_bytes() == (large / entry["path"]).read_bytes()
    assert not (pulled / ".parts").exists()


@pytest.fixture(scope="module")
def parted(tmp_path_factory):
    """An artifact of one object in three parts."""
    directory = write_files(tmp_path_factory.mktemp("parted"), {"model.bin": 3 * PART_BYTES})
    (directory / "manifest.json").write_text(json.dumps(manifest_of(directory)))
    return directory


@pytest.fixture
def requests(monkeypatch):
    """The requests that transfers make, as (operation, what was asked for)."""
    seen, real = [], Transfers._ask

    def spy(self, operation, key, **wanted):
        seen.append((operation, wanted))
        return real(self, operation, key, **wanted)

    monkeypatch.setattr(Transfers, "_ask", spy)
    return seen


@pytest.mark.slow
def test_a_large_object_is_gone_on_with_part_by_part(large, s3_uri, tmp_path, cache, requests):
    uri, whole = f"{s3_uri}/students/large", LARGE // PART_BYTES
    bucket = Bucket(s3_uri)

    def sent():
        return {
            part["PartNumber"]
            for key, upload, _ in bucket.unfinished_uploads("students/large/")
            for part in bucket.unfinished_parts(key, upload)
        }

    kill_when(["push", large, uri], lambda: len(sent()) >= 2)
    before = sent()
    assert 2 <= len(before) < whole
    assert main(["push", str(large), uri]) == 0
    parts = [wanted["PartNumber"] for name, wanted in requests if name == "upload_part"]
    # No count of these: the server may store what was on its way seconds after the sender died.
    assert parts and not before & set(parts) and len(parts) == len(set(parts))
    assert not any(name == "create_multipart_upload" for name, _ in requests)
    assert not bucket.unfinished_uploads("")

    pulled = tmp_path / "pulled"

    def recorded():
        return sum(len(p.read_text().splitlines()) - 1 for p in pulled.glob(".parts/*.done"))

    kill_when(["pull", uri, pulled], lambda: recorded() >= 2)
    before = recorded()
    assert 2 <= before < whole
    requests.clear()
    assert main(["pull", uri, str(pulled)]) == 0
    assert sum("Range" in wanted for _, wanted in requests) == whole - before
    assert list_files(pulled) == json.loads((large / "manifest.json").read_text())["files"]
    assert not (pulled / ".parts").exists()


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["a hole", "another record", "a record cut short", "no file"])
def test_what_a_stopped_pull_left_is_not_trusted(parted, s3_uri, tmp_path, cache, requests, harm):
    uri, pulled = f"{s3_uri}/students/parted", tmp_path / "pulled"
    assert main(["push", str(parted), uri]) == 0

    def recorded():
        return [path for path in pulled.glob(".parts/*.done") if path.stat().st_size]

    kill_when(["pull", uri, pulled], recorded)
    (record,) = pulled.glob(".parts/*.done")
    head = record.read_text().splitlines(keepends=True)[0]
    side = record.with_suffix("")
    every = "".join(f"{n}\n" for n in range(1, 3 + 1))
    if harm == "a hole":  # the record is on the disk, the bytes are not: a power cut
        side.write_bytes(bytes(3 * PART_BYTES))
        record.write_text(head + every)
    elif harm == "another record":
        record.write_text("7 bytes in parts of 2\n" + every)
    elif harm == "a record cut short":
        record.write_text(head + "1\nx\n")
    else:
        side.unlink()
        record.write_text(head + every)
    requests.clear()
    assert main(["pull", uri, str(pulled)]) == 0
    assert list_files(pulled) == json.loads((parted / "manifest.json").read_text())["files"]


@pytest.mark.slow
def test_an_upload_that_somebody_ends_under_our_hands(parted, s3_uri, cache, monkeypatch):
    """kdscale gc on another machine: the upload is begun anew."""
    bucket, real, ended = Bucket(s3_uri), Transfers._ask, []

    def spy(self, operation, key, **wanted):
        if operation == "upload_part" and wanted["PartNumber"] == 2 and not ended:
            ended.append(wanted["UploadId"])
            bucket.abort_upload(key, wanted["UploadId"])
        return real(self, operation, key, **wanted)

    monkeypatch.setattr(Transfers, "_ask", spy)
    assert main(["push", str(parted), f"{s3_uri}/students/parted"]) == 0
    assert ended
    path = open_store(s3_uri).find("students", "parted").path
    assert (path / "model.bin").read_bytes() == (parted / "model.bin").read_bytes()


def test_an_object_that_is_cut_short_in_the_store(parted, s3_uri, raw, tmp_path, cache, capsys):
    uri = f"{s3_uri}/students/parted"
    assert main(["push", str(parted), uri]) == 0
    (model,) = [name for name in raw.names("students/parted/") if name.endswith("model.bin")]
    raw.put(model, b"short")
    capsys.readouterr()
    assert "cut short" in failed(capsys, "pull", uri, tmp_path / "pulled")
    assert not (tmp_path / "pulled" / "model.bin").exists()


def test_parts_cover_a_file_of_any_size():
    for size in (PART_BYTES, 2 * PART_BYTES + 1, 10_000 * PART_BYTES + 1):
        parts = spans(size)
        assert [number for number, _, _ in parts] == list(range(1, len(parts) + 1))
        assert len(parts) <= 10_000
        ends = [start + length for _, start, length in parts]
        assert [start for _, start, _ in parts] == [0, *ends[:-1]] and ends[-1] == size


def test_a_pulled_student_is_a_model_directory(store, tmp_path, cache):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    put(store, "students", "k", make_encoder)
    pulled = tmp_path / "student"
    assert main(["pull", f"{store.uri}/students/k", str(pulled)]) == 0
    model = AutoModelForSequenceClassification.from_pretrained(pulled, num_labels=1)
    inputs = AutoTokenizer.from_pretrained(pulled)("word1", "word2 key1", return_tensors="pt")
    assert model(**inputs).logits.shape == (1, 1)


HOSTILE = [
    "../outside",
    "/outside",
    "sub/../../outside",
    "sub/./x",
    "sub//x",
    "./x",
    "x/",
    "..",
    ".",
    "",
    "sub\\..\\x",
    "manifest.json",
    "MANIFEST.json/x",
    ".parts/x",
    "new\nline",
    "nul\0",
    "x" * 300,
    3,
    None,
    ["x"],
]


@pytest.mark.parametrize("path", HOSTILE)
def test_a_hostile_manifest_writes_nothing(store, tmp_path, cache, request, path, capsys):
    """Its digest is right, as that of an attacker would be."""
    put_texts(store, "students/k")
    manifest = dict(store.find("students", "k").manifest)
    manifest["files"] = [{**manifest["files"][0], "path": path}]
    identity = {k: manifest[k] for k in ("schema", "kind", "stage", "config", "inputs", "files")}
    data = json.dumps({**manifest, "digest": sha256_json(identity)})
    if store.uri.startswith("s3://"):
        request.getfixturevalue("raw").put("students/k/manifest.json", data.encode())
    else:
        Path(store.uri, "students/k/manifest.json").write_text(data)
    before = sorted(tmp_path.rglob("*"))
    message = failed(capsys, "pull", f"{store.uri}/students/k", tmp_path / "pulled" / "here")
    assert ("names a file outside" if isinstance(path, str) else "(in files)") in message
    assert sorted(p for p in tmp_path.rglob("*") if cache not in (p, *p.parents)) == [
        p for p in before if cache not in (p, *p.parents)
    ]


@pytest.mark.parametrize("paths", [["a", "a"], ["a", "a/b"], ["a/b/c", "a/b"]])
def test_a_manifest_that_names_a_file_twice_or_as_a_folder(tmp_path, capsys, paths):
    folder = tmp_path / "store" / "students" / "k"
    folder.mkdir(parents=True)
    files = [{"path": path, "bytes": 0, "sha256": "0" * 64} for path in paths]
    (folder / "manifest.json").write_text(json.dumps(manifest_of(folder, files=files)))
    assert "twice, or as file and folder" in failed(capsys, "pull", folder, tmp_path / "out")


@pytest.mark.parametrize("link", ["sub", "sub/a.txt", "b.txt", ".parts"])
def test_a_link_in_the_directory_is_not_followed(store, tmp_path, cache, link, capsys):
    put_texts(store, "students/k")
    uri, pulled, outside = f"{store.uri}/students/k", tmp_path / "pulled", tmp_path / "outside"
    assert main(["pull", uri, str(pulled)]) == 0
    outside.mkdir()
    (outside / "a.txt").write_text("mine")
    if link in ("sub", ".parts"):
        if link == "sub":
            (pulled / "sub" / "a.txt").unlink()
            (pulled / "sub").rmdir()
        (pulled / link).symlink_to(outside)
    else:
        (pulled / link).unlink()
        (pulled / link).symlink_to(outside / "a.txt")
    assert "is a symbolic link" in failed(capsys, "pull", uri, pulled)
    assert [p.name for p in outside.iterdir()] == ["a.txt"]
    assert (outside / "a.txt").read_text() == "mine"


def test_what_pull_refuses(store, tmp_path, cache, capsys):
    put_texts(store, "students/k")
    put_texts(store, "students/other", text="other")
    uri, full = f"{store.uri}/students/k", tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("years of work")
    assert "is not empty" in failed(capsys, "pull", uri, full)
    assert [p.name for p in full.iterdir()] == ["thesis.tex"]
    assert main(["pull", uri, str(tmp_path / "k")]) == 0
    capsys.readouterr()
    other = f"{store.uri}/students/other"
    assert "is not empty and no pull of students/other" in failed(
        capsys, "pull", other, tmp_path / "k"
    )
    assert "there is no students/none in" in failed(capsys, "pull", f"{uri[:-1]}none", full)
    assert "names no artifact" in failed(capsys, "pull", "s3://bucket/k", full)
    (tmp_path / "file").write_text("")
    assert "file" in failed(capsys, "pull", uri, tmp_path / "file" / "x")


def test_what_push_refuses(store, tmp_path, cache, capsys):
    put_texts(store, "students/k")
    pulled, uri = tmp_path / "pulled", f"{store.uri}/students/k"
    assert main(["pull", uri, str(pulled)]) == 0
    capsys.readouterr()
    assert "has no manifest.json; push takes" in failed(capsys, "push", tmp_path, uri)
    wrong = failed(capsys, "push", pulled, f"{store.uri}/teachers/k")
    assert f"push it to {store.uri}/students/k" in wrong
    put_texts(store, "students/taken", text="other")
    assert "is another artifact" in failed(capsys, "push", pulled, f"{store.uri}/students/taken")
    (pulled / "b.txt").write_text("hellohellp")
    assert "b.txt does not match its manifest" in failed(capsys, "push", pulled, f"{uri}2")
    assert [a.key for a in store.list("students")] == ["taken", "k"]


def test_one_pull_at_a_time_into_a_directory(store, tmp_path, cache, capsys):
    from filelock import FileLock

    put_texts(store, "students/k")
    uri, pulled = f"{store.uri}/students/k", tmp_path / "pulled"
    assert main(["pull", uri, str(pulled)]) == 0
    capsys.readouterr()
    (pulled / ".parts").mkdir()
    with FileLock(pulled / ".parts" / "lock"):
        assert "another kdscale pull is at work" in failed(capsys, "pull", uri, pulled)
    assert main(["pull", uri, str(pulled)]) == 0
