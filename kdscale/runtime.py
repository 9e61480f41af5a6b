"""The Ray session of a process: started once, on first need, and shared by every stage."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from kdscale.config import Cluster
from kdscale.errors import KdscaleError
from kdscale.placement import HEADROOM_CPUS, Node, Plan, describe, even_share, fits
from kdscale.progress import Reporter
from kdscale.raystart import join, set_environment, start

POLL_S = 1.0  # between two looks at the nodes of an autoscaling cluster


@contextlib.contextmanager
def ray_session(
    cluster: Cluster, reporter: Reporter | None = None, state_api: bool = False
) -> Iterator[Any]:
    """Yield the `ray` module with a session running; a running one is used as it is.

    The session stays up afterwards, so that later stages do not pay for a start again; Ray stops
    it with the process. state_api: where Ray is started here, with the State API, which costs
    about a second and ten processes. Raises KdscaleError when a given address does not answer.
    """
    # RAY_ADDRESS is what Ray gives every process of a job: there its cluster is the one to use,
    # and a second Ray beside it would take the same CPUs.
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    set_environment(here=not address)
    import ray

    if not ray.is_initialized():
        if reporter is not None:
            started = f"connecting to Ray ({address})" if address else "starting Ray (this machine)"
            reporter.info(f"  {started}")
        on_sigterm = signal.getsignal(signal.SIGTERM)
        if address:
            join(ray, address)
        else:
            start(ray, state_api)
        # Ray takes SIGTERM for itself and would abort with a stack trace, nothing cleaned up.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)
        _quiet_data_logging()
    yield ray


def _quiet_data_logging() -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


def cluster_nodes() -> list[Node]:
    """The nodes that are up now."""
    import ray

    return [
        Node(
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            labels=node["Labels"],
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def plan_workers(
    what: str,
    count: int,
    cpus: float | None,
    gpus: float,
    labels: dict[str, str],
    key: str,
    wait_s: float = 0.0,
) -> Plan:
    """`count` workers of so many CPUs each (None: an even share of the nodes), which fit.

    Raises KdscaleError as `check_fits` does; what, key, wait_s: its own.
    """
    plan = Plan(count, cpus or 0.0, gpus, labels)
    if cpus is None:
        plan = replace(plan, cpus=even_share(plan, cluster_nodes()))
    check_fits(what, plan, key, wait_s)
    return plan


def threads_of(cpus: float) -> int:
    """Compute threads for a worker of so many CPUs: a share of 1.8 still fills two cores."""
    return max(1, round(cpus))


def check_fits(what: str, plan: Plan, key: str, wait_s: float = 0.0) -> None:
    """Raise KdscaleError with the numbers when the plan cannot be placed on the cluster's nodes.

    Ray would wait for ever for resources that no node has; a user should hear of it at once.
    An autoscaler starts nodes only when something waits for them, and does not tell how many it
    may start: with wait_s (seconds) above 0 it is asked for the plan's nodes and given that long.
    """
    nodes = cluster_nodes()
    if not fits(plan, nodes) and wait_s > 0:
        nodes = _wait_for_nodes(plan, wait_s)
    if fits(plan, nodes):
        return
    resources = f"{plan.cpus:g} CPUs" + (f" and {plan.gpus:g} GPUs" if plan.gpus else "")
    where = "".join(f" with {k}={v}" for k, v in plan.labels.items())
    waited = f" after {wait_s:g} s" if wait_s > 0 else ""
    advice = "raise" if wait_s > 0 else "on an autoscaling cluster set"
    raise KdscaleError(
        f"{what} needs {plan.count} x {resources} (each whole on one node{where}) and "
        f"{HEADROOM_CPUS:g} CPUs for Ray's own tasks; the cluster has "
        f"{describe(nodes, plan.labels)}{waited}; lower {key}, or {advice} cluster.wait_s"
    )


def _wait_for_nodes(plan: Plan, wait_s: float) -> list[Node]:
    """Ask the autoscaler for the plan's nodes; the nodes when they fit, or when time is up."""
    from ray.autoscaler.sdk import request_resources

    bundle = {"CPU": plan.cpus, "GPU": plan.gpus} if plan.gpus else {"CPU": plan.cpus}
    bundles, labels = [bundle] * plan.count, [plan.labels] * plan.count
    # Ray's own tasks need a place too, whichever node it is on.
    request_resources(
        bundles=[*bundles, {"CPU": HEADROOM_CPUS}], bundle_label_selectors=[*labels, {}]
    )
    try:
        deadline = time.monotonic() + wait_s
        while not fits(plan, nodes := cluster_nodes()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return nodes
    finally:
        # The request stands until it is withdrawn, and would keep idle nodes up for ever.
        request_resources(bundles=[])
