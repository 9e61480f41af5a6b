"""The losses, each in its module, and all of them by name."""

from kdscale.losses import lm, ranking
from kdscale.losses.registry import INTERMEDIATE_LOSSES, MASKED_LOSSES, RANKING_LOSSES

HARD_LOSSES = [name for name, loss in RANKING_LOSSES.items() if "teacher" not in loss.needs]
SOFT_LOSSES = [name for name, loss in RANKING_LOSSES.items() if "teacher" in loss.needs]
LM_LOSSES = [*INTERMEDIATE_LOSSES, *MASKED_LOSSES]

__all__ = [
    "HARD_LOSSES",
    "INTERMEDIATE_LOSSES",
    "LM_LOSSES",
    "MASKED_LOSSES",
    "RANKING_LOSSES",
    "SOFT_LOSSES",
    "lm",
    "ranking",
]
