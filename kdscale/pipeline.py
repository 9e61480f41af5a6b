"""The order of stages: which steps a config asks for, what is cached, what is run."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import kdscale
from kdscale.config import Config
from kdscale.configload import to_dict
from kdscale.errors import KdscaleError
from kdscale.progress import Reporter
from kdscale.stages.context import Stage, StageContext
from kdscale.store import Artifact, LocalStore
from kdscale.store.artifact import build_manifest, list_files, sha256_json

FORMAT_VERSION = 1  # raise it when a stage's output changes for equal input: old keys expire


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
                        "lm": {**_section(config.lm), "train": _train(config.lm.train)},
                        "model": _fingerprint(config),
                        "seed": seed,
                    },
                    {"tokens": "tokens"},
                    params,
                )
            )  # fmt: skip
        for strategy in config.ranker.strategies:
            add(_student_step(config, shape.name, strategy, params))
    students = [s for s in steps if s.startswith("student:")]
    add(
        Step(
            "evaluation", "evaluate", "evaluations", name, _stage("evaluate", "run"),
            lambda: {"evaluate": _without(to_dict(config.evaluate), "batch_tokens")},
            {"dataset": "dataset", "tokens": "tokens", "teacher": "teacher"}
            | {s: s for s in students},
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


def _student_step(config: Config, shape: str, strategy: str, params: dict[str, Any]) -> Step:
    soft = strategy.endswith("ranker_distill")
    from_lm = strategy.startswith("lm_distill")
    losses = config.ranker.soft_losses if soft else config.ranker.hard_losses
    inputs = {"dataset": "dataset", "tokens": "tokens"}
    if soft:
        inputs["scores"] = "scores"
    if from_lm:
        inputs["lm"] = f"lm:{shape}"

    def matters() -> dict[str, Any]:
        ranker = {
            "losses": losses,
            "group_size": config.ranker.group_size,
            "max_queries": config.ranker.max_queries,
            "train": _train(config.ranker.train),
        }
        if soft:
            ranker["temperature"] = config.ranker.temperature
        # A random student takes its vocabulary and family from the teacher's encoder.
        model = {} if from_lm else {"model": _fingerprint(config)}
        return {**params, "strategy": strategy, "ranker": ranker, "seed": config.seed, **model}

    return Step(
        f"student:{strategy}:{shape}",
        "distill-ranker",
        "students",
        f"{shape}-{strategy}",
        _stage("distill_ranker", "run"),
        matters,
        inputs,
        {**params, "strategy": strategy, "losses": losses},
    )


@dataclass
class Outcome:
    """What happened to a step."""

    step: Step
    status: str  # "done" now, "cached", or in a dry run "would run"
    artifact: Artifact | None
    seconds: float = 0.0


def run_steps(
    config: Config,
    store: LocalStore,
    wanted: list[str] | None,
    reporter: Reporter,
    dry_run: bool = False,
) -> list[Outcome]:
    """Make the wanted steps and what they need (None: all), skipping what is already there."""
    steps = build_steps(config)
    needed = _closure(steps, wanted if wanted is not None else list(steps))
    check_early(config, needed)
    outcomes: dict[str, Outcome] = {}
    for step in (steps[n] for n in steps if n in needed):
        made = {role: outcomes[name].artifact for role, name in step.inputs.items()}
        if any(artifact is None for artifact in made.values()):
            outcomes[step.name] = Outcome(step, "would run", None)
            continue
        matters = step.matters()
        key = step_key(step, matters, made)
        found = store.find(step.kind, key)
        if found is not None:
            outcomes[step.name] = Outcome(step, "cached", found)
            if not dry_run:
                reporter.info(f"{step.name}: up to date ({found.path})")
        elif dry_run:
            outcomes[step.name] = Outcome(step, "would run", None)
        else:
            outcomes[step.name] = _run_step(config, store, step, matters, key, made, reporter)
    return list(outcomes.values())


def check_early(config: Config, needed: set[str]) -> None:
    """Raise KdscaleError at once for what would otherwise fail after hours of training."""
    from kdscale.evaluation.measures import parse_measures
    from kdscale.models.pretrained import resolve_model

    if needed - {"dataset"}:
        resolve_model(config.teacher.model, config.teacher.revision)
    if "evaluation" in needed:
        parse_measures([config.evaluate.primary, *config.evaluate.measures])
        systems = ["bm25", "teacher"] + [
            f"{strategy}/{shape.name}"
            for shape in config.students
            for strategy in config.ranker.strategies
        ]
        if config.evaluate.baseline not in systems:
            raise KdscaleError(
                f"evaluate.baseline: no system {config.evaluate.baseline!r}, only "
                f"{', '.join(systems)}"
            )


def step_key(step: Step, matters: dict[str, Any], inputs: dict[str, Artifact]) -> str:
    """`label-hash`: the hash covers stage, config that matters, input digests and format."""
    digest = sha256_json(
        {
            "stage": step.stage,
            "kind": step.kind,
            "config": matters,
            "inputs": {role: a.digest for role, a in inputs.items()},
            "format": FORMAT_VERSION,
        }
    )
    return f"{step.label}-{digest[:12]}"


def _run_step(
    config: Config,
    store: LocalStore,
    step: Step,
    matters: dict[str, Any],
    key: str,
    inputs: dict[str, Artifact],
    reporter: Reporter,
) -> Outcome:
    reporter.info(f"{step.name}: {step.stage}")
    began = time.monotonic()
    try:
        with store.staging(step.kind, key) as out:
            workdir = store.workdir(step.kind, key)
            context = StageContext(config, inputs, out, workdir, reporter, step.params)
            facts = step.load()(context)
            seconds = time.monotonic() - began
            manifest = build_manifest(
                kind=step.kind,
                stage=step.stage,
                config=matters,
                inputs={r: {"name": a.name, "digest": a.digest} for r, a in inputs.items()},
                files=list_files(out),
                facts={**facts, "seconds": round(seconds, 2)},
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                version=kdscale.__version__,
            )
            first = store.commit(out, step.kind, key, manifest)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise KdscaleError(
                f"{step.name}: no space left below {store.root}; free some, or set storage.uri "
                "to another disk, and run again: finished stages are kept"
            ) from None
        raise
    if not first:
        reporter.warn(f"{step.name}: another process committed {key} first; theirs is used")
    store.clear_workdir(step.kind, key)
    artifact = store.find(step.kind, key)
    reporter.info(f"  {seconds:.0f} s, written to {artifact.path}")
    return Outcome(step, "done", artifact, seconds)


def _closure(steps: dict[str, Step], wanted: list[str]) -> set[str]:
    needed: set[str] = set()
    todo = list(wanted)
    while todo:
        name = todo.pop()
        if name not in needed:
            needed.add(name)
            todo.extend(steps[name].inputs.values())
    return needed


def _stage(module: str, function: str) -> Callable[[], Stage]:
    def load() -> Stage:
        import importlib

        return getattr(importlib.import_module(f"kdscale.stages.{module}"), function)

    return load


def _dataset_config(config: Config) -> dict[str, Any]:
    from kdscale.data.readers import open_reader

    token_keys = ("max_length", "block_length", "max_block_tokens", "extra_text")
    return {
        "source": to_dict(config.source),
        "input": open_reader(config.source).fingerprint(),
        "prepare": _without(to_dict(config.prepare), *token_keys),
    }


def _token_config(config: Config) -> dict[str, Any]:
    from pathlib import Path

    from kdscale.models.pretrained import fingerprint_tokenizer
    from kdscale.store.artifact import sha256_file

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


def _train(train: Any) -> dict[str, Any]:
    """What of a training's settings its result depends on."""
    return _without(to_dict(train), "micro_tokens", "checkpoint_every", "log_every", "zero_stage")


def _shown(config: Config) -> dict[str, Any]:
    return _without(to_dict(config), "storage", "cluster")


def _without(value: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {k: v for k, v in value.items() if k not in keys}
