import pytest
import torch
from torch import nn

from kdscale.config import Train
from kdscale.training.engines import TorchEngine, clip, make_optimizer


def with_gradients(*values):
    module = nn.ParameterList([nn.Parameter(torch.zeros(len(v))) for v in values])
    for parameter, value in zip(module, values, strict=True):
        parameter.grad = torch.tensor(value)
    return module


@pytest.mark.parametrize(("limit", "left"), [(1.0, 1.0), (13.0, 13.0), (20.0, 13.0), (0.0, 13.0)])
def test_gradients_are_scaled_to_the_limit_all_together(limit, left):
    module = with_gradients([3.0, 4.0], [12.0])  # of norm 13
    norm = clip(make_optimizer(module, Train()), limit)
    assert norm.item() == pytest.approx(13.0)
    gradients = torch.cat([parameter.grad for parameter in module])
    assert gradients.norm().item() == pytest.approx(left)
    assert gradients.tolist() == pytest.approx([g * left / 13 for g in (3.0, 4.0, 12.0)])


def test_max_grad_norm_is_the_limit_of_a_step():
    """AdamW's first moment is a tenth of the clipped gradient after one step."""
    module = with_gradients([3.0, 4.0], [12.0])
    engine = TorchEngine(module, Train(max_grad_norm=6.5), torch.device("cpu"))
    assert float(engine.step(lr=0.0)) == pytest.approx(13.0)
    moments = torch.cat([engine.optimizer.state[p]["exp_avg"] for p in module])
    assert moments.tolist() == pytest.approx([0.1 * g / 2 for g in (3.0, 4.0, 12.0)])
    assert all(parameter.grad is None for parameter in module)


def test_weights_decay_and_biases_and_norms_do_not():
    layer = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    decayed, kept = make_optimizer(layer, Train(weight_decay=0.3)).param_groups
    assert [p.shape for p in decayed["params"]] == [(2, 3)] and decayed["weight_decay"] == 0.3
    assert [p.shape for p in kept["params"]] == [(2,)] * 3 and kept["weight_decay"] == 0
