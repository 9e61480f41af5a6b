"""Helpers that tests of several folders share are importable by name."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
for folder in (HERE, HERE / "models", HERE / "evaluation"):
    sys.path.insert(0, str(folder))


@pytest.fixture(scope="session")
def ray_cluster():
    """The Ray session that the stages of a test run share; started once, it takes seconds."""
    from kdscale.config import Cluster
    from kdscale.runtime import ray_session

    with ray_session(Cluster()) as ray:
        yield ray
