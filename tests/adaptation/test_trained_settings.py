"""An update trains as its student was trained, whatever the config has by now."""

from dataclasses import replace

import pytest

from kdscale.adaptation.update import _gentle, _student_step
from kdscale.config import Config, Lm, Ranker, Shape, Train
from kdscale.errors import KdscaleError
from kdscale.experiment.lineage import Origin
from kdscale.experiment.run import key_of
from kdscale.experiment.settings import Intermediate
from kdscale.experiment.steps import build_steps
from kdscale.store import Artifact
from tests.worlds.ids import step_id

SHAPE = Shape("s", layers=1, hidden=8, heads=2, intermediate=16)
THEN = Config(
    students=[SHAPE],
    lm=Lm(layer_map=[4], relation_heads=4),
    ranker=Ranker(intermediate_losses={"qkv": 2.0}, temperature=3.0, group_size=5, seed=9),
)
NOW = replace(
    THEN,
    lm=Lm(layer_map=[2], relation_heads=2),
    ranker=Ranker(intermediate_losses={"hidden": 1.0}, train=Train(lr=1e-2)),
)
STUDENT = step_id("student:lm_distill_ranker_distill:s")


def artifact(tmp_path, **manifest):
    return Artifact("students", "s", manifest, str(tmp_path), lambda: tmp_path)


def origin_of(tmp_path, config):
    """A student with such a manifest."""
    student = artifact(tmp_path, config=config, inputs={})
    return Origin(student, student, student, student, student, student)


def test_layers_heads_and_losses_are_the_students_own(tmp_path):
    trained = build_steps(THEN)[STUDENT]
    origin = origin_of(tmp_path, key_of(trained))
    settings = origin.settings(NOW.ranker.train)
    assert settings.intermediate == Intermediate({"qkv": 2.0}, [4], 4)
    assert settings == replace(trained.settings, train=NOW.ranker.train)
    dataset = artifact(tmp_path, facts={"queries": {"train": {"kept": 64}, "dev": {"kept": 12}}})
    step = _student_step(NOW, _gentle(NOW, settings, dataset), soft=True)
    compared = key_of(step)["ranker"]["intermediate"]
    assert compared == {"losses": {"qkv": 2.0}, "layer_map": [4], "relation_heads": 4}
    assert step.settings.ranker.train.lr == pytest.approx(0.3e-2)
    assert step_id("teacher") in step.inputs and step_id("scores") in step.inputs


def test_a_manifest_of_another_version_is_refused(tmp_path):
    old = {"student": {"name": "s"}, "strategy": "finetune", "ranker": {}, "seed": 1}
    for config in (old, {}, {**key_of(build_steps(THEN)[STUDENT]), "strategy": "other"}):
        with pytest.raises(KdscaleError, match="does not say how it was trained"):
            origin_of(tmp_path, config).settings(Train())
