"""The teacher: a pre-trained encoder fine-tuned as a cross-encoder on labels."""

from __future__ import annotations

from typing import Any

from kdscale.stages.context import StageContext
from kdscale.training.launch import TrainingJob, run_job


def run(ctx: StageContext) -> dict[str, Any]:
    teacher = ctx.config.teacher
    job = TrainingJob(
        task="ranker",
        settings={
            "dataset": str(ctx.inputs["dataset"].path),
            "tokens": str(ctx.inputs["tokens"].path),
            "scores": None,
            "group_size": teacher.group_size,
            "max_queries": teacher.max_queries,
            "temperature": 1.0,
            "init": {"pretrained": teacher.model, "revision": teacher.revision},
        },
        train=teacher.train,
        losses=teacher.losses,
        seed=ctx.config.seed,
        out=str(ctx.out),
        workdir=str(ctx.workdir),
    )
    return run_job(job, ctx.config.cluster, ctx.reporter, "teacher")
