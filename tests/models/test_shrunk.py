"""How long an input can be is what the model does with one, whatever its family is called."""

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel

from kdscale.errors import KdscaleError
from kdscale.models.pretrained import check_max_length, max_positions
from kdscale.models.shrunk import counted_positions, shrunk_config

SIZES = {
    "vocab_size": 80,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
# Each has 66 or 64 rows of positions, and reads 64 tokens.
COUNTED = {
    "bert": ("BertConfig", {"max_position_embeddings": 64}),
    "electra": ("ElectraConfig", {"max_position_embeddings": 64}),
    "albert": ("AlbertConfig", {"max_position_embeddings": 64}),
    "distilbert": (
        "DistilBertConfig",
        {"dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64},
    ),
    "roberta": ("RobertaConfig", {"max_position_embeddings": 66}),
    "xlm-roberta": ("XLMRobertaConfig", {"max_position_embeddings": 66}),
    "camembert": ("CamembertConfig", {"max_position_embeddings": 66}),
    "mpnet": ("MPNetConfig", {"max_position_embeddings": 66}),
    "data2vec": ("Data2VecTextConfig", {"max_position_embeddings": 66}),
    "longformer": ("LongformerConfig", {"max_position_embeddings": 66, "attention_window": 8}),
    "esm": (
        "EsmConfig",
        {"max_position_embeddings": 66, "pad_token_id": 1, "mask_token_id": 4,
         "position_embedding_type": "absolute"},
    ),
    "gpt2": ("GPT2Config", {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 64}),
}  # fmt: skip


def config_of(kind, settings):
    names = {} if kind in ("DistilBertConfig", "GPT2Config") else SIZES
    return getattr(transformers, kind)(**{"vocab_size": 80, **names, **settings})


@pytest.mark.parametrize("family", COUNTED)
def test_the_longest_input_is_read_and_a_longer_one_is_not(family):
    config = config_of(*COUNTED[family])
    assert max_positions(config) == 64
    model = AutoModel.from_config(config).eval()
    with torch.no_grad():
        assert model(torch.full((1, 64), 7))[0].shape[:2] == (1, 64)
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, 65), 7))


def test_the_padding_id_counts_and_not_the_name():
    settings = {"max_position_embeddings": 66, "pad_token_id": 5}
    assert max_positions(config_of("RobertaConfig", settings)) == 60
    assert max_positions(config_of("CamembertConfig", settings)) == 60
    assert max_positions(config_of("BertConfig", settings)) == 66


def test_positions_without_a_table_go_as_far_as_the_settings_say():
    rotated = config_of("ModernBertConfig", {"max_position_embeddings": 64, "pad_token_id": 0})
    relative = config_of("DebertaV2Config", {"max_position_embeddings": 64,
                         "position_biased_input": False, "relative_attention": True})  # fmt: skip
    for config in (rotated, relative):
        assert counted_positions(config) is None and max_positions(config) == 64


def test_relative_positions_that_nothing_bounds_have_no_limit():
    config = transformers.T5Config(vocab_size=80, d_model=24, d_kv=6, d_ff=48, num_layers=2)
    assert max_positions(config) is None
    check_max_length(config, 10_000)
    config.n_positions = 512  # as in the files of the first T5s
    assert max_positions(config) == 512
    with pytest.raises(KdscaleError, match="at most 512 tokens"):
        check_max_length(config, 513)


def test_a_small_model_keeps_width_positions_and_kinds_of_layers():
    config = transformers.ModernBertConfig(num_hidden_layers=22)
    small = shrunk_config(config, [1, 2, 22])
    assert small.hidden_size == config.hidden_size
    assert small.layer_types == [config.layer_types[n] for n in (0, 1, 21)]
    assert small.num_hidden_layers == 3 and small.vocab_size < 200
    assert config.num_hidden_layers == 22 and config.vocab_size == 50_368
    assert AutoConfig.for_model("roberta").pad_token_id == 1
    assert shrunk_config(AutoConfig.for_model("roberta")).pad_token_id == 1
