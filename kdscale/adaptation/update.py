"""The steps of an update: data, tokens, the teacher's scores of what is new, the student."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from kdscale.adaptation.origin import Origin
from kdscale.bounds import Bound, ProperShare, check_options
from kdscale.config import Config, Watch
from kdscale.data.queries import DEV, TRAIN
from kdscale.errors import KdscaleError
from kdscale.matters import token_config, training, without
from kdscale.pipeline import make_steps
from kdscale.progress import Reporter
from kdscale.steps import Step, stage_of
from kdscale.store import Artifact, Store
from kdscale.store.artifact import sha256_file

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
    """The updated student, committed to the store.

    Raises KeptError where it is not to be taken, and KdscaleError.
    """
    update.check()
    config = _like_the_students(config, origin)
    given = {"old": origin.dataset, "student": origin.student}
    data = [_dataset_step(config, origin, update), _tokens_step(config)]
    made = {o.step.name: o.artifact for o in make_steps(data, config, store, given, reporter)}
    if made["tokens"].facts["tokenizer"] != origin.tokens.facts["tokenizer"]:
        raise KdscaleError(
            f"teacher.model {config.teacher.model!r} has another tokenizer than "
            f"{origin.student.name} was trained with; give the config that made the student"
        )
    given |= made
    rest = []
    if origin.scores is not None:
        given |= {"teacher": origin.teacher, "known": origin.scores}
        rest.append(_scores_step(config))
    config = _with_training(config, made["dataset"])
    rest.append(_student_step(config, origin))
    return make_steps(rest, config, store, given, reporter)[-1].artifact


def _like_the_students(config: Config, origin: Origin) -> Config:
    """Lengths and losses are the student's own, whatever the config has by now."""
    ranker = origin.settings["ranker"]
    length = origin.tokens.facts["max_length"]
    # No language model learns from these tokens: one block of text is enough.
    block = config.prepare.block_length
    return dataclasses.replace(
        config,
        prepare=dataclasses.replace(
            config.prepare, max_length=length, max_block_tokens=block, extra_text=[]
        ),
        ranker=dataclasses.replace(
            config.ranker,
            group_size=ranker["group_size"],
            temperature=ranker.get("temperature", config.ranker.temperature),
            max_queries=None,
        ),
        ensemble=[],
    )


def _with_training(config: Config, dataset: Artifact) -> Config:
    """A gentle training that is watched on the new dev queries and keeps its best weights."""
    from kdscale.training.loop import total_steps

    queries = {split: c["kept"] for split, c in dataset.facts["queries"].items()}
    train = config.ranker.train
    train = dataclasses.replace(train, lr=LR_SHARE * train.lr)
    steps = total_steps(train, max(1, queries[TRAIN] // train.batch_size))
    watch = Watch(
        every=max(1, steps // LOOKS),
        queries=queries[DEV],
        train_queries=queries[DEV],
        depth=config.evaluate.depth,
        measure=config.evaluate.primary_of(DEV),
        patience=PATIENCE,
        keep_best=True,
    )
    ranker = dataclasses.replace(config.ranker, train=train, watch=watch)
    return dataclasses.replace(config, ranker=ranker)


def _dataset_step(config: Config, origin: Origin, update: Update) -> Step:
    params = {
        "queries": update.queries,
        "qrels": update.qrels,
        "candidates": update.candidates,
        "replay": update.replay,
        "holdout": update.holdout,
        "max_queries": origin.settings["ranker"].get("max_queries"),
        "seed": origin.settings["seed"],
    }
    files = ("queries", "qrels", "candidates")
    prepare = config.prepare

    def matters() -> dict[str, Any]:
        return {
            **without(params, *files),
            "input": {name: params[name] and sha256_file(params[name]) for name in files},
            "prepare": {
                "depth": prepare.depth.get(TRAIN, prepare.default_depth),
                "query_as_passage": prepare.query_as_passage,
                "bm25": [prepare.bm25_k1, prepare.bm25_b],
                "negatives": [prepare.negatives, prepare.easy_negatives, prepare.skip_top],
                "positives": [prepare.max_positives, prepare.min_grade],
                "max_chars": prepare.max_chars,
                "shards": prepare.shards,
            },
            "evaluate_depth": config.evaluate.depth,
            "sample_seed": config.seed,
        }

    return Step(
        "dataset", "adapt", "datasets", f"{config.name}-update", stage_of("adapt", "run_dataset"),
        matters, {"dataset": "old"}, params,
    )  # fmt: skip


def _tokens_step(config: Config) -> Step:
    return Step(
        "tokens", "prepare", "tokens", f"{config.name}-update", stage_of("tokens", "run"),
        lambda: {**token_config(config, config.teacher), "seed": config.seed},
        {"dataset": "dataset"},
    )  # fmt: skip


def _scores_step(config: Config) -> Step:
    inputs = {role: role for role in ("dataset", "tokens", "teacher", "known")}
    return Step(
        "scores", "score", "scores", f"{config.name}-update", stage_of("score", "run"),
        lambda: {"precision": config.score.precision}, inputs,
    )  # fmt: skip


def _student_step(config: Config, origin: Origin) -> Step:
    settings, ranker = origin.settings, config.ranker
    trained = settings["ranker"]
    intermediate = trained.get("intermediate", {}).get("losses", {})
    losses = {**trained["losses"], **intermediate}
    inputs = {role: role for role in ("student", "dataset", "tokens")}
    if origin.scores is not None:
        inputs["scores"] = "scores"
    if intermediate:
        inputs["teacher"] = "teacher"
    name = f"{settings['student']['name']}-{settings['strategy']}"[:LABEL_BYTES]

    def matters() -> dict[str, Any]:
        return {
            **{key: settings[key] for key in ("student", "strategy")},
            "ranker": {
                **without(trained, "train", "max_queries", "watch"),
                "train": training(ranker.train),
                "watch": dataclasses.asdict(ranker.watch),
            },
            "accept": {
                "measure": config.evaluate.primary_of(DEV),
                "depth": config.evaluate.depth,
                "margin": config.evaluate.margin,
                "alpha": config.evaluate.alpha,
            },
            "seed": config.seed,
        }

    params = {
        "student": settings["student"],
        "strategy": settings["strategy"],
        "losses": losses,
        "seed": config.seed,
    }
    return Step(
        "student", "adapt", "students", f"{name}-update", stage_of("adapt", "run_student"), matters,
        inputs, params,
    )  # fmt: skip
