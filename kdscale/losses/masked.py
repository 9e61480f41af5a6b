"""Softmax and averages that padding does not touch."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def widen(x: torch.Tensor) -> torch.Tensor:
    """Half precision to float32, in which losses are computed; others stay as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def unrounded(x: torch.Tensor) -> torch.autocast:
    """A context in which products are as exact as their factors: autocast would round them to
    bfloat16, and the softmax of rounded products is far from that of the products."""
    return torch.autocast(x.device.type, enabled=False)


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[B, ...] and a mask that broadcasts to it -> [B]: the mean where the mask is true, else 0.

    Values outside the mask do not enter, whatever they are, and get no gradient.
    """
    mask = mask.expand_as(values)
    kept = torch.where(mask, values, torch.zeros_like(values))
    return kept.flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)


def masked_kl(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """KL(softmax(teacher / T) || softmax(student / T)) over the last dimension: [..., N] -> [...].

    mask: broadcasts to the inputs; entries outside it get probability 0 on both sides.
    """
    log_q, log_p = (
        # The lowest finite number, not -inf: a row without any entry gives 0 and no NaN.
        (logits / temperature).masked_fill(~mask, torch.finfo(logits.dtype).min).log_softmax(-1)
        for logits in (student, teacher)
    )
    return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
