"""A real `ray start --head` on loopback, with ports, a folder and a token of its own."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray

from tests.worlds.clusters import REPOSITORY

MARK = "KDSCALE_TEST_RAY"  # in the environment of every process of a head, and of no other
NODE = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"  # the fake provider's head

# Settings that the autoscaler reads and the fake provider has no use for.
UNUSED = {
    **{name: {} for name in ("auth", "docker", "file_mounts")},
    **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
    **{
        f"{when}_commands": [] for when in ("initialization", "setup", "head_setup", "worker_setup")
    },
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
    "file_mounts_sync_continuously": False,
}


@dataclass
class Head:
    address: str  # of the cluster, for ray.init
    dashboard: str  # for job submission
    token: str
    folder: Path

    def environment(self, **changes: str) -> dict[str, str]:
        """What a client of this head needs in its environment."""
        return {
            **clean_environment(),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            **changes,
        }


def clean_environment() -> dict[str, str]:
    """This process's environment without what would lead to another Ray."""
    dropped = ("RAY_ADDRESS", "RAY_AUTH", "RAY_API_SERVER", MARK)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return {**kept, "PATH": binaries, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def ray_head(cpus: float, worker_types: dict | None = None) -> Iterator[Head]:
    """A head of so many CPUs; `worker_types` are the nodes that its autoscaler may start."""
    names = (
        "port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
        "runtime-env-agent-port", "metrics-export-port", "node-manager-port",
        "object-manager-port", "ray-client-server-port",
    )  # fmt: skip
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    mark, token = uuid.uuid4().hex, uuid.uuid4().hex
    # Sockets lie below the folder: a short path.
    with tempfile.TemporaryDirectory(prefix="kd", ignore_cleanup_errors=True) as folder:
        command = [
            "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1",
            "--dashboard-host=127.0.0.1", "--include-dashboard=true", f"--num-cpus={cpus:g}",
            f"--temp-dir={folder}", "--disable-usage-stats", "--object-store-memory=100000000",
            *(f"--{name}={port}" for name, port in ports.items()),
        ]  # fmt: skip
        environment = {
            # A job's code is what it was sent, not this checkout.
            **{k: v for k, v in clean_environment().items() if k != "PYTHONPATH"},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            MARK: mark,
        }
        if worker_types is not None:
            config = Path(folder, "autoscaling.json")
            config.write_text(json.dumps(autoscaling_config(cpus, worker_types, ports["port"])))
            command.append(f"--autoscaling-config={config}")
            environment |= {
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                "RAY_FAKE_CLUSTER": "1",
                "RAY_enable_autoscaler_v2": "1",
                "RAY_CLOUD_INSTANCE_ID": NODE,
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": NODE,
            }
        log = Path(folder, "head.log")
        with log.open("w") as out:
            process = subprocess.Popen(
                command, env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )
        head = Head(
            f"127.0.0.1:{ports['port']}",
            f"http://127.0.0.1:{ports['dashboard-port']}",
            token,
            Path(folder),
        )
        try:
            _wait(head, process, log)
            yield head
        finally:
            stop(mark)
            process.wait(30)


def autoscaling_config(cpus: float, worker_types: dict, port: int) -> dict:
    head = {"resources": {"CPU": cpus}, "node_config": {}, "max_workers": 0}
    return {
        "cluster_name": "fake_multinode",
        "max_workers": 8,
        "provider": {
            "type": "external",  # as such, since a wheel of Ray lacks its defaults
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": NODE,
            "gcs_address": f"{ray.util.get_node_ip_address()}:{port}",
        },
        "available_node_types": {"ray.head.default": head, **worker_types},
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.1,
        **UNUSED,
    }


def _wait(head: Head, process: subprocess.Popen, log: Path) -> None:
    request = urllib.request.Request(
        f"{head.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {head.token}"}
    )
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(request, timeout=5).close()
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"no Ray head: {log.read_text()[-3000:]}")
        time.sleep(0.2)


def stop(mark: str) -> None:
    """Kill the processes of one head, whatever started them, and none besides."""
    for _ in range(20):
        alive = [process for process in psutil.process_iter() if _has_mark(process, mark)]
        if not alive:
            return
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(alive, timeout=1)
    raise RuntimeError(f"still running: {alive}")


def _has_mark(process: psutil.Process, mark: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark
    return False
