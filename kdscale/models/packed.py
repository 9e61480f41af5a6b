"""A BERT ranker over pairs laid end to end: no padding anywhere.

Attention runs inside each pair by variable-length flash attention, which is there on CUDA in half
precision; everything else is done token by token and needs no pairs. Of the last layer only what
the first token of each pair needs is computed, as in `kdscale.models.first_token`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from kdscale.models.capture import encoder_layers
from kdscale.models.encode import Pair, PairEncoder

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # a torch that is older
    varlen_attn = None


class PackedPairs(NamedTuple):
    """ids, types, positions: [T] int32, pair after pair; starts: [B + 1] int32, where each begins
    and the last one ends; longest: tokens of the longest pair."""

    ids: torch.Tensor
    types: torch.Tensor
    positions: torch.Tensor
    starts: torch.Tensor
    longest: int

    def to(self, device: torch.device) -> PackedPairs:
        """Without waiting for the copy."""
        tensors = (tensor.to(device, non_blocking=True) for tensor in self[:4])
        return PackedPairs(*tensors, self.longest)


def pack(pairs: list[Pair], encoder: PairEncoder) -> PackedPairs:
    ids, types, lengths = encoder.flatten(pairs)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    positions = np.arange(len(ids)) - np.repeat(starts[:-1], lengths)
    arrays = (ids, types, positions, starts)
    return PackedPairs(
        *(torch.from_numpy(array.astype(np.int32)) for array in arrays), int(lengths.max())
    )


def can_pack(model: Any, device: torch.device, precision: str) -> bool:
    """Whether `PackedRanker` runs this model there. The kernel takes heads whose width is a
    multiple of 8, up to 256."""
    config = model.config
    return (
        varlen_attn is not None
        and device.type == "cuda"
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and precision == "bf16"
        and type(model).__name__ == "BertForSequenceClassification"
        and not config.is_decoder
        and config.hidden_size // config.num_attention_heads in range(8, 257, 8)
    )


class PackedRanker:
    """A model that is only read: its own modules are run. For inference, under autocast.

    layer: what runs each layer but the last, as the function of that name.
    """

    def __init__(self, model: Any):
        self._model = model
        self.layer = layer

    def __call__(self, packed: PackedPairs) -> torch.Tensor:
        """[B] logits."""
        body, starts = self._model.base_model, packed.starts
        tables = body.embeddings
        x = tables.LayerNorm(
            tables.word_embeddings(packed.ids)
            + tables.token_type_embeddings(packed.types)
            + tables.position_embeddings(packed.positions)
        )
        *before, last = encoder_layers(self._model)
        for module in before:
            x = self.layer(module, x, starts, packed.longest)
        pooled = body.pooler(_first_tokens(last, x, starts, packed.longest).unsqueeze(1))
        return self._model.classifier(pooled)[:, 0]


def layer(module: nn.Module, x: torch.Tensor, starts: torch.Tensor, longest: int) -> torch.Tensor:
    """A layer of BERT. x: [T, H] -> [T, H]."""
    own = module.attention.self
    q, k, v = (_heads(own, linear, x) for linear in (own.query, own.key, own.value))
    seen = attend(q, k, v, starts, starts, longest, longest).flatten(-2)
    attended = module.attention.output(seen, x)
    return module.output(module.intermediate(attended), attended)


def _first_tokens(
    module: nn.Module, x: torch.Tensor, starts: torch.Tensor, longest: int
) -> torch.Tensor:
    """x: [T, H] -> [B, H], what the layer makes of the first token of each pair."""
    own, first = module.attention.self, x[starts[:-1]]
    q = _heads(own, own.query, first)
    k, v = (_heads(own, linear, x) for linear in (own.key, own.value))
    ones = torch.arange(len(starts), dtype=torch.int32, device=x.device)
    seen = attend(q, k, v, ones, starts, 1, longest).flatten(-2)
    attended = module.attention.output(seen, first)
    return module.output(module.intermediate(attended), attended)


def _heads(own: nn.Module, linear: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """[T, heads, d]."""
    return linear(x).unflatten(-1, (-1, own.attention_head_size))


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, q_starts: torch.Tensor,
    k_starts: torch.Tensor, q_longest: int, k_longest: int,
) -> torch.Tensor:  # fmt: skip
    """Attention inside each pair. q, k, v: [., heads, d], each cut at its starts."""
    return varlen_attn(q, k, v, q_starts, k_starts, q_longest, k_longest)
