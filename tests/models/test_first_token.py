import copy
import random

import numpy as np
import pytest
import torch
from transformers import DistilBertConfig, DistilBertModel

from kdscale.models.capture import encoder_layers
from kdscale.models.encode import PairEncoder
from kdscale.models.packed import first_token_only
from kdscale.models.ranker import Scorer, build_ranker
from tests.models.test_ranker import FAMILIES
from tests.worlds.tiny_models import bert_encoder, bert_tokenizer, random_pairs


def made(family, count=7):
    make, tokenizer = FAMILIES[family]
    encoder = PairEncoder(tokenizer(), 32)
    pairs = random_pairs(random.Random(2), count, 14)
    batch = encoder.collate([tuple(encoder.tokenise(list(pair))) for pair in pairs])
    return build_ranker(make(), 0.0, 0).eval(), batch


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_whole_layer(family, attention):
    model, batch = made(family)
    model.set_attn_implementation(attention)
    assert (batch["attention_mask"] == 0).any()
    with torch.inference_mode():
        expected = model(**batch).logits
        with first_token_only(model):
            assert model.base_model(**batch)[0].shape[1] == 1
            found = model(**batch).logits
        assert torch.allclose(found, expected, atol=1e-6)
        assert expected.std() > 1e-2
        assert torch.equal(model(**batch).logits, expected)  # outside again
        one = {name: tensor[:1, :5] for name, tensor in batch.items()}  # nothing is padded
        expected = model(**one).logits
        with first_token_only(model):
            assert torch.allclose(model(**one).logits, expected, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_whole_layer(family):
    model, batch = made(family)
    other = copy.deepcopy(model)
    model(**batch).logits.square().sum().backward()
    with first_token_only(other):
        other(**batch).logits.square().sum().backward()
    for (name, ours), theirs in zip(other.named_parameters(), model.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4), name


def test_inside_of_itself_and_after_an_error_it_ends_where_it_began():
    model, _ = made("bert")
    layer = encoder_layers(model)[-1]
    with first_token_only(model), first_token_only(model):
        assert "forward" in vars(layer)
    assert "forward" not in vars(layer)
    with pytest.raises(RuntimeError), first_token_only(model):
        raise RuntimeError
    assert "forward" not in vars(layer)


def test_a_model_whose_head_is_not_known_is_left_as_it_is():
    config = DistilBertConfig(vocab_size=73, dim=24, n_layers=2, n_heads=4, hidden_dim=48)
    model = build_ranker(DistilBertModel(config), 0.0, 0).eval()
    for left in (model, bert_encoder()):
        with first_token_only(left):
            assert all("forward" not in vars(layer) for layer in encoder_layers(left))


def test_the_scorer_leaves_the_model_as_it_was():
    model = build_ranker(bert_encoder(), 0.0, 0)
    encoder = PairEncoder(bert_tokenizer(), 32)
    pairs = [tuple(encoder.tokenise(list(p))) for p in random_pairs(random.Random(1), 9, 20)]
    scores = Scorer(model, encoder, 64).score(pairs)
    with torch.inference_mode():
        expected = [model(**encoder.collate([pair])).logits.item() for pair in pairs]
    assert np.allclose(scores, expected, atol=1e-5)
    assert "forward" not in vars(encoder_layers(model)[-1])
