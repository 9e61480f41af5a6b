"""From a stage's settings to a trained, exported model: what every worker of a run does."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from kdscale.config import ModelRef
from kdscale.data.dataset import Dataset, Tokens
from kdscale.data.schema import SCORES as SCORES_SCHEMA
from kdscale.data.shards import read_shards
from kdscale.experiment.context import DATASET, LM, SCORES, STUDENT, TEACHER, TOKENS, StepId
from kdscale.experiment.settings import (
    Intermediate,
    LmSettings,
    RandomStudent,
    RankerSettings,
)
from kdscale.losses import MASKED_LOSSES
from kdscale.losses.lm import MLM_KL
from kdscale.models.mlm import MaskedLmHead, pretrained_head
from kdscale.models.pretrained import load_encoder, set_dropout
from kdscale.models.project import principal_basis
from kdscale.models.ranker import build_ranker, load_ranker, ranker_from_lm, save_ranker
from kdscale.models.students import build_student, map_layers
from kdscale.store import Workspace, locate
from kdscale.training.blocks import BlockSource, MaskedBlockSource
from kdscale.training.engines import Engine
from kdscale.training.groups import GroupSource
from kdscale.training.intermediate import IntermediateLosses
from kdscale.training.loop import Hooks, train_loop
from kdscale.training.masked_lm import MaskedLm, train_head
from kdscale.training.metrics import METRICS, WATCH, write_events
from kdscale.training.modules import LmTraining, RankerTraining
from kdscale.training.validate import Validator

References = dict[StepId, dict[str, str]]  # of artifacts, by their roles
EXPORT = "export"  # the piece that a finished run leaves
FACTS = "facts.json"
BASIS_BLOCKS = 512  # text from which a narrow student's directions are found
FIT_GROUPS = 16  # query groups on which a ranker's projections are fitted before training


class Task(NamedTuple):
    """What is trained.

    export: writes the trained model into a directory. begin: what every worker does before the
    training; returns facts of it.
    """

    module: nn.Module
    source: GroupSource | BlockSource
    export: Callable[[Path], None]
    validator: Validator | None = None
    begin: Callable[[Engine, Hooks], dict[str, Any]] | None = None


def train_and_export(
    settings: RankerSettings | LmSettings,
    inputs: References,
    workspace: Workspace,
    make_engine: Callable[[nn.Module], Engine],
    hooks: Hooks,
) -> None:
    """Build the task, train it, and (rank 0) publish the piece `export`: the model, the log and
    the facts of the run."""
    tokens = Tokens(locate(inputs[TOKENS]))
    if isinstance(settings, RankerSettings):
        task = _ranker_task(settings, inputs, tokens)
    else:
        task = _lm_task(settings, tokens)
    engine = make_engine(task.module)
    before = task.begin(engine, hooks) if task.begin else {}
    with tempfile.TemporaryDirectory(prefix="kdscale-training-") as scratch:
        log = Path(scratch, METRICS)
        facts = train_loop(
            module=task.module,
            engine=engine,
            source=task.source,
            train=settings.train,
            weights=settings.weights,
            seed=settings.seed,
            workspace=workspace,
            log=log,
            hooks=hooks,
            validator=task.validator,
        )
        if engine.rank != 0:
            return
        out = Path(scratch, EXPORT)
        out.mkdir()
        task.export(out)
        shutil.copyfile(log, out / METRICS)
        if task.validator is not None:
            shutil.copyfile(log.with_name(WATCH), out / WATCH)
        write_events(out, out / "tensorboard")
        facts.update(before)
        facts["pairs_seen"] = facts["items_seen"] * task.source.pairs_per_item
        (out / FACTS).write_text(json.dumps(facts))
        workspace.publish(out, EXPORT)


def _ranker_task(settings: RankerSettings, inputs: References, tokens: Tokens) -> Task:
    dataset = Dataset(locate(inputs[DATASET]))
    scores = read_shards(locate(inputs[SCORES]), SCORES_SCHEMA) if SCORES in inputs else None
    source = GroupSource(
        dataset,
        tokens,
        scores,
        settings.group_size,
        settings.max_queries,
        settings.seed,
        settings.easy_negatives,
    )
    ranker = _start(settings, inputs)
    intermediate = None
    if settings.intermediate:
        teacher = load_ranker(locate(inputs[TEACHER]))
        intermediate = _beside_teacher(settings, settings.intermediate, teacher, ranker, source)
    module = RankerTraining(ranker, settings.weights, settings.temperature, intermediate)
    validator = None
    if settings.validate:
        precision = settings.train.precision
        validator = Validator(settings.validate, ranker, source, dataset, tokens, precision)
    return Task(module, source, lambda out: save_ranker(ranker, tokens.encoder(), out), validator)


def _start(settings: RankerSettings, inputs: References) -> PreTrainedModel:
    """The ranker before its training."""
    dropout, seed, start = settings.train.dropout, settings.seed, settings.start
    if isinstance(start, ModelRef):
        return build_ranker(load_encoder(start.name, start.revision), dropout, seed)
    if isinstance(start, RandomStudent):
        like = load_encoder(start.like.name, start.like.revision)
        return build_ranker(build_student(start.shape, like, "random", seed), dropout, seed)
    if STUDENT in inputs:
        ranker = load_ranker(locate(inputs[STUDENT])).train()
        set_dropout(ranker, dropout)
        return ranker
    return ranker_from_lm(locate(inputs[LM]), dropout, seed)


def _beside_teacher(
    settings: RankerSettings,
    compared: Intermediate,
    teacher: PreTrainedModel,
    ranker: PreTrainedModel,
    source: GroupSource,
) -> IntermediateLosses:
    """The fine-tuned teacher beside the student. Its head is left out: its scores are known."""
    encoder: Any = teacher.base_model
    ours, theirs = ranker.config, encoder.config
    losses = IntermediateLosses(
        ours.hidden_size,
        encoder,
        map_layers(compared.layer_map, ours.num_hidden_layers, theirs.num_hidden_layers),
        settings.weights,
        compared.relation_heads,
        settings.seed,
    )
    first = source.collate(np.arange(min(FIT_GROUPS, len(source))), epoch=0)
    losses.fit_projections(ranker, first.chunks)
    return losses


def _lm_task(settings: LmSettings, tokens: Tokens) -> Task:
    losses, seed, train, shape = settings.losses, settings.seed, settings.train, settings.shape
    teacher = load_encoder(settings.model.name, settings.model.revision)
    layer_map = map_layers(settings.layer_map, shape.layers, teacher.config.num_hidden_layers)
    blocks = torch.from_numpy(np.array(tokens.blocks()[:BASIS_BLOCKS]))
    student = build_student(shape, teacher, settings.init, seed, blocks, layer_map, train.dropout)
    intermediate = IntermediateLosses(
        shape.hidden, teacher, layer_map, losses, settings.relation_heads, seed
    )
    if settings.init == "svd":
        intermediate.start_projections(principal_basis(teacher, shape.hidden, blocks))

    def export(out: Path) -> None:
        student.save_pretrained(out)
        tokens.encoder().save(out)

    if not set(losses) & set(MASKED_LOSSES):
        return Task(LmTraining(student, intermediate), BlockSource(tokens), export)
    source = MaskedBlockSource(tokens, seed)
    head = None
    if MLM_KL in losses:
        head = pretrained_head(settings.model.name, settings.model.revision)
        if head is None:
            head = MaskedLmHead(teacher, seed)
    masked = MaskedLm(student, head, losses, seed)

    def begin(engine: Engine, hooks: Hooks) -> dict[str, Any]:
        steps = settings.head_steps
        if not isinstance(head, MaskedLmHead) or steps is None:
            return {}
        if engine.rank == 0:
            hooks.say(f"the teacher has no masked-LM head: training one first, {steps} steps")
        loss = train_head(teacher, head, source, train, steps, seed, engine.device)
        return {"teacher_head_steps": steps, "teacher_head_loss": loss}

    return Task(LmTraining(student, intermediate, masked), source, export, begin=begin)
