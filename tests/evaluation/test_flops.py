import pytest

from kdscale.evaluation.latency import count_parameters, forward_flops, weight_bytes
from kdscale.models.encode import PairEncoder
from kdscale.models.ranker import build_ranker, save_ranker
from tests.worlds.tiny_models import bert_encoder, bert_tokenizer

LAYERS, H, INTERMEDIATE = 3, 24, 48


@pytest.fixture
def ranker():
    return build_ranker(
        bert_encoder(layers=LAYERS, hidden=H, intermediate=INTERMEDIATE), seed=1, dropout=0.0
    )


def by_hand(length):
    projections = 4 * (2 * length * H * H)  # query, key, value, output
    feed_forward = 2 * (2 * length * H * INTERMEDIATE)
    attention = 2 * (2 * length * length * H)  # scores, and the weighted sum of values
    head = 2 * H * H + 2 * H  # pooler and classifier, of one token
    return LAYERS * (projections + feed_forward + attention) + head


@pytest.mark.parametrize("length", [1, 10, 64])
def test_flops_by_hand(ranker, length):
    assert forward_flops(ranker, length) == by_hand(length)


def test_attention_grows_with_the_square_of_the_length(ranker):
    linear_part = 2 * (forward_flops(ranker, 32) - 2 * H * H - 2 * H)
    rest = forward_flops(ranker, 64) - 2 * H * H - 2 * H - linear_part
    assert rest == LAYERS * 4 * H * (64 * 64 - 2 * 32 * 32)


def test_counting_changes_nothing(ranker):
    ranker.train()
    ranker.bert.pooler.requires_grad_(False)
    forward_flops(ranker, 8)
    assert ranker.training
    assert not ranker.bert.pooler.dense.weight.requires_grad
    assert ranker.config._attn_implementation == "sdpa"


def test_parameters_by_hand(ranker):
    tables = (len(bert_tokenizer()) + 64 + 2) * H
    norm = 2 * H
    layer = 4 * (H * H + H) + 2 * H * INTERMEDIATE + INTERMEDIATE + H + 2 * norm
    head = (H * H + H) + (H + 1)
    assert count_parameters(ranker) == (tables + norm + LAYERS * layer + head, tables)


def test_bytes_are_those_of_the_weights_alone(ranker, tmp_path):
    save_ranker(ranker, PairEncoder(bert_tokenizer(), 16), tmp_path)
    parameters, _ = count_parameters(ranker)
    header = weight_bytes(tmp_path) - 4 * parameters
    assert 0 < header < 20_000
    assert weight_bytes(tmp_path) == (tmp_path / "model.safetensors").stat().st_size
