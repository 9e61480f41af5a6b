from dataclasses import replace

import pytest

from kdscale.config import Config, Lm, Ranker, Shape, Watch
from kdscale.experiment.context import TEACHER
from kdscale.experiment.run import key_of
from kdscale.experiment.steps import build_steps, lm_settings
from tests.worlds.ids import step_id

DISTILLED = step_id("student:lm_distill_ranker_distill:s")  # starts from a language model
LABELLED = step_id("student:lm_distill_finetune:s")


def _student(**watch):
    """The settings in the key of a student."""
    ranker = Ranker(strategies=["lm_distill_finetune"], watch=Watch(**watch))
    config = Config(students=[Shape("s", 2, 24, 2, 48)], ranker=ranker)
    return key_of(build_steps(config)[LABELLED])


def test_validation_alone_is_no_part_of_a_students_key():
    plain = _student()
    assert plain["validate"] is None
    assert _student(every=7) == _student(every=9, depth=50, measure="RR@10") == plain


def test_what_decides_the_weights_is_part_of_it():
    for decides in ({"patience": 3}, {"keep_best": True}):
        decided = _student(every=7, **decides)
        assert decided != _student()
        for change in ({"every": 8}, {"depth": 9}, {"queries": 9}, {"measure": "RR@10"}):
            assert _student(**{"every": 7, **decides, **change}) != decided
        assert _student(every=7, train_queries=5, **decides) == decided


def _config(**ranker):
    return Config(students=[Shape("s", 1, 8, 2, 16)], ranker=Ranker(**ranker))


def test_intermediate_losses_bring_the_teacher_in_where_the_ranker_is_distilled():
    plain = build_steps(_config())
    steps = build_steps(_config(intermediate_losses={"hidden": 0.5}))
    students = [id_ for id_ in steps if id_.kind == "student"]
    with_teacher = {id_ for id_ in students if TEACHER in steps[id_].inputs}
    assert with_teacher == {step_id("student:ranker_distill:s"), DISTILLED}
    assert not any(TEACHER in plain[id_].inputs for id_ in students)
    assert steps[DISTILLED].settings.weights == {"listwise_kl": 1.0, "lce": 1.0, "hidden": 0.5}
    assert steps[LABELLED].settings.weights == {"lce": 1.0}


def test_the_teachers_head_is_asked_for_where_its_logits_are_learned():
    for losses, steps in (({"mlm": 1.0}, None), ({"mlm_kl": 1.0}, 500)):
        config = replace(_config(), lm=Lm(losses=losses))
        assert lm_settings(config, config.students[0]).head_steps == steps


@pytest.mark.parametrize("setting", ["layer_map", "relation_heads"])
def test_how_layers_are_compared_is_in_the_key_with_intermediate_losses_alone(setting):
    for losses, counts in (({}, False), ({"qkv": 1.0}, True)):
        config = _config(intermediate_losses=losses)
        changed = {"layer_map": [6], "relation_heads": 4}[setting]
        other = replace(config, lm=replace(config.lm, **{setting: changed}))
        before, after = (key_of(build_steps(c)[DISTILLED]) for c in (config, other))
        assert (before != after) == counts
        assert (before["intermediate"] is not None) == counts
