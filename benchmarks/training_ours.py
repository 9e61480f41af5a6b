"""Our training loop with a clock around each part of a step, for benchmarks/training.py: in this
process with plain torch, and in several with DeepSpeed."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kdscale.config import Train
from kdscale.store import LocalWorkspace
from kdscale.training.engines import DeepSpeedEngine, TorchEngine
from kdscale.training.loop import Hooks, train_loop
from kdscale.training.metrics import METRICS, read_rows

SEED = 1
CPU = torch.device("cpu")
Shares = dict[str, float]  # part of a step -> of the loop's time
MakeModule = Callable[[], torch.nn.Module]


def run_ours(
    module: torch.nn.Module, source: Any, train: Train, weights: dict[str, float]
) -> tuple[float, Shares]:
    """Seconds of the loop, and the share of each part of a step in them."""
    return _run(Timed(module, train, CPU), module, source, train, weights)


def time_ours(
    module: MakeModule, source: Any, train: Train, weights: dict[str, float], bf16: bool = False
) -> float:
    """Seconds of the loop over a module made for it."""
    train = replace(train, precision="bf16" if bf16 else "fp32")
    return run_ours(module(), source, train, weights)[0]


def shares_of_workers(
    workers: int, module: torch.nn.Module, source: Any, train: Train, weights: dict[str, float]
) -> Shares:
    """Of the first of so many processes with a thread each, which share every batch."""
    with tempfile.TemporaryDirectory() as folder:
        given = (workers, Path(folder), module, source, train, weights)
        torch.multiprocessing.spawn(_work, given, nprocs=workers)
        return json.loads(Path(folder, "shares.json").read_text())


def _work(
    rank: int, workers: int, folder: Path, module: torch.nn.Module, source: Any, train: Train,
    weights: dict[str, float],
) -> None:  # fmt: skip
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # DeepSpeed asks for it
    meeting = f"file://{folder / 'meeting'}"
    torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=workers)
    _, shares = _run(TimedDeepSpeed(module, train, CPU), module, source, train, weights)
    if rank == 0:
        Path(folder, "shares.json").write_text(json.dumps(shares))
    torch.distributed.destroy_process_group()


def _run(
    engine: Clocked, module: torch.nn.Module, source: Any, train: Train, weights: dict[str, float]
) -> tuple[float, Shares]:
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch, METRICS)
        facts = train_loop(
            module=module, engine=engine, source=source, train=train, weights=weights, seed=SEED,
            workspace=LocalWorkspace(Path(scratch, "work")), log=log,
            hooks=Hooks(lambda row: None, lambda line: None),
        )  # fmt: skip
        waited = sum(row["data_wait_s"] for row in read_rows(log)) if log.is_file() else 0.0
    parts = {"data": waited, **engine.spent}
    parts["rest"] = facts["seconds"] - sum(parts.values())
    return facts["seconds"], {name: s / facts["seconds"] for name, s in parts.items()}


class Clocked:
    """Before an engine in a class's bases: a clock around each part of a step. spent: seconds."""

    def __init__(self, module: torch.nn.Module, train: Train, device: torch.device):
        super().__init__(module, train, device)
        self.spent = {"forward": 0.0, "backward": 0.0, "communication": 0.0, "optimizer": 0.0}

    def forward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        return self._clocked("forward", super().forward, batch)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        before = self.spent["communication"]
        self._clocked("backward", super().backward, loss, last)
        self.spent["backward"] -= self.spent["communication"] - before  # which was inside

    def step(self, lr: float) -> Any:
        return self._clocked("optimizer", super().step, lr)

    def _clocked(self, part: str, call: Any, *given: Any, **named: Any) -> Any:
        began = time.perf_counter()
        result = call(*given, **named)
        self.spent[part] += time.perf_counter() - began
        return result


class Timed(Clocked, TorchEngine):
    pass


class TimedDeepSpeed(Clocked, DeepSpeedEngine):
    def __init__(self, module: torch.nn.Module, train: Train, device: torch.device):
        super().__init__(module, train, device)
        reduce = self._engine.allreduce_gradients
        self._engine.allreduce_gradients = lambda *given, **named: self._clocked(
            "communication", reduce, *given, **named
        )
