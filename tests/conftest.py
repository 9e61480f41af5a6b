"""Helpers that tests of several folders share are importable by name."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
for folder in (HERE, HERE / "models", HERE / "evaluation", HERE / "data"):
    sys.path.insert(0, str(folder))


@pytest.fixture(scope="session")
def ray_cluster():
    """The Ray session that the stages of a test run share; started once, it takes seconds."""
    from kdscale.config import Cluster
    from kdscale.runtime import ray_session

    with ray_session(Cluster()) as ray:
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
