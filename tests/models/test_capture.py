import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
)

from kdscale.errors import KdscaleError
from kdscale.models.capture import Capture, encoder_layers
from tests.worlds.tiny_models import bert_encoder

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
    # The second and third layer see two places to each side.
    "modernbert": ModernBertConfig(local_attention=4, pad_token_id=0, **SIZES),
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
    if hasattr(sdpa, "final_norm"):  # which transformers counts to the last layer
        capture.hidden[-1] = sdpa.final_norm(capture.hidden[-1])
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
    apart = (torch.arange(9)[:, None] - torch.arange(9)).abs()
    assert len(capture.scores) == len(capture.windows) == len(expected) == 3
    for ours, window, theirs in zip(capture.scores, capture.windows, expected, strict=True):
        hidden = padded if window is None else padded | (apart > window)
        probabilities = ours.masked_fill(hidden, -1e9).softmax(-1)
        seeing = ~hidden.expand_as(theirs).all(-1)  # a padded token may see nothing at all
        torch.testing.assert_close(probabilities[seeing], theirs[seeing])
    assert capture.hidden == [] and capture.embedding is None


def test_values_give_the_attention_output(models):
    sdpa, _ = models
    batch = inputs()
    with Capture(sdpa, qkv=True) as capture, torch.no_grad():
        sdpa(**batch)
    (_, _, value), scores = capture.qkv[0], capture.scores[0]  # a ModernBERT's first is not local
    mask = (batch["attention_mask"] == 0)[:, None, None, :]
    heads = value.unflatten(-1, (4, -1)).transpose(1, 2)
    mixed = (scores.masked_fill(mask, -1e9).softmax(-1) @ heads).transpose(1, 2).flatten(2)
    layer = encoder_layers(sdpa)[0]
    attention = layer.attn if hasattr(layer, "attn") else layer.attention
    seen = []
    if hasattr(attention, "output"):
        module = attention.output.dense
    else:
        module = attention.Wo if hasattr(attention, "Wo") else attention.out_lin
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


@pytest.mark.parametrize("until", [1, 2, 3])
@pytest.mark.parametrize("wanted", ["hidden", "qkv", "scores", "embedding"])
def test_a_pass_ends_when_it_has_given_enough(models, wanted, until):
    model, batch, ran = models[0], inputs(), []
    with Capture(model, **{wanted: True}) as whole, torch.no_grad():
        expected = model(**batch)[0]
    for layer in encoder_layers(model):
        layer.register_forward_hook(lambda *_: ran.append(1))
    output = None
    with torch.no_grad(), Capture(model, **{wanted: True}, until=until) as capture:
        output = model(**batch)
    assert output is None
    assert len(ran) == {"hidden": until, "embedding": 0}.get(wanted, until - 1)
    with torch.no_grad():
        assert torch.equal(model(**batch)[0], expected)
    if wanted == "embedding":
        assert torch.equal(capture.embedding, whole.embedding)
        return
    ours, theirs = getattr(capture, wanted), getattr(whole, wanted)
    assert len(ours) == until
    torch.testing.assert_close(ours, theirs[:until], rtol=0, atol=0)


def test_an_error_inside_is_not_swallowed():
    model = bert_encoder()
    with pytest.raises(IndexError), Capture(model, hidden=True, until=1):
        model(input_ids=torch.tensor([[10**6]]))


def test_gradients_flow_through_what_is_captured():
    model = bert_encoder()
    with Capture(model, qkv=True, embedding=True) as capture:
        model(**inputs())
    (capture.scores[1].sum() + capture.embedding.sum()).backward()
    assert model.encoder.layer[1].attention.self.query.weight.grad.abs().sum() > 0
    assert model.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_which_layers_are_local():
    torch.manual_seed(0)
    model = AutoModel.from_config(CONFIGS["modernbert"])
    assert Capture(model, scores=True).windows == [None, 2, 2]
    assert Capture(bert_encoder(), scores=True).windows == [None, None]


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
