"""What the tests of the plan share: a config, an empty cache, counts and machines."""

import dataclasses

import numpy as np
import pytest

from kdscale.planning.counts import Counts
from kdscale.planning.model import Machines
from kdscale.planning.rates import ASSUMED
from tests.worlds.world import make_config


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    return make_config(tmp_path_factory.mktemp("plan"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KDSCALE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_counts(**changes):
    counts = Counts(1_000, 300.0, {"train": 500, "dev": 50, "test": 50}, 2_000,
                    np.full(100, 20), 400, "the test")  # fmt: skip
    return dataclasses.replace(counts, **changes)


def machines(devices=1, device=ASSUMED, cores=4):
    return Machines(device, devices, ASSUMED, cores)
