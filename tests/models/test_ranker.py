import random

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ElectraConfig,
    ElectraModel,
    GemmaConfig,
    LlamaConfig,
    Qwen3Config,
    RobertaConfig,
    RobertaModel,
)

from kdscale.config import Shape
from kdscale.errors import KdscaleError
from kdscale.evaluation.rerank import load_scorer
from kdscale.models.encode import PairEncoder
from kdscale.models.ranker import (
    Scorer,
    build_ranker,
    load_ranker,
    plan_batches,
    ranker_from_lm,
    save_ranker,
)
from kdscale.models.students import build_student
from tests.worlds.tiny_models import (
    bert_encoder,
    bert_tokenizer,
    decoder_tokenizer,
    random_pairs,
    roberta_like_tokenizer,
)

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.2,
}


def roberta_encoder():
    torch.manual_seed(0)
    vocab = len(roberta_like_tokenizer())
    return RobertaModel(
        RobertaConfig(vocab_size=vocab, max_position_embeddings=66, type_vocab_size=1, **SIZES)
    ).eval()


def electra_encoder():
    torch.manual_seed(0)
    vocab = len(bert_tokenizer())
    return ElectraModel(
        ElectraConfig(vocab_size=vocab, max_position_embeddings=64, embedding_size=24, **SIZES)
    ).eval()


def factorised_encoder():
    """A student of a BERT teacher whose embeddings have a width of their own."""
    shape = Shape("s", layers=2, hidden=24, heads=4, intermediate=48, embedding=8)
    return build_student(shape, bert_encoder(), "random", 0).eval()


FAMILIES = {
    "bert": (bert_encoder, bert_tokenizer),
    "roberta": (roberta_encoder, roberta_like_tokenizer),
    "electra": (electra_encoder, bert_tokenizer),
    "factorised": (factorised_encoder, bert_tokenizer),
}


@pytest.fixture(params=FAMILIES)
def saved(request, tmp_path):
    """A saved ranker: its directory, texts (half of them cut) and the scores of `Scorer`."""
    make_encoder, make_tokenizer = FAMILIES[request.param]
    model = build_ranker(make_encoder(), 0.0, seed=1)
    encoder = PairEncoder(make_tokenizer(), 21)
    save_ranker(model, encoder, tmp_path)
    texts = random_pairs(random.Random(3), 40, longest=24)
    pairs = [tuple(encoder.tokenise(pair)) for pair in texts]
    scores = Scorer(load_ranker(tmp_path), PairEncoder.load(tmp_path), 256).score(pairs)
    assert sum(len(q) + len(p) > encoder.budget for q, p in pairs) > 10
    assert scores.std() > 1e-2
    return tmp_path, texts, scores


def test_transformers_gives_the_same_scores(saved):
    path, texts, scores = saved
    model = AutoModelForSequenceClassification.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        for (query, passage), score in zip(texts, scores, strict=True):
            inputs = tokenizer(query, passage, truncation=True, return_tensors="pt")
            assert model(**inputs).logits.item() == pytest.approx(score, abs=1e-4)


def test_sentence_transformers_gives_the_same_scores(saved):
    cross_encoder = pytest.importorskip("sentence_transformers").CrossEncoder
    path, texts, scores = saved
    model = cross_encoder(str(path), device="cpu")
    assert model.max_seq_length == 21
    np.testing.assert_allclose(model.predict(texts), scores, atol=1e-4)


def test_scores_do_not_depend_on_the_batches():
    model, encoder = build_ranker(bert_encoder(), 0.0, seed=1), PairEncoder(bert_tokenizer(), 24)
    texts = random_pairs(random.Random(5), 30, longest=12)
    pairs = [tuple(encoder.tokenise(pair)) for pair in texts]
    whole = Scorer(model, encoder, 10_000).score(pairs)
    alone = Scorer(model, encoder, 1).score(pairs)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole, alone, atol=1e-5)
    np.testing.assert_allclose(
        Scorer(model, encoder, 100).score(pairs[::-1]), alone[::-1], atol=1e-5
    )


DECODERS = {
    "qwen3": (Qwen3Config, {"num_key_value_heads": 2, "head_dim": 6}),
    "llama": (LlamaConfig, {"num_key_value_heads": 2}),
    "gemma": (GemmaConfig, {"num_key_value_heads": 2, "head_dim": 6}),
}


@pytest.mark.parametrize("said", [None, 2, 0], ids=["no padding id", "eos", "another"])
@pytest.mark.parametrize("family", DECODERS)
def test_a_decoders_score_is_that_of_the_pair_alone(family, said, tmp_path):
    """Its settings name no padding token, or another one than its tokenizer."""
    tokenizer = decoder_tokenizer()
    kind, settings = DECODERS[family]
    config = kind(
        vocab_size=len(tokenizer), **{**SIZES, "initializer_range": 0.4}, **settings,
        pad_token_id=said, bos_token_id=None, eos_token_id=2, num_labels=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(tmp_path)
    texts = random_pairs(random.Random(7), 40, longest=12)
    with torch.no_grad():
        alone = [
            model(tokenizer(*pair, return_tensors="pt")["input_ids"]).logits.item()
            for pair in texts
        ]
    assert np.std(alone) > 0.1
    scorer = load_scorer(str(tmp_path), 256, "torch")  # as kdscale rank does
    pairs = [tuple(scorer.encoder.tokenise(pair)) for pair in texts]
    np.testing.assert_allclose(scorer.score(pairs), alone, atol=1e-4)
    np.testing.assert_allclose(scorer.score(pairs[::-1]), alone[::-1], atol=1e-4)


def test_a_tokenizer_that_cannot_pad_is_one_line(tmp_path):
    tokenizer = decoder_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(KdscaleError, match=r"needs a padding token \(pad_token\)"):
        PairEncoder(tokenizer, 64)


def test_bf16_is_close_and_returns_float32():
    model, encoder = build_ranker(bert_encoder(), 0.0, seed=1), PairEncoder(bert_tokenizer(), 24)
    pairs = [
        tuple(encoder.tokenise(pair)) for pair in random_pairs(random.Random(5), 8, longest=12)
    ]
    exact = Scorer(model, encoder).score(pairs)
    rounded = Scorer(model, encoder, precision="bf16").score(pairs)
    assert rounded.dtype == np.float32
    assert 0 < np.abs(exact - rounded).max() < 0.1 * np.abs(exact).max() + 0.05


def test_no_pairs():
    scorer = Scorer(build_ranker(bert_encoder(), 0.0, seed=1), PairEncoder(bert_tokenizer(), 24))
    assert scorer.score([]).shape == (0,)


def test_plan_covers_every_item_within_the_budget():
    lengths = np.array([5, 90, 7, 7, 30, 1, 12, 200])
    batches = plan_batches(lengths, 100)
    assert sorted(np.concatenate(batches).tolist()) == list(range(8))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= 100
    assert batches[0].tolist() == [7]  # longer than the budget: alone
    assert len(batches) < 6


def test_a_pair_longer_than_the_model_reads_is_an_error():
    model = build_ranker(bert_encoder(), 0.0, seed=1)
    with pytest.raises(KdscaleError, match="at most 64"):
        Scorer(model, PairEncoder(bert_tokenizer(), 65))
    with pytest.raises(KdscaleError, match="at most 64"):  # 66 positions, from padding id + 1
        Scorer(build_ranker(roberta_encoder(), 0.0, 1), PairEncoder(roberta_like_tokenizer(), 65))


def test_the_head_is_drawn_from_the_seed_and_the_body_is_copied():
    encoder = bert_encoder()
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    one, same, other = (build_ranker(encoder, 0.0, seed=s) for s in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one.classifier.weight, same.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    for name, tensor in encoder.state_dict().items():
        copied = one.bert.state_dict()[name]
        assert torch.equal(copied, tensor) and copied.data_ptr() != tensor.data_ptr()


def test_a_language_model_becomes_a_ranker(tmp_path):
    encoder = bert_encoder()
    encoder.save_pretrained(tmp_path)
    ranker = ranker_from_lm(tmp_path, 0.0, seed=4)
    assert ranker.config.num_labels == 1
    word_embeddings = ranker.bert.embeddings.word_embeddings.weight
    assert torch.equal(word_embeddings, encoder.embeddings.word_embeddings.weight)


def test_an_encoder_is_no_ranker(tmp_path):
    bert_encoder().save_pretrained(tmp_path)
    with pytest.raises(KdscaleError, match=r"no ranker.*classifier"):
        load_ranker(tmp_path)


def test_a_directory_without_weights(tmp_path):
    bert_encoder().config.save_pretrained(tmp_path)
    with pytest.raises(KdscaleError, match=r"has no model.safetensors"):
        load_ranker(tmp_path)


def test_dropout_reaches_every_place():
    inputs = PairEncoder(bert_tokenizer(), 24).collate([([7, 8, 9], [10, 11])])
    model = build_ranker(bert_encoder(), 0.0, seed=1)
    assert model.training and torch.equal(model(**inputs).logits, model(**inputs).logits)
    model = build_ranker(bert_encoder(), 0.4, seed=1)
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.4}
    assert not torch.equal(model(**inputs).logits, model(**inputs).logits)
