"""The Ray session of a process: started on this machine or joined, once, on first need, and shared
by every stage. Faults are told in one line.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import getproxies, proxy_bypass

import psutil

from kdscale.cluster.machine import cpus
from kdscale.cluster.placement import HEADROOM_CPUS, Node, Plan, describe, even_share, fits
from kdscale.config import Cluster
from kdscale.errors import KdscaleError
from kdscale.progress import Reporter

KNOCK_S = 5.0  # for a cluster's address to answer
TRIES = 2  # to start Ray: a machine that is busy for a moment may miss Ray's own time limits
# What Ray's C++ writes to the terminal about the setting that tells it to be quiet.
LEVEL_LINE = b"Set ray log level from environment variable"


def set_environment(here: bool) -> None:
    """Settings that Ray reads at import or start; a user's own value is kept.

    here: Ray is to be started in this process.
    """
    settings = {
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
    }
    if here:
        # Under `uv run` Ray would pack the whole working directory at each start, outputs too, and
        # make a second environment for its workers, who have this very one.
        settings["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def join(ray: Any, address: str) -> None:
    """Raises KdscaleError where no cluster answers."""
    try:
        _knock(address)
        with _without_level_line():
            ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise KdscaleError(
            f"no Ray cluster at {address} ({_first_line(error)}); check cluster.address and "
            "RAY_ADDRESS, or leave both out to start Ray here"
        ) from None


def start(ray: Any, state_api: bool) -> None:
    """Start Ray here. Raises KdscaleError where it does not come up, after a second try where it
    ran out of time."""
    for tries_left in reversed(range(TRIES)):
        before = set(psutil.Process().children())
        try:
            extra: contextlib.AbstractContextManager[dict[str, Any]]
            extra = _state_api() if state_api else contextlib.nullcontext({})
            with extra as options, _without_level_line():
                ray.init(
                    # "local": else Ray would join any cluster that was started here.
                    address="local",
                    num_cpus=cpus(),
                    include_dashboard=state_api,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    **options,
                )
            return
        except Exception as error:  # of many kinds, `Exception` itself among them
            _clear_away(ray, before)
            late = "timed out" in str(error).lower()
            if not (late and tries_left):
                raise KdscaleError(_why_not_started(error, late)) from None


def _clear_away(ray: Any, before: set[psutil.Process]) -> None:
    """Stop what a start that failed has left running: Ray's own clearing away does not know of
    it, and it would take memory and CPUs from the next start."""
    ray.shutdown()
    home = str(Path(ray.__file__).parent)
    for process in set(psutil.Process().children()) - before:
        with contextlib.suppress(psutil.Error):
            if any(word.startswith(home) for word in process.cmdline()):
                process.kill()
                process.wait(KNOCK_S)


def _why_not_started(error: Exception, late: bool) -> str:
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if "AF_UNIX path length" in str(error):
        name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
        return (
            f"Ray cannot be started: {name} ({folder}) is too long for the names of Ray's "
            "sockets, which lie below it and may have 107 bytes in all; set RAY_TMPDIR to a "
            "shorter folder, such as /tmp"
        )
    if late:
        return (
            f"Ray did not start on this machine in time, {TRIES} times over "
            f"({_first_line(error)}); the machine is too busy, or short of memory: end other "
            "programs, and run again"
        )
    return (
        f"Ray cannot be started on this machine ({_first_line(error)}); mend that, or see its "
        f"logs below {folder}/ray/session_latest/logs"
    )


@contextlib.contextmanager
def _without_level_line() -> Iterator[None]:
    """Keep one line of Ray's C++ from the terminal; whatever else the body writes to stderr is
    written when it ends."""
    try:
        terminal = os.dup(2)
    except OSError:  # stderr is closed
        yield
        return
    # A file and no pipe: a process that the body starts may hold on to it.
    with tempfile.TemporaryFile() as caught:
        sys.stderr.flush()
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            caught.seek(0)
            for line in caught:
                if LEVEL_LINE not in line:
                    os.write(terminal, line)
            os.close(terminal)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


@contextlib.contextmanager
def _state_api() -> Iterator[dict[str, Any]]:
    """Options of a ray.init whose workers know their own Ray's State API, which is a part of the
    dashboard: on a machine with two Rays they would find neither."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    _reach_this_machine()
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


def _reach_this_machine() -> None:
    """Where a proxy is set, ask this machine's own servers without it: Ray does not see to that."""
    if not getproxies():
        return
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if not proxy_bypass("127.0.0.1"):
        names = [*filter(None, known.split(",")), "127.0.0.1", "localhost"]
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(names)


def _knock(address: str) -> None:
    """Raise OSError in seconds where nothing answers; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()


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
        try:
            if address:
                join(ray, address)
            else:
                start(ray, state_api)
        except SystemExit as stopped:  # what Ray makes of SIGTERM while it starts
            raise KeyboardInterrupt from stopped
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
