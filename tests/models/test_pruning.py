import copy
import random

import numpy as np
import pytest
import torch
from transformers import DistilBertConfig, DistilBertModel

from kdscale.errors import KdscaleError
from kdscale.models.capture import encoder_layers
from kdscale.models.encode import PairEncoder
from kdscale.models.pruning import (
    Importance,
    check_prunable,
    check_shares,
    choose,
    measure_importance,
    prune,
    with_silent_heads,
)
from kdscale.models.ranker import Scorer, build_ranker, load_ranker, save_ranker
from tests.models.test_ranker import FAMILIES
from tests.worlds.tiny_models import bert_encoder, bert_tokenizer, random_pairs

HEADS, WIDTH = 4, 6  # of tiny_models' encoder


def batch(encoder, count=3):
    pairs = random_pairs(random.Random(2), count, 12)
    return encoder.collate([tuple(encoder.tokenise(list(pair))) for pair in pairs])


@pytest.fixture
def encoder():
    return PairEncoder(bert_tokenizer(), 32)


@pytest.fixture
def model():
    return build_ranker(bert_encoder(), 0.0, 0).eval()


def silenced(model, layer, rows, part):
    """The model with some inputs of one matrix's product zeroed: what leaving them out means."""
    other = copy.deepcopy(model)
    block = encoder_layers(other)[layer]
    dense = block.attention.output.dense if part == "heads" else block.output.dense
    with torch.no_grad():
        dense.weight[:, rows] = 0
    return other


def test_importance_is_the_derivative_by_a_gate(model, encoder):
    """Against what the loss does for a gate of 1 + e, by central differences in float64."""
    model = model.double()
    inputs = batch(encoder, 1)

    def loss_of(other):
        return other(**inputs).logits.square().sum()

    found = measure_importance(model, [lambda: loss_of(model)])
    by_hand = torch.zeros(2, HEADS, dtype=torch.float64)
    for layer in range(2):
        for head in range(HEADS):
            values = []
            for step in (1e-4, -1e-4):
                other = copy.deepcopy(model)
                with torch.no_grad():
                    dense = encoder_layers(other)[layer].attention.output.dense
                    dense.weight[:, head * WIDTH : (head + 1) * WIDTH] *= 1 + step
                    values.append(loss_of(other).item())
            by_hand[layer, head] = abs(values[0] - values[1]) / 2e-4
    by_hand /= by_hand.norm(dim=1, keepdim=True)
    assert torch.allclose(found.heads.double(), by_hand, atol=1e-4)
    assert found.neurons.shape == (2, 48)
    assert torch.allclose(found.neurons.norm(dim=1), torch.ones(2).to(found.neurons), atol=1e-5)


def test_importance_leaves_the_model_as_it_was(model, encoder):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    inputs = batch(encoder)
    expected = model(**inputs).logits
    measure_importance(model, [lambda: model(**inputs).logits.sum()])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(model(**inputs).logits, expected)
    assert all(p.grad is None for p in model.parameters())


def test_the_least_important_go_and_never_a_layers_last_head():
    heads = torch.tensor([[0.1, 0.2, 0.3, 0.05], [0.9, 0.8, 0.7, 0.6]])
    neurons = torch.tensor([[3.0, 1.0, 2.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    kept = choose(Importance(heads, neurons), 0.5, 0.5)
    assert kept.heads == [[2], [0, 1, 2]]  # four of eight, but not the first layer's best
    assert kept.neurons == [[0, 3], [2, 3]]
    assert choose(Importance(heads, neurons), 0.0, 0.0).heads == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_model_is_the_whole_one_without_those_heads_and_neurons(family, tmp_path):
    make, tokenizer = FAMILIES[family]
    model = build_ranker(make(), 0.0, 0).eval()
    encoder = PairEncoder(tokenizer(), 32)
    inputs = batch(encoder)
    importance = measure_importance(model, [lambda: model(**inputs).logits.sum()])
    kept = choose(importance, 0.5, 0.25)
    expected = model
    for layer, (heads, neurons) in enumerate(zip(kept.heads, kept.neurons, strict=True)):
        gone = [h * WIDTH + i for h in range(HEADS) if h not in heads for i in range(WIDTH)]
        expected = silenced(expected, layer, gone, "heads")
        gone = [i for i in range(48) if i not in neurons]
        expected = silenced(expected, layer, gone, "neurons")
    prune(model, kept)
    with torch.inference_mode():
        found, wanted = (m(**inputs).logits.numpy() for m in (model, expected))
    assert np.allclose(found, wanted, atol=1e-5)
    assert encoder_layers(model)[0].intermediate.dense.out_features == 36
    # In the form that can be saved, the same scores again.
    save_ranker(with_silent_heads(model, kept), encoder, tmp_path)
    loaded = load_ranker(tmp_path)
    assert loaded.config.intermediate_size == 36
    with torch.inference_mode():
        assert np.allclose(loaded(**inputs).logits.numpy(), wanted, atol=1e-5)
    ids = [tuple(encoder.tokenise(["w1 w2", "w3 w4 w5"]))]
    assert np.isfinite(Scorer(loaded, encoder).score(ids)).all()


def test_a_pruned_model_can_be_trained(model, encoder):
    inputs = batch(encoder)
    importance = measure_importance(model, [lambda: model(**inputs).logits.sum()])
    prune(model, choose(importance, 0.25, 0.5))
    model.train()(**inputs).logits.sum().backward()
    assert all(p.grad is not None for p in encoder_layers(model)[0].parameters())


@pytest.mark.parametrize(
    "shares, told",
    [
        ((1.0, 0.0), "8 of 8 heads, and each of 2 layers needs one; prune at most heads=0.75"),
        ((2.5, 0.0), "20 of 8 heads"),
        ((0.0, 1.0), "48 of the 48 neurons"),
        ((0.0, 3.0), "144 of the 48 neurons"),
    ],
)
def test_more_than_there_is_is_not_pruned(model, shares, told):
    with pytest.raises(KdscaleError, match=told):
        check_shares(model, *shares)


def test_layers_unlike_berts_are_refused():
    config = DistilBertConfig(vocab_size=70, dim=24, n_layers=2, n_heads=4, hidden_dim=48)
    model = build_ranker(DistilBertModel(config), 0.0, 0)
    with pytest.raises(KdscaleError, match="does not have BERT's layers"):
        check_prunable(model)
