"""What of a config an artifact's content depends on: with its inputs' digests, its key.

What changes no result (resources, how often something is logged or saved) is left out, and so is a
feature that is not in use: keys of what was made before there was such a feature stay good.
"""

from __future__ import annotations

from typing import Any

from kdscale.config import Config, Shape, Teacher
from kdscale.configload import to_dict
from kdscale.errors import KdscaleError
from kdscale.paths import user_path
from kdscale.store.artifact import sha256_file


def evaluate_config(config: Config) -> dict[str, Any]:
    settings = {
        "evaluate": without(to_dict(config.evaluate), "batch_tokens"),
        "min_grade": config.prepare.min_grade,  # which passages the kinds of queries are about
    }
    if config.transfer:
        settings["transfer"] = {
            name: {"split": t.split, "depth": t.depth} for name, t in config.transfer.items()
        }
    return settings


def report_config(config: Config) -> dict[str, Any]:
    settings = without(to_dict(config.report), "trials")
    if config.report.trials is None:
        return settings
    return {**settings, "trials": sha256_file(user_path(config.report.trials, "report.trials"))}


def dataset_config(config: Config) -> dict[str, Any]:
    from kdscale.data.readers import open_reader

    token_keys = ("max_length", "block_length", "max_block_tokens", "extra_text")
    return {
        "source": to_dict(config.source),
        "input": open_reader(config.source).fingerprint(),
        "prepare": without(to_dict(config.prepare), *token_keys),
    }


def token_config(config: Config, teacher: Teacher) -> dict[str, Any]:
    from kdscale.models.pretrained import fingerprint_tokenizer

    prepare = config.prepare
    for path in prepare.extra_text:
        if not user_path(path, "prepare.extra_text").is_file():
            raise KdscaleError(f"prepare.extra_text: no file {path}; give jsonl files")
    return {
        "max_length": prepare.max_length,
        "block_length": prepare.block_length,
        "max_block_tokens": prepare.max_block_tokens,
        "extra_text": [sha256_file(user_path(p, "prepare.extra_text")) for p in prepare.extra_text],
        "shards": prepare.shards,
        "tokenizer": fingerprint_tokenizer(teacher.model, teacher.revision),
    }


def model_fingerprint(teacher: Teacher) -> dict[str, Any]:
    from kdscale.models.pretrained import fingerprint_model

    return fingerprint_model(teacher.model, teacher.revision)


def section(value: Any) -> dict[str, Any]:
    """A section without its training settings, which `_train` gives."""
    return without(to_dict(value), "train", "model", "revision")


def language_model(lm: Any) -> dict[str, Any]:
    settings = {**section(lm), "train": training(lm.train)}
    return settings if "mlm_kl" in lm.losses else without(settings, "head_steps")


def training(train: Any) -> dict[str, Any]:
    """What of a training's settings its result depends on."""
    return without(to_dict(train), "micro_tokens", "checkpoint_every", "log_every", "zero_stage")


def shape_of(shape: Shape) -> dict[str, Any]:
    """A shape as it was before it could have an embedding width: old keys stay good."""
    return to_dict(shape) if shape.embedding else without(to_dict(shape), "embedding")


def shown(config: Config) -> dict[str, Any]:
    absent = [name for name in ("transfer", "ensemble") if not getattr(config, name)]
    shown = without(to_dict(config), "storage", "cluster", *absent)
    report = to_dict(config.report) if config.report.trials else report_config(config)
    return {
        **shown,
        "students": [shape_of(shape) for shape in config.students],
        "report": report,
    }


def without(value: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {k: v for k, v in value.items() if k not in keys}
