"""Training items of the language-model stage: packed token blocks, all of one length, and which of
their tokens a masked language model has to find.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kdscale.data.dataset import Tokens
from kdscale.errors import KdscaleError
from kdscale.training.batches import Batch

# As in BERT (arXiv 1810.04805): of the tokens chosen eight in ten are replaced by the mask token,
# one in ten by any token of the vocabulary, and one in ten stays, so that a model that learns from
# masked text reads whole text too.
CHOSEN = 0.15
MASKED = 0.8
REPLACED = 0.1


def mask_tokens(
    ids: np.ndarray, special_ids: Sequence[int], mask_id: int, vocab_size: int, key: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The ids with some replaced, [T], and the places of those to be found, [K] in rising order.

    special_ids: tokens that are never chosen. key: (seed, epoch, item).
    """
    rng = np.random.default_rng(key)
    candidates = np.flatnonzero(~np.isin(ids, special_ids))
    count = min(len(candidates), max(1, round(CHOSEN * len(candidates))))
    places = np.sort(rng.choice(candidates, size=count, replace=False))
    lot, others = rng.random(count), rng.integers(vocab_size, size=count)
    masked = ids.copy()
    masked[places[lot < MASKED]] = mask_id
    replaced = (lot >= MASKED) & (lot < MASKED + REPLACED)
    masked[places[replaced]] = others[replaced]
    return masked, places


@dataclass(frozen=True)
class BlockBatch(Batch):
    """B blocks: input_ids, attention_mask [B, L]."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """Of an encoder."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}


@dataclass(frozen=True)
class MaskedBatch(BlockBatch):
    """Blocks in which some tokens are masked: places, targets [B, K], where the tokens to be found
    stand and which they are; chosen [B, K] bool, False where a block has fewer."""

    places: torch.Tensor
    targets: torch.Tensor
    chosen: torch.Tensor


class BlockSource:
    """Token blocks [N, L]; no padding, so every item costs the same."""

    pairs_per_item = 1

    def __init__(self, tokens: Tokens):
        self._blocks = tokens.blocks()
        if len(self._blocks) == 0:
            raise KdscaleError(
                "the corpus is too small for one token block; lower prepare.block_length"
            )
        self.lengths = np.full(len(self._blocks), self._blocks.shape[1])

    def __len__(self) -> int:
        return len(self._blocks)

    def collate(self, items: np.ndarray, epoch: int) -> BlockBatch:
        input_ids = torch.from_numpy(np.asarray(self._blocks[np.sort(items)], dtype=np.int64))
        return BlockBatch(input_ids, torch.ones_like(input_ids))


class MaskedBlockSource(BlockSource):
    """Token blocks in which some tokens are to be found, others in each epoch."""

    def __init__(self, tokens: Tokens, seed: int):
        super().__init__(tokens)
        self._seed = seed
        encoder = tokens.encoder()
        if encoder.mask_id is None:
            raise KdscaleError(
                "lm.losses: mlm and mlm_kl need a tokenizer with a mask token; leave them out"
            )
        self._mask_id, self._vocab_size = encoder.mask_id, encoder.vocab_size
        special = (encoder.pad_id, encoder.cls_id, encoder.sep_id)
        self._special_ids = [i for i in special if i is not None]

    def collate(self, items: np.ndarray, epoch: int) -> MaskedBatch:
        items = np.sort(items)
        blocks = np.asarray(self._blocks[items], dtype=np.int64)
        made = [
            mask_tokens(
                ids, self._special_ids, self._mask_id, self._vocab_size, (self._seed, epoch, item)
            )
            for ids, item in zip(blocks, items.tolist(), strict=True)
        ]
        input_ids = torch.from_numpy(np.stack([masked for masked, _ in made]))
        chosen = np.zeros((len(items), max(len(places) for _, places in made)), dtype=bool)
        places = np.zeros(chosen.shape, dtype=np.int64)
        for row, (_, found) in enumerate(made):
            chosen[row, : len(found)] = True
            places[row, : len(found)] = found
        return MaskedBatch(
            input_ids,
            torch.ones_like(input_ids),
            places=torch.from_numpy(places),
            targets=torch.from_numpy(np.take_along_axis(blocks, places, axis=1)),
            chosen=torch.from_numpy(chosen),
        )
