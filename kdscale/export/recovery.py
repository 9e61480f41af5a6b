"""A ranker that lost parts learns its teacher's scores again, in this process."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from kdscale.config import Ranker, Train
from kdscale.progress import Reporter
from kdscale.store import LocalWorkspace
from kdscale.training.engines import TorchEngine
from kdscale.training.groups import GroupSource
from kdscale.training.loop import Hooks, train_loop
from kdscale.training.metrics import METRICS
from kdscale.training.modules import RankerTraining

SAMPLE_GROUPS = 128  # query groups by which heads and neurons are judged
BATCH_GROUPS = 16
LR = 1e-4  # a fifth of what students begin with: most of what it knew is still there


def group_losses(
    ranker: PreTrainedModel, source: GroupSource, weights: dict[str, float]
) -> Iterator[Callable[[], torch.Tensor]]:
    """The ranker's loss on each of SAMPLE_GROUPS training groups, when called."""
    module = RankerTraining(ranker, weights, Ranker().temperature).eval()
    count = min(SAMPLE_GROUPS, len(source))

    def loss(item: np.int64) -> torch.Tensor:
        terms = module(source.collate(np.array([item]), epoch=0))
        return sum(weight * terms[name].sum() for name, weight in weights.items())

    for item in np.arange(count) * len(source) // count:
        yield partial(loss, item)


def recover(
    ranker: PreTrainedModel,
    source: GroupSource,
    weights: dict[str, float],
    steps: int,
    seed: int,
    reporter: Reporter,
) -> dict[str, Any]:
    """Train the ranker, in place, for so many steps; the facts of the run.

    source: groups with the teacher's scores; weights: of the losses on them.
    """
    module = RankerTraining(ranker, weights, Ranker().temperature)
    train = Train(max_steps=steps, batch_size=BATCH_GROUPS, lr=LR, checkpoint_every=0)
    engine = TorchEngine(module, train, torch.device("cpu"))
    with (
        tempfile.TemporaryDirectory(prefix="kdscale-recovery-") as scratch,
        reporter.task("recovery", steps) as task,
    ):

        def on_log(row: dict[str, Any]) -> None:
            task.update(row["step"], f"loss {row['loss']:.4f}", total=row["steps"])

        facts = train_loop(
            module=module,
            engine=engine,
            source=source,
            train=train,
            weights=weights,
            seed=seed,
            workspace=LocalWorkspace(Path(scratch, "work")),
            log=Path(scratch, METRICS),
            hooks=Hooks(on_log, reporter.info),
        )
    ranker.eval()
    return {"steps": facts["steps"], "seconds": round(facts["seconds"], 1), "lr": LR}
