"""The teacher: a pre-trained encoder fine-tuned as a cross-encoder on labels."""

from __future__ import annotations

from typing import Any

from kdscale.models.pretrained import name_for_workers
from kdscale.stages.context import StageContext
from kdscale.training.launch import TrainingJob, run_job


def run(ctx: StageContext) -> dict[str, Any]:
    """`params["teacher"]`: which of the teachers, from 1; without it the first."""
    number = ctx.params.get("teacher", 1)
    teacher = ctx.config.teachers[number - 1]
    job = TrainingJob(
        task="ranker",
        settings={
            "dataset": ctx.inputs["dataset"].ref(),
            "tokens": ctx.inputs["tokens"].ref(),
            "scores": None,
            "group_size": teacher.group_size,
            "max_queries": teacher.max_queries,
            "easy": False,
            "temperature": 1.0,
            "intermediate": None,
            "watch": None,
            "init": {
                "pretrained": name_for_workers(teacher.model, teacher.revision),
                "revision": teacher.revision,
            },
        },
        train=teacher.train,
        losses=teacher.losses,
        seed=ctx.config.teacher_seed(number),
    )
    title = "teacher" if number == 1 else f"teacher {number}"
    return run_job(job, ctx.workspace, ctx.out, ctx.config.cluster, ctx.reporter, title)
