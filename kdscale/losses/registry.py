"""The losses by name: each registers itself where it is defined, with its paper and its needs.

A config names losses by these names, and `kdscale.experiment.checks` refuses others.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

# What a ranking loss can ask for beside the student's scores and the mask.
OF_RANKING = ("teacher", "labels", "temperature")


@dataclass(frozen=True)
class Loss:
    """A registered loss.

    paper: where its formula is from; needs: of a ranking loss the arguments that it takes, of an
    intermediate one the states that it compares ("hidden", "embedding", "qkv", "scores"), of a
    masked-LM one "head" where the teacher's predictions are compared; projection: which map from
    student to teacher width it trains, if any.
    """

    name: str
    paper: str
    function: Callable[..., torch.Tensor]
    needs: frozenset[str]
    projection: str | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.function(*args, **kwargs)


@dataclass(frozen=True)
class RankingLoss(Loss):
    """A loss on the scores of a group."""

    def __call__(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor | None,
        labels: torch.Tensor,
        mask: torch.Tensor,
        temperature: float,
    ) -> torch.Tensor:
        """Scores and labels [B, G], mask [B, G] bool -> [B]. teacher: None where it is of labels
        alone."""
        given = {"teacher": teacher, "labels": labels, "temperature": temperature}
        return self.function(student, mask=mask, **{name: given[name] for name in self.needs})


RANKING_LOSSES: dict[str, RankingLoss] = {}
INTERMEDIATE_LOSSES: dict[str, Loss] = {}
MASKED_LOSSES: dict[str, Loss] = {}


def ranking_loss(paper: str) -> Callable[[Callable], Callable]:
    """Registers a function by its own name; what it needs are its arguments."""

    def register(function: Callable) -> Callable:
        name = function.__name__
        taken = inspect.signature(function).parameters
        needs = frozenset(argument for argument in OF_RANKING if argument in taken)
        RANKING_LOSSES[name] = RankingLoss(name, paper, function, needs)
        return function

    return register


def intermediate_loss(
    name: str, paper: str, needs: str, projection: str | None = None
) -> Callable[[Callable], Callable]:
    """Registers a function of `kdscale.losses.lm.Compared`."""

    def register(function: Callable) -> Callable:
        INTERMEDIATE_LOSSES[name] = Loss(name, paper, function, frozenset([needs]), projection)
        return function

    return register


def masked_loss(name: str, paper: str, *needs: str) -> Callable[[Callable], Callable]:
    """Registers a function of logits at masked places."""

    def register(function: Callable) -> Callable:
        MASKED_LOSSES[name] = Loss(name, paper, function, frozenset(needs))
        return function

    return register
