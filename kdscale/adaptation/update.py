"""The steps of an update: data, tokens, the teacher's scores of what is new, the student."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from kdscale.bounds import Bound, ProperShare, check_options
from kdscale.config import Config, Watch
from kdscale.data.queries import DEV, TRAIN
from kdscale.errors import KdscaleError
from kdscale.experiment.context import (
    DATASET,
    KNOWN,
    OLD,
    SCORES,
    STUDENT,
    TEACHER,
    TOKENS,
)
from kdscale.experiment.lineage import Origin
from kdscale.experiment.run import make_steps
from kdscale.experiment.settings import (
    Acceptance,
    InputFile,
    RankerSettings,
    UpdateDatasetSettings,
    UpdateStudentSettings,
)
from kdscale.experiment.steps import Step, score_settings, token_settings
from kdscale.progress import Reporter
from kdscale.store import Artifact, Store

ReplayShare = Annotated[float, Bound(least=0, below=1)]
LR_SHARE = 0.3  # of the student's learning rate: it is near where it should be
LOOKS, PATIENCE = 10, 3  # at the new dev queries, over the training; without a rise until it stops
LABEL_BYTES = 80


@dataclass(frozen=True)
class Update:
    """queries, qrels, candidates: files; replay: share of old queries in the mix; holdout: share
    of the new queries that are not learned from."""

    queries: Path
    qrels: Path
    candidates: Path | None
    replay: float
    holdout: float

    def check(self) -> None:
        """Raises KdscaleError for what cannot be."""
        check_options(self, replay=ReplayShare, holdout=ProperShare)
        for option in ("queries", "qrels", "candidates"):
            path = getattr(self, option)
            if path is not None and not path.is_file():
                raise KdscaleError(f"--{option}: no file {path}; check the path")


def update_student(
    config: Config, store: Store, origin: Origin, update: Update, reporter: Reporter
) -> Artifact:
    """The updated student, committed to the store. Lengths, losses and what they compare are the
    student's own, whatever the config has by now.

    Raises KeptError where it is not to be taken, and KdscaleError.
    """
    update.check()
    trained = origin.settings(config.ranker.train)
    given = {OLD: origin.dataset, STUDENT: origin.student}
    data = [_dataset_step(config, trained, update), _tokens_step(config, origin)]
    outcomes = make_steps(data, config.cluster, store, given, reporter)
    dataset, tokens = (outcome.artifact for outcome in outcomes)
    assert dataset is not None and tokens is not None
    if tokens.facts["tokenizer"] != origin.tokens.facts["tokenizer"]:
        raise KdscaleError(
            f"teacher.model {config.teacher.model!r} has another tokenizer than "
            f"{origin.student.name} was trained with; give the config that made the student"
        )
    given |= {DATASET: dataset, TOKENS: tokens}
    rest = []
    if origin.scores is not None and origin.teacher is not None:
        given |= {TEACHER: origin.teacher, KNOWN: origin.scores}
        rest.append(_scores_step(config))
    settings = _gentle(config, trained, dataset)
    rest.append(_student_step(config, settings, origin.scores is not None))
    updated = make_steps(rest, config.cluster, store, given, reporter)[-1].artifact
    assert updated is not None
    return updated


def _gentle(config: Config, trained: RankerSettings, dataset: Artifact) -> RankerSettings:
    """A training on a low learning rate that is validated on the new dev queries and keeps its best
    weights."""
    from kdscale.training.loop import total_steps

    queries = {split: c["kept"] for split, c in dataset.facts["queries"].items()}
    train = replace(trained.train, lr=LR_SHARE * trained.train.lr)
    steps = total_steps(train, max(1, queries[TRAIN] // train.batch_size))
    validate = Watch(
        every=max(1, steps // LOOKS),
        queries=queries[DEV],
        train_queries=queries[DEV],
        depth=config.evaluate.depth,
        measure=config.evaluate.primary_of(DEV),
        patience=PATIENCE,
        keep_best=True,
    )
    return replace(trained, max_queries=None, train=train, seed=config.seed, validate=validate)


def _dataset_step(config: Config, trained: RankerSettings, update: Update) -> Step:
    candidates = update.candidates
    settings = UpdateDatasetSettings(
        queries=InputFile(str(update.queries), "--queries"),
        qrels=InputFile(str(update.qrels), "--qrels"),
        candidates=None if candidates is None else InputFile(str(candidates), "--candidates"),
        replay=update.replay,
        holdout=update.holdout,
        max_queries=trained.max_queries,
        trained_seed=trained.seed,
        prepare=config.prepare.of_dataset,
        evaluate_depth=config.evaluate.depth,
        seed=config.seed,
    )
    return Step(
        DATASET,
        "adapt",
        "datasets",
        f"{config.name}-update",
        "kdscale.adaptation.dataset:run_dataset",
        settings,
        {DATASET: OLD},
    )


def _tokens_step(config: Config, origin: Origin) -> Step:
    # No language model learns from these tokens: one block of text is enough.
    prepare = replace(
        config.prepare.of_tokens,
        max_length=origin.tokens.facts["max_length"],
        max_block_tokens=config.prepare.block_length,
    )
    return Step(
        TOKENS,
        "prepare",
        "tokens",
        f"{config.name}-update",
        "kdscale.stages.tokens:run",
        replace(token_settings(config), prepare=prepare, extra_text=[]),
        {DATASET: DATASET},
    )


def _scores_step(config: Config) -> Step:
    return Step(
        SCORES,
        "score",
        "scores",
        f"{config.name}-update",
        "kdscale.stages.score:run",
        score_settings(config),
        {role: role for role in (DATASET, TOKENS, TEACHER, KNOWN)},
    )


def _student_step(config: Config, settings: RankerSettings, soft: bool) -> Step:
    """soft: it learns from scores."""
    evaluate = config.evaluate
    accept = Acceptance(evaluate.primary_of(DEV), evaluate.depth, evaluate.margin, evaluate.alpha)
    roles = [STUDENT, DATASET, TOKENS]
    if soft:
        roles.append(SCORES)
    if settings.intermediate:
        roles.append(TEACHER)
    assert settings.strategy is not None and settings.shape is not None
    name = f"{settings.shape.name}-{settings.strategy.name}"[:LABEL_BYTES]
    return Step(
        STUDENT,
        "adapt",
        "students",
        f"{name}-update",
        "kdscale.adaptation.dataset:run_student",
        UpdateStudentSettings(settings, accept),
        {role: role for role in roles},
    )
