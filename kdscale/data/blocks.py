"""Training items of the language-model stage: packed token blocks, all of one length."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from kdscale.data.dataset import Tokens
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
