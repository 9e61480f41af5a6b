"""Losses between the intermediate states of two encoders that read the same tokens.

Shapes: hidden states [B, T, H], attention scores [B, heads, T, T] before the softmax, queries,
keys and values [B, T, H] before the split into heads, mask [B, T] bool (False: padding). Each
returns [B], a value a sequence: a mean over real tokens, heads and dimensions. The masked-LM terms
compare logits at masked places alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from kdscale.errors import KdscaleError
from kdscale.losses.masked import masked_kl, masked_mean, unrounded, widen
from kdscale.losses.registry import INTERMEDIATE_LOSSES, intermediate_loss, masked_loss

Projection = Callable[[torch.Tensor], torch.Tensor]
MLM, MLM_KL = "mlm", "mlm_kl"


def hidden_mse(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Squared difference of states of one width (arXiv 1909.10351, after the projection)."""
    return masked_mean((widen(student) - widen(teacher)) ** 2, mask.unsqueeze(-1))


def hidden_cosine(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """1 - cosine of states of one width (arXiv 1910.01108)."""
    return masked_mean(1 - F.cosine_similarity(widen(student), widen(teacher), dim=-1), mask)


def attention_mse(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, window: int | None = None
) -> torch.Tensor:
    """Squared difference of the attention scores before the softmax (arXiv 1909.10351).

    window: only of tokens at most so many places apart, where the teacher's layer is local.
    """
    _check_heads(student, teacher)
    pairs = mask[:, None, :, None] & _seen(mask, window)
    return masked_mean((widen(student) - widen(teacher)) ** 2, pairs)


def attention_kl(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, window: int | None = None
) -> torch.Tensor:
    """KL of the teacher's attention distributions to the student's (arXiv 2002.10957).

    window: as in `attention_mse`.
    """
    _check_heads(student, teacher)
    divergence = masked_kl(widen(student), widen(teacher), _seen(mask, window))
    return masked_mean(divergence, mask[:, None, :])


def qkv_relation_kl(
    student: Sequence[torch.Tensor],
    teacher: Sequence[torch.Tensor],
    mask: torch.Tensor,
    heads: int,
) -> torch.Tensor:
    """KL of the query-query, key-key and value-value relations (arXiv 2012.15828), summed.

    A relation is softmax(X X^T / sqrt(d)) of each of `heads` slices of width d; the two models
    may have any widths and heads of their own, as long as `heads` divides both widths.
    """
    relations = [
        masked_kl(_relation(ours, heads), _relation(theirs, heads), mask[:, None, None, :])
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    total: Any = sum(masked_mean(divergence, mask[:, None, :]) for divergence in relations)
    return total


@masked_loss(MLM, "arXiv 1810.04805")
def masked_lm(student: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the tokens that were masked (arXiv 1810.04805).

    student: logits at the masked places [B, K, V]; targets: their tokens [B, K]; mask: [B, K],
    False where a sequence has fewer.
    """
    logits = widen(student).transpose(1, 2)
    return masked_mean(F.cross_entropy(logits, targets, reduction="none"), mask)


@masked_loss(MLM_KL, "arXiv 1910.01108", "head")
def masked_lm_kl(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """KL of the teacher's distribution over the vocabulary to the student's at the masked places
    (arXiv 1910.01108, at temperature 1). Logits [B, K, V], mask [B, K]."""
    return masked_mean(masked_kl(widen(student), widen(teacher), mask.unsqueeze(-1)), mask)


class Captured(Protocol):
    """What an encoder made of some tokens, as `kdscale.models.capture` keeps it."""

    hidden: list[torch.Tensor]  # [L], each [B, T, H]
    embedding: torch.Tensor | None  # [B, T, H]
    qkv: list[tuple[torch.Tensor, ...]]  # [L], each of three [B, T, H]
    windows: list[int | None]  # [L]

    @property
    def scores(self) -> list[torch.Tensor]: ...  # [L], each [B, heads, T, T]


class Projections(Protocol):
    """By name; a dictionary of them, or torch's of modules."""

    def __getitem__(self, name: str, /) -> Projection: ...


@dataclass(frozen=True)
class Compared:
    """What a student and its teacher make of the same tokens.

    mask: [B, T] bool. layer_map: student layer i learns from teacher layer layer_map[i] (1-based).
    projections: maps from student to teacher width, by name.
    """

    student: Captured
    teacher: Captured
    mask: torch.Tensor
    layer_map: Sequence[int]
    projections: Projections
    relation_heads: int

    def over_layers(self, loss: Callable) -> torch.Tensor:
        """[B]: the mean of a loss of projected states over the student's layers."""
        values = [
            loss(self._project("hidden", ours), self.teacher.hidden[n - 1], self.mask)
            for ours, n in zip(self.student.hidden, self.layer_map, strict=True)
        ]
        return torch.stack(values).mean(0)

    def over_attention(self, loss: Callable) -> torch.Tensor:
        """[B]: the mean of a loss of attention scores over the student's layers."""
        theirs, windows = self.teacher.scores, self.teacher.windows
        values = [
            loss(ours, theirs[n - 1], self.mask, windows[n - 1])
            for ours, n in zip(self.student.scores, self.layer_map, strict=True)
        ]
        return torch.stack(values).mean(0)

    def embedding(self, loss: Callable) -> torch.Tensor:
        """[B]: a loss of the projected embeddings."""
        states = self.student.embedding
        assert states is not None  # captured, as this loss needs it
        ours = self._project("embedding", states)
        return loss(ours, self.teacher.embedding, self.mask)

    def _project(self, name: str, states: torch.Tensor) -> torch.Tensor:
        with unrounded(states):
            return self.projections[name](widen(states))


@intermediate_loss("hidden", "arXiv 1909.10351", "hidden", projection="hidden")
def _hidden(compared: Compared) -> torch.Tensor:
    return compared.over_layers(hidden_mse)


@intermediate_loss("cosine", "arXiv 1910.01108", "hidden", projection="hidden")
def _cosine(compared: Compared) -> torch.Tensor:
    return compared.over_layers(hidden_cosine)


@intermediate_loss("embedding", "arXiv 1909.10351", "embedding", projection="embedding")
def _embedding(compared: Compared) -> torch.Tensor:
    return compared.embedding(hidden_mse)


@intermediate_loss("attention", "arXiv 1909.10351", "scores")
def _attention(compared: Compared) -> torch.Tensor:
    return compared.over_attention(attention_mse)


@intermediate_loss("attention_kl", "arXiv 2002.10957", "scores")
def _attention_kl(compared: Compared) -> torch.Tensor:
    return compared.over_attention(attention_kl)


@intermediate_loss("qkv", "arXiv 2012.15828", "qkv")
def _qkv(compared: Compared) -> torch.Tensor:
    """Of the last student layer alone, as in the paper."""
    ours, theirs = compared.student.qkv[-1], compared.teacher.qkv[compared.layer_map[-1] - 1]
    return qkv_relation_kl(ours, theirs, compared.mask, compared.relation_heads)


def lm_terms(names: Sequence[str], compared: Compared) -> dict[str, torch.Tensor]:
    """{name: [B]} of the intermediate losses asked for."""
    return {name: INTERMEDIATE_LOSSES[name](compared) for name in names}


def _relation(states: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, T, H] -> scaled products of the tokens with each other, [B, heads, T, T]."""
    if states.shape[-1] % heads:
        raise KdscaleError(
            f"lm.relation_heads: {heads} does not divide the width {states.shape[-1]}; "
            "set a number that divides both the student's and the teacher's hidden size"
        )
    split = widen(states).unflatten(-1, (heads, -1)).transpose(1, 2)
    split = split * split.shape[-1] ** -0.25  # [B, heads, T, d] costs less than the products
    with unrounded(split):
        return split @ split.transpose(-1, -2)


def _seen(mask: torch.Tensor, window: int | None) -> torch.Tensor:
    """[B, 1, 1 or T, T]: which keys a query may see."""
    seen = mask[:, None, None, :]
    if window is None:
        return seen
    place = torch.arange(mask.shape[1], device=mask.device)
    return seen & ((place.unsqueeze(1) - place).abs() <= window)


def _check_heads(student: torch.Tensor, teacher: torch.Tensor) -> None:
    if student.shape[1] != teacher.shape[1]:
        raise KdscaleError(
            f"the losses attention and attention_kl need as many heads in the student "
            f"({student.shape[1]}) as in the teacher ({teacher.shape[1]}); use qkv, which compares "
            "any two"
        )
