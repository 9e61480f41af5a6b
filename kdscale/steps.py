"""Which steps a config asks for: one an artifact, each after its inputs."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from kdscale.config import Config, Teacher
from kdscale.configload import to_dict
from kdscale.errors import KdscaleError
from kdscale.matters import (
    dataset_config,
    evaluate_config,
    language_model,
    model_fingerprint,
    report_config,
    section,
    shape_of,
    shown,
    token_config,
    training,
    without,
)
from kdscale.stages.context import Stage
from kdscale.transfer import transfer_config

# The roles, before a colon, of what an evaluation reads.
EVALUATED = ("dataset", "tokens", "teacher", "ensemble", "student")


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
            "dataset", "prepare", "datasets", name, stage_of("prepare", "run"),
            lambda: {**dataset_config(config), "seed": seed},
        )
    )  # fmt: skip
    # All tokens first: a model that cannot read such inputs shows before any training.
    for number, teacher in enumerate(config.teachers, 1):
        add(_tokens_step(config, "dataset", "tokens", name, number, teacher))
    for transfer in config.transfer:
        for step in _transfer_steps(config, transfer):
            add(step)
    for step in _teacher_steps(config):
        add(step)
    for shape in config.students:
        params = {"student": shape_of(shape)}
        if any(s.startswith("lm_distill") for s in config.ranker.strategies):
            add(
                Step(
                    f"lm:{shape.name}", "distill-lm", "lms", shape.name,
                    stage_of("distill_lm", "run"),
                    lambda params=params: {
                        **params,
                        "lm": language_model(config.lm),
                        "model": model_fingerprint(config.teacher),
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
            "evaluation", "evaluate", "evaluations", name, stage_of("evaluate", "run"),
            lambda: evaluate_config(config),
            {s: s for s in steps if s.partition(":")[0] in EVALUATED},
        )
    )  # fmt: skip
    everything = {s: s for s in steps}
    add(
        Step(
            "report", "report", "reports", name, stage_of("report", "run"),
            lambda: {"report": report_config(config), "config": shown(config)},
            everything,
        )
    )  # fmt: skip
    return steps


def _tokens_step(
    config: Config,
    dataset: str,
    role: str,
    label: str,
    number: int,
    teacher: Teacher,
    made_by: Config | None = None,
) -> Step:
    """The texts of a dataset as one teacher reads them.

    Where two teachers have one tokenizer, the keys are the same, and so is the artifact.
    """
    return Step(
        _numbered(role, number), "prepare", "tokens", label,
        stage_of("tokens", "run", made_by),
        lambda: {**token_config(made_by or config, teacher), "seed": config.seed},
        {"dataset": dataset},
        {"teacher": number},
    )  # fmt: skip


def _teacher_steps(config: Config) -> Iterator[Step]:
    """Every teacher, its scores, and their scores joined where there are several."""
    for number, teacher in enumerate(config.teachers, 1):
        yield Step(
            _numbered("teacher", number), "finetune", "teachers", config.name,
            stage_of("finetune", "run"),
            lambda teacher=teacher, number=number: {
                "teacher": {**section(teacher), "train": training(teacher.train)},
                "model": model_fingerprint(teacher),
                "seed": config.teacher_seed(number),
            },
            {"dataset": "dataset", "tokens": _numbered("tokens", number)},
            {"teacher": number},
        )  # fmt: skip
    numbers = range(1, len(config.teachers) + 1)
    for number in numbers:
        of_teacher = {role: _numbered(role, number) for role in ("tokens", "teacher")}
        yield Step(
            _numbered("scores", number), "score", "scores", config.name, stage_of("score", "run"),
            lambda: {"precision": config.score.precision},
            {"dataset": "dataset", **of_teacher},
        )  # fmt: skip
    if config.ensemble:
        yield Step(
            "ensemble", "ensemble", "scores", config.name, stage_of("ensemble", "run"), dict,
            {_numbered("scores", n): _numbered("scores", n) for n in numbers},
        )  # fmt: skip


def _transfer_steps(config: Config, name: str) -> list[Step]:
    """The dataset and the tokens of a collection that is only evaluated."""
    made_by = transfer_config(config, name)

    def dataset() -> dict[str, Any]:
        try:
            return {**dataset_config(made_by), "seed": config.seed}
        except KdscaleError as error:
            raise KdscaleError(f"transfer.{name}: {error}") from None

    return [
        Step(
            f"dataset:{name}", "prepare", "datasets", name,
            stage_of("prepare", "run", made_by), dataset,
        ),
        *(
            _tokens_step(
                config, f"dataset:{name}", f"tokens:{name}", name, number, teacher, made_by
            )
            for number, teacher in enumerate(config.teachers, 1)
        ),
    ]  # fmt: skip


def _student_step(config: Config, shape: str, strategy: str, params: dict[str, Any]) -> Step:
    soft = strategy.endswith("ranker_distill")
    from_lm = strategy.startswith("lm_distill")
    losses = config.ranker.soft_losses if soft else config.ranker.hard_losses
    intermediate = config.ranker.intermediate_losses if soft else {}
    inputs = {"dataset": "dataset", "tokens": "tokens"}
    if soft:
        inputs["scores"] = "ensemble" if config.ensemble else "scores"
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
            "train": training(config.ranker.train),
        }
        if soft:
            ranker["temperature"] = config.ranker.temperature
        if intermediate:
            compared = {"layer_map": config.lm.layer_map, "heads": config.lm.relation_heads}
            ranker["intermediate"] = {"losses": intermediate, **compared}
        watch = config.ranker.watch
        if watch.patience or watch.keep_best:  # else looking changes nothing
            ranker["watch"] = without(to_dict(watch), "train_queries")
        # A random student takes its vocabulary and family from the teacher's encoder.
        model = {} if from_lm else {"model": model_fingerprint(config.teacher)}
        return {**params, "strategy": strategy, "ranker": ranker, "seed": seed, **model}

    return Step(
        f"student:{strategy}:{shape}",
        "distill-ranker",
        "students",
        f"{shape}-{strategy}",
        stage_of("distill_ranker", "run"),
        matters,
        inputs,
        {**params, "strategy": strategy, "losses": {**losses, **intermediate}, "seed": seed},
    )


def _numbered(role: str, number: int) -> str:
    """The name of a teacher's step; the first teacher's have none but the role."""
    return role if number == 1 else f"{role}:{number}"


def stage_of(module: str, function: str, config: Config | None = None) -> Callable[[], Stage]:
    """A function of a module of `kdscale.stages`, imported when it is run. config: what it is to
    read in place of the experiment's own."""

    def load() -> Stage:
        stage = getattr(importlib.import_module(f"kdscale.stages.{module}"), function)
        if config is None:
            return stage
        return lambda ctx: stage(dataclasses.replace(ctx, config=config))

    return load
