"""A Ray cluster of simulated nodes on this machine, and drivers in processes of their own.

Both are apart from the Ray session of the test process, so that killing them hurts nothing else.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
POLL_S = 0.002
SELDOM_S = 0.3  # for a look that takes requests, or the time of what is waited for


@contextmanager
def ray_cluster_of(cpus: int, state_api: bool = False):
    """A cluster of one node; `cluster.add_node(num_cpus=N)` gives it more. state_api: with Ray's
    State API, as sweeps want it."""
    from kdscale.cluster.session import set_environment

    set_environment(here=False)  # a raylet reads it when it starts
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        connect=False,
        head_node_args={"num_cpus": cpus, "include_dashboard": state_api},
    )
    try:
        yield cluster
    finally:
        cluster.shutdown()


def raylet_pid(node) -> int:
    return node.all_processes["raylet"][0].process.pid


def kill_node(cluster, node) -> None:
    """SIGKILL to every process of a node, as when a machine goes."""
    processes = psutil.Process(raylet_pid(node)).children(recursive=True)
    cluster.remove_node(node, allow_graceful=False)  # which leaves its workers to notice
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def actors(cluster, name: str) -> list[psutil.Process]:
    """The processes of this cluster's actors of a class, oldest first."""
    found = []
    for node in cluster.list_all_nodes():
        for process in psutil.Process(raylet_pid(node)).children():
            try:
                if process.name().startswith(f"ray::{name}"):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
    return sorted(found, key=lambda p: (p.create_time(), p.pid))


def wait_for(
    condition: Callable[[], object], what: str, timeout_s: float = 240.0, poll_s: float = POLL_S
):
    """The condition's value as soon as it is true."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:g} s for {what}")
        time.sleep(poll_s)
    return value


class Driver:
    """A command in a process of its own; its output is kept in a file."""

    def __init__(self, output: Path, *command: object):
        self._output = output
        path = [str(REPOSITORY), *sys.path]
        with output.open("w") as handle:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                stdout=handle,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in path if p)},
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def running(self) -> bool:
        """Raises AssertionError with its output when it has ended: it should not have yet."""
        if self.process.poll() is not None:
            raise AssertionError(f"ended with {self.process.returncode}:\n{self.output}")
        return True

    def finish(self, timeout_s: float = 300.0) -> str:
        """Its output, when it has ended well."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not end in {timeout_s:g} s:\n{self.output}") from None
        assert code == 0, self.output
        return self.output
