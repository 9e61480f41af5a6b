"""Token ids and types are those of tokenizer.json, as the `tokenizers` library reads it."""

import json
import random

import pytest
import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, RobertaConfig, RobertaModel

from kdscale.errors import KdscaleError
from kdscale.models.encode import PairEncoder
from kdscale.models.pretrained import load_encoder, load_tokenizer
from kdscale.models.ranker import Scorer, build_ranker, load_ranker, save_ranker
from tests.worlds.tiny_models import (
    bert_encoder,
    bert_tokenizer,
    random_pairs,
    roberta_like_tokenizer,
)

TEXTS = ["River, Bank; w1", "w2-w3 tax", "a rates", "RIVER   flow?", "why w4"]


@pytest.fixture
def folder(tmp_path):
    """A ranker with BERT's tokenizer."""
    ranker = build_ranker(bert_encoder(), 0.0, seed=1)
    save_ranker(ranker, PairEncoder(bert_tokenizer(), 24), tmp_path)
    return tmp_path


def as_a_plain_fast_tokenizer(folder):
    """How many publish it: class PreTrainedTokenizerFast, no word of token types."""
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.pop("model_input_names", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def with_another_pre_tokenizer(folder):
    """tokenizer.json as its author made it; the settings name BERT's class."""
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.save(str(folder / "tokenizer.json"))


def with_another_normaliser(folder):
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace("river", "bank")]
    )
    raw.save(str(folder / "tokenizer.json"))


CHANGES = [as_a_plain_fast_tokenizer, with_another_pre_tokenizer, with_another_normaliser]


@pytest.mark.parametrize("change", CHANGES)
def test_ids_and_types_are_those_of_tokenizer_json(folder, change):
    change(folder)
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoder = PairEncoder.load(folder)
    assert encoder.uses_types
    for query in TEXTS:
        for passage in TEXTS:
            batch = encoder.collate([tuple(encoder.tokenise([query, passage]))])
            expected = theirs.encode(query, passage)
            assert batch["input_ids"][0].tolist() == expected.ids
            assert batch["token_type_ids"][0].tolist() == expected.type_ids


@pytest.mark.parametrize("change", CHANGES)
def test_scores_are_those_of_the_model_on_these_ids(folder, change):
    change(folder)
    theirs, model = Tokenizer.from_file(str(folder / "tokenizer.json")), load_ranker(folder)
    encoder = PairEncoder.load(folder)
    texts = [("River, bank", text) for text in TEXTS]
    scores = Scorer(model, encoder).score([tuple(encoder.tokenise(pair)) for pair in texts])
    for (query, passage), score in zip(texts, scores, strict=True):
        read = theirs.encode(query, passage)
        with torch.no_grad():
            logits = model(torch.tensor([read.ids]), token_type_ids=torch.tensor([read.type_ids]))[
                0
            ]
        assert score == pytest.approx(logits.item(), abs=1e-5)


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_saved_is_read_alike_by_transformers(folder, tmp_path, change):
    change(folder)
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    PairEncoder.load(folder).save(tmp_path / "ours")
    again, ours = (
        AutoTokenizer.from_pretrained(tmp_path / "ours"),
        PairEncoder.load(tmp_path / "ours"),
    )
    for text in TEXTS:
        expected = theirs.encode(text, TEXTS[0])
        read = again(text, TEXTS[0])
        assert (read["input_ids"], read["token_type_ids"]) == (expected.ids, expected.type_ids)
        batch = ours.collate([tuple(ours.tokenise([text, TEXTS[0]]))])
        assert batch["token_type_ids"][0].tolist() == expected.type_ids


def test_a_tokenizer_that_its_class_reads_alike_stays_of_its_class(folder):
    assert type(load_tokenizer(str(folder))) is type(bert_tokenizer())
    pairs = random_pairs(random.Random(0), 20, longest=8)
    ours, theirs = load_tokenizer(str(folder)), bert_tokenizer()
    assert all(ours(*pair)["input_ids"] == theirs(*pair)["input_ids"] for pair in pairs)


def test_settings_that_contradict_tokenizer_json_are_refused(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "do_lower_case": False}))
    with pytest.raises(KdscaleError, match=r"do_lower_case False, tokenizer\.json lowercase True"):
        load_tokenizer(str(folder))


def test_a_model_with_one_token_type_gets_none_of_a_tokenizer_with_two(tmp_path):
    config = RobertaConfig(
        vocab_size=80, hidden_size=24, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=66, type_vocab_size=1,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(tmp_path)
    bert_tokenizer().save_pretrained(tmp_path)
    encoder = PairEncoder(load_tokenizer(str(tmp_path)), 16)
    batch = encoder.collate([tuple(encoder.tokenise(["w1", "w2"]))])
    assert "token_type_ids" not in batch
    load_encoder(str(tmp_path))(**batch)


def test_a_model_with_two_token_types_and_a_tokenizer_with_one_gets_no_second(tmp_path):
    bert_encoder().save_pretrained(tmp_path)
    roberta_like_tokenizer().save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert type(tokenizer) is PreTrainedTokenizerFast
    assert not PairEncoder(tokenizer, 16).uses_types
