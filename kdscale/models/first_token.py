"""The last layer of a ranker, computed for the first token alone.

The heads of BERT, RoBERTa and ELECTRA rankers read the state of the first token after the last
layer, and no other. That layer's queries, feed-forward part and output are therefore needed for one
token, only its keys and values for all: at BERT's proportions a sixth of the layer's work. The
scores are the same; of a student of two layers two fifths of the work are gone, of a teacher of six
a seventh.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from kdscale.models.capture import encoder_layers

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
    layer: nn.Module, states: torch.Tensor, mask: torch.Tensor | None = None, *_: Any, **__: Any
) -> torch.Tensor:
    """states: [B, T, H]; mask: of the attention, [B, 1, T or 1, T]."""
    own, first = layer.attention.self, states[:, :1]

    def heads(linear: nn.Module, x: torch.Tensor) -> torch.Tensor:
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
