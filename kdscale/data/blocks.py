"""Training items of the language-model stage: packed token blocks, all of one length."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from kdscale.data.dataset import Tokens
from kdscale.data.masking import mask_tokens
from kdscale.errors import KdscaleError


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

    def collate(self, items: np.ndarray, epoch: int) -> dict[str, Any]:
        """input_ids, attention_mask: [B, L]."""
        input_ids = torch.from_numpy(np.asarray(self._blocks[np.sort(items)], dtype=np.int64))
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


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

    def collate(self, items: np.ndarray, epoch: int) -> dict[str, Any]:
        """input_ids (masked), attention_mask: [B, L]. places, targets: [B, K], where the tokens
        to be found stand and which they are; chosen: [B, K] bool, False where a block has fewer.
        """
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
        return {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "places": torch.from_numpy(places),
            "targets": torch.from_numpy(np.take_along_axis(blocks, places, axis=1)),
            "chosen": torch.from_numpy(chosen),
        }
