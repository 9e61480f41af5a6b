import pytest

from kdscale.config import Shape, Teacher
from kdscale.errors import KdscaleError
from kdscale.experiment.load import load_config
from kdscale.planning.shapes import Model, student_model, teacher_model

TINY = Model("tiny", 2, 32, 4, 64, 105, 32)


def test_flops_are_those_that_are_counted_as_they_run():
    from transformers import BertConfig, BertModel

    from kdscale.evaluation.latency import count_parameters, forward_flops

    bert = BertModel(
        BertConfig(
            vocab_size=105, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=64,
        )
    ).eval()  # fmt: skip
    pooler = 2 * 32 * 32
    assert TINY.flops(16) == forward_flops(bert, 16) - pooler
    assert TINY.parameters == pytest.approx(count_parameters(bert)[0], rel=0.01)


def test_a_student_has_the_teachers_vocabulary_and_its_own_embeddings(config_file):
    teacher = teacher_model(load_config(config_file).teacher)
    assert (teacher.layers, teacher.hidden, teacher.vocabulary) == (2, 32, 105)
    narrow = student_model(Shape("s", 1, 16, 2, 32, embedding=8), teacher)
    assert narrow.vocabulary == 105 and narrow.table_parameters == (105 + 512) * 8
    assert narrow.flops(10) - student_model(Shape("s", 1, 16, 2, 32), teacher).flops(10) == (
        2 * 10 * 8 * 16
    )


def test_a_well_known_model_needs_no_hub_and_another_one_must_be_there():
    bert = teacher_model(Teacher(model="google-bert/bert-base-uncased"))
    assert bert.parameters == pytest.approx(109.5e6, rel=0.01)
    assert bert.source == "the published shape"
    with pytest.raises(KdscaleError, match="does not exist"):
        teacher_model(Teacher(model="./no-such-folder"))
