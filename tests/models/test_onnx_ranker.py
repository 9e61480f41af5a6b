import pytest
import torch

from kdscale.errors import KdscaleError
from kdscale.models.encode import PairEncoder
from kdscale.models.onnx_ranker import OPSET, OnnxModel, write_onnx
from kdscale.models.ranker import build_ranker
from tests.worlds.tiny_models import bert_encoder, bert_tokenizer


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


def test_ranking_with_a_damaged_model_onnx(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no protobuf at all")
    with pytest.raises(KdscaleError, match=r"cannot read .*export it again"):
        OnnxModel(tmp_path)


def test_ranking_with_an_onnx_model_that_is_no_ranker(tmp_path):
    class Doubled(torch.nn.Module):
        def forward(self, x):
            return 2 * x

    path = tmp_path / "model.onnx"
    torch.onnx.export(Doubled(), (torch.ones(1),), str(path), dynamo=False, opset_version=OPSET)
    with pytest.raises(KdscaleError, match="gives no logits"):
        OnnxModel(tmp_path)
