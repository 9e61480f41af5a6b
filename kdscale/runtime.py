"""The Ray session of a process: started once, on first need, and shared by every stage."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from kdscale.config import Cluster
from kdscale.errors import KdscaleError
from kdscale.progress import Reporter

# What Ray's own tasks (reading a table, the train controller) need beside actors and workers.
HEADROOM_CPUS = 0.2


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
        # Ray would run workers at niceness 15, behind whatever else a machine does.
        "RAY_worker_niceness": "0",
    }.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def ray_session(cluster: Cluster, reporter: Reporter | None = None) -> Iterator[Any]:
    """Yield the `ray` module with a session running; a running one is used as it is.

    The session stays up afterwards, so that later stages do not pay for a start again; Ray stops
    it with the process. Raises KdscaleError when a given address does not answer.
    """
    _quiet_environment()
    import ray

    if not ray.is_initialized():
        if reporter is not None:
            where = cluster.address or "this machine"
            reporter.info(f"  starting Ray ({where})")
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            if cluster.address:
                ray.init(
                    address=cluster.address, logging_level=logging.WARNING, log_to_driver=False
                )
            else:
                ray.init(
                    # "local": else Ray would join any cluster that was started on this machine.
                    address="local",
                    num_cpus=os.cpu_count(),
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            raise KdscaleError(
                f"no Ray cluster at {cluster.address or 'this machine'} "
                f"({str(error).splitlines()[0]}); check cluster.address, or leave it out to "
                "start Ray here"
            ) from None
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


def cpus_each(requested: float | None, count: int) -> float:
    """CPUs of one worker or actor: what was asked for, else an even share of the cluster."""
    import ray

    if requested is not None:
        return requested
    total = ray.cluster_resources().get("CPU", 0.0)
    # At least a tenth: where even that is too much, `check_fits` says so.
    return max(0.1, math.floor((total - HEADROOM_CPUS) / count * 10) / 10)


def threads_of(cpus: float) -> int:
    """Compute threads for a worker of so many CPUs: a share of 1.8 still fills two cores."""
    return max(1, round(cpus))


def check_fits(what: str, cpus: float, gpus: float, key: str) -> None:
    """Raise KdscaleError with the numbers when a plan can never be scheduled.

    Ray would wait for ever for resources that no node has; a user should hear of it at once.
    """
    import ray

    total = ray.cluster_resources()
    have_cpus, have_gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    if cpus + HEADROOM_CPUS > have_cpus or gpus > have_gpus:
        raise KdscaleError(
            f"{what} needs {cpus:g} CPUs (and {HEADROOM_CPUS:g} for Ray's own tasks) and {gpus:g} "
            f"GPUs, the cluster has {have_cpus:g} and {have_gpus:g}; lower {key}"
        )
