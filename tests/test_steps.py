import pytest

from kdscale.config import Config, Ranker, Shape, Watch
from kdscale.matters import language_model
from kdscale.steps import build_steps

DISTILLED = "student:lm_distill_ranker_distill:s"  # begins with a language model: reads no file


def _student(**watch):
    """What of the config the key of a student is made from."""
    ranker = Ranker(strategies=["lm_distill_finetune"], watch=Watch(**watch))
    config = Config(students=[Shape("s", 2, 24, 2, 48)], ranker=ranker)
    return build_steps(config)["student:lm_distill_finetune:s"].matters()


def test_looking_alone_is_no_part_of_a_students_key():
    plain = _student()
    assert "watch" not in plain["ranker"]
    assert _student(every=7) == _student(every=9, depth=50, measure="RR@10") == plain


def test_what_decides_the_weights_is_part_of_it():
    for decides in ({"patience": 3}, {"keep_best": True}):
        decided = _student(every=7, **decides)
        assert decided != _student()
        for change in ({"every": 8}, {"depth": 9}, {"queries": 9}, {"measure": "RR@10"}):
            assert _student(**{"every": 7, **decides, **change}) != decided
        assert _student(every=7, train_queries=5, **decides) == decided


def _config(**ranker):
    config = Config(students=[Shape("s", 1, 8, 2, 16)])
    for name, value in ranker.items():
        setattr(config.ranker, name, value)
    return config


def test_intermediate_terms_bring_the_teacher_in_where_the_ranker_is_distilled():
    plain = build_steps(_config())
    steps = build_steps(_config(intermediate_losses={"hidden": 0.5}))
    with_teacher = {n for n, s in steps.items() if "teacher" in s.inputs and n[:8] == "student:"}
    assert with_teacher == {"student:ranker_distill:s", DISTILLED}
    assert not any("teacher" in s.inputs for n, s in plain.items() if n[:8] == "student:")
    assert steps[DISTILLED].params["losses"] == {
        "listwise_kl": 1.0,
        "lce": 1.0,
        "hidden": 0.5,
    }
    assert steps["student:lm_distill_finetune:s"].params["losses"] == {"lce": 1.0}


def test_the_teachers_head_matters_where_its_logits_are_learnt():
    config = _config()
    config.lm.losses = {"mlm": 1.0}
    assert "head_steps" not in language_model(config.lm)
    config.lm.losses = {"mlm_kl": 1.0}
    assert language_model(config.lm)["head_steps"] == 500


@pytest.mark.parametrize("setting", ["layer_map", "relation_heads"])
def test_what_is_compared_matters_only_with_intermediate_terms(setting):
    for losses, matters in (({}, False), ({"qkv": 1.0}, True)):
        before, after = _config(intermediate_losses=losses), _config(intermediate_losses=losses)
        setattr(after.lm, setting, {"layer_map": [6], "relation_heads": 4}[setting])
        before, after = (build_steps(c)[DISTILLED].matters() for c in (before, after))
        assert (before != after) == matters
        assert ("intermediate" in before["ranker"]) == matters
