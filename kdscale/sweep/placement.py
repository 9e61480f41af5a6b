"""How many trials a cluster holds side by side, and the places that stopped trials leave.

Tune stops a trial by ending its process, and what that process started ends with it, one after the
other. Where Ray Train's controller goes last, it takes the end of its workers for a failure and
asks for a new place, of which its cleaner is told only once workers are in it. No trial could
start for want of those CPUs, and the sweep would wait for ever: so they are freed here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdscale.cluster.placement import HEADROOM_CPUS, Node, Plan, describe, even_share, fits
from kdscale.config import Cluster
from kdscale.errors import KdscaleError

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
    from kdscale.cluster.session import check_fits, cluster_nodes

    if cluster.wait_s and cluster.engine == "deepspeed":
        # An autoscaler starts nodes for what it is asked for: for as many trials as were named.
        many = min(trials, concurrent or 1) * cluster.workers
        assert cluster.cpus_per_worker is not None  # a config with wait_s has it
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


AFTER_S = 60.0  # workers need seconds to start: a place without any for so long is nobody's


class Orphans:
    """Frees such places when it is asked to look, by Ray's State API."""

    def __init__(self, after_s: float = AFTER_S):
        self._after_s = after_s
        self._empty_since: dict[str, float] = {}

    def look(self) -> list[str]:
        """Free the places of this job with CPUs or GPUs in which no actor has lived for as long;
        their ids. Where the State API does not answer, the next look is as good."""
        from ray.util.state.exception import RayStateApiException

        try:
            empty = _empty_places()
        except (RayStateApiException, OSError):
            return []
        now = time.monotonic()
        self._empty_since = {place: self._empty_since.get(place, now) for place in empty}
        gone = [p for p, since in self._empty_since.items() if now - since >= self._after_s]
        for place in gone:
            _free(place)
            del self._empty_since[place]
        return gone


def _empty_places() -> list[str]:
    """Hexadecimal ids. Tune's own places may wait for a trial: where Ray Train has the workers they
    hold neither CPU nor GPU."""
    import ray
    from ray.util.state import list_actors, list_placement_groups

    context = ray.get_runtime_context()
    job = context.get_job_id()
    # The address: else it asks the newest Ray of this machine. The places first: an actor that
    # comes in between is then seen.
    asked = {"address": context.gcs_address, "detail": True, "limit": 10_000}
    places = list_placement_groups(filters=[("state", "=", "CREATED")], **asked)
    actors = list_actors(filters=[("state", "!=", "DEAD")], **asked)
    lived_in = {actor.placement_group_id for actor in actors}
    return [
        place.placement_group_id
        for place in places
        if place.creator_job_id == job
        and place.placement_group_id not in lived_in
        and any(_computes(bundle) for bundle in place.bundles or ())
    ]


def _computes(bundle: dict[str, Any]) -> bool:
    return bool({"CPU", "GPU"} & bundle["unit_resources"].keys())


def _free(place: str) -> None:
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(place))))
