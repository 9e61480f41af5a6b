"""Starting Ray for real: on one CPU of more, behind a proxy, late at first, where it cannot."""

import os
import subprocess
import sys

import pytest

from kdscale.cluster.session import set_environment, start
from kdscale.errors import KdscaleError
from tests.worlds.ray_head import clean_environment

LATE = "The current node timed out during startup. This could happen because ..."
ONE_CPU = f"""
import os
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
from kdscale.config import Cluster
from kdscale.cluster.session import ray_session
import ray
there = ray.init
def late_at_first(**options):
    ray.init = there
    raise Exception({LATE!r})
ray.init = late_at_first
with ray_session(Cluster(), state_api=True) as ray:
    print(ray.cluster_resources()["CPU"], ray.get(ray.remote(lambda: 7).remote()))
    from ray.util.state import list_nodes
    address = ray.get_runtime_context().gcs_address  # of several Rays on a machine
    names = "NO_PROXY", "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
    print(len(list_nodes(address=address)), *(os.environ[name] for name in names))
"""


def run(code, **changes):
    kept = {k: v for k, v in clean_environment().items() if not k.lower().endswith("_proxy")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, **changes},
        capture_output=True,
        text=True,
        timeout=180,
    )


@pytest.mark.slow
def test_ray_has_the_cpus_of_the_process_and_comes_up_at_the_second_try():
    done = run(ONE_CPU, HTTP_PROXY="http://127.0.0.1:9", NO_PROXY="head")
    assert done.stderr == ""  # nothing of Ray's own
    assert done.stdout.splitlines() == ["1.0 7", "1 head,127.0.0.1,localhost 0"]


def test_a_folder_that_is_too_long_for_sockets_is_named(tmp_path):
    folder = tmp_path / ("x" * 90)
    folder.mkdir()
    code = "import ray; from kdscale.cluster.session import start; start(ray, False)"
    for name in ("TMPDIR", "RAY_TMPDIR"):
        done = run(code, **{name: str(folder)})
        last = done.stderr.splitlines()[-1]
        assert f"KdscaleError: Ray cannot be started: {name} ({folder}) is too long" in last
        assert "set RAY_TMPDIR to a shorter folder" in last


class NeverUp:
    """A Ray whose start fails, with what it has raised on a busy machine and on a broken one."""

    __file__ = "/nowhere/ray/__init__.py"

    def __init__(self, error):
        self.error, self.starts, self.shutdowns = error, 0, 0

    def init(self, **options):
        self.starts += 1
        raise self.error

    def shutdown(self):
        self.shutdowns += 1


@pytest.mark.parametrize(
    "error",
    [
        Exception(LATE),
        TimeoutError("Timed out after 60 seconds while waiting for node to startup."),
        RuntimeError("Timed out waiting for node info for node_id=abc."),
    ],
)
def test_a_start_that_runs_out_of_time_twice_is_one_line(error):
    ray = NeverUp(error)
    with pytest.raises(KdscaleError, match=r"did not start on this machine in time.*too busy"):
        start(ray, False)
    assert ray.starts == ray.shutdowns == 2


def test_a_start_that_cannot_succeed_is_not_tried_again():
    ray = NeverUp(PermissionError(13, "Permission denied", "/tmp/ray"))
    with pytest.raises(KdscaleError, match=r"Permission denied.*session_latest/logs"):
        start(ray, False)
    assert ray.starts == 1


def test_what_the_user_has_set_for_ray_stays(monkeypatch):
    monkeypatch.setattr(os, "environ", {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "1"})
    set_environment(here=True)
    assert os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "1"
    monkeypatch.setattr(os, "environ", {})
    set_environment(here=False)  # on a cluster elsewhere, uv's hook is what brings the packages
    assert "RAY_ENABLE_UV_RUN_RUNTIME_ENV" not in os.environ
