r"""One rank of small DeepSpeed runs, for `test_zero.py`.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=... MASTER_PORT=... \
        python -m tests.training.zero_run STAGE FOLDER WHAT ...

Three words a run, one run after the other: its ZeRO stage, its folder, and WHAT: `whole` trains
without a stop; `stopped` ends after step 5, with a checkpoint of step 3; `resumed` goes on from
that. Each but `stopped` leaves FOLDER/WHAT-WORLD_SIZE.safetensors.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

from kdscale.config import Train
from kdscale.store import LocalWorkspace
from kdscale.training.batches import Batch
from kdscale.training.engines import DeepSpeedEngine
from kdscale.training.loop import Hooks, train_loop


@dataclass(frozen=True)
class Pairs(Batch):
    x: torch.Tensor
    y: torch.Tensor


class Points:
    lengths = np.full(24, 10)

    def collate(self, items, epoch):
        generator = torch.Generator().manual_seed(0)
        points = torch.randn(24, 7, generator=generator)[torch.as_tensor(items)]
        return Pairs(points, points.sum(1))


class Net(nn.Module):
    """Of sizes that no number of workers divides, so that ranks share tensors."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), nn.Linear(5, 3))
        self.head = nn.Linear(3, 1)

    def forward(self, batch):
        return {"square": (self.head(self.layers(batch.x)).squeeze(1) - batch.y) ** 2}


def train(stage: int, folder: Path, what: str) -> None:
    rank = dist.get_rank()
    settings = Train(max_steps=12, batch_size=6, lr=0.05, checkpoint_every=3, zero_stage=stage)
    module = Net()
    steps = iter(range(1, 100))

    def stop(engine):
        if next(steps) < 4:  # asked after the steps that have no checkpoint: 1, 2, 4, 5
            return False
        while not workspace.names():  # it is published in the background
            time.sleep(0.01)
        raise InterruptedError

    said = []
    workspace = LocalWorkspace(folder / ("whole" if what == "whole" else "work"))
    try:
        train_loop(
            module=module,
            engine=DeepSpeedEngine(module, settings, torch.device("cpu")),
            source=Points(),
            train=settings,
            weights={"square": 1.0},
            seed=1,
            workspace=workspace,
            log=folder / f"{what}.jsonl",
            hooks=Hooks(lambda row: None, said.append, stop if what == "stopped" else lambda e: 0),
        )
    except InterruptedError:
        assert what == "stopped"
        return
    if rank == 0:
        expected = ["resumed from the checkpoint of step 3 of 12"] if what == "resumed" else []
        assert said == expected, said
        save_file(module.state_dict(), folder / f"{what}-{dist.get_world_size()}.safetensors")


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for stage, folder, what in zip(*[iter(sys.argv[1:])] * 3, strict=True):
        Path(folder).mkdir(exist_ok=True)
        train(int(stage), Path(folder), what)
