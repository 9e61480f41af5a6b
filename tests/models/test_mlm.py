import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
)

from kdscale.models.mlm import MaskedLmHead, pretrained_head, states_at
from tests.worlds.tiny_models import bert_encoder

SIZES = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
CONFIGS = {
    "bert": BertConfig(**SIZES),
    "roberta": RobertaConfig(**SIZES),
    "electra": ElectraConfig(embedding_size=16, **SIZES),
    "distilbert": DistilBertConfig(vocab_size=50, dim=24, n_layers=1, n_heads=4, hidden_dim=48),
    "modernbert": ModernBertConfig(**SIZES),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_head_in_a_models_files(name, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(CONFIGS[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    model.save_pretrained(tmp_path / "whole")
    model.base_model.save_pretrained(tmp_path / "bare")
    head = pretrained_head(str(tmp_path / "whole")).eval()
    ids = torch.arange(5, 17).view(2, 6)
    with torch.no_grad():
        states, expected = model.base_model(ids)[0], model(ids).logits
        torch.testing.assert_close(head(states), expected)
    assert pretrained_head(str(tmp_path / "bare")) is None


def test_a_new_head_by_hand_is_tied_to_its_encoder():
    encoder = bert_encoder(hidden=24)
    head = MaskedLmHead(encoder, seed=1)
    states = torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(0))
    inner = F.layer_norm(F.gelu(states @ head.dense.weight.T + head.dense.bias), (24,))
    table = encoder.embeddings.word_embeddings.weight
    torch.testing.assert_close(head(states), inner @ table.T)
    assert set(head.state_dict()) == {
        "dense.weight", "dense.bias", "norm.weight", "norm.bias", "bias"
    }  # fmt: skip
    head(states).sum().backward()
    assert table.grad.abs().sum() > 0


def test_a_new_head_depends_on_the_seed_alone_and_fits_narrow_embeddings():
    torch.manual_seed(0)
    encoder = AutoModel.from_config(CONFIGS["electra"])
    one, same, other = (MaskedLmHead(encoder, seed) for seed in (1, 1, 2))
    assert torch.equal(one.dense.weight, same.dense.weight)
    assert not torch.equal(one.dense.weight, other.dense.weight)
    assert one(torch.zeros(3, 24)).shape == (3, 50)


def test_states_at_places():
    states = torch.arange(24.0).view(2, 4, 3)
    places = torch.tensor([[3, 0], [1, 1]])
    expected = torch.stack([states[0, [3, 0]], states[1, [1, 1]]])
    assert torch.equal(states_at(states, places), expected)
