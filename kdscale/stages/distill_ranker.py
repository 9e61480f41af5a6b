"""A student ranker by one of the three strategies, or by the baseline (`finetune`).

| strategy                  | starts from          | learns from    |
|---------------------------|----------------------|----------------|
| finetune                  | random weights       | labels         |
| ranker_distill            | random weights       | teacher scores |
| lm_distill_finetune       | distilled student LM | labels         |
| lm_distill_ranker_distill | distilled student LM | teacher scores |
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from kdscale.models.pretrained import name_for_workers
from kdscale.stages.context import StageContext
from kdscale.training.launch import TrainingJob, run_job


def run(ctx: StageContext) -> dict[str, Any]:
    """`params`: the shape ("student"), the strategy, its losses and the seed.

    Where there are intermediate ones, the teacher is among the inputs. A student among them is one
    that is trained further, as `kdscale.stages.adapt` does.
    """
    ranker, teacher, lm = ctx.config.ranker, ctx.config.teacher, ctx.config.lm
    shape, strategy = ctx.params["student"], ctx.params["strategy"]
    if "student" in ctx.inputs:
        init = {"ranker": ctx.inputs["student"].ref()}
    elif "lm" in ctx.inputs:
        init = {"lm": ctx.inputs["lm"].ref()}
    else:
        like = name_for_workers(teacher.model, teacher.revision)
        init = {"shape": shape, "like": like, "revision": teacher.revision}
    scores = ctx.inputs.get("scores")
    intermediate = None
    if "teacher" in ctx.inputs:
        intermediate = {
            "teacher": ctx.inputs["teacher"].ref(),
            "layer_map": lm.layer_map,
            "relation_heads": lm.relation_heads,
        }
    job = TrainingJob(
        task="ranker",
        settings={
            "dataset": ctx.inputs["dataset"].ref(),
            "tokens": ctx.inputs["tokens"].ref(),
            "scores": scores.ref() if scores else None,
            "group_size": ranker.group_size,
            "max_queries": ranker.max_queries,
            "easy": True,
            "temperature": ranker.temperature,
            "intermediate": intermediate,
            "watch": asdict(ranker.watch) if ranker.watch.every else None,
            "init": init,
        },
        train=ranker.train,
        losses=ctx.params["losses"],
        seed=ctx.params["seed"],
    )
    title = f"{strategy} {shape['name']}"
    return run_job(job, ctx.workspace, ctx.out, ctx.config.cluster, ctx.reporter, title)
