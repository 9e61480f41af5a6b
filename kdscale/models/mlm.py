"""Heads that turn an encoder's states into logits of the vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM, PreTrainedModel

from kdscale.errors import KdscaleError
from kdscale.models.pretrained import read_model, resolve_model

# What BERT, RoBERTa, ELECTRA, DistilBERT and ModernBERT put behind the encoder, in that order.
HEADS = (
    ("cls",),
    ("lm_head",),
    ("generator_predictions", "generator_lm_head"),
    ("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
    ("head", "decoder"),
)


class MaskedLmHead(nn.Module):
    """BERT's head (arXiv 1810.04805) for an encoder: dense, GELU, norm, and a decoder that is the
    encoder's own table of embeddings, so it belongs to the encoder and is no parameter of this.

    Drawn at random from `seed`.
    """

    def __init__(self, encoder: PreTrainedModel, seed: int):
        super().__init__()
        table: Any = encoder.get_input_embeddings()
        self._table = (table,)  # in a tuple: no submodule
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.dense = nn.Linear(encoder.config.hidden_size, table.embedding_dim)
        self.norm = nn.LayerNorm(table.embedding_dim)
        self.bias = nn.Parameter(torch.zeros(table.num_embeddings))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[..., H] -> [..., V]."""
        states = self.norm(F.gelu(self.dense(states)))
        return F.linear(states, self._table[0].weight, self.bias)


def pretrained_head(name: str, revision: str | None = None) -> nn.Module | None:
    """A model's own masked-LM head ([..., H] -> [..., V]); None where its files have none."""
    model, missing = read_model(AutoModelForMaskedLM, resolve_model(name, revision), revision)
    return None if missing else head_of(model)


def head_of(model: PreTrainedModel) -> nn.Module:
    """The head of a masked language model. Raises KdscaleError where it is not known."""
    for names in HEADS:
        if all(hasattr(model, part) for part in names):
            return nn.Sequential(*(getattr(model, part) for part in names))
    raise KdscaleError(
        f"lm.losses: the masked-LM head of a {type(model).__name__} cannot be read; use a BERT, "
        "RoBERTa, ELECTRA, DistilBERT or ModernBERT model, or leave mlm_kl out"
    )


def states_at(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """States [B, T, H] at places [B, K] -> [B, K, H]."""
    return states.gather(1, places.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
