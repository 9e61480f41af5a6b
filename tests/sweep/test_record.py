"""What a sweep leaves in the store while it runs, and what is read of it."""

import json
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from kdscale.evaluation.trials import read_trials, trial_rows
from kdscale.progress import Reporter
from kdscale.store import LocalStore, open_store
from kdscale.store.inventory import DAY_S, make_plan
from kdscale.sweep.board import Board, standing
from kdscale.sweep.record import (
    Record,
    Result,
    changes,
    is_alive,
    process,
    sweep_key,
    unfinished_others,
)
from kdscale.sweep.spec import load_sweep
from tests.worlds.world import SHAPES, make_sweep

VALUES = {"nDCG@10": np.array([1.0, 0.5])}


def rows(system="finetune/narrow"):
    return trial_rows(VALUES, system=system)


def finished(trial="0001", value=0.75, seconds=2.0):
    return Result(trial, "finished", {}, value=value, seconds=seconds)


@pytest.fixture(params=["folder", "bucket"])
def record(request, tmp_path):
    uri = tmp_path / "store" if request.param == "folder" else request.getfixturevalue("s3_uri")
    return Record(open_store(str(uri)), sweep_key("tiny", {"seed": 1}))


@pytest.fixture
def s3_uri(s3_server, tmp_path):
    return f"s3://{s3_server.bucket}/sweeps-{tmp_path.name}"


def test_a_result_is_there_from_when_it_was_put_and_stays(record):
    record.begin({"seed": 1})
    assert record.begun()["identity"] == {"seed": 1} and record.read() is None
    record.put(finished(), rows())
    record.put(finished(value=0.1), rows())  # of an attempt that nobody heard of
    found, table = Record(record.store, record.key).result("0001")
    assert found == finished() and table["mean"].to_pylist() == [0.75]
    assert list(record.results(Reporter())) == ["0001"]
    assert record.result("0002") is None


def test_the_table_is_replaced_as_a_whole_and_becomes_the_artifact(record):
    told = {
        "name": "tiny", "metric": "nDCG@10", "created": "2026-01-01T00:00:00+00:00", "trials": [],
        "counts": {"trials": 1, "finished": 0, "stopped": 0, "failed": 0}, "shared": {},
        "left_out": "",
    }  # fmt: skip
    for number in (1, 2):
        record.put_table([rows()] * number, {**told, "number": number})
        table, about = record.read()
        assert table.num_rows == number and about["number"] == number
    pieces = record.store.workspace("sweeps", record.key).names()
    assert [name for name in pieces if name.startswith("table-")] == ["table-000002"]
    record.begin({"seed": 1})
    student = {"name": "students/s", "digest": "d"}
    artifact = record.commit({"seed": 1}, {"trial:0001": student}, [rows()], told, {"n": 1})
    assert artifact.uri == record.uri and artifact.facts == {"n": 1}
    assert artifact.manifest["inputs"] == {"trial:0001": student}
    assert read_trials(artifact.path / "results.parquet")[0].num_rows == 1
    assert json.loads((artifact.path / "sweep.json").read_text()) == told
    assert "No student has been finished" in (artifact.path / "index.html").read_text()
    assert record.begun() is None and record.read()[0].num_rows == 1
    assert [a.name for a in record.store.list("sweeps")] == [f"sweeps/{record.key}"]


def test_a_trial_that_failed_once_is_tried_once_more(record):
    failed = Result("0001", "failed", {}, reason="the loss is not a number")
    record.put(failed)
    assert record.results(Reporter()) == {}
    record.put(failed)
    assert record.results(Reporter())["0001"] == (failed, None)


def test_unfinished_sweeps_of_the_name_are_found(record):
    record.begin({"seed": 1})
    for key in ("tiny-0123456789ab", "tiny-other-0123456789ab"):
        Record(record.store, key).begin({"seed": 2})
    (other,) = unfinished_others(record.store, "tiny", record.key)
    assert other.key == "tiny-0123456789ab"


def test_a_damaged_result_is_said_and_measured_again(tmp_path, capsys):
    record = Record(LocalStore(tmp_path), "tiny-0123456789ab")
    record.put(finished(), rows())
    record.put(finished("0002"), rows())
    piece = tmp_path / ".work" / "sweeps" / record.key / "trial-0001" / "sweep.json"
    piece.write_text(piece.read_text().replace("0.75", "0.95"))
    assert list(record.results(Reporter())) == ["0002"]
    assert "trial 0001 is measured again" in capsys.readouterr().out
    assert list(record.results(Reporter())) == ["0002"]


def test_gc_keeps_the_results_of_an_unfinished_sweep(tmp_path):
    store = LocalStore(tmp_path)
    Record(store, "tiny-0123456789ab").put(finished(), rows())
    plan = make_plan(store, [], now=time.time() + 30 * DAY_S)
    assert plan.remove == []
    assert [reason for _, reason in plan.spared] == ["a sweep that has not ended"]


def test_what_has_changed_is_named(tmp_path):
    space = {"ranker.train.lr": {"grid": [1e-3]}, "shape": {"grid": SHAPES}}
    before = load_sweep(make_sweep(tmp_path, space)).identity()
    space["ranker.train.lr"] = {"grid": [1e-2]}
    now = load_sweep(make_sweep(tmp_path, space, limits={"hours": 1})).identity()
    assert changes(before, now) == [
        "sweep.space.ranker.train.lr.grid was [0.001], is [0.01]",
        "sweep.limits.hours was null, is 1.0",
    ]
    assert changes(before, before) == []


def test_where_it_runs_does_not_make_it_another_sweep(tmp_path):
    path = make_sweep(tmp_path)
    elsewhere = ["storage.uri=s3://bucket/p", "cluster.workers=2", "sweep.search.concurrent=1"]
    assert load_sweep(path).identity() == load_sweep(path, elsewhere).identity()
    assert load_sweep(path).identity() != load_sweep(path, ["seed=99"]).identity()


def test_a_process_is_told_from_all_others():
    own = process()
    assert not is_alive(own)  # this one may go on with its own work
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began = psutil.Process(other.pid).create_time()
    assert is_alive({**own, "pid": other.pid, "began": began})
    assert not is_alive({**own, "pid": other.pid, "began": began - 60})
    assert not is_alive({**own, "pid": other.pid, "began": began, "host": "another"})
    other.communicate(b"\n")
    assert not is_alive({**own, "pid": other.pid, "began": began})
    assert not is_alive(None) and not is_alive({**own, "pid": "x"})


def test_where_a_sweep_stands(tmp_path):
    trials = load_sweep(make_sweep(tmp_path)).trials
    sizes = {t.id: 100 for t in trials} | {"0002": 50}
    board = Board(trials, {"0001": finished(seconds=20.0)}, sizes, "nDCG@10")
    board.start(trials[1])
    board.running["0002"].note({"step": 5, "steps": 10, "dev": 0.25, "dev_step": 4})
    board.end(Result("0003", "stopped", {}, value=0.2, step=4, seconds=5.0))
    counts = {"trials": 4, "finished": 1, "stopped": 1, "failed": 0, "running": 1, "waiting": 1}
    assert board.counts() == counts
    assert 28 < board.seconds_left() <= 30  # one of 100 pairs, one of 50, just begun
    assert [told["status"] for told in board.as_json()] == [
        "finished",
        "running",
        "stopped",
        "waiting",
    ]
    assert standing(board).startswith("1 of 4 finished, 1 stopped, 1 running, 1 waiting, about 30")
    assert standing(board).endswith("best nDCG@10 0.750, finetune/narrow, data 100.00%, seed 13")
