"""What types cannot say of a config. Raises KdscaleError naming the key."""

from __future__ import annotations

from kdscale.config import DEFAULT, STRATEGIES, Config, Watch
from kdscale.errors import KdscaleError, nearest
from kdscale.experiment.transfer import check_transfers, split_names
from kdscale.models.shapes import check_layer_map
from kdscale.store.artifact import NAME

NAME_BYTES = 100


def check_config(config: Config) -> None:
    """Raise KdscaleError naming the key."""
    _check_watch(config.ranker.watch)
    _check_all_names(config)
    _check_waiting(config)
    _check_strategies(config)
    _check_losses(config)
    _check_comparisons(config)
    _check_depths(config)
    _check_collections(config)
    check_transfers(config)
    if sum(config.prepare.split.values()) > 1 + 1e-9:
        raise KdscaleError("prepare.split: the fractions add up to more than 1")


def _check_all_names(config: Config) -> None:
    _check_names("name", [config.name])
    _check_names("students", [shape.name for shape in config.students])
    _check_names("prepare.split", list(config.prepare.split))
    for key in ("splits", "queries", "topics", "ids"):  # whichever the source's type has
        _check_names(f"source.{key}", list(getattr(config.source, key, ())))
    _check_names("transfer", list(config.transfer))
    for name, transfer in config.transfer.items():
        _check_names(f"transfer.{name}.split", [transfer.split])


def _check_names(key: str, names: list[str]) -> None:
    """Raise KdscaleError for a name that would lead out of a folder, or could not be a file
    everywhere: the names of experiments, students and splits become names of files."""
    seen: set[str] = set()
    for name in names:
        if not NAME.fullmatch(name) or len(name.encode()) > NAME_BYTES:
            raise KdscaleError(
                f"{key}: the name {name!r} becomes a file's; use letters a to z, digits and . _ -, "
                f"beginning with a letter or a digit, at most {NAME_BYTES} bytes"
            )
        if name.casefold() in seen:
            raise KdscaleError(
                f"{key}: two are named {name!r} (large and small letters are one to some file "
                "systems); give each its own name"
            )
        seen.add(name.casefold())


def _check_depths(config: Config) -> None:
    """Raise KdscaleError for a depth to look at that has no candidates of its own."""
    evaluate, prepare = config.evaluate, config.prepare
    deepest = max([evaluate.depth, *(transfer.depth for transfer in config.transfer.values())])
    for depth in evaluate.depths:
        if depth > deepest:
            raise KdscaleError(
                f"evaluate.depths: {depth} is not among the {deepest} candidates that are reranked "
                "(evaluate.depth, or that of a transfer); give depths from 1 to that"
            )
        for split in evaluate.splits:
            kept = prepare.depth.get(split, prepare.default_depth)
            if kept < depth <= evaluate.depth:
                raise KdscaleError(
                    f"evaluate.depths: {depth} candidates, but prepare.depth keeps {kept} of "
                    f"{split}; raise it"
                )


def _check_collections(config: Config) -> None:
    """Raise KdscaleError for a setting by collection that names one that there is not."""
    evaluate = config.evaluate
    known = [*evaluate.splits, *config.prepare.split, *split_names(config.source)]
    known = list(dict.fromkeys([DEFAULT, *known, "dev", *config.transfer]))
    for key, setting in (
        ("evaluate.measures", evaluate.measures),
        ("evaluate.primary", evaluate.primary),
    ):
        if not isinstance(setting, dict):
            continue
        for name in setting:
            if name not in known:
                raise KdscaleError(
                    f"{key}: no split and no transfer is named {name!r}, only "
                    f"{', '.join(known[1:])}{nearest(name, known)}"
                )
        if DEFAULT not in setting:
            raise KdscaleError(
                f"{key}: say under `{DEFAULT}` what is measured where the mapping names no other"
            )


def _check_watch(watch: Watch) -> None:
    for name in ("patience", "keep_best"):
        if getattr(watch, name) and not watch.every:
            raise KdscaleError(
                f"ranker.watch.{name} needs looks at dev; set ranker.watch.every to the steps "
                "from one to the next"
            )


def _check_waiting(config: Config) -> None:
    cluster = config.cluster
    if cluster.wait_s and None in (cluster.cpus_per_worker, cluster.cpus_per_scorer):
        raise KdscaleError(
            "cluster.wait_s: set cluster.cpus_per_worker and cluster.cpus_per_scorer with it; a "
            "cluster that is yet to start has no CPUs to take a share of"
        )


def _check_strategies(config: Config) -> None:
    for name in config.ranker.strategies:
        if name not in STRATEGIES:
            raise KdscaleError(
                f"ranker.strategies: no strategy {name!r}{nearest(name, STRATEGIES)}"
            )


def _check_losses(config: Config) -> None:
    """Losses that there are, where they can stand."""
    from kdscale.losses import (
        HARD_LOSSES,
        INTERMEDIATE_LOSSES,
        LM_LOSSES,
        RANKING_LOSSES,
        SOFT_LOSSES,
    )

    for key, losses, known in (
        ("teacher.losses", config.teacher.losses, HARD_LOSSES),
        *((f"ensemble[{i}].losses", t.losses, HARD_LOSSES) for i, t in enumerate(config.ensemble)),
        ("ranker.hard_losses", config.ranker.hard_losses, HARD_LOSSES),
        ("ranker.soft_losses", config.ranker.soft_losses, list(RANKING_LOSSES)),
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


def _check_comparisons(config: Config) -> None:
    """Layers and heads by which the students are compared with their teacher."""
    from kdscale.losses import INTERMEDIATE_LOSSES

    strategies, names = config.ranker.chosen, set()
    if any(strategy.from_lm for strategy in strategies):
        names |= set(config.lm.losses)
    if any(strategy.soft for strategy in strategies):
        names |= set(config.ranker.intermediate_losses)
    relations = any(
        "qkv" in INTERMEDIATE_LOSSES[n].needs for n in names if n in INTERMEDIATE_LOSSES
    )
    for shape in config.students if names else []:
        if config.lm.layer_map is not None:
            check_layer_map(config.lm.layer_map, shape.layers)
        if relations and shape.hidden % config.lm.relation_heads:
            raise KdscaleError(
                f"lm.relation_heads: {config.lm.relation_heads} does not divide the hidden size "
                f"{shape.hidden} of student {shape.name}; set a number that divides it and the "
                "teacher's"
            )
