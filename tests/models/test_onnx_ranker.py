import pytest
from tiny_models import bert_encoder, bert_tokenizer

from kdscale.models.encode import PairEncoder
from kdscale.models.onnx_ranker import write_onnx
from kdscale.models.ranker import build_ranker


@pytest.mark.parametrize("training", [True, False])
def test_writing_onnx_gives_every_module_back_in_the_mode_it_had(tmp_path, training):
    model = build_ranker(bert_encoder(), 0.1, seed=1).train(training)
    model.bert.embeddings.train(not training)
    modes = [module.training for module in model.modules()]
    assert len(set(modes)) == 2
    write_onnx(model, PairEncoder(bert_tokenizer(), 24), tmp_path / "model.onnx")
    assert [module.training for module in model.modules()] == modes


def test_a_model_that_cannot_be_written_has_its_mode_as_well(tmp_path):
    model = build_ranker(bert_encoder(), 0.1, seed=1)
    with pytest.raises(Exception, match="nowhere"):
        write_onnx(model, PairEncoder(bert_tokenizer(), 24), tmp_path / "nowhere" / "model.onnx")
    assert all(module.training for module in model.modules())
