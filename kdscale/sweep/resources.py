"""How many trials a cluster holds side by side, so that none waits for what another holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdscale.config import Cluster
from kdscale.errors import KdscaleError
from kdscale.placement import HEADROOM_CPUS, Node, Plan, describe, even_share, fits

# Where a trial's CPUs are not given, one of its workers gets about a CPU: trials side by side use
# cores better than the threads of one small model.
LEAST_CPUS = 0.5


@dataclass(frozen=True)
class Room:
    """trials: so many at once; cpus: of one worker; node: the resource of the driver's node."""

    trials: int
    cpus: float
    node: str


def find_room(cluster: Cluster, ray: Any, trials: int, concurrent: int | None) -> Room:
    """What the cluster holds of so many trials, at most `concurrent` at once.

    Raises KdscaleError as `plan_trials` does, or where an autoscaler cannot start the nodes.
    """
    from kdscale.runtime import check_fits, cluster_nodes

    if cluster.wait_s and cluster.engine == "deepspeed":
        # An autoscaler starts nodes for what it is asked for: for as many trials as were named.
        many = min(trials, concurrent or 1) * cluster.workers
        plan = Plan(many, cluster.cpus_per_worker, cluster.gpus_per_worker, cluster.worker_labels)
        check_fits("the sweep", plan, "sweep.search.concurrent or cluster.workers", cluster.wait_s)
    here = ray.get_runtime_context().get_node_id()
    has = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
    name = next(k for k in has if k.startswith("node:") and not k.endswith("__"))
    # Without Ray Train a student is trained by the trial itself, which is on the driver's node.
    own = [Node(has.get("CPU", 0.0), has.get("GPU", 0.0))]
    nodes = own if cluster.engine == "torch" else cluster_nodes()
    count, cpus = plan_trials(cluster, nodes, min(trials, concurrent or trials))
    return Room(count, cpus, name)


def plan_trials(cluster: Cluster, nodes: Sequence[Node], most: int) -> tuple[int, float]:
    """(trials side by side, CPUs of a worker), at most `most` trials.

    All workers of all of them have a place at once, each whole on a node, and Ray's own tasks
    too: a trial asks for its workers only once it has begun, so that trials which fit one by one
    and not together would wait for one another for ever. nodes: those that workers may be on.
    Raises KdscaleError with the numbers where not even one fits.
    """
    workers = cluster.workers if cluster.engine == "deepspeed" else 1
    labels = cluster.worker_labels if cluster.engine == "deepspeed" else {}
    one = Plan(workers, cluster.cpus_per_worker or 0.0, cluster.gpus_per_worker, labels)
    if cluster.cpus_per_worker is None:
        most = min(most, max(1, int(sum(node.cpus for node in nodes)) // workers))
    for count in range(most, 0, -1):
        all_of_them = replace(one, count=count * workers)
        if cluster.cpus_per_worker is None:
            share = even_share(all_of_them, nodes)
            all_of_them = replace(all_of_them, cpus=share)
            if share < LEAST_CPUS and count > 1:
                continue
        if fits(all_of_them, nodes):
            return count, all_of_them.cpus
    cpus = 0.1 if cluster.cpus_per_worker is None else cluster.cpus_per_worker
    needs = f"{cpus:g} CPUs" + (f" and {one.gpus:g} GPUs" if one.gpus else "")
    raise KdscaleError(
        f"a trial of the sweep needs {workers} x {needs} (each whole on one node) and "
        f"{HEADROOM_CPUS:g} CPUs for Ray's own tasks; the cluster has "
        f"{describe(nodes, one.labels)}; lower cluster.workers or cluster.cpus_per_worker"
    )
