"""The stages that train: the teacher, the student language model, the student rankers.

The teacher is a pre-trained encoder fine-tuned as a cross-encoder on labels. A student language
model is distilled from the teacher's pre-trained encoder on token blocks. A student ranker is
trained by one of three strategies, or by the baseline `finetune`:

| strategy                  | starts from          | learns from    |
|---------------------------|----------------------|----------------|
| finetune                  | random weights       | labels         |
| ranker_distill            | random weights       | teacher scores |
| lm_distill_finetune       | distilled student LM | labels         |
| lm_distill_ranker_distill | distilled student LM | teacher scores |
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kdscale.config import ModelRef
from kdscale.experiment.context import StageContext
from kdscale.experiment.settings import LmSettings, RandomStudent, RankerSettings
from kdscale.models.pretrained import name_for_workers
from kdscale.training.launch import run_training


def finetune(ctx: StageContext[RankerSettings]) -> dict[str, Any]:
    """The teacher."""
    number = ctx.id.teacher
    return train_ranker(ctx, ctx.settings, "teacher" if number == 1 else f"teacher {number}")


def distill_lm(ctx: StageContext[LmSettings]) -> dict[str, Any]:
    """A student language model."""
    settings = replace(ctx.settings, model=_for_workers(ctx.settings.model))
    return _train(ctx, settings, f"lm {settings.shape.name}")


def distill_ranker(ctx: StageContext[RankerSettings]) -> dict[str, Any]:
    """A student ranker."""
    return train_ranker(ctx, ctx.settings, student_title(ctx.settings))


def train_ranker(ctx: StageContext[Any], settings: RankerSettings, title: str) -> dict[str, Any]:
    """A ranker below `ctx.out`; the facts of its training.

    inputs: "dataset" and "tokens"; "scores" to learn from those; "teacher" for intermediate losses;
    "lm" or "student" (a ranker) where it starts from that.
    """
    start = settings.start
    if isinstance(start, ModelRef):
        settings = replace(settings, start=_for_workers(start))
    elif isinstance(start, RandomStudent):
        settings = replace(settings, start=replace(start, like=_for_workers(start.like)))
    return _train(ctx, settings, title)


def student_title(settings: RankerSettings) -> str:
    """Of a student: its strategy and its shape."""
    assert settings.strategy is not None and settings.shape is not None
    return f"{settings.strategy.name} {settings.shape.name}"


def _train(
    ctx: StageContext[Any], settings: RankerSettings | LmSettings, title: str
) -> dict[str, Any]:
    inputs = {role: artifact.ref() for role, artifact in ctx.inputs.items()}
    return run_training(settings, inputs, ctx.workspace, ctx.out, ctx.cluster, ctx.reporter, title)


def _for_workers(model: ModelRef) -> ModelRef:
    return replace(model, name=name_for_workers(model.name, model.revision))
