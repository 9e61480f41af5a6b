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
import yaml
from clusters import Driver, actors, ray_cluster_of, wait_for
from safetensors.torch import load_file
from world import make_config

from kdscale.data.batches import BatchOrder
from kdscale.progress import Reporter
from kdscale.store import open_store
from kdscale.store.exchange import push
from kdscale.training.checkpoint import checkpoints
from kdscale.training.metrics import batch_digest

pytestmark = pytest.mark.slow

STEPS = 100
EPOCH = 5  # steps: 60 training queries, 12 a batch
EVERY = 4  # steps from checkpoint to checkpoint: step 20, 40, ... is an epoch's end as well
TRAIN = {
    "max_steps": STEPS,
    "batch_size": 12,
    "micro_tokens": 64,  # several micro-batches a step
    "lr": 1e-3,
    "log_every": 1,
    "checkpoint_every": EVERY,
}


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


class Run:
    """One training, which may take several drivers."""

    def __init__(self, prepared, folder, address):
        shutil.copytree(prepared / "store", folder / "store")
        self.folder, self._prepared, self._address = folder, prepared, address
        self.uri = str(folder / "store")
        self.drivers = []

    def start(self, workers=2, cpus_per_worker=0.4, **changes):
        config = yaml.safe_load((self._prepared / "config.yaml").read_text())
        config["storage"] = {"uri": self.uri}
        config["teacher"]["train"] = {**TRAIN, **changes}
        config["cluster"] = {
            "address": self._address,
            "workers": workers,
            "cpus_per_worker": cpus_per_worker,
        }
        number = len(self.drivers)
        path = self.folder / f"config-{number}.yaml"
        path.write_text(yaml.safe_dump(config))
        output = self.folder / f"output-{number}"
        self.drivers.append(Driver(output, "-m", "kdscale", "finetune", path))
        return self.drivers[-1]

    def pieces(self, pattern="*"):
        return sorted(p.name for p in self.folder.glob(f"store/.work/teachers/*/{pattern}"))

    def reached(self, step):
        """The newest checkpoint is of this step or a later one."""
        return self.pieces("step-*")[-1:] >= [f"step-{step:09d}"]

    @property
    def artifact(self):
        (path,) = self.folder.glob("store/teachers/*")
        return path

    def weights(self):
        return (self.artifact / "model.safetensors").read_bytes()

    def rows(self):
        return [json.loads(x) for x in (self.artifact / "metrics.jsonl").read_text().splitlines()]

    def facts(self):
        return json.loads((self.artifact / "manifest.json").read_text())["facts"]

    def check_log(self):
        """No step left out or done twice, and no batch, by what was read in each step."""
        rows = self.rows()
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
        assert [row["batches"] for row in rows] == self.expected_batches()
        return rows

    def expected_batches(self):
        from kdscale.data.dataset import Dataset, Tokens
        from kdscale.data.groups import GroupSource

        (dataset,) = self.folder.glob("store/datasets/*")
        (tokens,) = self.folder.glob("store/tokens/*")
        source = GroupSource(Dataset(dataset), Tokens(tokens), None, 4, None, seed=13)
        order = BatchOrder(source.lengths, 12, seed=13)
        assert order.steps_per_epoch == EPOCH
        return [[batch_digest(order.batch(step)[1])] for step in range(STEPS)]


@pytest.fixture
def run(prepared, cluster, tmp_path):
    run = Run(prepared, tmp_path, cluster.address)
    yield run
    for driver in run.drivers:
        driver.kill()  # of a test that failed


@pytest.fixture(scope="module")
def whole(prepared, cluster, tmp_path_factory):
    """The run that nobody touches."""
    run = Run(prepared, tmp_path_factory.mktemp("whole"), cluster.address)
    run.start().finish()
    run.check_log()
    assert run.pieces() == []  # what was work in progress is gone
    return run


def workers(cluster):
    return actors(cluster, "RayTrainWorker")


def seconds_to_progress(killed_at, run, driver, what):
    """Waits for the first checkpoint after a kill."""
    before = run.pieces("step-*")[-1]
    wait_for(lambda: driver.running() and run.pieces("step-*")[-1:] > [before], "progress")
    print(f"{what}: {time.monotonic() - killed_at:.1f} s from the kill to a new checkpoint")


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker(run, whole, cluster, rank):
    driver = run.start()
    wait_for(lambda: driver.running() and run.reached(44), "step 44")  # in mid-epoch
    os.kill(workers(cluster)[rank].pid, signal.SIGKILL)
    seconds_to_progress(time.monotonic(), run, driver, "worker")
    assert "going on from the checkpoint of step" in driver.finish()
    assert run.facts()["resumed_at"] >= 44
    run.check_log()
    assert run.weights() == whole.weights()


def test_a_killed_driver(run, whole, cluster):
    """Killed at an epoch's end, in the middle of publishing a checkpoint, in mid-epoch with the
    newest checkpoint damaged afterwards, and between training and commit."""
    driver = run.start()
    wait_for(lambda: driver.running() and run.reached(20), "step 20, an epoch's end")
    driver.kill()
    killed_at = time.monotonic()

    driver = run.start()
    seconds_to_progress(killed_at, run, driver, "driver")
    wait_for(lambda: driver.running() and run.reached(28), "step 28")
    half = wait_for(lambda: driver.running() and stop_while_publishing(run, cluster), "publishing")
    driver.kill()
    for worker in workers(cluster):
        worker.kill()
    assert half in run.pieces(".step-*.part") and half[1:15] not in run.pieces("step-*")
    started = run.pieces("step-*")[-1]

    driver = run.start()
    wait_for(lambda: driver.running() and run.reached(62), "step 64, in mid-epoch")
    for worker in workers(cluster):
        worker.suspend()  # the driver shows what they say within a second, and they are faster
    line = f"going on from the checkpoint of step {int(started[5:])} "
    wait_for(lambda: driver.running() and line in driver.output, "the driver to tell of it", 30)
    driver.kill()
    for worker in workers(cluster):
        worker.kill()
    wait_for(lambda: not workers(cluster), "the workers of the killed driver to go")
    before, newest = run.pieces("step-*")[-2:]
    (work,) = run.folder.glob("store/.work/teachers/*")
    flip_a_bit(work / newest / "optimizer.safetensors")

    driver = run.start()
    wait_for(lambda: driver.running() and run.pieces("export"), "the model")
    driver.kill()
    assert f"a damaged checkpoint is passed over: {work / newest}" in driver.output
    assert f"going on from the checkpoint of step {int(before[5:])} " in driver.output
    assert list(run.folder.glob("store/teachers/*")) == []

    output = run.start().finish(timeout_s=60)
    assert "going on from" not in output and "starting Ray" not in output
    run.check_log()
    assert run.weights() == whole.weights()
    assert run.pieces() == []


def test_a_killed_worker_and_driver_with_a_bucket(run, whole, cluster, s3_server):
    """Nothing but the object store is shared: workers fetch the inputs and the checkpoints."""
    for artifact in [*run.folder.glob("store/datasets/*"), *run.folder.glob("store/tokens/*")]:
        target = f"s3://{s3_server.bucket}/recovery/{artifact.parent.name}/{artifact.name}"
        push(artifact, target, Reporter())
    run.uri = f"s3://{s3_server.bucket}/recovery"
    workspace = open_store(run.uri).workspace("teachers", whole.artifact.name)

    def reached(step):
        return max(checkpoints(workspace), default="") >= f"step-{step:09d}"

    driver = run.start()
    wait_for(lambda: driver.running() and reached(24), "step 24")
    os.kill(workers(cluster)[0].pid, signal.SIGKILL)
    wait_for(lambda: driver.running() and reached(48), "step 48")
    driver.kill()
    assert "going on from the checkpoint of step" in driver.output
    run.start().finish()
    (teacher,) = open_store(run.uri).list("teachers")
    assert teacher.facts["resumed_at"] >= 48
    assert (teacher.path / "model.safetensors").read_bytes() == whole.weights()
    rows = [json.loads(x) for x in (teacher.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["batches"] for row in rows] == run.expected_batches()
    assert workspace.names() == []


def stop_while_publishing(run, cluster):
    """The half-written checkpoint that the workers were stopped at, if they were in time."""
    half = run.pieces(".step-*.part")
    if not half:
        return None
    for worker in workers(cluster):
        worker.suspend()
    if run.pieces(".step-*.part") == half:
        return half[0]
    for worker in workers(cluster):
        worker.resume()
    return None


def test_one_worker_goes_on_with_what_two_began(run, whole, cluster):
    driver = run.start(workers=2)
    wait_for(lambda: driver.running() and run.reached(52), "step 52")
    driver.kill()
    wait_for(lambda: not workers(cluster), "the workers of the killed driver to go")
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
    cluster.remove_node(spot, allow_graceful=False)
    (piece,) = run.pieces("step-*")
    cluster.add_node(num_cpus=2)
    output = driver.finish()
    assert f"going on from the checkpoint of step {int(piece[5:])} " in output
    run.check_log()
    assert run.weights() == whole.weights()
