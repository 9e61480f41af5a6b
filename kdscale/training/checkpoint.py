"""Checkpoints of a training run: pieces `step-N` of its workspace, safetensors and JSON only.

A checkpoint holds the trainable module, the optimizer's moments, the step and the log so far, and
of a watched run what it has seen and, where they are to be kept, its best weights. The
learning rate, the batch order and the random numbers of a step are functions of (seed, step), so
nothing else is needed to resume exactly where a run stopped; on another number of workers, or with
another engine or ZeRO stage, up to the rounding of sums in another order (and other dropout masks,
where there is dropout). Nothing is ever unpickled: only the files named here are opened, and each
with a reader that cannot run what it reads.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from kdscale.store import DamagedError, Workspace
from kdscale.training.engines import Engine
from kdscale.training.metrics import METRICS, WATCH

KEEP = 2
PREFIX = "step-"
MODULE, OPTIMIZER, STATE = "module.safetensors", "optimizer.safetensors", "state.json"
BEST = "best.safetensors"  # of a watched run that keeps its best weights


class State(NamedTuple):
    """What a checkpoint holds beside the logs and the best weights."""

    step: int
    module: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]


class Saver:
    """Publishes checkpoints in the background, one at a time, and keeps the newest two."""

    def __init__(self, workspace: Workspace):
        self._workspace = workspace
        self._publishing: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, step: int, module: nn.Module, engine: Engine, log: Path) -> None:
        """Begin to publish the checkpoint of `step` steps done; raises as `wait` does.

        Every rank calls it, since with ZeRO each has a part of the optimizer's state; rank 0
        writes. log: the metrics.jsonl of rank 0, with the rows up to this step;
        what a validator left beside it goes along.
        """
        self.wait()
        optimizer = engine.optimizer_state()
        if engine.rank != 0:
            return
        copy = tempfile.TemporaryDirectory(prefix="kdscale-checkpoint-")
        directory = Path(copy.name)
        write_weights(module, directory / MODULE)
        save_file(optimizer, directory / OPTIMIZER)
        (directory / STATE).write_text(json.dumps({"step": step}))
        shutil.copyfile(log, directory / METRICS)
        _copy_watched(log.parent, directory)
        # A daemon, so that Ctrl-C need not wait for a store that is away.
        self._publishing = threading.Thread(target=self._publish, args=(copy, step), daemon=True)
        self._publishing.start()

    def wait(self) -> None:
        """Until nothing is being published; raises what publishing has failed with."""
        if self._publishing is not None:
            self._publishing.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _publish(self, copy: tempfile.TemporaryDirectory, step: int) -> None:
        try:
            with copy as directory:
                self._workspace.publish(Path(directory), f"{PREFIX}{step:09d}")
            for old in checkpoints(self._workspace)[:-KEEP]:
                self._workspace.remove(old)
        except Exception as error:
            self._error = error


def resume(
    workspace: Workspace,
    module: nn.Module,
    engine: Engine,
    log: Path,
    say: Callable[[str], None],
) -> int:
    """Restore the newest sound checkpoint; returns the steps already done, 0 where there is none.

    Every rank calls it. Rank 0 chooses, so that all resume from the same step, tells of the damaged
    ones that it passes over, and gets its log back. Raises DamagedError where another rank cannot
    read what rank 0 could.
    """
    found = _newest_sound(workspace, say) if engine.rank == 0 else None
    step = engine.agree(found[0].step if found else 0)
    if step == 0:
        return 0
    if found is None:
        found = read(workspace, f"{PREFIX}{step:09d}")
    state, path = found
    module.load_state_dict(state.module)
    engine.load_optimizer_state(state.optimizer)
    if engine.rank == 0:
        shutil.copyfile(path / METRICS, log)
        _copy_watched(path, log.parent)
    return step


def write_weights(module: nn.Module, path: Path) -> None:
    """As safetensors."""
    # Clones, since safetensors refuses tensors that share memory (tied weights).
    save_file({k: v.detach().cpu().clone() for k, v in module.state_dict().items()}, path)


def checkpoints(workspace: Workspace) -> list[str]:
    """The complete checkpoints, oldest first."""
    return [name for name in workspace.names() if name.startswith(PREFIX)]


def read(workspace: Workspace, name: str) -> tuple[State, Path]:
    """A checkpoint and the directory of its files. Raises DamagedError for one that is not sound.

    Digests are checked by the workspace, which does not know what a file should hold.
    """
    path = workspace.fetch(name)
    try:
        step = json.loads((path / STATE).read_text())["step"]
        state = State(step, load_file(path / MODULE), load_file(path / OPTIMIZER))
        if name != f"{PREFIX}{step:09d}" or not (path / METRICS).is_file():
            raise ValueError(f"not what {name} should hold")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path} is no checkpoint ({error})") from None
    return state, path


def _newest_sound(workspace: Workspace, say: Callable[[str], None]) -> tuple[State, Path] | None:
    for name in reversed(checkpoints(workspace)):
        try:
            return read(workspace, name)
        except DamagedError as error:
            say(f"a damaged checkpoint is passed over: {error}")
            # Else it would stand in the way of the sound one of this step.
            workspace.remove(name)
    return None


def _copy_watched(source: Path, target: Path) -> None:
    for name in (WATCH, BEST):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
