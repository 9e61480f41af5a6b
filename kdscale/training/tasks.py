"""From a training job to a trained, exported model: what every worker of a run does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kdscale.config import Shape
from kdscale.data.blocks import BlockSource
from kdscale.data.dataset import Dataset, Tokens
from kdscale.data.groups import GroupSource
from kdscale.data.schema import SCORES
from kdscale.data.shards import read_shards
from kdscale.models.pretrained import load_encoder
from kdscale.models.project import principal_basis
from kdscale.models.ranker import build_ranker, ranker_from_lm, save_ranker
from kdscale.models.students import build_student, spread_layers
from kdscale.training.engines import Engine
from kdscale.training.loop import OnLog, train_loop
from kdscale.training.modules import LmTraining, RankerTraining

if TYPE_CHECKING:
    from kdscale.training.launch import TrainingJob

BASIS_BLOCKS = 512  # text from which a narrow student's directions are found


def train_and_export(
    job: TrainingJob, make_engine: Callable[[nn.Module], Engine], on_log: OnLog
) -> dict[str, Any]:
    """Build the task, train it, and (rank 0) write the model and its metrics below `job.out`."""
    tokens = Tokens(Path(job.settings["tokens"]))
    build = {"ranker": _ranker_task, "lm": _lm_task}[job.task]
    module, source, export = build(job, tokens)
    engine = make_engine(module)
    workdir = Path(job.workdir)
    facts = train_loop(
        module=module,
        engine=engine,
        source=source,
        train=job.train,
        weights=job.losses,
        seed=job.seed,
        metrics_path=workdir / "metrics.jsonl",
        checkpoints=workdir / "checkpoints",
        on_log=on_log,
    )
    if engine.rank == 0:
        out = Path(job.out)
        export(out)
        shutil.copy2(workdir / "metrics.jsonl", out / "metrics.jsonl")
        shutil.copytree(workdir / "tensorboard", out / "tensorboard", dirs_exist_ok=True)
    facts["pairs_seen"] = facts["items_seen"] * source.pairs_per_item
    return facts


def _ranker_task(job: TrainingJob, tokens: Tokens) -> tuple[nn.Module, Any, Callable]:
    """settings: dataset, tokens, scores (or None), group_size, max_queries, temperature, and
    init: {"pretrained": name, "revision"} | {"lm": path} | {"shape", "like", "revision"}."""
    settings = job.settings
    scores = read_shards(Path(settings["scores"]), SCORES) if settings["scores"] else None
    source = GroupSource(
        Dataset(Path(settings["dataset"])),
        tokens,
        scores,
        settings["group_size"],
        settings["max_queries"],
        job.seed,
    )
    init = settings["init"]
    if "lm" in init:
        ranker = ranker_from_lm(Path(init["lm"]), job.train.dropout, job.seed)
    elif "shape" in init:
        like = load_encoder(init["like"], init["revision"])
        encoder = build_student(Shape(**init["shape"]), like, "random", job.seed)
        ranker = build_ranker(encoder, job.train.dropout, job.seed)
    else:
        encoder = load_encoder(init["pretrained"], init["revision"])
        ranker = build_ranker(encoder, job.train.dropout, job.seed)
    module = RankerTraining(ranker, job.losses, settings["temperature"])
    return module, source, lambda out: save_ranker(ranker, tokens.encoder(), out)


def _lm_task(job: TrainingJob, tokens: Tokens) -> tuple[nn.Module, Any, Callable]:
    """settings: tokens, model, revision, student (shape), init, layer_map, relation_heads."""
    settings = job.settings
    teacher = load_encoder(settings["model"], settings["revision"])
    shape = Shape(**settings["student"])
    layer_map = settings["layer_map"] or spread_layers(
        shape.layers, teacher.config.num_hidden_layers
    )
    blocks = torch.as_tensor(tokens.blocks()[:BASIS_BLOCKS])
    student = build_student(
        shape, teacher, settings["init"], job.seed, blocks, layer_map, job.train.dropout
    )
    module = LmTraining(student, teacher, layer_map, job.losses, settings["relation_heads"])
    if settings["init"] == "svd":
        module.start_projections(principal_basis(teacher, shape.hidden, blocks))

    def export(out: Path) -> None:
        student.save_pretrained(out)
        tokens.encoder().save(out)

    return module, BlockSource(tokens), export
