"""Checkpoints of a training run: safetensors and JSON, committed by one rename.

A checkpoint holds the trainable module, the optimizer's moments and the step. The learning rate,
the batch order and the random numbers of a step are functions of (seed, step), so nothing else is
needed to go on exactly where a run stopped, on any number of workers.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kdscale.training.engines import Engine

KEEP = 2


def save(directory: Path, step: int, module: nn.Module, engine: Engine) -> None:
    """Write `step-N` below `directory` and keep the newest two. Rank 0 only."""
    target = directory / f"step-{step:09d}"
    staged = directory / f".{target.name}.part"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    # Clones, since safetensors refuses tensors that share memory (tied weights).
    save_file(
        {k: v.detach().cpu().clone() for k, v in module.state_dict().items()},
        staged / "module.safetensors",
    )
    state = {
        f"{index}.{name}": torch.as_tensor(value).detach().cpu().clone()
        for index, entry in engine.optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }
    save_file(state, staged / "optimizer.safetensors")
    (staged / "state.json").write_text(json.dumps({"step": step}))
    shutil.rmtree(target, ignore_errors=True)
    staged.rename(target)
    for old in _complete(directory)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def newest(directory: Path) -> Path | None:
    """The newest complete checkpoint, if any: the rename makes a checkpoint complete."""
    found = _complete(directory)
    return found[-1] if found else None


def load(path: Path, module: nn.Module, engine: Engine) -> int:
    """Restore module and optimizer; returns the number of steps already done."""
    module.load_state_dict(load_file(path / "module.safetensors"))
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(path / "optimizer.safetensors").items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    groups = engine.optimizer.state_dict()["param_groups"]
    engine.optimizer.load_state_dict({"state": state, "param_groups": groups})
    return int(json.loads((path / "state.json").read_text())["step"])


def _complete(directory: Path) -> list[Path]:
    return sorted(directory.glob("step-*"))
