"""What is trained: a module maps a batch to named loss terms, one value an item of the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kdscale.losses.masked import masked_mean
from kdscale.losses.ranking import RANKING_LOSSES
from kdscale.models.first_token import first_token_only
from kdscale.training.insides import Insides
from kdscale.training.masked_lm import MaskedLm


class RankerTraining(nn.Module):
    """A ranker trained on query groups (`kdscale.data.groups.GroupSource`).

    insides: where the losses name intermediate terms, what compares the ranker with its teacher.
    """

    def __init__(
        self,
        ranker: nn.Module,
        losses: dict[str, float],
        temperature: float = 1.0,
        insides: Insides | None = None,
    ):
        super().__init__()
        self.ranker = ranker
        self.insides = insides
        self._losses = [name for name in losses if name in RANKING_LOSSES]
        self._temperature = temperature

    def forward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """{term: [B]}; the ranking terms see scores [B, G] in fp32, the intermediate ones are the
        mean over a group's pairs."""
        read = [self._read(chunk) for chunk in batch["chunks"]]
        mask = batch["mask"]

        def grouped(parts: list[torch.Tensor]) -> torch.Tensor:
            values = torch.cat(parts)
            flat = values.new_zeros(mask.numel(), dtype=torch.float32)
            return flat.index_put((batch["slots"],), values.float()).view(mask.shape)

        scores = grouped([logits for logits, _ in read])
        terms = {
            name: RANKING_LOSSES[name](
                scores, batch.get("teacher"), batch["labels"], mask, self._temperature
            )
            for name in self._losses
        }
        for name in read[0][1]:
            terms[name] = masked_mean(grouped([inside[name] for _, inside in read]), mask)
        return terms

    def _read(self, chunk: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Logits [n] and {intermediate term: [n]} of n pairs."""
        if self.insides is None:
            with first_token_only(self.ranker):
                return self.ranker(**chunk).logits.squeeze(-1), {}
        output, _, terms = self.insides(self.ranker, chunk)
        return output.logits.squeeze(-1), terms


class LmTraining(nn.Module):
    """A student encoder trained to do as the teacher's encoder does, on token blocks.

    masked: where the losses name masked-LM terms, what computes them.
    """

    def __init__(self, student: nn.Module, insides: Insides, masked: MaskedLm | None = None):
        super().__init__()
        self.student = student
        self.insides = insides
        self.masked = masked

    def forward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """{term: [B]}."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        ours, theirs, terms = self.insides(self.student, inputs)
        if self.masked is not None:
            terms |= self.masked(ours[0], None if theirs is None else theirs[0], batch)
        return terms
