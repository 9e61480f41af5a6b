"""Attention heads and feed-forward neurons by what the loss would lose without them.

Importance as in "Are Sixteen Heads Really Better than One?" (Michel et al., arXiv 1905.10650): a
gate of value 1 stands behind every head, and the importance of a head is the mean, over examples,
of the size of the loss's derivative by its gate: to first order what leaving it out would change.
A neuron of the feed-forward part is treated as a head is.

transformers builds every layer of a BERT with heads that make up its width, so a layer with fewer
heads can be computed, but neither saved nor loaded: `with_silent_heads` is the same function in a
form that can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from kdscale.errors import KdscaleError
from kdscale.models.capture import encoder_layers, qkv_linears


@dataclass(frozen=True)
class Importance:
    """heads: [layers, heads], neurons: [layers, intermediate]; each layer's values have norm 1."""

    heads: torch.Tensor
    neurons: torch.Tensor


@dataclass(frozen=True)
class Kept:
    """What stays of each layer, as ascending places; of neurons as many in every layer, for there
    is one intermediate_size."""

    heads: list[list[int]]
    neurons: list[list[int]]


def check_prunable(model: PreTrainedModel) -> None:
    """Raise KdscaleError for layers that are not built as BERT's are."""
    layer = encoder_layers(model)[0]
    if not hasattr(layer, "intermediate") or not hasattr(layer.attention, "output"):
        raise KdscaleError(
            f"prune: {type(model).__name__} does not have BERT's layers; prune a BERT, RoBERTa or "
            "ELECTRA student"
        )


def measure_importance(
    model: PreTrainedModel, losses: Iterable[Callable[[], torch.Tensor]]
) -> Importance:
    """losses: each call runs the model and returns the loss (scalar) of one example."""
    layers, count = encoder_layers(model), model.config.num_attention_heads
    width = model.config.hidden_size // count
    device = model.device
    gates = [
        (torch.ones(count, device=device), torch.ones(l.output.dense.in_features, device=device))
        for l in layers  # noqa: E741
    ]
    handles = []
    for layer, (heads, neurons) in zip(layers, gates, strict=True):
        heads.requires_grad_(), neurons.requires_grad_()
        handles += [
            layer.attention.output.dense.register_forward_pre_hook(_gate(heads, width)),
            layer.output.dense.register_forward_pre_hook(_gate(neurons, 1)),
        ]
    flat = [gate for pair in gates for gate in pair]
    totals = [torch.zeros_like(gate) for gate in flat]
    try:
        for loss in losses:
            for total, grad in zip(totals, torch.autograd.grad(loss(), flat), strict=True):
                total += grad.abs()
    finally:
        for handle in handles:
            handle.remove()
    normed = [total / total.norm().clamp_min(1e-20) for total in totals]
    return Importance(torch.stack(normed[0::2]), torch.stack(normed[1::2]))


def check_shares(model: PreTrainedModel, heads: float, neurons: float) -> None:
    """Raise KdscaleError for shares to prune that leave a layer without a head or a neuron."""
    layers = encoder_layers(model)
    total, size = len(layers) * model.config.num_attention_heads, model.config.intermediate_size
    drop = round(heads * total)
    if drop > total - len(layers):
        raise KdscaleError(
            f"prune heads={heads:g}: that is {drop} of {total} heads, and each of {len(layers)} "
            f"layers needs one; prune at most heads={(total - len(layers)) / total:.3g}"
        )
    if round(neurons * size) >= size:
        raise KdscaleError(
            f"prune ffn={neurons:g}: that is {round(neurons * size)} of the {size} neurons of a "
            "layer; prune fewer"
        )


def choose(importance: Importance, heads: float, neurons: float) -> Kept:
    """heads: the share of all heads that goes, the least important of the whole model first, but
    never a layer's last one; neurons: the share of each layer's neurons that goes."""
    layers, per_layer = importance.heads.shape
    size = importance.neurons.shape[1]
    value = importance.heads.clone()
    value.scatter_(1, value.argmax(1, keepdim=True), float("inf"))
    order = value.flatten().argsort(stable=True)
    gone = set(order[: round(heads * layers * per_layer)].tolist())
    best = importance.neurons.argsort(dim=1, descending=True, stable=True)
    return Kept(
        [[h for h in range(per_layer) if i * per_layer + h not in gone] for i in range(layers)],
        [sorted(row[: size - round(neurons * size)].tolist()) for row in best],
    )


@torch.no_grad()
def prune(model: PreTrainedModel, kept: Kept) -> None:
    """Take the heads and neurons that are not kept out of the model, in place.

    It can then be run, trained and traced; with fewer heads it cannot be saved
    (`with_silent_heads`).
    """
    width = model.config.hidden_size // model.config.num_attention_heads
    for layer, heads, neurons in zip(encoder_layers(model), kept.heads, kept.neurons, strict=True):
        rows = _rows(heads, width)
        attention = layer.attention.self
        for name in ("query", "key", "value"):
            setattr(attention, name, _part(getattr(attention, name), rows, 0))
        layer.attention.output.dense = _part(layer.attention.output.dense, rows, 1)
        layer.intermediate.dense = _part(layer.intermediate.dense, neurons, 0)
        layer.output.dense = _part(layer.output.dense, neurons, 1)
    model.config.intermediate_size = len(kept.neurons[0])


@torch.no_grad()
def with_silent_heads(model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """The pruned ranker in a form that transformers saves and loads: a head that was taken out is
    there again, with weights of zero. The same scores, and the cost of all heads."""
    config = model.config
    with torch.random.fork_rng(devices=[]):
        whole = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    width = config.hidden_size // config.num_attention_heads
    state = model.state_dict()
    names = {module: name for name, module in model.named_modules()}
    for layer, heads in zip(encoder_layers(model), kept.heads, strict=True):
        rows = _rows(heads, width)
        for linear in qkv_linears(layer):
            for part in ("weight", "bias"):
                key = f"{names[linear]}.{part}"
                state[key] = _spread(state[key], rows, config.hidden_size, 0)
        key = f"{names[layer.attention.output.dense]}.weight"
        state[key] = _spread(state[key], rows, config.hidden_size, 1)
    whole.load_state_dict(state)
    return whole.eval()


def _gate(gate: torch.Tensor, width: int) -> Callable[[nn.Module, tuple], tuple[Any, ...]]:
    return lambda module, args: (args[0] * gate.repeat_interleave(width), *args[1:])


def _rows(heads: Sequence[int], width: int) -> list[int]:
    return [head * width + i for head in heads for i in range(width)]


def _part(linear: nn.Linear, places: Sequence[int], dim: int) -> nn.Linear:
    """The layer with those of its outputs (dim 0) or inputs (dim 1) alone."""
    weight = linear.weight.index_select(dim, torch.tensor(places, device=linear.weight.device))
    part = nn.Linear(weight.shape[1], weight.shape[0], bias=True, device=weight.device)
    part.weight.copy_(weight)
    part.bias.copy_(linear.bias if dim else linear.bias[list(places)])
    return part.train(linear.training)


def _spread(values: torch.Tensor, places: Sequence[int], size: int, dim: int) -> torch.Tensor:
    shape = list(values.shape)
    shape[dim] = size
    whole = values.new_zeros(shape)
    return whole.index_copy_(dim, torch.tensor(places, device=values.device), values)
