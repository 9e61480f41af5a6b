"""A ranker's forward pass without what nothing reads: the last layer for the first token alone, and
pairs laid end to end without padding.

The heads of BERT, RoBERTa and ELECTRA rankers read the state of the first token after the last
layer, and no other. That layer's queries, feed-forward part and output are therefore needed for one
token, only its keys and values for all: at BERT's proportions a sixth of the layer's work. The
scores are the same; of a student of two layers two fifths of the work are gone, of a teacher of six
a seventh.

In a packed batch attention runs inside each pair by variable-length flash attention, which CUDA has
in half precision; everything else is done token by token and needs no pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from kdscale.models.capture import Layer, encoder_layers
from kdscale.models.encode import Pair, PairEncoder

FAMILIES = ("bert", "camembert", "electra", "roberta", "xlm-roberta")


@contextmanager
def first_token_only(model: Any) -> Iterator[None]:
    """Inside, the model's last layer gives the first token's state alone: [B, 1, H].

    Logits are those of outside, up to rounding. A model whose head reads more, or of whose layers
    this is not known, is left as it is.
    """
    if not _reads_first_token(model):
        yield
        return
    layer = encoder_layers(model)[-1]
    layer.forward = partial(_first_token, layer)
    try:
        yield
    finally:
        del layer.forward  # that of its class again


def _reads_first_token(model: Any) -> bool:
    if not type(model).__name__.endswith("ForSequenceClassification"):
        return False
    config = model.config
    return (
        config.model_type in FAMILIES
        and config._attn_implementation in ("sdpa", "eager")  # their masks are [B, 1, ., T]
        and not config.is_decoder
        and "forward" not in vars(encoder_layers(model)[-1])  # inside already
    )


def _first_token(
    layer: Layer, states: torch.Tensor, mask: torch.Tensor | None = None, *_: Any, **__: Any
) -> torch.Tensor:
    """states: [B, T, H]; mask: of the attention, [B, 1, T or 1, T]."""
    own, first = layer.attention.self, states[:, :1]

    def heads(linear: Layer, x: torch.Tensor) -> torch.Tensor:
        return linear(x).view(*x.shape[:-1], -1, own.attention_head_size).transpose(1, 2)

    seen = F.scaled_dot_product_attention(
        heads(own.query, first),
        heads(own.key, states),
        heads(own.value, states),
        attn_mask=None if mask is None else mask[:, :, :1],
        dropout_p=own.dropout.p if layer.training else 0.0,
        scale=own.scaling,
    )
    attended = layer.attention.output(seen.transpose(1, 2).flatten(2), first)
    return layer.feed_forward_chunk(attended)


varlen_attn: Any
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
        ids, types, positions, starts = (x.to(device, non_blocking=True) for x in self[:4])
        return PackedPairs(ids, types, positions, starts, self.longest)


def pack(pairs: list[Pair], encoder: PairEncoder) -> PackedPairs:
    ids, types, lengths = encoder.flatten(pairs)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    positions = np.arange(len(ids)) - np.repeat(starts[:-1], lengths)

    def of(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array.astype(np.int32))

    return PackedPairs(of(ids), of(types), of(positions), of(starts), int(lengths.max()))


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


def layer(module: Layer, x: torch.Tensor, starts: torch.Tensor, longest: int) -> torch.Tensor:
    """A layer of BERT. x: [T, H] -> [T, H]."""
    own = module.attention.self
    q, k, v = (_heads(own, linear, x) for linear in (own.query, own.key, own.value))
    seen = attend(q, k, v, starts, starts, longest, longest).flatten(-2)
    attended = module.attention.output(seen, x)
    return module.output(module.intermediate(attended), attended)


def _first_tokens(
    module: Layer, x: torch.Tensor, starts: torch.Tensor, longest: int
) -> torch.Tensor:
    """x: [T, H] -> [B, H], what the layer makes of the first token of each pair."""
    own, first = module.attention.self, x[starts[:-1]]
    q = _heads(own, own.query, first)
    k, v = (_heads(own, linear, x) for linear in (own.key, own.value))
    ones = torch.arange(len(starts), dtype=torch.int32, device=x.device)
    seen = attend(q, k, v, ones, starts, 1, longest).flatten(-2)
    attended = module.attention.output(seen, first)
    return module.output(module.intermediate(attended), attended)


def _heads(own: Layer, linear: Layer, x: torch.Tensor) -> torch.Tensor:
    """[T, heads, d]."""
    return linear(x).unflatten(-1, (-1, own.attention_head_size))


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, q_starts: torch.Tensor,
    k_starts: torch.Tensor, q_longest: int, k_longest: int,
) -> torch.Tensor:  # fmt: skip
    """Attention inside each pair. q, k, v: [., heads, d], each cut at its starts."""
    return varlen_attn(q, k, v, q_starts, k_starts, q_longest, k_longest)
