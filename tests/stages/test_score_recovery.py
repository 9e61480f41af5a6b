"""Scoring under real kills: an actor, a node, the driver. No pair is lost or doubled, and what was
finished is not scored again."""

import json
import os
import shutil
import signal
import time
from collections import Counter

import pytest
import yaml

from tests.worlds.clusters import Driver, actors, kill_node, ray_cluster_of, raylet_pid, wait_for
from tests.worlds.world import make_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    # With 1.4 CPUs a scorer, the second goes to a second node where there is one.
    with ray_cluster_of(cpus=3) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def prepared(cluster, tmp_path_factory):
    """A folder with a config and, in its store, the dataset, its tokens and a teacher."""
    root = tmp_path_factory.mktemp("prepared")
    changes = {
        "cluster": {"address": cluster.address, "scorers": 2, "cpus_per_scorer": 1.4},
        "score": {"batch_tokens": 16},  # some twenty blocks
    }
    config = make_config(root, **changes)
    finetune = ("-m", "kdscale", "finetune", config, "--set", "cluster.engine=torch")
    Driver(root / "output", *finetune).finish()
    return root


class Run:
    """One scoring, which may take several drivers."""

    def __init__(self, prepared, folder):
        shutil.copytree(prepared / "store", folder / "store")
        config = yaml.safe_load((prepared / "config.yaml").read_text())
        config["storage"] = {"uri": str(folder / "store")}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        self.folder, self.drivers = folder, []

    def start(self):
        calls, config = self.folder / "calls", self.folder / "config.yaml"
        output = self.folder / f"output-{len(self.drivers)}"
        self.drivers.append(Driver(output, "-m", "tests.stages.score_driver", calls, config))
        return self.drivers[-1]

    def pieces(self):
        return {p.name: p for p in self.folder.glob("store/.work/scores/*/block-*")}

    def calls(self):
        """block -> how often an actor scored it."""
        return Counter((self.folder / "calls").read_text().split())

    def scores(self):
        (artifact,) = self.folder.glob("store/scores/*")
        return [p.read_bytes() for p in sorted(artifact.glob("part-*.parquet"))]

    def facts(self):
        (artifact,) = self.folder.glob("store/scores/*")
        return json.loads((artifact / "manifest.json").read_text())["facts"]


@pytest.fixture
def run(prepared, tmp_path):
    run = Run(prepared, tmp_path)
    yield run
    for driver in run.drivers:
        driver.kill()  # of a test that failed


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    """The scoring that nobody touches."""
    run = Run(prepared, tmp_path_factory.mktemp("whole"))
    run.start().finish()
    facts = run.facts()
    assert facts["blocks"] > 15 and facts["blocks_taken_over"] == 0 and facts["pairs"] == 300
    assert set(run.calls().values()) == {1} and len(run.calls()) == facts["blocks"]
    return run


def scorers(cluster):
    return actors(cluster, "MapWorker")


def check(run, whole, finished, in_flight):
    """finished: the blocks published before the kill; in_flight: how many more may be redone."""
    assert run.scores() == whole.scores()
    calls = run.calls()
    assert set(calls) == set(whole.calls())
    assert {calls[name] for name in finished} == {1}
    assert sum(calls.values()) <= run.facts()["blocks"] + in_flight


def test_a_killed_actor_and_a_lost_node(run, whole, cluster):
    spot = cluster.add_node(num_cpus=2)
    driver = run.start()
    wait_for(lambda: driver.running() and len(run.pieces()) >= 3, "some blocks")
    of_head, of_spot = sorted(scorers(cluster), key=lambda p: p.ppid() == raylet_pid(spot))
    assert (of_head.ppid(), of_spot.ppid()) == (raylet_pid(cluster.head_node), raylet_pid(spot))
    os.kill(of_head.pid, signal.SIGKILL)
    before, killed_at = list(run.pieces()), time.monotonic()
    wait_for(lambda: driver.running() and len(run.pieces()) >= len(before) + 3, "more blocks")
    kill_node(cluster, spot)
    finished, lost_at = list(run.pieces()), time.monotonic()
    driver.finish()
    ended = time.monotonic()
    print(f"scoring ended {ended - killed_at:.1f} s after the kill of an actor, and")
    print(f"{ended - lost_at:.1f} s after the loss of a node")
    check(run, whole, finished, in_flight=2)


def test_a_killed_driver_and_a_flipped_bit(run, whole, cluster):
    driver = run.start()
    wait_for(lambda: driver.running() and len(run.pieces()) >= 6, "some blocks")
    driver.kill()
    killed_at = time.monotonic()
    wait_for(lambda: not scorers(cluster), "the actors of the killed driver to go")
    finished = run.pieces()
    damaged = finished.pop(sorted(finished)[0])
    path = damaged / "scores.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    driver = run.start()
    wait_for(lambda: driver.running() and len(run.pieces()) > len(finished) + 1, "progress")
    print(f"driver: {time.monotonic() - killed_at:.1f} s from the kill to a new block")
    output = driver.finish()
    assert f"a damaged block is scored again: {path}" in output
    assert f"{len(finished)} of {whole.facts()['blocks']} blocks were scored before" in output
    assert run.facts()["blocks_taken_over"] == len(finished)
    assert run.calls()[damaged.name] == 2
    check(run, whole, finished, in_flight=3)
