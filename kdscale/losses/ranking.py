"""Losses of rankers over groups of passages of one query.

Shapes: student and teacher scores [B, G] (raw logits), labels [B, G] (relevant above 0), mask
[B, G] bool (False: padding). Each returns [B], a value a group; a group in which a loss has
nothing to compare (one passage, no relevant one, only ties) gives 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from kdscale.losses.masked import masked_kl, masked_mean


def lce(student: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Localized contrastive estimation (arXiv 2101.08751): -log softmax of the relevant passage
    among itself and the group's negatives. Several relevant passages: the mean over them."""
    relevant = (labels > 0) & mask
    negative = (labels <= 0) & mask
    lowest = torch.finfo(student.dtype).min
    negatives = student.masked_fill(~negative, lowest).logsumexp(1, keepdim=True)
    return masked_mean(torch.logaddexp(student, negatives) - student, relevant)


def bce(student: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of every passage with its label."""
    target = (labels > 0).to(student.dtype)
    return masked_mean(F.binary_cross_entropy_with_logits(student, target, reduction="none"), mask)


def pointwise_mse(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Squared difference of the logits."""
    return masked_mean((student - teacher) ** 2, mask)


def margin_mse(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """MarginMSE (arXiv 2010.02666): squared difference of the two models' margins, over all
    pairs of a relevant passage and a negative."""
    relevant = (labels > 0) & mask
    negative = (labels <= 0) & mask
    difference = student - teacher
    margins = difference.unsqueeze(2) - difference.unsqueeze(1)
    return masked_mean(margins**2, relevant.unsqueeze(2) & negative.unsqueeze(1))


def listwise_kl(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """KL of the teacher's distribution over the group to the student's, times T^2 so that the
    gradient keeps its size over temperatures (arXiv 1503.02531)."""
    return masked_kl(student, teacher, mask, temperature) * temperature**2


def ranknet(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """RankNet (Burges et al. 2005) on the teacher's order: log(1 + exp(s_j - s_i)) over all pairs
    in which the teacher puts i above j. Ties of the teacher say nothing."""
    ordered = teacher.unsqueeze(2) > teacher.unsqueeze(1)
    pairs = ordered & mask.unsqueeze(2) & mask.unsqueeze(1)
    return masked_mean(F.softplus(student.unsqueeze(1) - student.unsqueeze(2)), pairs)


# name -> f(student, teacher or None, labels, mask, temperature) -> [B]
RANKING_LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "lce": lambda s, t, y, m, temperature: lce(s, y, m),
    "bce": lambda s, t, y, m, temperature: bce(s, y, m),
    "pointwise_mse": lambda s, t, y, m, temperature: pointwise_mse(s, t, m),
    "margin_mse": lambda s, t, y, m, temperature: margin_mse(s, t, y, m),
    "listwise_kl": lambda s, t, y, m, temperature: listwise_kl(s, t, m, temperature),
    "ranknet": lambda s, t, y, m, temperature: ranknet(s, t, m),
}
NEEDS_TEACHER = {"pointwise_mse", "margin_mse", "listwise_kl", "ranknet"}
