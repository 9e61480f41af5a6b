"""The Ray session of a process: started once, on first need, and shared by every stage."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from kdscale.config import Cluster
from kdscale.errors import KdscaleError
from kdscale.placement import HEADROOM_CPUS, Node, Plan, describe, even_share, fits
from kdscale.progress import Reporter

KNOCK_S = 5.0  # for a cluster's address to answer
POLL_S = 1.0  # between two looks at the nodes of an autoscaling cluster


def _quiet_environment() -> None:
    """Settings that Ray reads at import or start; a user's own value is kept."""
    for name, value in {
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a deprecation warning
        "RAY_DEDUP_LOGS": "1",
        # Ray reports as an error that an actor cannot be restarted; failures come as exceptions.
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TOKENIZERS_PARALLELISM": "false",
        # Else what nobody refers to any more stays in shared memory for a second: of a collection
        # that streams through it, more than a hundred megabytes.
        "RAY_free_objects_period_milliseconds": "50",
        # Ray would run workers at niceness 15, behind whatever else a machine does.
        "RAY_worker_niceness": "0",
    }.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def ray_session(
    cluster: Cluster, reporter: Reporter | None = None, state_api: bool = False
) -> Iterator[Any]:
    """Yield the `ray` module with a session running; a running one is used as it is.

    The session stays up afterwards, so that later stages do not pay for a start again; Ray stops
    it with the process. state_api: where Ray is started here, with the State API, which costs
    about a second and ten processes. Raises KdscaleError when a given address does not answer.
    """
    _quiet_environment()
    import ray

    if not ray.is_initialized():
        # RAY_ADDRESS is what Ray gives every process of a job: there its cluster is the one to
        # use, and a second Ray beside it would take the same CPUs.
        address = cluster.address or os.environ.get("RAY_ADDRESS")
        if reporter is not None:
            started = f"connecting to Ray ({address})" if address else "starting Ray (this machine)"
            reporter.info(f"  {started}")
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            if address:
                _knock(address)
                ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
            else:
                with _state_api() if state_api else contextlib.nullcontext({}) as options:
                    ray.init(
                        # "local": else Ray would join any cluster that was started here.
                        address="local",
                        num_cpus=os.cpu_count(),
                        include_dashboard=state_api,
                        logging_level=logging.ERROR,
                        log_to_driver=False,
                        **options,
                    )
        except (OSError, ValueError, RuntimeError) as error:
            raise KdscaleError(
                f"no Ray cluster at {address or 'this machine'} "
                f"({str(error).splitlines()[0]}); check cluster.address and RAY_ADDRESS, or leave "
                "both out to start Ray here"
            ) from None
        # Ray takes SIGTERM for itself and would abort with a stack trace, nothing cleaned up.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)
        _quiet_data_logging()
    yield ray


@contextlib.contextmanager
def _state_api() -> Iterator[dict[str, Any]]:
    """Options of a ray.init whose workers know their own Ray's State API, which is a part of the
    dashboard: on a machine with two Rays they would find neither."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Workers inherit it from the raylet. In this process it stays what the user set: it may be of
    # another Ray.
    name = "RAY_API_SERVER_ADDRESS"
    before = os.environ.get(name)
    os.environ[name] = f"http://127.0.0.1:{port}"
    try:
        yield {"dashboard_host": "127.0.0.1", "dashboard_port": port}
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _knock(address: str) -> None:
    """Raise OSError in seconds where nothing answers; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()


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
