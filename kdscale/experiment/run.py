"""Running the steps of a config: what is cached, what is run, what a failure leaves."""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import kdscale
from kdscale.config import Cluster, Config
from kdscale.errors import KdscaleError
from kdscale.experiment.cache_key import cache_key, check_file
from kdscale.experiment.context import DATASET, EVALUATION, REPORT, StageContext, StepId
from kdscale.experiment.steps import Step, build_steps, token_settings
from kdscale.paths import user_path
from kdscale.progress import Reporter
from kdscale.store import Artifact, Store
from kdscale.store.artifact import build_manifest, list_files, sha256_json

FORMAT_VERSION = 4  # raise it when a stage's output changes for equal input: old keys expire


@dataclass
class Outcome:
    """What happened to a step."""

    step: Step
    status: str  # "done" now, "cached", or in a dry run "would run"
    artifact: Artifact | None
    seconds: float = 0.0

    @property
    def made(self) -> Artifact:
        """What there is of it now. Raises RuntimeError for a step that a dry run passed over."""
        if self.artifact is None:
            raise RuntimeError(f"{self.step.name} was not made: it was a dry run")
        return self.artifact


def run_steps(
    config: Config,
    store: Store,
    wanted: list[StepId] | None,
    reporter: Reporter,
    dry_run: bool = False,
) -> list[Outcome]:
    """Make the wanted steps and what they need (None: all), skipping what is already there."""
    steps = build_steps(config)
    needed = _closure(steps, wanted if wanted is not None else list(steps))
    check_early(config, needed, reporter, dry_run)
    chosen = [step for step in steps.values() if step.id in needed]
    return make_steps(chosen, config.cluster, store, {}, reporter, dry_run)


def make_steps(
    steps: list[Step],
    cluster: Cluster,
    store: Store,
    given: dict[StepId, Artifact],
    reporter: Reporter,
    dry_run: bool = False,
) -> list[Outcome]:
    """Make steps, each after its inputs, skipping what is already there.

    given: what the steps' inputs name and no step makes.
    """
    outcomes: dict[StepId, Outcome] = {}
    for step in steps:
        made: dict[StepId, Artifact] = {}
        for role, id_ in step.inputs.items():
            artifact = given[id_] if id_ in given else outcomes[id_].artifact
            if artifact is not None:
                made[role] = artifact
        if len(made) < len(step.inputs):
            outcomes[step.id] = Outcome(step, "would run", None)
            continue
        settings = key_of(step)
        key = step_key(step, settings, made)
        found = store.find(step.kind, key)
        if found is not None:
            outcomes[step.id] = Outcome(step, "cached", found)
            if not dry_run:
                reporter.info(f"{step.name}: up to date ({found.uri})")
        elif dry_run:
            outcomes[step.id] = Outcome(step, "would run", None)
        else:
            outcomes[step.id] = _run_step(step, settings, key, made, cluster, store, reporter)
    return list(outcomes.values())


def check_early(
    config: Config, needed: set[StepId], reporter: Reporter, dry_run: bool = False
) -> None:
    """Raise KdscaleError at once for what would otherwise fail after hours of training.

    dry_run: nothing is fetched from the hub.
    """
    from kdscale.evaluation.measures import check_measures
    from kdscale.evaluation.trials import read_trials
    from kdscale.experiment.rehearsal import check_models

    check_measures(config)
    _check_splits(config, needed)
    if any(id_.kind == "tokens" for id_ in needed):
        for file in token_settings(config).extra_text:
            check_file(file)
    if needed - {DATASET}:
        for warning in check_models(config, needed, not dry_run, reporter.info):
            reporter.warn(warning)
    if REPORT in needed and config.report.trials:
        read_trials(user_path(config.report.trials, "report.trials"))
    if EVALUATION in needed:
        further = [f"teacher:{n}" for n in range(2, len(config.teachers) + 1)]
        systems = ["bm25", "teacher", *further, *["ensemble"] * bool(further)] + [
            f"{strategy}/{shape.name}"
            for shape in config.students
            for strategy in config.ranker.strategies
        ]
        if config.evaluate.baseline not in systems:
            raise KdscaleError(
                f"evaluate.baseline: no system {config.evaluate.baseline!r}, only "
                f"{', '.join(systems)}"
            )


def _check_splits(config: Config, needed: set[StepId]) -> None:
    """Raise KdscaleError where the source has no split that a needed step asks for."""
    from kdscale.data.dataset import check_split
    from kdscale.data.queries import DEV, TRAIN
    from kdscale.data.readers import open_reader

    kinds = {id_.kind for id_ in needed}
    if not kinds & {"teacher", "student", "evaluation"}:
        return
    splits = list(config.prepare.split) or open_reader(config.source).splits()
    if kinds & {"teacher", "student"} and TRAIN not in splits:
        raise KdscaleError(
            f"source: nothing to train with: it has no split {TRAIN!r}, only {', '.join(splits)}; "
            "name one so in the source or prepare.split"
        )
    if config.ranker.watch.every and "student" in kinds and DEV not in splits:
        raise KdscaleError(
            f"ranker.watch: the dataset has no split {DEV!r} to look at, only "
            f"{', '.join(splits)}; name one so in the source or prepare.split, or set "
            "ranker.watch.every: 0"
        )
    if "evaluation" in kinds:
        if not config.evaluate.splits:
            raise KdscaleError(f"evaluate.splits is empty; name some of {', '.join(splits)}")
        for split in config.evaluate.splits:
            check_split(split, splits)


def key_of(step: Step) -> dict[str, Any]:
    """What of a step's settings its content depends on. Raises KdscaleError, which names the
    collection where the step is of a transfer."""
    try:
        return cache_key(step.settings)
    except KdscaleError as error:
        if step.id.collection is None:
            raise
        raise KdscaleError(f"transfer.{step.id.collection}: {error}") from None


def step_key(step: Step, settings: dict[str, Any], inputs: dict[StepId, Artifact]) -> str:
    """`label-hash`: the hash covers stage, settings (as in a key), input digests and format."""
    digest = sha256_json(
        {
            "stage": step.stage,
            "kind": step.kind,
            "config": settings,
            "inputs": {str(role): a.digest for role, a in inputs.items()},
            "format": FORMAT_VERSION,
        }
    )
    return f"{step.label}-{digest[:12]}"


def _run_step(
    step: Step,
    settings: dict[str, Any],
    key: str,
    inputs: dict[StepId, Artifact],
    cluster: Cluster,
    store: Store,
    reporter: Reporter,
) -> Outcome:
    reporter.info(f"{step.name}: {step.stage}")
    began = time.monotonic()
    workspace = store.workspace(step.kind, key)
    try:
        with store.staging(step.kind, key) as out:
            context = StageContext(
                step.id, step.settings, inputs, out, workspace, reporter, cluster
            )
            facts = step.load()(context)
            seconds = time.monotonic() - began
            manifest = build_manifest(
                kind=step.kind,
                stage=step.stage,
                config=settings,
                inputs={str(r): {"name": a.name, "digest": a.digest} for r, a in inputs.items()},
                files=list_files(out),
                facts={**facts, "seconds": round(seconds, 2)},
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                version=kdscale.__version__,
            )
            first = store.commit(out, step.kind, key, manifest)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise KdscaleError(
                f"{step.name}: no space left below {store.disk}; free some, or set storage.uri "
                "(with s3://, KDSCALE_CACHE) to another disk, and run again: finished stages are "
                "kept"
            ) from None
        raise
    if not first:
        reporter.warn(f"{step.name}: another process committed {key} first; theirs is used")
    workspace.clear()
    artifact = store.find(step.kind, key)
    assert artifact is not None  # it was committed above, if not before
    reporter.info(f"  {seconds:.0f} s, written to {artifact.uri}")
    return Outcome(step, "done", artifact, seconds)


def _closure(steps: dict[StepId, Step], wanted: list[StepId]) -> set[StepId]:
    needed: set[StepId] = set()
    todo = list(wanted)
    while todo:
        id_ = todo.pop()
        if id_ not in needed:
            needed.add(id_)
            todo.extend(steps[id_].inputs.values())
    return needed
