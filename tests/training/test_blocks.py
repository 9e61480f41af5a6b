import json

import numpy as np
import pytest
import torch

from kdscale.data.dataset import Tokens
from kdscale.data.schema import BLOCKS
from kdscale.data.shards import write_shards
from kdscale.data.tokenise import block_table
from kdscale.errors import KdscaleError
from kdscale.models.encode import PairEncoder
from kdscale.training.blocks import MaskedBlockSource, mask_tokens
from tests.worlds.tiny_models import bert_tokenizer

MASK, VOCABULARY = 4, 1000
SPECIAL = [0, 2, 3]


def _block(length=102):
    return np.concatenate([[2], np.arange(100, 100 + length - 2), [3]])


def test_it_is_a_function_of_seed_epoch_and_item():
    ids = _block()
    first = mask_tokens(ids, SPECIAL, MASK, VOCABULARY, (1, 2, 3))
    np.random.default_rng().random()
    again = mask_tokens(ids, SPECIAL, MASK, VOCABULARY, (1, 2, 3))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    for key in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert (mask_tokens(ids, SPECIAL, MASK, VOCABULARY, key)[1] != first[1]).any()
    assert (ids == _block()).all()


def test_fifteen_percent_are_chosen_and_no_special_token():
    ids = _block()
    ids[40:60] = 3
    for item in range(50):
        masked, places = mask_tokens(ids, SPECIAL, MASK, VOCABULARY, (0, 0, item))
        assert len(places) == len(set(places)) == 12  # 0.15 * 80
        assert (np.diff(places) > 0).all() and (ids[places] >= 100).all()
        assert (np.delete(masked, places) == np.delete(ids, places)).all()


def test_eight_in_ten_are_masked_one_replaced_one_kept():
    ids = _block()
    now, before = [], []
    for item in range(1000):
        masked, places = mask_tokens(ids, SPECIAL, MASK, VOCABULARY, (0, 0, item))
        now.append(masked[places])
        before.append(ids[places])
    now, before = np.concatenate(now), np.concatenate(before)
    assert len(now) == 15_000
    # Four standard deviations of a share of 15,000 are 0.013 and 0.010; a replacement is the
    # mask token or the token itself once in 500.
    assert (now == MASK).mean() == pytest.approx(0.8, abs=0.013)
    assert (now == before).mean() == pytest.approx(0.1, abs=0.010)
    others = now[(now != MASK) & (now != before)]
    assert others.min() < 30 and others.max() > VOCABULARY - 30


@pytest.mark.parametrize(("words", "count"), [(0, 0), (1, 1), (3, 1), (10, 2)])
def test_short_texts(words, count):
    masked, places = mask_tokens(_block(words + 2), SPECIAL, MASK, VOCABULARY, (0, 0, 0))
    assert len(masked) == words + 2 and len(places) == count


def _tokens(path, tokenizer, blocks):
    PairEncoder(tokenizer, 16).save(path / "tokenizer")
    write_shards(path / "blocks", block_table(blocks), BLOCKS, 1)
    info = {"splits": [], "max_length": 16, "block_length": blocks.shape[1]}
    (path / "tokens.json").write_text(json.dumps(info))
    return Tokens(path)


def test_a_batch_tells_what_was_hidden_where(tmp_path):
    tokenizer = bert_tokenizer()
    blocks = np.random.default_rng(0).integers(6, 60, (8, 24), dtype=np.int32)
    blocks[:, 0], blocks[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
    blocks[3, 2:-1] = tokenizer.sep_token_id  # one word left, in which one token is hidden
    source = MaskedBlockSource(_tokens(tmp_path, tokenizer, blocks), seed=1)
    batch = source.collate(np.array([5, 3]), epoch=2)
    assert batch.input_ids.shape == batch.attention_mask.shape == (2, 24)
    assert batch.places.shape == batch.targets.shape == (2, 3)
    assert batch.chosen.tolist() == [[True, False, False], [True] * 3]
    whole = torch.from_numpy(blocks[[3, 5]]).long()
    changed = batch.input_ids != whole
    hidden = torch.zeros_like(changed).scatter(1, batch.places, batch.chosen)
    assert not (changed & ~hidden).any()
    assert torch.equal(batch.targets, whole.gather(1, batch.places))
    # Another batch that holds the item hides the same, another epoch does not.
    (alone,) = source.collate(np.array([5]), epoch=2).places.tolist()
    assert alone == batch.places[1].tolist()
    later = [source.collate(np.array([5]), epoch=e).places[0].tolist() for e in range(3, 9)]
    assert any(places != alone for places in later)


def test_a_tokenizer_without_a_mask_token_is_named(tmp_path):
    tokenizer = bert_tokenizer()
    tokenizer.mask_token = None
    with pytest.raises(KdscaleError, match="mlm and mlm_kl need a tokenizer with a mask token"):
        MaskedBlockSource(_tokens(tmp_path, tokenizer, np.ones((1, 4), dtype=np.int32)), seed=0)
