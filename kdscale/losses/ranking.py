"""Losses of rankers over groups of passages of one query.

Shapes: student and teacher scores [B, G] (raw logits), labels [B, G] (relevant above 0), mask
[B, G] bool (False: padding). Each returns [B], a value a group; a group in which a loss has
nothing to compare (one passage, no relevant one, only ties) gives 0.

The losses are of very different sizes, and none is scaled to fit another: weigh them in the config.
`pointwise_mse` and `margin_mse` are squares of logits, and have no upper bound: they grow with the
square of the teacher's spread, which after fine-tuning is several units. The others are counted in
nats (`lambdaloss` in weighted bits); a student that tells nothing apart has log G in `lce`, about
log G in `listnet`, and log 2 in `bce`, `pointwise_bce` and `ranknet`. At equal weights `margin_mse`
is about twenty times `listwise_kl`, and so decides the direction of a step nearly alone.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from kdscale.losses.masked import masked_kl, masked_mean
from kdscale.losses.registry import ranking_loss


@ranking_loss("arXiv 2101.08751")
def lce(student: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Localized contrastive estimation (arXiv 2101.08751): -log softmax of the relevant passage
    among itself and the group's negatives. Several relevant passages: the mean over them."""
    relevant = (labels > 0) & mask
    negative = (labels <= 0) & mask
    lowest = torch.finfo(student.dtype).min
    negatives = student.masked_fill(~negative, lowest).logsumexp(1, keepdim=True)
    return masked_mean(torch.logaddexp(student, negatives) - student, relevant)


@ranking_loss("Cao et al. 2007, Learning to rank: from pairwise approach to listwise approach")
def listnet(student: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """ListNet (Cao et al. 2007): cross-entropy of the top-one probabilities, softmax(labels), with
    the student's, softmax(scores).

    On labels, as in the paper. On a teacher's scores it would be `listwise_kl` at temperature 1
    plus the entropy of the teacher's distribution, a constant: the same gradient. Unlike `lce` it
    tells grades apart, and its target is soft: of one relevant passage (grade 1) among 8, 0.28.
    """
    lowest = torch.finfo(student.dtype).min
    target = labels.to(student.dtype).masked_fill(~mask, lowest)
    log_q = student.masked_fill(~mask, lowest).log_softmax(1)
    cross = torch.where(mask, -target.softmax(1) * log_q, torch.zeros_like(log_q)).sum(1)
    highest = target.amax(1)
    differ = ((labels.to(student.dtype) < highest.unsqueeze(1)) & mask).any(1)
    return torch.where(differ, cross, torch.zeros_like(cross))


@ranking_loss("Wang et al. 2018, The LambdaLoss framework for ranking metric optimization")
def lambdaloss(
    student: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor, mu: float = 10.0
) -> torch.Tensor:
    """NDCG-Loss2++ of the LambdaLoss framework (Wang et al. 2018), a bound on 1 - nDCG.

    The sum of (rho + mu delta) |G_i - G_j| log2(1 + exp(s_j - s_i)) over all pairs in which i has
    the higher label. G = (2^label - 1) / (the group's best DCG); with the ranks r that the student
    gives now and D(r) = log2(1 + r), rho = |1/D(r_i) - 1/D(r_j)| (LambdaRank's weight) and
    delta = 1/D(|r_i - r_j|) - 1/D(|r_i - r_j| + 1).

    The gains are of labels, since a grade has a zero and a unit and a teacher's logit has neither;
    the teacher's order of pairs is `ranknet`'s. It can stand among soft losses too.
    """
    size = student.shape[1]
    gains = torch.where(mask, 2 ** labels.to(student.dtype).clamp(min=0) - 1, 0)
    places = torch.arange(1, size + 1, device=student.device, dtype=student.dtype)
    inverse = 1 / torch.log2(1 + places)  # 1/D of the ranks 1 to G
    best = (gains.sort(1, descending=True).values * inverse).sum(1, keepdim=True)
    gains = gains / torch.where(best > 0, best, 1)
    lowest = torch.finfo(student.dtype).min
    order = student.detach().masked_fill(~mask, lowest).argsort(dim=1, descending=True, stable=True)
    ranks = order.argsort(1)
    discounts = inverse[ranks]
    rho = (discounts.unsqueeze(2) - discounts.unsqueeze(1)).abs()
    apart = (ranks.unsqueeze(2) - ranks.unsqueeze(1)).abs()
    steps = inverse - 1 / torch.log2(2 + places)  # delta of ranks 1 to G apart
    delta = steps[(apart - 1).clamp(min=0)]
    above = gains.unsqueeze(2) - gains.unsqueeze(1)
    pairs = (above > 0) & mask.unsqueeze(2) & mask.unsqueeze(1)
    bits = F.softplus(student.unsqueeze(1) - student.unsqueeze(2)) / math.log(2)
    weighted = (rho + mu * delta) * above * bits
    return torch.where(pairs, weighted, torch.zeros_like(weighted)).flatten(1).sum(1)


@ranking_loss("arXiv 1901.04085")
def bce(student: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of every passage with its label."""
    target = (labels > 0).to(student.dtype)
    return masked_mean(F.binary_cross_entropy_with_logits(student, target, reduction="none"), mask)


@ranking_loss("arXiv 2007.11088")
def pointwise_mse(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Squared difference of the logits."""
    return masked_mean((student - teacher) ** 2, mask)


@ranking_loss("arXiv 1503.02531")
def pointwise_bce(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Binary cross-entropy of every passage with the teacher's probability sigmoid(t / T), times
    T^2 as in `listwise_kl`. A student equal to its teacher has the teacher's entropy, not 0."""
    target = torch.sigmoid(teacher / temperature)
    values = F.binary_cross_entropy_with_logits(student / temperature, target, reduction="none")
    return masked_mean(values, mask) * temperature**2


@ranking_loss("arXiv 2010.02666")
def margin_mse(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """MarginMSE (arXiv 2010.02666): squared difference of the two models' margins, over all
    pairs of a relevant passage and a negative. In squared logits: see the top of this module."""
    relevant = (labels > 0) & mask
    negative = (labels <= 0) & mask
    difference = student - teacher
    margins = difference.unsqueeze(2) - difference.unsqueeze(1)
    return masked_mean(margins**2, relevant.unsqueeze(2) & negative.unsqueeze(1))


@ranking_loss("arXiv 1503.02531")
def listwise_kl(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """KL of the teacher's distribution over the group to the student's, times T^2 so that the
    gradient keeps its size over temperatures (arXiv 1503.02531)."""
    return masked_kl(student, teacher, mask, temperature) * temperature**2


@ranking_loss("Burges et al. 2005, Learning to rank using gradient descent")
def ranknet(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """RankNet (Burges et al. 2005) on the teacher's order: log(1 + exp(s_j - s_i)) over all pairs
    in which the teacher puts i above j. Ties of the teacher say nothing."""
    ordered = teacher.unsqueeze(2) > teacher.unsqueeze(1)
    pairs = ordered & mask.unsqueeze(2) & mask.unsqueeze(1)
    return masked_mean(F.softplus(student.unsqueeze(1) - student.unsqueeze(2)), pairs)
