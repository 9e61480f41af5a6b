"""The cost model: counted by hand, monotone. No time is asserted."""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest

from kdscale.experiment.load import load_config
from kdscale.planning.model import ALONE, EVERYWHERE, CostModel, padded_length
from kdscale.planning.rates import ASSUMED, Compute
from kdscale.planning.shapes import teacher_model
from tests.planning.conftest import machines, make_counts


def seconds(config, counts=None, where=None):
    stages = CostModel(config, counts or make_counts(), where or machines()).stages()
    return {stage.name: stage.total for stage in stages}


def test_seconds_of_a_pair_by_hand(config_file):
    """One scored pair of 20 tokens: its matrix products and values at the rates given."""
    config = load_config(config_file)
    device = dataclasses.replace(ASSUMED, forward=Compute(1e6, 2e6))
    stages = CostModel(config, make_counts(pairs=1), machines(device=device)).stages()
    (score,) = (s for s in stages if s.name == "scores")
    model = teacher_model(config.teacher)
    expected = model.flops(20) / 1e6 + model.elements(20) / 2e6
    assert score.seconds[EVERYWHERE] == pytest.approx(expected)
    assert score.flops == model.flops(20)


def test_more_data_take_longer_and_nothing_takes_less(config_file):
    config = load_config(config_file)
    ranker, teacher = (
        replace(section, train=replace(section.train, max_steps=None))
        for section in (config.ranker, config.teacher)
    )
    config = replace(config, ranker=ranker, teacher=teacher)
    small = seconds(config)
    grown = seconds(config, make_counts(
        passages=10_000, pairs=20_000, blocks=4_000, lengths=np.full(100, 30),
        queries={"train": 5_000, "dev": 500, "test": 500},
    ))  # fmt: skip
    assert small.keys() == grown.keys()
    assert all(grown[name] >= small[name] for name in small)
    for name in ("dataset", "tokens", "teacher", "scores", "student:finetune:tiny", "evaluation"):
        assert grown[name] > small[name], name


def test_scoring_is_proportional_to_the_pairs(config_file):
    config = load_config(config_file)

    def spread(pairs):
        stages = CostModel(config, make_counts(pairs=pairs), machines()).stages()
        return next(s for s in stages if s.name == "scores").seconds[EVERYWHERE]

    assert spread(6_000) == pytest.approx(3 * spread(2_000))


def test_more_devices_share_what_is_spread_and_nothing_else(config_file):
    config = load_config(config_file)
    one, four = (
        {s.name: s.seconds for s in CostModel(config, make_counts(), machines(n)).stages()}
        for n in (1, 4)
    )
    assert four["scores"][EVERYWHERE] == pytest.approx(one["scores"][EVERYWHERE] / 4)
    assert four["scores"][ALONE] == one["scores"][ALONE]
    assert four["evaluation"] == one["evaluation"]


def test_padding():
    assert padded_length(np.full(50, 30), 4, 8) == 30
    mixed = np.array([10, 50])
    assert 30 < padded_length(mixed, 4, 8) <= 50
