import pytest
import torch
from tiny_models import bert_encoder
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    ElectraConfig,
    RobertaConfig,
)

from kdscale.errors import KdscaleError
from kdscale.models.capture import Capture

SIZES = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
}
CONFIGS = {
    "bert": BertConfig(**SIZES),
    "roberta": RobertaConfig(**SIZES),
    "electra": ElectraConfig(embedding_size=16, **SIZES),
    "distilbert": DistilBertConfig(
        vocab_size=50, dim=24, n_layers=3, n_heads=4, hidden_dim=48, initializer_range=0.3
    ),
}


def inputs():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 50, (2, 9), generator=generator)
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[1, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(params=CONFIGS)
def models(request):
    """The same weights with SDPA, which is captured, and eager, which tells its attentions."""
    torch.manual_seed(0)
    sdpa = AutoModel.from_config(CONFIGS[request.param], attn_implementation="sdpa").eval()
    eager = AutoModel.from_config(CONFIGS[request.param], attn_implementation="eager").eval()
    eager.load_state_dict(sdpa.state_dict())
    return sdpa, eager


def test_hidden_states_are_those_of_transformers(models):
    sdpa, _ = models
    with Capture(sdpa, hidden=True, embedding=True) as capture:
        output = sdpa(**inputs(), output_hidden_states=True)
    assert torch.equal(capture.embedding, output.hidden_states[0])
    assert len(capture.hidden) == 3
    for ours, theirs in zip(capture.hidden, output.hidden_states[1:], strict=True):
        assert torch.equal(ours, theirs)
    assert capture.qkv == [] and capture.scores == []


def test_scores_reproduce_eager_attention(models):
    sdpa, eager = models
    batch = inputs()
    with Capture(sdpa, scores=True) as capture, torch.no_grad():
        sdpa(**batch)
    with torch.no_grad():
        expected = eager(**batch, output_attentions=True).attentions
    padded = batch["attention_mask"][:, None, None, :] == 0
    assert len(capture.scores) == len(expected) == 3
    for ours, theirs in zip(capture.scores, expected, strict=True):
        torch.testing.assert_close(ours.masked_fill(padded, -1e9).softmax(-1), theirs)
    assert capture.hidden == [] and capture.embedding is None


def test_values_give_the_attention_output(models):
    sdpa, _ = models
    batch = inputs()
    with Capture(sdpa, qkv=True) as capture, torch.no_grad():
        sdpa(**batch)
    (_, _, value), scores = capture.qkv[0], capture.scores[0]
    mask = (batch["attention_mask"] == 0)[:, None, None, :]
    heads = value.unflatten(-1, (4, -1)).transpose(1, 2)
    mixed = (scores.masked_fill(mask, -1e9).softmax(-1) @ heads).transpose(1, 2).flatten(2)
    attention = sdpa.get_submodule("encoder" if hasattr(sdpa, "encoder") else "transformer")
    attention = attention.layer[0].attention
    seen = []
    module = attention.output.dense if hasattr(attention, "output") else attention.out_lin
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        sdpa(**batch)
    handle.remove()
    torch.testing.assert_close(mixed, seen[0])


def test_it_stays_after_the_context_and_leaves_no_hook():
    model = bert_encoder()
    with Capture(model, hidden=True, qkv=True) as capture:
        model(**inputs())
        first = capture.hidden[-1]
        model(input_ids=inputs()["input_ids"] + 1)
    assert len(capture.hidden) == len(capture.qkv) == 2
    assert not torch.equal(first, capture.hidden[-1])
    last = capture.hidden[-1]
    model(**inputs())
    assert capture.hidden[-1] is last
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_gradients_flow_through_what_is_captured():
    model = bert_encoder()
    with Capture(model, qkv=True, embedding=True) as capture:
        model(**inputs())
    (capture.scores[1].sum() + capture.embedding.sum()).backward()
    assert model.encoder.layer[1].attention.self.query.weight.grad.abs().sum() > 0
    assert model.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_a_ranker_can_be_captured_too():
    torch.manual_seed(0)
    model = BertForSequenceClassification(CONFIGS["bert"]).eval()
    with Capture(model, hidden=True) as capture:
        output = model(**inputs(), output_hidden_states=True)
    assert torch.equal(capture.hidden[2], output.hidden_states[3])


def test_another_architecture_is_an_error():
    model = nn.Linear(2, 2)
    model.config = CONFIGS["bert"]
    with pytest.raises(KdscaleError, match="Linear: its layers are not like BERT's"):
        Capture(model, hidden=True)
