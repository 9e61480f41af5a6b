"""A whole sweep on object storage, on a cluster of two nodes, under real kills."""

import signal
import time

import pytest

from kdscale.evaluation.trials import read_trials
from kdscale.store import open_store
from kdscale.sweep.driver import open_record
from kdscale.sweep.spec import load_sweep
from kdscale.training.metrics import METRICS, read_rows
from tests.worlds.clusters import SELDOM_S, Driver, actors, kill_node, ray_cluster_of, wait_for
from tests.worlds.world import SHAPES, make_sweep

pytestmark = pytest.mark.slow

STEPS, EVERY = 300, 10
LABELS = {"pool": "training"}


@pytest.fixture
def cluster(s3_server):  # after the object store, so that workers inherit the settings of it
    with ray_cluster_of(cpus=1, state_api=True) as cluster:
        yield cluster


def test_killed_workers_trials_and_nodes_leave_a_sweep_whole(
    tmp_path, s3_server, cluster, monkeypatch
):
    monkeypatch.setenv("KDSCALE_CACHE", str(tmp_path / "cache"))
    node = cluster.add_node(num_cpus=1, labels=LABELS)
    uri = f"s3://{s3_server.bucket}/sweep"
    path = make_sweep(
        tmp_path,
        {
            "strategy": {"grid": ["finetune"]},
            "shape": {"grid": SHAPES[:1]},
            "seed": {"grid": [1, 2]},
        },
        storage={"uri": uri},
        search={"concurrent": 1},
        ranker={
            "group_size": 4,
            "train": {
                "max_steps": STEPS,
                "batch_size": 8,
                "log_every": EVERY,
                "checkpoint_every": EVERY,
            },
        },
        engine="deepspeed",
        cluster={"address": cluster.address, "worker_labels": LABELS},
    )
    store, record = open_store(uri), open_record(load_sweep(path))
    driver = Driver(tmp_path / "output", "-m", "kdscale", "sweep", path)

    def checkpoints():
        """(student, checkpoint) of all students in training."""
        return {
            (key, name)
            for key in store.unfinished("students")
            for name in store.workspace("students", key).names()
            if name.startswith("step-")
        }

    def one_more(killed):
        """Waits for a checkpoint that was not there."""
        began = time.monotonic()
        time.sleep(1)  # what was being published may still arrive
        before = checkpoints()
        wait_for(lambda: driver.running() and checkpoints() - before, "progress", poll_s=SELDOM_S)
        print(f"{killed}: {time.monotonic() - began:.1f} s from the kill to a new checkpoint")

    def kill(name):
        (process,) = actors(cluster, name)
        process.send_signal(signal.SIGKILL)
        one_more(name)

    try:
        wait_for(lambda: driver.running() and checkpoints(), "a first checkpoint", poll_s=SELDOM_S)
        kill("RayTrainWorker")
        kill("ImplicitFunc")  # the trial's own process
        kill_node(cluster, node)
        cluster.add_node(num_cpus=1, labels=LABELS)
        one_more("node")
        driver.finish()
    finally:
        driver.kill()
    about = read_trials(record.artifact().path / "results.parquet")[1]
    assert about["counts"]["finished"] == 2
    students = store.list("students")
    assert {s.digest for s in students} == {t["student"]["digest"] for t in about["trials"]}
    assert len(students) == 2
    # The trial that met the kills went on from a checkpoint, not from the beginning.
    assert max(s.facts["resumed_at"] or 0 for s in students) >= EVERY
    for student in students:  # no row of the log is missing or there twice
        steps = [row["step"] for row in read_rows(student.path / METRICS)]
        assert steps == list(range(EVERY, STEPS + 1, EVERY))
    assert not checkpoints()
