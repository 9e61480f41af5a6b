from kdscale.config import Config, Ranker, Shape, Watch
from kdscale.steps import build_steps


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
