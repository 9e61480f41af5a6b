"""Training under real kills: real Ray Train and DeepSpeed, two workers, SIGKILL.

Whatever is killed, the run must end with the weights of the run that nobody touched, bit for bit,
and its log must show each batch once.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from kdscale.progress import Reporter
from kdscale.store import open_store
from kdscale.store.pull_push import push
from kdscale.store.s3.client import Bucket
from kdscale.training.checkpoint import checkpoints
from tests.training.recovery_run import EPOCH, Run
from tests.worlds.clusters import Driver, actors, kill_node, ray_cluster_of, wait_for
from tests.worlds.world import make_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(s3_server):  # after the object store, so that workers inherit the settings of it
    with ray_cluster_of(cpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def prepared(cluster, tmp_path_factory):
    """A folder with a config and, in its store, the dataset and its tokens."""
    root = tmp_path_factory.mktemp("prepared")
    config = make_config(root, cluster={"address": cluster.address})
    Driver(root / "output", "-m", "kdscale", "prepare", config).finish()
    return root


@pytest.fixture
def run(prepared, cluster, tmp_path):
    run = Run(prepared, tmp_path, cluster.address)
    yield run
    for driver in run.drivers:
        driver.kill()  # of a test that failed


@pytest.fixture(scope="module")
def whole(prepared, cluster, tmp_path_factory):
    """The run that nobody touches; its folder `seen` has a checkpoint that it had midway."""
    run = Run(prepared, tmp_path_factory.mktemp("whole"), cluster.address)
    driver = run.start()
    wait_for(lambda: driver.running() and run.reached(52), "step 52")
    (work,) = run.folder.glob("store/.work/teachers/*")
    newest = run.pieces("step-*")[-1]  # kept for eight steps more
    shutil.copytree(work / newest, run.folder / "seen" / work.name / newest)
    driver.finish()
    run.check_log()
    assert run.pieces() == []  # what was work in progress is gone
    return run


def workers(cluster):
    return actors(cluster, "RayTrainWorker")


def seconds_to_progress(killed_at, run, driver, what):
    """Waits for the first checkpoint after a kill."""
    time.sleep(1)  # what was being published may still arrive
    before = run.pieces("step-*")[-1]
    wait_for(lambda: driver.running() and run.pieces("step-*")[-1:] > [before], "progress")
    print(f"{what}: {time.monotonic() - killed_at:.1f} s from the kill to a new checkpoint")


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def stop_where(cluster, found):
    """Stop the workers at a moment at which `found()` gives something; None if they were gone on
    by then. What it gives must be the same a moment later, when what was on its way has arrived."""
    seen = found()
    if not seen:
        return None
    for worker in workers(cluster):
        worker.suspend()
    time.sleep(0.3)
    if found() == seen:
        return seen
    for worker in workers(cluster):
        worker.resume()
    return None


def kill_all(driver, cluster):
    driver.kill()
    for worker in workers(cluster):
        worker.kill()
    wait_for(lambda: not workers(cluster), "the workers of the killed driver to go")


def resumed(step):
    return f"resumed from the checkpoint of step {step} "


def test_killed_workers(run, whole, cluster):
    """One of each rank, in mid-epoch."""
    driver = run.start()
    for rank, step in ((1, 22), (0, 62)):
        wait_for(lambda step=step: driver.running() and run.reached(step), f"step {step}")
        os.kill(workers(cluster)[rank].pid, signal.SIGKILL)
        seconds_to_progress(time.monotonic(), run, driver, f"worker {rank}")
    assert driver.finish().count("resumed from the checkpoint of step") == 2
    assert run.facts()["resumed_at"] >= 60
    run.check_log()
    assert run.weights() == whole.weights()


def test_a_killed_driver(run, whole, cluster):
    """Killed at an epoch's end, in mid-epoch with the newest checkpoint damaged afterwards, and
    between training and commit."""

    def epochs_end():
        newest = run.pieces("step-*")[-1:]
        return newest if newest and int(newest[0][5:]) % EPOCH == 0 else None

    driver = run.start()
    (ended,) = wait_for(lambda: driver.running() and stop_where(cluster, epochs_end), "the end")
    kill_all(driver, cluster)
    killed_at = time.monotonic()

    driver = run.start()
    seconds_to_progress(killed_at, run, driver, "driver")
    further = min(int(ended[5:]) + 24, 92)
    wait_for(lambda: driver.running() and run.reached(further), "further checkpoints")
    for worker in workers(cluster):
        worker.suspend()  # the driver shows what they say within a second, and they are faster
    line = resumed(int(ended[5:]))
    wait_for(lambda: driver.running() and line in driver.output, "the driver to tell of it", 30)
    kill_all(driver, cluster)
    before, newest = run.pieces("step-*")[-2:]
    (work,) = run.folder.glob("store/.work/teachers/*")
    flip_a_bit(work / newest / "optimizer.safetensors")

    driver = run.start()
    wait_for(lambda: driver.running() and run.pieces("export"), "the model")
    driver.kill()
    assert f"a damaged checkpoint is passed over: {work / newest}" in driver.output
    assert resumed(int(before[5:])) in driver.output
    assert list(run.folder.glob("store/teachers/*")) == []

    output = run.start().finish(timeout_s=60)
    assert "resumed from" not in output and "starting Ray" not in output
    run.check_log()
    assert run.weights() == whole.weights()
    assert run.pieces() == []


def test_a_driver_killed_during_an_upload_to_a_bucket(run, whole, cluster, s3_server):
    """Nothing but the object store is shared: workers fetch the inputs and the checkpoints."""
    for artifact in [*run.folder.glob("store/datasets/*"), *run.folder.glob("store/tokens/*")]:
        target = f"s3://{s3_server.bucket}/recovery/{artifact.parent.name}/{artifact.name}"
        push(artifact, target, Reporter())
    run.uri = f"s3://{s3_server.bucket}/recovery"
    workspace = open_store(run.uri).workspace("teachers", whole.artifact.name)
    bucket = Bucket(run.uri)

    def halves():
        """Checkpoints newer than the newest whole one, of which some objects are there."""
        below = f".work/teachers/{whole.artifact.name}/"
        keys = [o.key.removeprefix(below).split("/") for o in bucket.objects(below)]
        newest = max(key[0] for key in keys if len(key) == 2)
        return sorted({key[0] for key in keys if key[0] > newest})

    driver = run.start()
    wait_for(lambda: driver.running() and len(checkpoints(workspace)) == 2, "two checkpoints")
    (half,) = wait_for(lambda: driver.running() and stop_where(cluster, halves), "an upload")
    kill_all(driver, cluster)
    newest = checkpoints(workspace)[-1]
    assert half > newest
    assert resumed(int(newest[5:])) in run.start().finish()
    (teacher,) = open_store(run.uri).list("teachers")
    assert teacher.facts["resumed_at"] == int(newest[5:])
    assert (teacher.path / "model.safetensors").read_bytes() == whole.weights()
    rows = [json.loads(x) for x in (teacher.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["batches"] for row in rows] == run.expected_batches()
    assert workspace.names() == []


def test_one_worker_goes_on_with_what_two_began(run, whole):
    shutil.copytree(whole.folder / "seen", run.folder / "store" / ".work" / "teachers")
    run.start(workers=1).finish()
    assert run.facts()["resumed_at"] >= 52
    for ours, theirs in zip(run.check_log(), whole.rows(), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
    ours = load_file(run.artifact / "model.safetensors")
    theirs = load_file(whole.artifact / "model.safetensors")
    assert max((ours[name] - theirs[name]).abs().max() for name in ours) < 1e-4


def test_a_notice_of_preemption_makes_a_checkpoint(run, whole, cluster):
    """The node of one worker is drained, as a cloud's notice has it drained, and then goes;
    another takes its place."""
    spot = cluster.add_node(num_cpus=2)
    # Of 2 CPUs a node, so that each worker is on one of its own; no checkpoint but the notice's.
    driver = run.start(cpus_per_worker=1.4, checkpoint_every=0)
    wait_for(lambda: driver.running() and len(workers(cluster)) == 2, "the workers")
    drain = {
        "--address": cluster.address,
        "--node-id": spot.node_id,
        "--reason": "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message": "spot",
        "--deadline-remaining-seconds": "300",
    }
    options = [word for option in drain.items() for word in option]
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    subprocess.run([*ray, "drain-node", *options], check=True)
    noticed_at = time.monotonic()
    wait_for(lambda: driver.running() and run.pieces("step-*"), "a checkpoint")
    print(f"notice: {time.monotonic() - noticed_at:.1f} s to a checkpoint")
    kill_node(cluster, spot)
    (piece,) = run.pieces("step-*")
    cluster.add_node(num_cpus=2)
    output = driver.finish()
    assert resumed(int(piece[5:])) in output
    run.check_log()
    assert run.weights() == whole.weights()
