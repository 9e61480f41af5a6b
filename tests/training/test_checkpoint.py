import json

import pytest
import torch
from torch import nn

from kdscale.config import Train
from kdscale.training import checkpoint
from kdscale.training.engines import TorchEngine


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


def test_a_restored_run_goes_on_as_if_it_had_never_stopped(tmp_path):
    module, engine = _trained(3)
    checkpoint.save(tmp_path, 3, module, engine)
    _train(module, engine, range(3, 6))
    again, other = _trained(1, seed=9)
    assert checkpoint.load(checkpoint.newest(tmp_path), again, other) == 3
    _train(again, other, range(3, 6))
    for ours, theirs in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_newest_two_are_kept_and_half_a_checkpoint_is_none(tmp_path):
    module, engine = _trained(1)
    assert checkpoint.newest(tmp_path) is None
    for step in (1, 2, 10):
        checkpoint.save(tmp_path, step, module, engine)
    half = tmp_path / ".step-000000011.part"
    half.mkdir()
    (half / "module.safetensors").write_bytes(b"half")
    assert checkpoint.newest(tmp_path).name == "step-000000010"
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-000000002", "step-000000010"]


def test_a_checkpoint_is_safetensors_and_json_only(tmp_path):
    module, engine = _trained(2)
    checkpoint.save(tmp_path, 2, module, engine)
    files = sorted(p.name for p in checkpoint.newest(tmp_path).iterdir())
    assert files == ["module.safetensors", "optimizer.safetensors", "state.json"]
    assert json.loads((checkpoint.newest(tmp_path) / "state.json").read_text()) == {"step": 2}


def test_weights_of_another_shape_are_refused(tmp_path):
    module, engine = _trained(1)
    checkpoint.save(tmp_path, 1, module, engine)
    other = nn.Sequential(nn.Linear(3, 5))
    with pytest.raises(RuntimeError):
        checkpoint.load(
            checkpoint.newest(tmp_path), other, TorchEngine(other, Train(), torch.device("cpu"))
        )
