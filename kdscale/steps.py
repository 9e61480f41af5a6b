"""Which steps a config asks for: one an artifact, each after its inputs."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdscale.config import Config
from kdscale.configload import to_dict
from kdscale.errors import KdscaleError
from kdscale.stages.context import Stage
from kdscale.store.artifact import sha256_file
from kdscale.transfer import transfer_config


@dataclass(frozen=True)
class Step:
    """One artifact to be made.

    `matters` is the part of the config that its content depends on; with the digests of the
    inputs it makes the key. `inputs` maps a role to the name of the step that makes it.
    """

    name: str
    stage: str
    kind: str
    label: str
    load: Callable[[], Stage]  # imports the stage's code only when it runs
    matters: Callable[[], dict[str, Any]]  # may read files (a model's digest), so it is a call
    inputs: dict[str, str] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)


def build_steps(config: Config) -> dict[str, Step]:
    """Every step of a config, in an order in which each comes after its inputs."""
    steps: dict[str, Step] = {}

    def add(step: Step) -> None:
        steps[step.name] = step

    name, seed = config.name, config.seed
    add(
        Step(
            "dataset", "prepare", "datasets", name, _stage("prepare", "run_dataset"),
            lambda: {**_dataset_config(config), "seed": seed},
        )
    )  # fmt: skip
    add(
        Step(
            "tokens", "prepare", "tokens", name, _stage("prepare", "run_tokens"),
            lambda: {**_token_config(config), "seed": seed},
            {"dataset": "dataset"},
        )
    )  # fmt: skip
    for transfer in config.transfer:
        for step in _transfer_steps(config, transfer):
            add(step)
    add(
        Step(
            "teacher", "finetune", "teachers", name, _stage("finetune", "run"),
            lambda: {
                "teacher": {**_section(config.teacher), "train": _train(config.teacher.train)},
                "model": _fingerprint(config),
                "seed": seed,
            },
            {"dataset": "dataset", "tokens": "tokens"},
        )
    )  # fmt: skip
    add(
        Step(
            "scores", "score", "scores", name, _stage("score", "run"),
            lambda: {"precision": config.score.precision},
            {"dataset": "dataset", "tokens": "tokens", "teacher": "teacher"},
        )
    )  # fmt: skip
    for shape in config.students:
        params = {"student": to_dict(shape)}
        if any(s.startswith("lm_distill") for s in config.ranker.strategies):
            add(
                Step(
                    f"lm:{shape.name}", "distill-lm", "lms", shape.name,
                    _stage("distill_lm", "run"),
                    lambda params=params: {
                        **params,
                        "lm": _lm(config.lm),
                        "model": _fingerprint(config),
                        "seed": seed,
                    },
                    {"tokens": "tokens"},
                    params,
                )
            )  # fmt: skip
        for strategy in config.ranker.strategies:
            add(_student_step(config, shape.name, strategy, params))
    add(
        Step(
            "evaluation", "evaluate", "evaluations", name, _stage("evaluate", "run"),
            lambda: _evaluate_config(config),
            {"dataset": "dataset", "tokens": "tokens", "teacher": "teacher"}
            | {s: s for s in steps if s.startswith(("student:", "dataset:", "tokens:"))},
        )
    )  # fmt: skip
    everything = {s: s for s in steps}
    add(
        Step(
            "report", "report", "reports", name, _stage("report", "run"),
            lambda: {"report": to_dict(config.report), "config": _shown(config)},
            everything,
        )
    )  # fmt: skip
    return steps


def _transfer_steps(config: Config, name: str) -> list[Step]:
    """The dataset and the tokens of a collection that is only evaluated."""
    made_by = transfer_config(config, name)

    def dataset() -> dict[str, Any]:
        try:
            return {**_dataset_config(made_by), "seed": config.seed}
        except KdscaleError as error:
            raise KdscaleError(f"transfer.{name}: {error}") from None

    return [
        Step(
            f"dataset:{name}", "prepare", "datasets", name,
            _stage("prepare", "run_dataset", made_by), dataset,
        ),
        Step(
            f"tokens:{name}", "prepare", "tokens", name, _stage("prepare", "run_tokens", made_by),
            lambda: {**_token_config(made_by), "seed": config.seed},
            {"dataset": f"dataset:{name}"},
        ),
    ]  # fmt: skip


def _student_step(config: Config, shape: str, strategy: str, params: dict[str, Any]) -> Step:
    soft = strategy.endswith("ranker_distill")
    from_lm = strategy.startswith("lm_distill")
    losses = config.ranker.soft_losses if soft else config.ranker.hard_losses
    intermediate = config.ranker.intermediate_losses if soft else {}
    inputs = {"dataset": "dataset", "tokens": "tokens"}
    if soft:
        inputs["scores"] = "scores"
    if intermediate:
        inputs["teacher"] = "teacher"
    if from_lm:
        inputs["lm"] = f"lm:{shape}"

    # The seed of the data budget too: a budget's queries are another sample for each seed.
    seed = config.seed if config.ranker.seed is None else config.ranker.seed

    def matters() -> dict[str, Any]:
        ranker = {
            "losses": losses,
            "group_size": config.ranker.group_size,
            "max_queries": config.ranker.max_queries,
            "train": _train(config.ranker.train),
        }
        if soft:
            ranker["temperature"] = config.ranker.temperature
        if intermediate:
            compared = {"layer_map": config.lm.layer_map, "heads": config.lm.relation_heads}
            ranker["intermediate"] = {"losses": intermediate, **compared}
        watch = config.ranker.watch
        if watch.patience or watch.keep_best:  # else looking changes nothing
            ranker["watch"] = _without(to_dict(watch), "train_queries")
        # A random student takes its vocabulary and family from the teacher's encoder.
        model = {} if from_lm else {"model": _fingerprint(config)}
        return {**params, "strategy": strategy, "ranker": ranker, "seed": seed, **model}

    return Step(
        f"student:{strategy}:{shape}",
        "distill-ranker",
        "students",
        f"{shape}-{strategy}",
        _stage("distill_ranker", "run"),
        matters,
        inputs,
        {**params, "strategy": strategy, "losses": {**losses, **intermediate}, "seed": seed},
    )


def _stage(module: str, function: str, config: Config | None = None) -> Callable[[], Stage]:
    """`config`: what the stage is to read in place of the experiment's own."""

    def load() -> Stage:
        stage = getattr(importlib.import_module(f"kdscale.stages.{module}"), function)
        if config is None:
            return stage
        return lambda ctx: stage(dataclasses.replace(ctx, config=config))

    return load


def _evaluate_config(config: Config) -> dict[str, Any]:
    settings = {
        "evaluate": _without(to_dict(config.evaluate), "batch_tokens"),
        "min_grade": config.prepare.min_grade,  # which passages the kinds of queries are about
    }
    if config.transfer:
        settings["transfer"] = {
            name: {"split": t.split, "depth": t.depth} for name, t in config.transfer.items()
        }
    return settings


def _dataset_config(config: Config) -> dict[str, Any]:
    from kdscale.data.readers import open_reader

    token_keys = ("max_length", "block_length", "max_block_tokens", "extra_text")
    return {
        "source": to_dict(config.source),
        "input": open_reader(config.source).fingerprint(),
        "prepare": _without(to_dict(config.prepare), *token_keys),
    }


def _token_config(config: Config) -> dict[str, Any]:
    from kdscale.models.pretrained import fingerprint_tokenizer

    prepare = config.prepare
    for path in prepare.extra_text:
        if not Path(path).is_file():
            raise KdscaleError(f"prepare.extra_text: no file {path}; give jsonl files")
    return {
        "max_length": prepare.max_length,
        "block_length": prepare.block_length,
        "max_block_tokens": prepare.max_block_tokens,
        "extra_text": [sha256_file(Path(p)) for p in prepare.extra_text],
        "shards": prepare.shards,
        "tokenizer": fingerprint_tokenizer(config.teacher.model, config.teacher.revision),
    }


def _fingerprint(config: Config) -> dict[str, Any]:
    from kdscale.models.pretrained import fingerprint_model

    return fingerprint_model(config.teacher.model, config.teacher.revision)


def _section(value: Any) -> dict[str, Any]:
    """A section without its training settings, which `_train` gives."""
    return _without(to_dict(value), "train", "model", "revision")


def _lm(lm: Any) -> dict[str, Any]:
    section = {**_section(lm), "train": _train(lm.train)}
    return section if "mlm_kl" in lm.losses else _without(section, "head_steps")


def _train(train: Any) -> dict[str, Any]:
    """What of a training's settings its result depends on."""
    return _without(to_dict(train), "micro_tokens", "checkpoint_every", "log_every", "zero_stage")


def _shown(config: Config) -> dict[str, Any]:
    unused = () if config.transfer else ("transfer",)
    return _without(to_dict(config), "storage", "cluster", *unused)


def _without(value: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {k: v for k, v in value.items() if k not in keys}
