"""From a training job to a trained, exported model: what every worker of a run does."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from kdscale.config import Shape, Watch
from kdscale.data.blocks import BlockSource, MaskedBlockSource
from kdscale.data.dataset import Dataset, Tokens
from kdscale.data.groups import GroupSource
from kdscale.data.schema import SCORES
from kdscale.data.shards import read_shards
from kdscale.models.mlm import MaskedLmHead, pretrained_head
from kdscale.models.pretrained import load_encoder, set_dropout
from kdscale.models.project import principal_basis
from kdscale.models.ranker import build_ranker, load_ranker, ranker_from_lm, save_ranker
from kdscale.models.students import build_student, map_layers
from kdscale.store import Workspace, locate
from kdscale.training.engines import Engine
from kdscale.training.insides import Insides
from kdscale.training.loop import Hooks, train_loop
from kdscale.training.masked_lm import MaskedLm, train_head
from kdscale.training.metrics import METRICS, WATCH, write_events
from kdscale.training.modules import LmTraining, RankerTraining
from kdscale.training.watch import Watcher

if TYPE_CHECKING:
    from kdscale.training.launch import TrainingJob

EXPORT = "export"  # the piece that a finished run leaves
FACTS = "facts.json"
BASIS_BLOCKS = 512  # text from which a narrow student's directions are found
FIT_GROUPS = 16  # query groups on which a ranker's projections are fitted before training


class Task(NamedTuple):
    """What a job trains.

    export: writes the trained model into a directory. begin: what every worker does before the
    training; returns facts of it.
    """

    module: nn.Module
    source: GroupSource | BlockSource
    export: Callable[[Path], None]
    watcher: Watcher | None = None
    begin: Callable[[Engine, Hooks], dict[str, Any]] | None = None


def train_and_export(
    job: TrainingJob,
    workspace: Workspace,
    make_engine: Callable[[nn.Module], Engine],
    hooks: Hooks,
) -> None:
    """Build the task, train it, and (rank 0) publish the piece `export`: the model, the log and
    the facts of the run."""
    tokens = Tokens(locate(job.settings["tokens"]))
    build = {"ranker": _ranker_task, "lm": _lm_task}[job.task]
    task = build(job, tokens)
    engine = make_engine(task.module)
    before = task.begin(engine, hooks) if task.begin else {}
    with tempfile.TemporaryDirectory(prefix="kdscale-training-") as scratch:
        log = Path(scratch, METRICS)
        facts = train_loop(
            module=task.module,
            engine=engine,
            source=task.source,
            train=job.train,
            weights=job.losses,
            seed=job.seed,
            workspace=workspace,
            log=log,
            hooks=hooks,
            watcher=task.watcher,
        )
        if engine.rank != 0:
            return
        out = Path(scratch, EXPORT)
        out.mkdir()
        task.export(out)
        shutil.copyfile(log, out / METRICS)
        if task.watcher is not None:
            shutil.copyfile(log.with_name(WATCH), out / WATCH)
        write_events(out, out / "tensorboard")
        facts.update(before)
        facts["pairs_seen"] = facts["items_seen"] * task.source.pairs_per_item
        (out / FACTS).write_text(json.dumps(facts))
        workspace.publish(out, EXPORT)


def _ranker_task(job: TrainingJob, tokens: Tokens) -> Task:
    """settings: dataset, tokens, scores (or None), group_size, max_queries, easy, temperature,
    watch (or None), intermediate: None | {"teacher", "layer_map", "relation_heads"}, and
    init: {"pretrained": name, "revision"} | {"lm"} | {"ranker"} | {"shape", "like", "revision"}.

    Artifacts are references."""
    settings = job.settings
    dataset = Dataset(locate(settings["dataset"]))
    scores = read_shards(locate(settings["scores"]), SCORES) if settings["scores"] else None
    source = GroupSource(
        dataset,
        tokens,
        scores,
        settings["group_size"],
        settings["max_queries"],
        job.seed,
        settings["easy"],
    )
    init = settings["init"]
    if "lm" in init:
        ranker = ranker_from_lm(locate(init["lm"]), job.train.dropout, job.seed)
    elif "ranker" in init:
        ranker = load_ranker(locate(init["ranker"])).train()
        set_dropout(ranker, job.train.dropout)
    elif "shape" in init:
        like = load_encoder(init["like"], init["revision"])
        encoder = build_student(Shape(**init["shape"]), like, "random", job.seed)
        ranker = build_ranker(encoder, job.train.dropout, job.seed)
    else:
        encoder = load_encoder(init["pretrained"], init["revision"])
        ranker = build_ranker(encoder, job.train.dropout, job.seed)
    insides = _ranker_insides(job, ranker, source) if settings["intermediate"] else None
    module = RankerTraining(ranker, job.losses, settings["temperature"], insides)
    watcher = None
    if settings["watch"]:
        watch, precision = Watch(**settings["watch"]), job.train.precision
        watcher = Watcher(watch, ranker, source, dataset, tokens, precision)
    return Task(module, source, lambda out: save_ranker(ranker, tokens.encoder(), out), watcher)


def _ranker_insides(job: TrainingJob, ranker: PreTrainedModel, source: GroupSource) -> Insides:
    """The fine-tuned teacher beside the student. Its head is left out: its scores are known."""
    chosen = job.settings["intermediate"]
    teacher = load_ranker(locate(chosen["teacher"])).base_model
    ours, theirs = ranker.config, teacher.config
    insides = Insides(
        ours.hidden_size,
        teacher,
        map_layers(chosen["layer_map"], ours.num_hidden_layers, theirs.num_hidden_layers),
        job.losses,
        chosen["relation_heads"],
        job.seed,
    )
    first = source.collate(np.arange(min(FIT_GROUPS, len(source))), epoch=0)
    insides.fit_projections(ranker, first["chunks"])
    return insides


def _lm_task(job: TrainingJob, tokens: Tokens) -> Task:
    """settings: tokens (a reference), model, revision, student (shape), init, layer_map,
    relation_heads, head_steps."""
    settings = job.settings
    teacher = load_encoder(settings["model"], settings["revision"])
    shape = Shape(**settings["student"])
    layer_map = map_layers(settings["layer_map"], shape.layers, teacher.config.num_hidden_layers)
    blocks = torch.from_numpy(np.array(tokens.blocks()[:BASIS_BLOCKS]))
    student = build_student(
        shape, teacher, settings["init"], job.seed, blocks, layer_map, job.train.dropout
    )
    insides = Insides(
        shape.hidden, teacher, layer_map, job.losses, settings["relation_heads"], job.seed
    )
    if settings["init"] == "svd":
        insides.start_projections(principal_basis(teacher, shape.hidden, blocks))

    def export(out: Path) -> None:
        student.save_pretrained(out)
        tokens.encoder().save(out)

    if not set(job.losses) & {"mlm", "mlm_kl"}:
        return Task(LmTraining(student, insides), BlockSource(tokens), export)
    source = MaskedBlockSource(tokens, job.seed)
    head = None
    if "mlm_kl" in job.losses:
        head = pretrained_head(settings["model"], settings["revision"])
        if head is None:
            head = MaskedLmHead(teacher, job.seed)
    masked = MaskedLm(student, head, job.losses, job.seed)

    def begin(engine: Engine, hooks: Hooks) -> dict[str, Any]:
        if not isinstance(head, MaskedLmHead):
            return {}
        steps = settings["head_steps"]
        if engine.rank == 0:
            hooks.say(f"the teacher has no masked-LM head: training one first, {steps} steps")
        loss = train_head(teacher, head, source, job.train, steps, job.seed, engine.device)
        return {"teacher_head_steps": steps, "teacher_head_loss": loss}

    return Task(LmTraining(student, insides, masked), source, export, begin=begin)
