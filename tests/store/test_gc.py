import json
import os
import time
from pathlib import Path

import pytest

from kdscale.cli import main
from kdscale.config import Config, Shape
from kdscale.errors import KdscaleError
from kdscale.experiment.steps import build_steps
from kdscale.store import LocalStore, open_store
from kdscale.store.artifact import KINDS
from kdscale.store.inventory import DAY_S, all_artifacts, make_plan
from tests.worlds.artifacts import put_texts, write_files

TOMORROW = 25 * 3600
MADE = {
    "datasets/d": (),
    "tokens/t": ("datasets/d",),
    "teachers/t": ("datasets/d", "tokens/t"),
    "scores/s": ("datasets/d", "tokens/t", "teachers/t"),
    "students/s": ("datasets/d", "tokens/t", "scores/s"),
    "datasets/orphan": (),
    "tokens/orphan": ("datasets/orphan",),
    "teachers/orphan": ("datasets/orphan", "tokens/orphan"),
    "lms/orphan": ("tokens/t",),
}
ORPHANS = {name for name in MADE if name.endswith("/orphan")}


@pytest.fixture
def filled(store, cache):
    for name, inputs in MADE.items():
        put_texts(store, name, inputs=inputs)
    return store


def removed(store, keep=(), now=None):
    plan = make_plan(store, list(keep), now)
    for holding, _ in plan.remove:
        store.discard(holding)
    return {holding.name for holding, _ in plan.remove}


def names(store):
    return {artifact.name for artifact in all_artifacts(open_store(store.uri))}


def test_what_no_student_was_made_from_goes(filled):
    assert removed(filled, now=time.time() + TOMORROW) == ORPHANS
    assert names(filled) == MADE.keys() - ORPHANS
    assert open_store(filled.uri).find("students", "s").path.is_dir()
    assert {h.name for h in filled.holdings()} == MADE.keys() - ORPHANS  # their files went too


def test_what_is_named_stays_with_all_that_it_was_made_from(filled):
    kept = {"tokens/orphan", "datasets/orphan"}
    assert removed(filled, ["tokens/orphan"], time.time() + TOMORROW) == ORPHANS - kept
    with pytest.raises(KdscaleError, match="--keep tokens/typo: there is no such artifact"):
        make_plan(filled, ["tokens/typo"])


def test_what_is_young_stays_since_a_run_may_need_it(filled):
    plan = make_plan(filled, [])
    assert plan.remove == []
    assert {h.name for h, _ in plan.spared} == ORPHANS


def test_orphans_stay_while_work_is_going_on_and_old_work_goes(filled, tmp_path):
    filled.workspace("lms", "x").publish(write_files(tmp_path / "p", {"a": 10}), "step-1")
    work = next(h for h in filled.holdings() if h.sort == "work")
    soon = work.modified + DAY_S - 1
    if isinstance(filled, LocalStore):  # of a bucket the service keeps the times
        for manifest in Path(filled.uri).glob("*/orphan/manifest.json"):
            os.utime(manifest, (soon - TOMORROW, soon - TOMORROW))
        assert removed(filled, now=soon) == set()
        reasons = {reason for _, reason in make_plan(filled, [], soon).spared}
        assert reasons == {"nothing refers to it, but .work/lms/x is at work"}
    assert removed(filled, now=soon + TOMORROW) == {*ORPHANS, ".work/lms/x"}
    assert filled.workspace("lms", "x").names() == []


def test_half_written_files_go_after_a_day(s3_uri, raw):
    store = open_store(s3_uri)
    put_texts(store, "students/k")
    whole = raw.names()
    raw.put(f"students/k/{'a' * 32}/b.txt", b"of a writer that was killed")
    raw.put(f"students/new/{'b' * 32}/b.txt", b"of another")
    key = f"{raw.prefix}/students/new/{'c' * 32}/large"
    upload = raw.client.create_multipart_upload(Bucket=raw.bucket, Key=key)["UploadId"]
    part = {"Bucket": raw.bucket, "Key": key, "UploadId": upload, "PartNumber": 1}
    raw.client.upload_part(**part, Body=b"x" * 5_000_000)
    raw.put("students/readme.txt", b"not ours")
    raw.put("other/k/manifest.json", b"not ours")
    assert removed(store) == set()
    plan = make_plan(store, [], time.time() + TOMORROW)
    assert sum(h.bytes for h, _ in plan.remove) == 27 + 10 + 5_000_000
    assert removed(store, now=time.time() + TOMORROW) == {
        f"students/k/{'a' * 32}",
        f"students/new/{'b' * 32}",
        f"students/new/{'c' * 32}/large (upload {upload[:8]})",
    }
    assert raw.names() == sorted([*whole, "students/readme.txt", "other/k/manifest.json"])
    left = raw.client.list_multipart_uploads(Bucket=raw.bucket, Prefix=raw.prefix)
    assert not left.get("Uploads")


def test_a_killed_writer_in_a_folder(tmp_path):
    store = LocalStore(tmp_path)
    store.preflight()
    left = write_files(tmp_path / ".staging" / "students-k-1234", {"a": 7})
    assert removed(store) == set()
    assert removed(store, now=time.time() + TOMORROW) == {".staging/students-k-1234"}
    assert not left.exists()


def test_a_manifest_that_cannot_be_read_stops_it(filled, request):
    if filled.uri.startswith("s3://"):
        request.getfixturevalue("raw").put("students/s/manifest.json", b"{}")
    else:
        Path(filled.uri, "students/s/manifest.json").write_text("{}")
    with pytest.raises(KdscaleError, match=r"students/s/manifest\.json is not a kdscale manifest"):
        make_plan(filled, [], time.time() + TOMORROW)


def test_the_command(tmp_path, capsys):
    store = LocalStore(tmp_path)
    for name, inputs in MADE.items():
        put_texts(store, name, inputs=inputs)
    assert main(["gc", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "kept datasets/orphan, " in shown and "younger than a day" in shown
    for manifest in tmp_path.glob("*/*/manifest.json"):
        os.utime(manifest, (time.time() - TOMORROW, time.time() - TOMORROW))
    assert main(["gc", str(tmp_path), "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"would remove 4 in {tmp_path}, ")
    assert names(store) == set(MADE)
    assert main(["gc", str(tmp_path), "--keep", "lms/orphan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(f"removed 3 in {tmp_path}, ")
    assert any(line.startswith("removed teachers/orphan, ") for line in lines)
    assert names(store) == MADE.keys() - ORPHANS | {"lms/orphan"}
    assert not list((tmp_path / ".staging").iterdir())


def test_every_kind_that_a_step_makes_is_known():
    config = Config(students=[Shape("s", 1, 16, 2, 32)])
    made = {step.kind for step in build_steps(config).values()}
    assert made | {"sweeps"} == set(KINDS)  # a sweep is of many configs: no step makes it


def test_the_list_of_artifacts(filled, capsys):
    assert main(["artifacts", filled.uri, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {f"{row['kind']}/{row['name']}" for row in rows} == set(MADE)
    student = next(row for row in rows if row["kind"] == "students")
    assert student["bytes"] == 15 and student["uri"] == f"{filled.uri}/students/s"
    assert student["inputs"]["input 2"]["name"] == "scores/s"
    filled.discard(next(h for h in filled.holdings() if h.name == "datasets/orphan"))
    assert main(["artifacts", filled.uri]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"8 artifacts, 120 bytes, in {filled.uri}"
    assert lines[0].split() == ["kind", "name", "size", "age", "made", "from"]
    cells = {"/".join(line.split()[:2]): line.split()[2:] for line in lines[1:-1]}
    assert cells["students/s"][:2] == ["15", "bytes"]
    assert cells["students/s"][-1] == "scores/s"  # what scores were made from is left out
    assert cells["tokens/orphan"][-2:] == ["datasets/orphan", "(gone)"]


def test_an_empty_store_has_no_artifacts(store, capsys):
    if isinstance(store, LocalStore):
        store.root.mkdir()
    assert main(["artifacts", store.uri]) == 0
    assert capsys.readouterr().out == f"0 artifacts, 0 bytes, in {store.uri}\n"
    assert main(["artifacts", store.uri, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize("command", ["artifacts", "gc"])
def test_a_folder_that_is_not_there_is_no_empty_store(tmp_path, capsys, command):
    assert main([command, str(tmp_path / "slip")]) == 1
    assert f"no store at {tmp_path / 'slip'}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
