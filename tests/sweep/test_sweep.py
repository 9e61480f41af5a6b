"""Whole sweeps on a tiny world: what is shared, what a kill leaves, and what is stopped early."""

from collections import Counter
from pathlib import Path

import pytest

from kdscale.cli import main
from kdscale.evaluation.trials import read_trials
from kdscale.store import open_store
from kdscale.sweep.driver import open_record
from kdscale.sweep.placement import Orphans
from kdscale.sweep.spec import load_sweep
from tests.worlds.clusters import SELDOM_S, Driver, wait_for
from tests.worlds.world import SHAPES, make_sweep

pytestmark = pytest.mark.slow

SEEDS = {"strategy": {"grid": ["finetune"]}, "shape": {"grid": SHAPES[:1]}}


def run(path, *options):
    return main(["sweep", str(path), *options])


def result_of(path):
    artifact = open_record(load_sweep(path)).artifact()
    return artifact, *read_trials(artifact.path / "results.parquet")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, ray_cluster):
    """Two strategies and two shapes, by plain torch."""
    path = make_sweep(tmp_path_factory.mktemp("sweep"))
    assert run(path) == 0
    return path


def test_every_trial_is_in_the_table_and_what_they_share_was_made_once(finished):
    artifact, table, about = result_of(finished)
    assert about["shared"] == {
        "teachers": {"made": 1, "found": 0},
        "pairs_scored": {"made": 300, "found": 0},
        "language_models": {"made": 2, "found": 0},
    }
    store = open_store(load_sweep(finished).base.storage.uri)
    held = {kind: len(store.list(kind)) for kind in ("teachers", "scores", "lms", "students")}
    assert held == {"teachers": 1, "scores": 1, "lms": 2, "students": 4}
    counts = about["counts"]
    assert counts["trials"] == counts["finished"] == 4 and counts["waiting"] == 0
    rows = [row for row in table.to_pylist() if row["measure"] == "nDCG@10"]
    assert Counter(row["system"] for row in rows) == Counter(
        ["bm25", "teacher", *(t.system for t in load_sweep(finished).trials)]
    )
    for row in rows:
        assert len(row["values"]) == 10 and 0 <= row["mean"] <= 1
        if row["strategy"]:
            assert row["ms"] > 0 and row["parameters"] and row["bytes"] and row["pairs_seen"] == 128
            assert artifact.manifest["inputs"]["trial:0001"]["digest"]
    of_shape = {(row["shape"], row["ms"]) for row in rows if row["shape"]}
    assert len(of_shape) == 2  # timed once a shape
    assert {t["student"]["name"] for t in about["trials"]} == {
        row["artifact"] for row in rows if row["strategy"]
    }
    assert open_record(load_sweep(finished)).begun() is None


def test_an_ended_sweep_is_not_run_again(finished, capsys):
    assert run(finished) == 0
    shown = capsys.readouterr().out
    assert "nothing to do: the sweep has ended" in shown and "4 trials: 4 finished" in shown
    assert run(finished, "--status") == 0
    assert "1 teachers, 300 pairs scored, 2 language models" in capsys.readouterr().out


def test_a_dry_run_estimates_from_what_was_measured(finished, capsys):
    more = ["--set", "sweep.space.seed={grid: [13, 14]}"]
    assert run(finished, "--dry-run", *more) == 0
    shown = capsys.readouterr().out
    assert "cached     scores" in shown and "would run  0002" in shown
    assert "time, as measured in this store, one after another: about" in shown
    assert run(finished, "--dry-run", "--set", "sweep.limits.hours=1e-9", *more) == 1
    assert "limits.hours: 1e-09 is too small for one trial" in capsys.readouterr().err
    assert run(finished, "--set", "sweep.limits.hours=1e-9", *more) == 1
    assert "limits.hours: 1e-09 is too small for one trial" in capsys.readouterr().err


def test_trials_that_are_one_student_are_refused(finished, capsys):
    same = ["--set", "sweep.space={strategy: {grid: [finetune]}, budget: {grid: [0.5, 30]}}"]
    assert run(finished, "--dry-run", *same) == 1
    assert "trials 0001 and 0003 are one student" in capsys.readouterr().err


def test_a_sweep_that_was_never_begun_is_not_resumed(finished, capsys):
    assert run(finished, "--resume", "--set", "name=another") == 1
    assert "no sweep another of this file was begun" in capsys.readouterr().err
    assert run(finished, "--status", "--set", "name=another") == 1
    assert "no trial has begun yet" in capsys.readouterr().err


def test_a_driver_that_was_killed_is_gone_on_with(finished, tmp_path, capsys):
    space = {**SEEDS, "seed": {"grid": [1, 2, 3]}}
    path = make_sweep(finished.parent, space, file="killed.yaml", search={"concurrent": 1})
    command = ["-m", "kdscale", "sweep", path]
    record = open_record(load_sweep(path))
    pieces = record.store.workspace("sweeps", record.key)
    driver = Driver(tmp_path / "killed.log", *command)
    wait_for(
        lambda: driver.running() and "trial-0001" in pieces.names(), "trial 1", poll_s=SELDOM_S
    )
    wait_for(lambda: driver.running() and len(_begun(record)) > 1, "trial 2", poll_s=SELDOM_S)
    driver.kill()
    ended = {name for name in pieces.names() if name.startswith("trial-")}
    before = {name: _written(record, name) for name in ended}
    assert 1 <= len(ended) < 3
    assert run(path) == 1
    assert "add --resume to resume it" in capsys.readouterr().err
    assert run(path, "--resume", "--set", "ranker.train.lr=0.5") == 1
    assert "ranker.train.lr was 0.001, is 0.5; put that back" in capsys.readouterr().err
    assert run(path, "--status") == 0
    assert f"{len(ended)} finished" in capsys.readouterr().out
    again = Driver(tmp_path / "resumed.log", *command, "--resume")
    more = len(ended) + 1
    wait_for(lambda: again.running() and len(_ended(record)) >= more, "more", poll_s=SELDOM_S)
    assert {name: _written(record, name) for name in ended} == before
    shown = again.finish()
    assert f"{len(ended)} trials have ended before and are kept" in shown
    for trial in (name.removeprefix("trial-") for name in ended):
        assert f"trial {trial}" not in shown  # none runs twice
    about = read_trials(record.artifact().path / "results.parquet")[1]
    assert about["counts"]["finished"] == 3
    assert about["shared"]["pairs_scored"]["made"] == 0
    assert len({t["student"]["digest"] for t in about["trials"]}) == 3


def _begun(record):
    return [t for t in (record.state() or {"trials": []})["trials"] if t["status"] != "waiting"]


def _ended(record):
    """Of a sweep at work, or of one that has just ended."""
    return [t for t in record.state()["trials"] if t["status"] == "finished"]


def _written(record, name):
    piece = Path(record.store.uri) / ".work/sweeps" / record.key / name
    return (piece / "manifest.json").stat().st_mtime_ns


def test_what_asha_stops_is_recorded_and_frees_its_workers(finished, ray_cluster, capsys):
    """Trained by Ray Train and DeepSpeed."""
    train = {"max_steps": 240, "batch_size": 8, "log_every": 20, "checkpoint_every": 0}
    watch = {"every": 40, "queries": 10, "train_queries": 5, "depth": 10}
    # On ten dev queries of the tiny world the untrained student stays ahead: what is second at
    # the first rung is stopped, whichever that is.
    space = {**SEEDS, "ranker.train.lr": {"grid": [1e-12, 3e-3]}}
    path = make_sweep(
        finished.parent,
        space,
        engine="deepspeed",
        file="asha.yaml",
        ranker={"group_size": 4, "train": train, "watch": watch},
        search={"scheduler": "asha", "concurrent": 1},
    )
    assert run(path) == 0
    record = open_record(load_sweep(path))
    good, bad = record.state()["trials"]
    assert (good["status"], bad["status"]) == ("finished", "stopped")
    assert [step for step, _ in good["curve"]] == list(range(0, 241, 40))
    assert bad["value"] == bad["curve"][-1][1] < good["value"] and bad["step"] < 240
    assert good["student"] and bad["student"] is None
    assert "stopped at step" in capsys.readouterr().out
    whole = ray_cluster.cluster_resources()["CPU"]
    orphans = Orphans(after_s=10)  # at times Ray Train's cleaner misses one: the sweep looks too

    def free():
        orphans.look()
        return ray_cluster.available_resources().get("CPU") == whole

    wait_for(free, "free CPUs", 90, poll_s=1)


def test_a_trial_that_fails_does_not_stop_the_others(finished, capsys):
    space = {**SEEDS, "ranker.train.lr": {"grid": [1e30, 2e-3]}}
    path = make_sweep(finished.parent, space, file="fails.yaml")
    assert run(path) == 1
    shown = capsys.readouterr()
    assert "1 of 2 trials failed (first 0001" in shown.err and "not a number" in shown.err
    assert run(path, "--resume") == 0  # tried once more, and that was that
    about = open_record(load_sweep(path)).state()
    assert [t["status"] for t in about["trials"]] == ["failed", "finished"]
