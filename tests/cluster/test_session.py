"""Resource checks and connections against a real cluster of several (simulated) nodes."""

import subprocess
import sys
import time

import pytest

from kdscale.cluster.session import ray_session
from kdscale.config import Cluster
from kdscale.errors import KdscaleError
from tests.worlds.ray_head import clean_environment, ray_head

TWO_NODES = """
import sys, time
import ray
from ray.cluster_utils import Cluster
from kdscale.config import Cluster as Settings
from kdscale.errors import KdscaleError
from kdscale.cluster.placement import Plan
from kdscale.cluster.session import check_fits, plan_workers, ray_session

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
cluster.add_node(num_cpus=2, labels={"market": "spot"})
cluster.wait_for_nodes()
with ray_session(Settings(address=cluster.address)):
    assert len(ray.nodes()) == 2
    # Training workers that fit the sum of the nodes and no single node.
    for plan in (Plan(1, 4), Plan(2, 2), Plan(1, 2.5), Plan(1, 1, gpus=1)):
        began = time.monotonic()
        try:
            check_fits("training", plan, "cluster.workers")
        except KdscaleError as error:
            assert time.monotonic() - began < 1
            print(error)
        else:
            raise AssertionError(plan)
    # Score actors that must be on spot nodes, of which there is one with 2 CPUs.
    check_fits("scorers", Plan(2, 1, labels={"market": "spot"}), "cluster.scorers")
    try:
        check_fits("scorers", Plan(3, 1, labels={"market": "spot"}), "cluster.scorers", wait_s=2)
    except KdscaleError as error:
        print(error)
    # What is said to fit is placed by Ray; an even share is one that is.
    for count in (1, 2, 3):
        plan = plan_workers("training", count, None, 0.0, {}, "cluster.workers")
        group = ray.util.placement_group([{"CPU": plan.cpus}] * count)
        assert group.wait(20), plan
        ray.util.remove_placement_group(group)
ray.shutdown()
cluster.shutdown()
"""

LATE_NODES = """
import sys, time
import ray
from kdscale.config import Cluster
from kdscale.errors import KdscaleError
from kdscale.cluster.placement import Plan
from kdscale.cluster.session import check_fits, ray_session

with ray_session(Cluster(address=sys.argv[1])):
    spot = {"market": "spot"}
    for plan, wait_s in ((Plan(2, 1, labels=spot), 0), (Plan(9, 1, labels=spot), 8)):
        try:
            check_fits("scorers", plan, "cluster.scorers", wait_s=wait_s)
        except KdscaleError as error:
            print(error)
    deadline = time.monotonic() + 60
    while sum(node["Alive"] for node in ray.nodes()) > 1 and time.monotonic() < deadline:
        time.sleep(1)
    print("nodes that were asked for in vain:", sum(n["Alive"] for n in ray.nodes()) - 1)
    check_fits("scorers", Plan(2, 1, labels=spot), "cluster.scorers", wait_s=60)
    print("nodes:", sum(node["Alive"] for node in ray.nodes()) - 1)
"""


def run_script(code: str, *arguments: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=env or clean_environment(),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_a_plan_that_no_node_has_room_for_is_refused_at_once():
    lines = run_script(TWO_NODES).splitlines()
    assert lines[0] == (
        "training needs 1 x 4 CPUs (each whole on one node) and 0.2 CPUs for Ray's own tasks; the "
        "cluster has 2 nodes of 2 CPUs; lower cluster.workers, or on an autoscaling "
        "cluster set cluster.wait_s"
    )
    assert "needs 2 x 2 CPUs" in lines[1] and "needs 1 x 2.5 CPUs" in lines[2]
    assert "needs 1 x 1 CPUs and 1 GPUs" in lines[3]
    assert "3 x 1 CPUs (each whole on one node with market=spot)" in lines[4]
    assert "1 node of 2 CPUs with market=spot" in lines[4] and "after 2 s" in lines[4]


@pytest.mark.slow
def test_the_nodes_of_an_autoscaler_are_asked_for_and_waited_for():
    worker = {
        "resources": {"CPU": 1},
        "labels": {"market": "spot"},
        "node_config": {},
        "min_workers": 0,
        "max_workers": 3,
    }
    with ray_head(cpus=1, worker_types={"spot": worker}) as head:
        lines = run_script(LATE_NODES, head.address, env=head.environment()).splitlines()
    assert "the cluster has 1 node of 1 CPU; " in lines[0] and "set cluster.wait_s" in lines[0]
    assert "after 8 s; lower cluster.scorers, or raise cluster.wait_s" in lines[1]
    assert lines[2:] == ["nodes that were asked for in vain: 0", "nodes: 2"]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "no-such-host.invalid:1"])
def test_an_address_without_a_cluster_is_one_line_at_once(monkeypatch, address):
    began = time.monotonic()
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # other tests share a session
    monkeypatch.setenv("RAY_ADDRESS", address)  # as in a job: no second Ray is started
    with pytest.raises(KdscaleError, match=f"no Ray cluster at {address} .*; check cluster"):
        ray_session(Cluster()).__enter__()
    assert time.monotonic() - began < 20
