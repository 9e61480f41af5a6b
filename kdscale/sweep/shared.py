"""What trials share: the data, the teacher, its scores, and a language model a shape and setting.

It is made before the first trial that needs it starts, one after another, so that two trials can
neither distil one language model at once nor score a pair twice. The store's keys do the rest:
what is there is not made again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from kdscale.config import Config
from kdscale.data.dataset import Dataset
from kdscale.data.queries import DEV, TRAIN
from kdscale.errors import KdscaleError
from kdscale.experiment.cache_key import cache_key
from kdscale.experiment.context import DATASET, TEACHER, TOKENS, StepId
from kdscale.experiment.rehearsal import check_models
from kdscale.experiment.run import Outcome, key_of, run_steps
from kdscale.experiment.steps import Step, build_steps, lm_settings
from kdscale.progress import Reporter
from kdscale.store import Artifact, Store
from kdscale.store.artifact import canonical_json
from kdscale.sweep.space import SECTION, Trial
from kdscale.sweep.spec import Sweep, queries_of


@dataclass(frozen=True)
class Part:
    """Steps to be made of one config."""

    config: Config
    wanted: list[StepId]


def student_step(config: Config) -> Step:
    """Of a trial's config, which has one student and one strategy."""
    return next(s for s in build_steps(config).values() if s.kind == "students")


def shared_parts(sweep: Sweep, configs: list[Config]) -> list[Part]:
    """What the trials of these configs need: first what all have, then the language models,
    setting by setting."""
    needed: dict[StepId, None] = dict.fromkeys([DATASET, TOKENS, TEACHER])
    groups: dict[bytes, tuple[Config, dict[StepId, None]]] = {}
    for config in configs:
        for id_ in student_step(config).inputs.values():
            if id_.kind != "lm":
                needed[id_] = None
                continue
            lm = vars(lm_settings(config, config.students[0]))
            setting = cache_key({k: v for k, v in lm.items() if k not in ("model", "shape")})
            groups.setdefault(canonical_json(setting), (config, {}))[1][id_] = None
    parts = [Part(replace(sweep.base, students=[]), list(needed))]
    for config, ids in groups.values():
        wanted = {id_.shape for id_ in ids}
        shapes = [shape for shape in sweep.base.students if shape.name in wanted]
        parts.append(Part(replace(config, students=shapes), list(ids)))
    return parts


def check_trials(configs: Iterable[Config], download: bool = True) -> None:
    """Raise KdscaleError for a student of a trial that cannot be made, before the teacher is
    trained. Trials of one setting of lm and ranker.intermediate_losses are looked at together;
    download: as in `check_models`."""
    groups: dict[bytes, list[Config]] = {}
    for config in configs:
        setting = [{**asdict(config.lm), "train": None}, config.ranker.intermediate_losses]
        groups.setdefault(canonical_json(setting), []).append(config)
    for group in groups.values():
        shapes = {shape.name: shape for config in group for shape in config.students}
        strategies = list(dict.fromkeys(s for config in group for s in config.ranker.strategies))
        ranker = replace(group[0].ranker, strategies=strategies)
        whole = replace(group[0], students=list(shapes.values()), ranker=ranker)
        check_models(whole, build_steps(whole), download)


def make_dataset(sweep: Sweep, store: Store, reporter: Reporter) -> Artifact:
    """Raises KdscaleError for data that has no dev queries to choose by."""
    base = replace(sweep.base, students=[])
    artifact = run_steps(base, store, [DATASET], reporter)[0].made
    splits = Dataset(artifact.path).splits()
    if DEV not in splits:
        raise KdscaleError(
            f"a sweep chooses by dev queries, and the data has no split {DEV!r}, only "
            f"{', '.join(splits)}; name one so in the source or prepare.split"
        )
    return artifact


def make_shared(
    parts: list[Part], store: Store, reporter: Reporter, dry_run: bool = False
) -> list[tuple[Config, Outcome]]:
    """Each shared step, once a setting, with the config that it was made by."""
    outcomes: list[tuple[Config, Outcome]] = []
    for number, part in enumerate(parts):
        made = run_steps(part.config, store, part.wanted, reporter, dry_run)
        new = [o for o in made if number == 0 or o.step.id.kind == "lm"]
        outcomes += [(part.config, outcome) for outcome in new]
    return outcomes


class Once(Reporter):
    """Says a thing once: several configs have one dataset, and each finds it up to date."""

    def __init__(self, reporter: Reporter):
        super().__init__(reporter.console)
        self._said: set[str] = set()

    def info(self, message: str) -> None:
        if message not in self._said:
            super().info(message)
        self._said.add(message)


def train_queries(dataset: Artifact) -> int:
    return Dataset(dataset.path).queries(TRAIN).num_rows


def check_students(configs: dict[str, Config]) -> None:
    """Raise KdscaleError where two trials have one student: they would train it at once.

    configs: by the trial's id, with the queries of their budgets
    """
    seen: dict[bytes, str] = {}
    for trial, config in configs.items():
        steps, step = build_steps(config), student_step(config)
        # All other inputs are the same for all trials.
        lm = [key_of(steps[id_]) for id_ in step.inputs.values() if id_.kind == "lm"]
        student = canonical_json([key_of(step), lm])
        other = seen.setdefault(student, trial)
        if other != trial:
            raise KdscaleError(
                f"{SECTION}.space: trials {other} and {trial} are one student; what differs "
                f"between them does not matter to {config.ranker.strategies[0]}, or their budgets "
                "are the same number of queries: give the axis a `when`, or remove a value"
            )


def counts(outcomes: list[Outcome], since: str) -> dict[str, dict[str, int]]:
    """How much of what trials share was made for this sweep, and how much was there before.

    since: when the sweep began (ISO, UTC)
    """
    summary = {
        name: {"made": 0, "found": 0} for name in ("teachers", "pairs_scored", "language_models")
    }
    for outcome in {o.made.name: o for o in outcomes}.values():
        artifact, stage = outcome.made, outcome.step.stage
        name, amount = {
            "finetune": ("teachers", 1),
            "score": ("pairs_scored", artifact.facts.get("pairs", 0)),
            "distill-lm": ("language_models", 1),
        }.get(stage, (None, 0))
        if name is not None:
            made = artifact.manifest["created"] >= since
            summary[name]["made" if made else "found"] += amount
    return summary


def trial_configs(sweep: Sweep, trials: list[Trial], queries: int | None) -> dict[str, Config]:
    """By the trial's id."""
    return {trial.id: sweep.config(trial, queries) for trial in trials}


def pairs_of_trials(
    trials: list[Trial], configs: dict[str, Config], queries: int
) -> dict[str, int]:
    """The pairs that each trial's student is trained on, repetitions included."""
    pairs = {}
    for trial in trials:
        budget = queries_of(trial.budget, queries)
        pairs[trial.id] = _planned_pairs(configs[trial.id], queries if budget is None else budget)
    return pairs


def _planned_pairs(config: Config, queries: int) -> int:
    """queries: in the budget."""
    from kdscale.training.loop import total_steps

    train = config.ranker.train
    batch = min(train.batch_size, queries)
    steps = total_steps(train, queries // batch)
    return steps * batch * config.ranker.group_size
