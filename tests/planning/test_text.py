"""What a plan says, of this collection and of larger ones."""

import pytest

from kdscale.experiment.context import DATASET, SCORES
from kdscale.experiment.load import load_config
from kdscale.planning import text
from kdscale.planning.model import CostModel
from kdscale.planning.scale import SCALES, scale_lines, scaled
from tests.planning.conftest import machines, make_counts


def test_the_whole_is_the_sum_of_what_is_not_there_yet(config_file):
    config = load_config(config_file)
    model = CostModel(config, make_counts(), machines(2))
    stages = model.stages(frozenset({DATASET, SCORES}))
    plan = text.Plan(config, make_counts(), machines(2), model, stages, 3.0)
    left = [s for s in stages if s.name not in ("dataset", "scores")]
    assert plan.seconds == pytest.approx(sum(s.total for s in left))
    assert plan.bytes == pytest.approx(sum(s.bytes for s in left))
    assert plan.cost == pytest.approx(plan.seconds / 3600 * 3.0 * 2)
    assert plan.slowest.total == max(s.total for s in left)


def test_a_step_that_does_not_fit_the_device_is_told(config_file):
    config = load_config(config_file, ["teacher.train.micro_tokens=100000000"])
    model = CostModel(config, make_counts(), machines())
    plan = text.Plan(config, make_counts(), machines(), model, model.stages(), None)
    (line,) = text.memory_lines(plan)
    assert "lower train.micro_tokens" in line


def test_what_is_not_counted_is_said(config_file):
    config = load_config(config_file, ["transfer={other: {source: {type: beir, path: x}}}"])
    model = CostModel(config, make_counts(), machines())
    plan = text.Plan(config, make_counts(), machines(), model, model.stages(), None)
    assert "not counted: the collections of transfer (other)" in text.summary(plan)


def test_scales_grow_and_say_where_a_stage_stops(config_file):
    lines = list(scale_lines(load_config(config_file), make_counts(), machines(8)))
    assert sum(line.startswith(tuple(s.name for s in SCALES)) for line in lines) == 3
    stops = [line for line in lines if "STOPS HERE" in line]
    assert any(line.split()[0] == "prepare" for line in stops)
    beyond = lines[lines.index(f"beyond: {SCALES[2].text}") :]
    assert len([line for line in beyond if "STOPS HERE" in line]) >= 3
    grown = scaled(make_counts(), SCALES[0], 5)
    assert grown.queries["train"] == 8_000_000 and grown.pairs == 40_000_000
