"""What trials share: the data, the teacher, its scores, and a language model a shape and setting.

It is made before the first trial that needs it starts, one after another, so that two trials can
neither distil one language model at once nor score a pair twice. The store's keys do the rest:
what is there is not made again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kdscale.config import Config
from kdscale.data.dataset import Dataset
from kdscale.data.queries import TRAIN
from kdscale.errors import KdscaleError
from kdscale.matters import language_model
from kdscale.pipeline import Outcome, run_steps, step_key
from kdscale.progress import Reporter
from kdscale.steps import Step, build_steps
from kdscale.store import Artifact, Store
from kdscale.store.artifact import canonical_json
from kdscale.sweep.space import SECTION, Trial
from kdscale.sweep.spec import Sweep, queries_of

LM = "lm:"


@dataclass(frozen=True)
class Part:
    """Steps to be made of one config."""

    config: Config
    wanted: list[str]


def student_step(config: Config) -> Step:
    """Of a trial's config, which has one student and one strategy."""
    return next(s for s in build_steps(config).values() if s.kind == "students")


def shared_parts(sweep: Sweep, configs: list[Config]) -> list[Part]:
    """What the trials of these configs need: first what all have, then the language models,
    setting by setting."""
    needed = {"dataset": None, "tokens": None, "teacher": None}
    groups: dict[bytes, tuple[Config, dict[str, None]]] = {}
    for config in configs:
        for name in student_step(config).inputs.values():
            if not name.startswith(LM):
                needed[name] = None
                continue
            setting = canonical_json(language_model(config.lm))
            groups.setdefault(setting, (config, {}))[1][name] = None
    parts = [Part(replace(sweep.base, students=[]), list(needed))]
    for config, names in groups.values():
        shapes = [shape for shape in sweep.base.students if f"{LM}{shape.name}" in names]
        parts.append(Part(replace(config, students=shapes), list(names)))
    return parts


def make_dataset(sweep: Sweep, store: Store, reporter: Reporter) -> Artifact:
    base = replace(sweep.base, students=[])
    return run_steps(base, store, ["dataset"], reporter)[0].artifact


def make_shared(
    parts: list[Part], store: Store, reporter: Reporter, dry_run: bool = False
) -> list[tuple[Config, Outcome]]:
    """Each shared step, once a setting, with the config that it was made by."""
    outcomes: list[tuple[Config, Outcome]] = []
    for number, part in enumerate(parts):
        quiet = reporter if number == 0 or dry_run else _OfParts(reporter)
        made = run_steps(part.config, store, part.wanted, quiet, dry_run)
        new = [o for o in made if number == 0 or o.step.name.startswith(LM)]
        outcomes += [(part.config, outcome) for outcome in new]
    return outcomes


class _OfParts(Reporter):
    """Leaves out that the data is up to date, which was said before."""

    def __init__(self, reporter: Reporter):
        super().__init__(reporter.console)

    def info(self, message: str) -> None:
        if message.startswith(LM) or ": up to date (" not in message:
            super().info(message)


def train_queries(dataset: Artifact) -> int:
    return Dataset(dataset.path).queries(TRAIN).num_rows


def check_students(configs: dict[str, Config], outcomes: list[Outcome]) -> dict[str, str]:
    """The key of the student of each trial. Raises KdscaleError where two trials have one
    student: they would train it twice, or at once.

    configs: by the trial's id
    """
    keys: dict[str, str] = {}
    by_key: dict[str, str] = {}
    shared = {o.step.name: o.artifact for o in outcomes if not o.step.name.startswith(LM)}
    lms = {o.artifact.key: o.artifact for o in outcomes if o.step.name.startswith(LM)}
    for trial, config in configs.items():
        steps = build_steps(config)
        step = student_step(config)
        inputs = {}
        for role, name in step.inputs.items():
            if name.startswith(LM):
                of_lm = steps[name]
                made = {r: shared[n] for r, n in of_lm.inputs.items()}
                inputs[role] = lms[step_key(of_lm, of_lm.matters(), made)]
            else:
                inputs[role] = shared[name]
        key = step_key(step, step.matters(), inputs)
        if key in by_key:
            raise KdscaleError(
                f"{SECTION}.space: trials {by_key[key]} and {trial} are one student; what differs "
                f"between them does not matter to {config.ranker.strategies[0]}, or their budgets "
                "are the same number of queries: give the axis a `when`, or remove a value"
            )
        by_key[key] = trial
        keys[trial] = key
    return keys


def counts(outcomes: list[Outcome], since: str) -> dict[str, dict[str, int]]:
    """How much of what trials share was made for this sweep, and how much was there before.

    since: when the sweep began (ISO, UTC)
    """
    told = {
        name: {"made": 0, "found": 0} for name in ("teachers", "pairs_scored", "language_models")
    }
    for outcome in {o.artifact.name: o for o in outcomes}.values():
        artifact, stage = outcome.artifact, outcome.step.stage
        name, amount = {
            "finetune": ("teachers", 1),
            "score": ("pairs_scored", artifact.facts.get("pairs", 0)),
            "distill-lm": ("language_models", 1),
        }.get(stage, (None, 0))
        if name is not None:
            made = artifact.manifest["created"] >= since
            told[name]["made" if made else "found"] += amount
    return told


def trial_configs(sweep: Sweep, trials: list[Trial], queries: int | None) -> dict[str, Config]:
    """By the trial's id."""
    return {trial.id: sweep.config(trial, queries) for trial in trials}


def pairs_of_trials(
    trials: list[Trial], configs: dict[str, Config], queries: int
) -> dict[str, int]:
    """The pairs that each trial's student is trained on, repetitions included."""
    return {
        trial.id: _planned_pairs(configs[trial.id], queries_of(trial.budget, queries) or queries)
        for trial in trials
    }


def _planned_pairs(config: Config, queries: int) -> int:
    """queries: in the budget."""
    train = config.ranker.train
    batch = min(train.batch_size, queries)
    steps = train.max_steps or max(1, round(train.epochs * (queries // batch)))
    return steps * batch * config.ranker.group_size
