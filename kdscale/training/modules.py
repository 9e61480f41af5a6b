"""What is trained: a module maps a batch to named loss terms, one value an item of the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kdscale.losses.lm import PROJECTION_OF, lm_terms
from kdscale.losses.ranking import RANKING_LOSSES
from kdscale.models.capture import Capture


class RankerTraining(nn.Module):
    """A ranker trained on query groups (`kdscale.data.groups.GroupSource`)."""

    def __init__(self, ranker: nn.Module, losses: dict[str, float], temperature: float = 1.0):
        super().__init__()
        self.ranker = ranker
        self._losses = list(losses)
        self._temperature = temperature

    def forward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """{term: [B]}; the terms see scores [B, G] in fp32."""
        logits = torch.cat([self.ranker(**c).logits.squeeze(-1) for c in batch["chunks"]])
        mask = batch["mask"]
        flat = logits.new_zeros(mask.numel(), dtype=torch.float32)
        scores = flat.index_put((batch["slots"],), logits.float()).view(mask.shape)
        return {
            name: RANKING_LOSSES[name](
                scores, batch.get("teacher"), batch["labels"], mask, self._temperature
            )
            for name in self._losses
        }


class LmTraining(nn.Module):
    """A student encoder trained to do as the teacher's encoder does, on token blocks.

    The projections from student to teacher width are trained along and thrown away.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        layer_map: list[int],
        losses: dict[str, float],
        relation_heads: int,
    ):
        super().__init__()
        self.student = student
        # In a tuple, so that the frozen teacher is no submodule: it is neither checkpointed nor
        # broadcast nor averaged.
        self._teacher = (teacher.eval().requires_grad_(False),)
        self._layer_map = layer_map
        self._losses = losses
        self._relation_heads = relation_heads
        narrow, wide = student.config.hidden_size, teacher.config.hidden_size
        names = sorted({PROJECTION_OF[n] for n in losses if n in PROJECTION_OF})
        self.projections = nn.ModuleDict({n: nn.Linear(narrow, wide, bias=False) for n in names})

    def start_projections(self, basis: torch.Tensor) -> None:
        """basis: [H, h] orthonormal columns; the map student -> teacher begins as its inverse."""
        for projection in self.projections.values():
            projection.weight.data.copy_(basis)

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        self._teacher[0]._apply(fn)  # moves to a device with the student
        return super()._apply(fn, recurse)

    def forward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """{term: [B]}."""
        mask = batch["attention_mask"].bool()
        wanted = set(self._losses)
        what = {
            "hidden": bool(wanted & {"hidden", "cosine"}),
            "embedding": "embedding" in wanted,
            "qkv": "qkv" in wanted,
            "scores": bool(wanted & {"attention", "attention_kl"}),
        }
        with torch.no_grad(), Capture(self._teacher[0], **what) as teacher:
            self._teacher[0](**batch)
        with Capture(self.student, **what) as student:
            self.student(**batch)
        return lm_terms(
            list(self._losses),
            student,
            teacher,
            mask,
            self._layer_map,
            self.projections,
            self._relation_heads,
        )
