"""A student language model, distilled from the teacher's pre-trained encoder on token blocks."""

from __future__ import annotations

from typing import Any

from kdscale.models.pretrained import name_for_workers
from kdscale.stages.context import StageContext
from kdscale.training.launch import TrainingJob, run_job


def run(ctx: StageContext) -> dict[str, Any]:
    """`params["student"]` is the shape."""
    lm, teacher = ctx.config.lm, ctx.config.teacher
    job = TrainingJob(
        task="lm",
        settings={
            "tokens": ctx.inputs["tokens"].ref(),
            "model": name_for_workers(teacher.model, teacher.revision),
            "revision": teacher.revision,
            "student": ctx.params["student"],
            "init": lm.init,
            "layer_map": lm.layer_map,
            "relation_heads": lm.relation_heads,
            "head_steps": lm.head_steps,
        },
        train=lm.train,
        losses=lm.losses,
        seed=ctx.config.seed,
    )
    title = f"lm {ctx.params['student']['name']}"
    return run_job(job, ctx.workspace, ctx.out, ctx.config.cluster, ctx.reporter, title)
