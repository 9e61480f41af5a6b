import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from kdscale.config import Train
from kdscale.store import DamagedError, LocalWorkspace
from kdscale.training import checkpoint
from kdscale.training.engines import TorchEngine


@pytest.fixture
def workspace(tmp_path):
    return LocalWorkspace(tmp_path / "work")


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    return path


def _trained(steps: int, seed: int = 0) -> tuple[nn.Module, TorchEngine]:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    engine = TorchEngine(module, Train(lr=0.1), torch.device("cpu"))
    _train(module, engine, range(steps))
    return module, engine


def _train(module, engine, steps):
    for step in steps:
        torch.manual_seed(step)
        engine.backward(module(torch.randn(5, 3)).square().mean(), last=True)
        engine.step(0.1)


def _save(workspace, step, module, engine, log):
    saver = checkpoint.Saver(workspace)
    saver.save(step, module, engine, log)
    saver.wait()


def _resume(workspace, log, module=None, engine=None):
    """(steps done, what was told)."""
    if module is None:
        module, engine = _trained(1, seed=9)
    said = []
    return checkpoint.resume(workspace, module, engine, log, said.append), said


def test_a_restored_run_goes_on_as_if_it_had_never_stopped(workspace, log, tmp_path):
    module, engine = _trained(3)
    _save(workspace, 3, module, engine, log)
    _train(module, engine, range(3, 6))
    again, other = _trained(1, seed=9)
    assert _resume(workspace, tmp_path / "new.jsonl", again, other) == (3, [])
    assert (tmp_path / "new.jsonl").read_text() == log.read_text()
    _train(again, other, range(3, 6))
    for ours, theirs in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_newest_two_are_kept_and_half_a_checkpoint_is_none(workspace, log):
    module, engine = _trained(1)
    assert _resume(workspace, log) == (0, [])
    for step in (1, 2, 10):
        _save(workspace, step, module, engine, log)
    half = workspace.directory / ".step-000000011-abcd.part"
    half.mkdir()
    (half / "module.safetensors").write_bytes(b"half")
    assert workspace.names() == ["step-000000002", "step-000000010"]
    assert _resume(workspace, log)[0] == 10


def test_a_checkpoint_is_safetensors_and_json_only(workspace, log):
    module, engine = _trained(2)
    _save(workspace, 2, module, engine, log)
    path = workspace.fetch("step-000000002")
    assert sorted(p.name for p in path.iterdir()) == [
        "manifest.json",
        "metrics.jsonl",
        "module.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    assert json.loads((path / "state.json").read_text()) == {"step": 2}


class Hostile:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def _files_of(workspace, name, directory):
    """A copy of a piece's files that can be changed and published again."""
    ignore = shutil.ignore_patterns("manifest.json")
    return Path(shutil.copytree(workspace.fetch(name), directory, ignore=ignore))


@pytest.mark.parametrize("name", ["module.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_pickle_in_a_checkpoint_is_never_loaded(workspace, log, tmp_path, name, form):
    """In the place of each file, with a manifest that calls it sound, and under other names."""
    module, engine = _trained(1)
    _save(workspace, 1, module, engine, log)
    hostile = _files_of(workspace, "step-000000001", tmp_path / "hostile")
    mark = tmp_path / "was-run"
    for place in (name, "pytorch_model.bin", "mp_rank_00_model_states.pt", "data.pkl"):
        if form == "torch":
            torch.save(Hostile(mark), hostile / place)
        else:
            (hostile / place).write_bytes(pickle.dumps(Hostile(mark)))
    assert workspace.publish(hostile, "step-000000002")
    step, said = _resume(workspace, log)
    assert step == 1 and len(said) == 1 and "is no checkpoint" in said[0]
    assert not mark.exists()
    pickle.loads(pickle.dumps(Hostile(mark)))
    assert mark.exists()  # the file is as hostile as it claims


def test_a_checkpoint_of_another_step_is_refused(workspace, log, tmp_path):
    module, engine = _trained(1)
    _save(workspace, 1, module, engine, log)
    moved = _files_of(workspace, "step-000000001", tmp_path / "moved")
    workspace.publish(moved, "step-000000005")
    with pytest.raises(DamagedError, match="not what step-000000005 should hold"):
        checkpoint.read(workspace, "step-000000005")


def test_weights_of_another_shape_are_refused(workspace, log):
    module, engine = _trained(1)
    _save(workspace, 1, module, engine, log)
    other = nn.Sequential(nn.Linear(3, 5))
    with pytest.raises(RuntimeError):
        _resume(workspace, log, other, TorchEngine(other, Train(), torch.device("cpu")))
