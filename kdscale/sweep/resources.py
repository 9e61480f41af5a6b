"""How many trials a cluster holds side by side, so that none waits for what another holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kdscale.config import Cluster
from kdscale.errors import KdscaleError
from kdscale.placement import HEADROOM_CPUS, Node, Plan, describe, even_share, fits

# Where a trial's CPUs are not given, one of its workers gets about a CPU: trials side by side use
# cores better than the threads of one small model.
LEAST_CPUS = 0.5


def plan_trials(cluster: Cluster, nodes: Sequence[Node], most: int) -> tuple[int, float]:
    """(trials side by side, CPUs of a worker), at most `most` trials.

    All workers of all of them have a place at once, each whole on a node, and Ray's own tasks
    too: a trial asks for its workers only once it has begun, so that trials which fit one by one
    and not together would wait for one another for ever. nodes: those that workers may be on.
    Raises KdscaleError with the numbers where not even one fits.
    """
    workers = cluster.workers if cluster.engine == "deepspeed" else 1
    one = Plan(workers, cluster.cpus_per_worker or 0.0, cluster.gpus_per_worker, labels(cluster))
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
    cpus = cluster.cpus_per_worker or 0.1
    needs = f"{cpus:g} CPUs" + (f" and {one.gpus:g} GPUs" if one.gpus else "")
    raise KdscaleError(
        f"a trial of the sweep needs {workers} x {needs} (each whole on one node) and "
        f"{HEADROOM_CPUS:g} CPUs for Ray's own tasks; the cluster has "
        f"{describe(nodes, one.labels)}; lower cluster.workers or cluster.cpus_per_worker"
    )


def labels(cluster: Cluster) -> dict[str, str]:
    """Without Ray Train a trial is on the driver's node, whatever labels that has."""
    return cluster.worker_labels if cluster.engine == "deepspeed" else {}
