"""Fixtures of all tests, and the order of the files. What they build from is in tests.worlds."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

HERE = Path(__file__).parent

# Files below this folder that take minutes, the longest first. Two run side by side: a long one
# that began last would be waited for alone.
LONG = (
    "training/test_recovery.py",
    "experiment/test_run.py",
    "sweep/test_sweep.py",
    "sweep/test_sweep_on_s3.py",
    "cluster/test_submit.py",
    "report/test_hostile_page.py",
    "stages/test_score_recovery.py",
    "planning/test_rates.py",
)


def pytest_collection_modifyitems(items):
    places = {HERE / path: place for place, path in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """A real S3 server, started once: .endpoint, .bucket, .secrets; the AWS_ settings are set."""
    folder = tmp_path_factory.mktemp("object-store")
    command = [sys.executable, HERE.parent / "scripts" / "object-store", "--dir", folder]
    server = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True)
    settings = {}
    for line in server.stdout:
        if not line.startswith("export "):
            break
        name, _, value = line.removeprefix("export ").strip().partition("=")
        settings[name] = value
    with pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(name, value)
        environment.setenv("KDSCALE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield SimpleNamespace(
            endpoint=settings["AWS_ENDPOINT_URL"],
            bucket="kdscale",
            secrets=[settings["AWS_ACCESS_KEY_ID"], settings["AWS_SECRET_ACCESS_KEY"]],
        )
    server.terminate()
    server.wait(60)


@pytest.fixture(scope="session")
def ray_cluster(s3_server):
    """The Ray session that the stages of a test run share; started once, it takes seconds.

    After the object store, so that workers inherit the settings of it.
    """
    from kdscale.cluster.session import ray_session
    from kdscale.config import Cluster

    with ray_session(Cluster(), state_api=True) as ray:  # as sweeps want it
        yield ray


@pytest.fixture
def shared_data():
    """shared_data(name): a data set that lies beside the checkout, not in it; else a skip."""

    def find(name):
        path = HERE.parents[1] / "shared" / "data" / name
        if not path.is_dir():
            pytest.skip(f"optional data: no folder ../shared/data/{name} beside the checkout")
        return path

    return find
