"""Masked language modelling in the LM stage: the student's head, and the teacher's.

Both heads see the states at the masked places alone: logits of every token of a block would take
seven times the memory, and they are the largest tensors of the stage.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from kdscale.config import Train
from kdscale.losses.lm import MLM, MLM_KL, masked_lm, masked_lm_kl
from kdscale.models.mlm import MaskedLmHead, states_at
from kdscale.store import LocalWorkspace
from kdscale.training.blocks import MaskedBatch
from kdscale.training.engines import TorchEngine
from kdscale.training.loop import Hooks, ItemSource, train_loop


class MaskedLm(nn.Module):
    """The terms `mlm` and `mlm_kl`, and the student's head, trained along and thrown away.

    teacher_head: frozen; None where the losses do not name mlm_kl.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher_head: nn.Module | None,
        losses: Collection[str],
        seed: int,
    ):
        super().__init__()
        self.head = MaskedLmHead(student, seed)
        self._teacher_head = (teacher_head,)  # in a tuple: no submodule, as the teacher is none
        self._losses = set(losses)

    def forward(
        self, states: torch.Tensor, teacher_states: torch.Tensor | None, batch: MaskedBatch
    ) -> dict[str, torch.Tensor]:
        """{term: [B]} of the last states [B, T, H] of both encoders and a batch of a
        `MaskedBlockSource`."""
        places, chosen = batch.places, batch.chosen
        logits = self.head(states_at(states, places))
        terms = {}
        if MLM in self._losses:
            terms[MLM] = masked_lm(logits, batch.targets, chosen)
        if MLM_KL in self._losses:
            head = self._teacher_head[0]
            assert head is not None and teacher_states is not None  # both are there for mlm_kl
            with torch.no_grad():
                wanted = head(states_at(teacher_states, places))
            terms[MLM_KL] = masked_lm_kl(logits, wanted, chosen)
        return terms

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        if self._teacher_head[0] is not None:
            self._teacher_head[0]._apply(fn)
        return super()._apply(fn, recurse)


class HeadTraining(nn.Module):
    """A head trained on a frozen encoder to find the masked tokens."""

    def __init__(self, encoder: PreTrainedModel, head: nn.Module):
        super().__init__()
        self.head = head
        self._encoder = (encoder.eval().requires_grad_(False),)

    def forward(self, batch: MaskedBatch) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            states = self._encoder[0](batch.input_ids, batch.attention_mask)[0]
        logits = self.head(states_at(states, batch.places))
        return {MLM: masked_lm(logits, batch.targets, batch.chosen)}

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        self._encoder[0]._apply(fn)
        return super()._apply(fn, recurse)


def train_head(
    encoder: PreTrainedModel,
    head: MaskedLmHead,
    source: ItemSource,
    train: Train,
    steps: int,
    seed: int,
    device: torch.device,
) -> float:
    """Train a head on a frozen encoder for so many steps, and freeze it; returns the last loss.

    Every worker does all of it for itself, on whole batches, so their number changes nothing; a
    resumed run does it again, to the same weights.
    """
    module = HeadTraining(encoder, head)
    train = dataclasses.replace(train, max_steps=steps, checkpoint_every=0)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="kdscale-head-") as scratch:
        train_loop(
            module=module,
            engine=TorchEngine(module, train, device),
            source=source,
            train=train,
            weights={MLM: 1.0},
            seed=seed,
            workspace=LocalWorkspace(Path(scratch, "work")),
            log=Path(scratch, "metrics.jsonl"),
            hooks=Hooks(rows.append, lambda line: None),
        )
    head.eval().requires_grad_(False)
    return rows[-1]["loss"]
