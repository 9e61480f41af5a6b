"""A frozen teacher beside a student: the terms that compare what both make of the same tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from kdscale.losses import INTERMEDIATE_LOSSES, MASKED_LOSSES
from kdscale.losses.lm import Compared, lm_terms
from kdscale.models.capture import Capture

RIDGE = 1e-4  # of the mean square of the states: directions that they do not use stay at zero


class IntermediateLosses(nn.Module):
    """Runs a student and its teacher on the same tokens and compares their intermediate states.

    The projections from student to teacher width are trained along and thrown away; they begin
    at random, from `seed`.
    """

    def __init__(
        self,
        width: int,
        teacher: PreTrainedModel,
        layer_map: Sequence[int],
        losses: Collection[str],
        relation_heads: int,
        seed: int,
    ):
        """width: of the student's states. losses: of which those compared here are taken."""
        super().__init__()
        # In a tuple, so that the frozen teacher is no submodule: it is neither checkpointed nor
        # broadcast nor averaged.
        self._teacher = (teacher.eval().requires_grad_(False),)
        self._layer_map = list(layer_map)
        self._names = [name for name in losses if name in INTERMEDIATE_LOSSES]
        self._relation_heads = relation_heads
        # Of the masked-LM losses some read the teacher's output; other losses read its layers up
        # to the last that is compared.
        asks_output = any("head" in MASKED_LOSSES[n].needs for n in losses if n in MASKED_LOSSES)
        self._asks_teacher = bool(self._names) or asks_output
        self._until = None if asks_output else max(self._layer_map)
        compared = [INTERMEDIATE_LOSSES[name] for name in self._names]
        needed = {need for loss in compared for need in loss.needs}
        self._what = {name: name in needed for name in ("hidden", "embedding", "qkv", "scores")}
        wide = teacher.config.hidden_size
        names = sorted({loss.projection for loss in compared if loss.projection})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.projections = nn.ModuleDict(
                {name: nn.Linear(width, wide, bias=False) for name in names}
            )

    def start_projections(self, basis: torch.Tensor) -> None:
        """basis: [H, h] orthonormal columns; the map student -> teacher begins as its inverse."""
        for weight in self.projections.parameters():  # one of each
            weight.data.copy_(basis)

    @torch.no_grad()
    def fit_projections(self, student: nn.Module, inputs: Iterable[dict[str, Any]]) -> None:
        """Begin with the maps that bring the student's states on these inputs nearest to the
        teacher's (least squares): else the first steps would teach the student a map drawn at
        random, and a student that is distilled already would lose by it."""
        products: dict[str, list] = {name: [] for name in self.projections}
        trained = student.training
        student.eval()
        for part in inputs if self.projections else ():
            mask = part["attention_mask"].bool()
            ours, _, theirs, _ = self._run(student, part)
            mapped = (theirs.hidden[n - 1] for n in self._layer_map if theirs.hidden)
            states: dict[str, list[tuple[Any, Any]]] = {
                "embedding": [(ours.embedding, theirs.embedding)],
                "hidden": list(zip(ours.hidden, mapped, strict=True)),
            }
            for name, made in products.items():
                for x, y in states[name]:
                    x, y = x[mask].double(), y[mask].double()
                    made.append((x.T @ x, x.T @ y))
        student.train(trained)
        for name, made in products.items():
            xx, xy = (sum(parts) for parts in zip(*made, strict=True))
            ridge = RIDGE * xx.diagonal().mean() * torch.eye(len(xx), dtype=xx.dtype)
            weight = self.projections.get_parameter(f"{name}.weight")
            weight.copy_(torch.linalg.solve(xx + ridge, xy).T)

    def forward(
        self, student: nn.Module, inputs: dict[str, Any]
    ) -> tuple[Any, Any, dict[str, torch.Tensor]]:
        """The student's output, the teacher's (None where no term needs it), and {term: [B]}.

        student: handed over at each call, since it is a part of the module that calls. inputs:
        of both models, with attention_mask [B, T]: padding is in no term.
        """
        ours, output, theirs, teacher_output = self._run(student, inputs)
        mask = inputs["attention_mask"].bool()
        compared = Compared(
            ours, theirs, mask, self._layer_map, self.projections, self._relation_heads
        )
        terms = lm_terms(self._names, compared)
        return output, teacher_output, terms

    def _run(self, student: nn.Module, inputs: dict[str, Any]) -> tuple[Capture, Any, Capture, Any]:
        teacher_output = None
        with torch.no_grad(), Capture(self._teacher[0], **self._what, until=self._until) as theirs:
            if self._asks_teacher:
                teacher_output = self._teacher[0](**inputs)
        with Capture(student, **self._what) as ours:
            output = student(**inputs)
        return ours, output, theirs, teacher_output

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        self._teacher[0]._apply(fn)  # moves to a device with the student
        return super()._apply(fn, recurse)
