"""What is trained: a module maps a batch to named loss terms, one value an item of the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kdscale.losses import RANKING_LOSSES
from kdscale.losses.masked import masked_mean
from kdscale.models.packed import first_token_only
from kdscale.training.blocks import BlockBatch, MaskedBatch
from kdscale.training.groups import GroupBatch
from kdscale.training.intermediate import IntermediateLosses
from kdscale.training.masked_lm import MaskedLm


class RankerTraining(nn.Module):
    """A ranker trained on query groups (`kdscale.training.groups.GroupSource`).

    intermediate: where the losses name such terms, what compares the ranker with its teacher.
    """

    def __init__(
        self,
        ranker: nn.Module,
        losses: dict[str, float],
        temperature: float = 1.0,
        intermediate: IntermediateLosses | None = None,
    ):
        super().__init__()
        self.ranker = ranker
        self.intermediate = intermediate
        self._losses = [name for name in losses if name in RANKING_LOSSES]
        self._temperature = temperature

    def forward(self, batch: GroupBatch) -> dict[str, torch.Tensor]:
        """{term: [B]}; the ranking terms see scores [B, G] in fp32, the intermediate ones are the
        mean over a group's pairs."""
        read = [self._read(chunk) for chunk in batch.chunks]
        mask = batch.mask

        def grouped(parts: list[torch.Tensor]) -> torch.Tensor:
            values = torch.cat(parts)
            flat = values.new_zeros(mask.numel(), dtype=torch.float32)
            return flat.index_put((batch.slots,), values.float()).view(mask.shape)

        scores = grouped([logits for logits, _ in read])
        terms = {
            name: RANKING_LOSSES[name](scores, batch.teacher, batch.labels, mask, self._temperature)
            for name in self._losses
        }
        for name in read[0][1]:
            terms[name] = masked_mean(grouped([inside[name] for _, inside in read]), mask)
        return terms

    def _read(self, chunk: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Logits [n] and {intermediate term: [n]} of n pairs."""
        if self.intermediate is None:
            with first_token_only(self.ranker):
                return self.ranker(**chunk).logits.squeeze(-1), {}
        output, _, terms = self.intermediate(self.ranker, chunk)
        return output.logits.squeeze(-1), terms


class LmTraining(nn.Module):
    """A student encoder trained to do as the teacher's encoder does, on token blocks.

    masked: where the losses name masked-LM terms, what computes them.
    """

    def __init__(
        self, student: nn.Module, intermediate: IntermediateLosses, masked: MaskedLm | None = None
    ):
        super().__init__()
        self.student = student
        self.intermediate = intermediate
        self.masked = masked

    def forward(self, batch: BlockBatch) -> dict[str, torch.Tensor]:
        """{term: [B]}."""
        ours, theirs, terms = self.intermediate(self.student, batch.inputs)
        if self.masked is not None:
            assert isinstance(batch, MaskedBatch)
            terms |= self.masked(ours[0], None if theirs is None else theirs[0], batch)
        return terms
