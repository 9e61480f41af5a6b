"""Losses between the insides of two encoders that read the same tokens.

Shapes: hidden states [B, T, H], attention scores [B, heads, T, T] before the softmax, queries,
keys and values [B, T, H] before the split into heads, mask [B, T] bool (False: padding). Each
returns [B], a value a sequence: a mean over real tokens, heads and dimensions. The masked-LM terms
compare logits at masked places alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from kdscale.errors import KdscaleError
from kdscale.losses.masked import masked_kl, masked_mean, unrounded, widen

if TYPE_CHECKING:
    from kdscale.models.capture import Capture

Projection = Callable[[torch.Tensor], torch.Tensor]
INTERMEDIATE_LOSSES = ("hidden", "cosine", "embedding", "attention", "attention_kl", "qkv")
# The losses that compare states of different widths, and the projection that each trains.
PROJECTION_OF = {"hidden": "hidden", "cosine": "hidden", "embedding": "embedding"}


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
    return sum(masked_mean(divergence, mask[:, None, :]) for divergence in relations)


def masked_lm(student: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the tokens that were masked (arXiv 1810.04805).

    student: logits at the masked places [B, K, V]; targets: their tokens [B, K]; mask: [B, K],
    False where a sequence has fewer.
    """
    logits = widen(student).transpose(1, 2)
    return masked_mean(F.cross_entropy(logits, targets, reduction="none"), mask)


def masked_lm_kl(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """KL of the teacher's distribution over the vocabulary to the student's at the masked places
    (arXiv 1910.01108, at temperature 1). Logits [B, K, V], mask [B, K]."""
    return masked_mean(masked_kl(widen(student), widen(teacher), mask.unsqueeze(-1)), mask)


def lm_terms(
    names: Sequence[str],
    student: Capture,
    teacher: Capture,
    mask: torch.Tensor,
    layer_map: Sequence[int],
    projections: Mapping[str, Projection],
    relation_heads: int,
) -> dict[str, torch.Tensor]:
    """{name: [B]} for the names asked for.

    layer_map: student layer i learns from teacher layer layer_map[i] (1-based); a term over
    layers is the mean over them. "qkv" compares the last student layer alone, as its paper does.
    projections: maps from student to teacher width, by the names in PROJECTION_OF.
    """
    last = layer_map[-1] - 1

    def over_layers(loss: Callable, ours: Sequence, theirs: Sequence) -> torch.Tensor:
        values = [loss(x, theirs[n - 1], mask) for x, n in zip(ours, layer_map, strict=True)]
        return torch.stack(values).mean(0)

    def over_attention(loss: Callable) -> torch.Tensor:
        ours, theirs = student.scores, teacher.scores
        values = [
            loss(x, theirs[n - 1], mask, teacher.windows[n - 1])
            for x, n in zip(ours, layer_map, strict=True)
        ]
        return torch.stack(values).mean(0)

    def project(name: str, states: torch.Tensor) -> torch.Tensor:
        with unrounded(states):
            return projections[name](widen(states))

    def projected() -> list[torch.Tensor]:
        return [project("hidden", states) for states in student.hidden]

    terms: dict[str, Callable[[], torch.Tensor]] = {
        "hidden": lambda: over_layers(hidden_mse, projected(), teacher.hidden),
        "cosine": lambda: over_layers(hidden_cosine, projected(), teacher.hidden),
        "embedding": lambda: hidden_mse(
            project("embedding", student.embedding), teacher.embedding, mask
        ),
        "attention": lambda: over_attention(attention_mse),
        "attention_kl": lambda: over_attention(attention_kl),
        "qkv": lambda: qkv_relation_kl(student.qkv[-1], teacher.qkv[last], mask, relation_heads),
    }
    return {name: terms[name]() for name in names}


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
