"""What the config says of strategies and losses, checked without torch."""

from __future__ import annotations

from kdscale.config import (
    HARD_LOSSES,
    INTERMEDIATE_LOSSES,
    LM_LOSSES,
    SOFT_LOSSES,
    STRATEGIES,
    Config,
)
from kdscale.errors import KdscaleError, nearest
from kdscale.models.shapes import check_layer_map


def check_losses(config: Config) -> None:
    """Raise KdscaleError, naming the key, for a strategy or a loss that there is not, and for
    layers and heads that the students cannot be compared by."""
    for strategy in config.ranker.strategies:
        if strategy not in STRATEGIES:
            raise KdscaleError(
                f"ranker.strategies: no strategy {strategy!r}{nearest(strategy, STRATEGIES)}"
            )
    for key, losses, known in (
        ("teacher.losses", config.teacher.losses, HARD_LOSSES),
        *((f"ensemble[{i}].losses", t.losses, HARD_LOSSES) for i, t in enumerate(config.ensemble)),
        ("ranker.hard_losses", config.ranker.hard_losses, HARD_LOSSES),
        ("ranker.soft_losses", config.ranker.soft_losses, HARD_LOSSES + SOFT_LOSSES),
        ("ranker.intermediate_losses", config.ranker.intermediate_losses, INTERMEDIATE_LOSSES),
        ("lm.losses", config.lm.losses, LM_LOSSES),
    ):
        if not losses and key != "ranker.intermediate_losses":
            raise KdscaleError(f"{key}: at least one loss; there are: {', '.join(known)}")
        if losses and not any(losses.values()):
            raise KdscaleError(f"{key}: every weight is 0; give one loss a weight above 0")
        for name in losses:
            if name in SOFT_LOSSES and known is HARD_LOSSES:
                raise KdscaleError(f"{key}: {name} needs teacher scores; use {known[0]}")
            if name not in known:
                raise KdscaleError(f"{key}: no loss {name!r}{nearest(name, known)}")
    strategies, compared = config.ranker.strategies, set()
    if any(s.startswith("lm_distill") for s in strategies):
        compared |= set(config.lm.losses)
    if any(s.endswith("ranker_distill") for s in strategies):
        compared |= set(config.ranker.intermediate_losses)
    for shape in config.students if compared else []:
        if config.lm.layer_map is not None:
            check_layer_map(config.lm.layer_map, shape.layers)
        if "qkv" in compared and shape.hidden % config.lm.relation_heads:
            raise KdscaleError(
                f"lm.relation_heads: {config.lm.relation_heads} does not divide the hidden size "
                f"{shape.hidden} of student {shape.name}; set a number that divides it and the "
                "teacher's"
            )
