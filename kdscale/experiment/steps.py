"""Which steps a config asks for: one an artifact, each after its inputs, with its settings."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from kdscale.config import Config, Shape, Strategy
from kdscale.experiment.context import (
    DATASET,
    ENSEMBLE,
    EVALUATION,
    LM,
    REPORT,
    SCORES,
    TEACHER,
    TOKENS,
    Stage,
    StepId,
)
from kdscale.experiment.settings import (
    DatasetSettings,
    EnsembleSettings,
    EvaluateSettings,
    InputFile,
    Intermediate,
    LmSettings,
    RandomStudent,
    RankerSettings,
    ReportSettings,
    ScoreSettings,
    TokenizerRef,
    TokenSettings,
    TransferSplit,
)
from kdscale.experiment.transfer import transfer_config

EVALUATED = ("dataset", "tokens", "teacher", "ensemble", "student")  # what an evaluation reads


@dataclass(frozen=True)
class Step:
    """One artifact to be made.

    stage: as it is shown; kind: of the artifact; label: what its key begins with; run:
    MODULE:FUNCTION of the stage; settings: a record of `kdscale.experiment.settings`. inputs: by
    the role that each has in the stage, the step that makes it.
    """

    id: StepId
    stage: str
    kind: str
    label: str
    run: str
    settings: Any
    inputs: dict[StepId, StepId] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.id)

    def load(self) -> Stage:
        """Imports the stage's code, which is done only where it runs."""
        module, _, function = self.run.partition(":")
        return getattr(importlib.import_module(module), function)


def build_steps(config: Config) -> dict[StepId, Step]:
    """Every step of a config, in an order in which each comes after its inputs."""
    steps = {step.id: step for step in _made_before(config)}
    evaluated = {id_: id_ for id_ in steps if id_.kind in EVALUATED}
    name = config.name
    steps[EVALUATION] = Step(
        EVALUATION,
        "evaluate",
        "evaluations",
        name,
        "kdscale.stages.evaluate:run",
        evaluate_settings(config),
        evaluated,
    )
    steps[REPORT] = Step(
        REPORT,
        "report",
        "reports",
        name,
        "kdscale.stages.report:run",
        report_settings(config),
        {id_: id_ for id_ in steps},
    )
    return steps


def _made_before(config: Config) -> Iterator[Step]:
    """What comes before the evaluation."""
    yield dataset_step(config)
    # All tokens first: a model that cannot read such inputs shows before any training.
    yield from _tokens_steps(config)
    for name in config.transfer:
        of_transfer = transfer_config(config, name)
        yield dataset_step(of_transfer, name)
        yield from _tokens_steps(of_transfer, name)
    yield from _teacher_steps(config)
    for shape in config.students:
        if any(strategy.from_lm for strategy in config.ranker.chosen):
            yield _lm_step(config, shape)
        for strategy in config.ranker.chosen:
            yield _student_step(config, shape, strategy)


def dataset_step(config: Config, collection: str | None = None) -> Step:
    """collection: of a transfer, whose config it is then."""
    return Step(
        StepId("dataset", collection=collection),
        "prepare",
        "datasets",
        collection or config.name,
        "kdscale.stages.prepare:run",
        DatasetSettings(config.source, config.prepare.of_dataset, config.seed),
    )


def _tokens_steps(config: Config, collection: str | None = None) -> Iterator[Step]:
    """The texts of a dataset as each teacher reads them.

    Where two teachers have one tokenizer, the keys are the same, and so is the artifact.
    """
    dataset = StepId("dataset", collection=collection)
    for number in range(1, len(config.teachers) + 1):
        yield Step(
            StepId("tokens", teacher=number, collection=collection),
            "prepare",
            "tokens",
            collection or config.name,
            "kdscale.stages.tokens:run",
            token_settings(config, number),
            {DATASET: dataset},
        )


def _teacher_steps(config: Config) -> Iterator[Step]:
    """Every teacher, its scores, and their scores joined where there are several."""
    numbers = range(1, len(config.teachers) + 1)
    for number in numbers:
        yield Step(
            StepId("teacher", teacher=number),
            "finetune",
            "teachers",
            config.name,
            "kdscale.stages.train:finetune",
            teacher_settings(config, number),
            {DATASET: DATASET, TOKENS: StepId("tokens", teacher=number)},
        )
    for number in numbers:
        yield Step(
            StepId("scores", teacher=number),
            "score",
            "scores",
            config.name,
            "kdscale.stages.score:run",
            score_settings(config),
            {
                DATASET: DATASET,
                TOKENS: StepId("tokens", teacher=number),
                TEACHER: StepId("teacher", teacher=number),
            },
        )
    if config.ensemble:
        scores = [StepId("scores", teacher=number) for number in numbers]
        yield Step(
            ENSEMBLE,
            "ensemble",
            "scores",
            config.name,
            "kdscale.stages.score:join_scores",
            EnsembleSettings(config.prepare.shards),
            {id_: id_ for id_ in scores},
        )


def _lm_step(config: Config, shape: Shape) -> Step:
    return Step(
        StepId("lm", shape=shape.name),
        "distill-lm",
        "lms",
        shape.name,
        "kdscale.stages.train:distill_lm",
        lm_settings(config, shape),
        {TOKENS: TOKENS},
    )


def _student_step(config: Config, shape: Shape, strategy: Strategy) -> Step:
    settings = student_settings(config, shape, strategy)
    inputs = {DATASET: DATASET, TOKENS: TOKENS}
    if strategy.soft:
        inputs[SCORES] = ENSEMBLE if config.ensemble else SCORES
    if settings.intermediate:
        inputs[TEACHER] = TEACHER
    if strategy.from_lm:
        inputs[LM] = StepId("lm", shape=shape.name)
    return Step(
        StepId("student", strategy, shape.name),
        "distill-ranker",
        "students",
        f"{shape.name}-{strategy.name}",
        "kdscale.stages.train:distill_ranker",
        settings,
        inputs,
    )


def token_settings(config: Config, number: int = 1) -> TokenSettings:
    """number: of the teacher, from 1."""
    texts = [InputFile(path, "prepare.extra_text") for path in config.prepare.extra_text]
    tokenizer = TokenizerRef(config.teachers[number - 1].ref)
    return TokenSettings(tokenizer, config.prepare.of_tokens, texts, config.seed)


def score_settings(config: Config) -> ScoreSettings:
    return ScoreSettings(config.score.precision, config.score.batch_tokens, config.prepare.shards)


def teacher_settings(config: Config, number: int) -> RankerSettings:
    """number: of the teacher, from 1."""
    teacher = config.teachers[number - 1]
    return RankerSettings(
        start=teacher.ref,
        losses=teacher.losses,
        group_size=teacher.group_size,
        max_queries=teacher.max_queries,
        train=teacher.train,
        seed=config.teacher_seed(number),
        easy_negatives=False,
    )


def lm_settings(config: Config, shape: Shape) -> LmSettings:
    from kdscale.losses.lm import MLM_KL

    lm = config.lm
    return LmSettings(
        model=config.teacher.ref,
        shape=shape,
        init=lm.init,
        layer_map=lm.layer_map,
        losses=lm.losses,
        relation_heads=lm.relation_heads,
        head_steps=lm.head_steps if MLM_KL in lm.losses else None,
        train=lm.train,
        seed=config.seed,
    )


def student_settings(config: Config, shape: Shape, strategy: Strategy) -> RankerSettings:
    ranker = config.ranker
    intermediate = None
    if strategy.soft and ranker.intermediate_losses:
        intermediate = Intermediate(
            ranker.intermediate_losses, config.lm.layer_map, config.lm.relation_heads
        )
    return RankerSettings(
        # A random student takes its vocabulary and family from the teacher's encoder.
        start=None if strategy.from_lm else RandomStudent(shape, config.teacher.ref),
        losses=ranker.soft_losses if strategy.soft else ranker.hard_losses,
        group_size=ranker.group_size,
        max_queries=ranker.max_queries,
        train=ranker.train,
        # The seed of the data budget too: a budget's queries are another sample for each seed.
        seed=config.seed if ranker.seed is None else ranker.seed,
        easy_negatives=True,
        temperature=ranker.temperature if strategy.soft else 1.0,
        intermediate=intermediate,
        validate=ranker.watch if ranker.watch.every else None,
        strategy=strategy,
        shape=shape,
    )


def evaluate_settings(config: Config) -> EvaluateSettings:
    return EvaluateSettings(config.evaluate, config.prepare.min_grade, _transfers(config))


def report_settings(config: Config) -> ReportSettings:
    report = config.report
    shown = asdict(config)
    resources = {section: shown.pop(section) for section in ("storage", "cluster")}
    return ReportSettings(
        title=report.title,
        name=config.name,
        examples=report.examples,
        trials=InputFile(report.trials, "report.trials") if report.trials is not None else None,
        evaluate=config.evaluate,
        min_grade=config.prepare.min_grade,
        transfers=_transfers(config),
        students=config.students,
        config=shown,
        resources=resources,
    )


def _transfers(config: Config) -> dict[str, TransferSplit]:
    return {name: TransferSplit(t.split, t.depth) for name, t in config.transfer.items()}
