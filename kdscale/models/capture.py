"""The insides of an encoder during a forward pass, for losses that compare them.

SDPA returns no attention, and Hugging Face returns it only after the softmax, so queries and keys
are taken where they arise and multiplied here, and only when a loss asks for them.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import nn

from kdscale.errors import KdscaleError


class Capture:
    """A context in which a forward pass of `model` leaves its insides here.

    hidden: [L] tensors [B, T, H], the output of each layer. embedding: [B, T, H], the input of
    the first. qkv: [L] triples (q, k, v), each [B, T, H] before the split into heads. scores:
    [L] tensors [B, heads, T, T], q k^T / sqrt(d) before mask and softmax. They stay after the
    context ends; a second forward inside it replaces them. What was not asked for is empty.

    For models built of BERT's or DistilBERT's layers (RoBERTa, ELECTRA, ...).
    """

    def __init__(
        self,
        model: nn.Module,
        hidden: bool = False,
        embedding: bool = False,
        qkv: bool = False,
        scores: bool = False,
    ):
        self.hidden: list[torch.Tensor] = []
        self.embedding: torch.Tensor | None = None
        self.qkv: list[tuple[torch.Tensor, ...]] = []
        self._heads: int = model.config.num_attention_heads
        self._layers = encoder_layers(model)
        self._wanted = {"hidden": hidden, "embedding": embedding, "qkv": qkv or scores}
        self._parts: list[torch.Tensor] = []
        self._handles: list[Any] = []

    @property
    def scores(self) -> list[torch.Tensor]:
        return [self._scores(q, k) for q, k, _ in self.qkv]

    def __enter__(self) -> Capture:
        first = self._layers[0]
        self._handles.append(first.register_forward_pre_hook(self._on_input))
        for layer in self._layers:
            if self._wanted["hidden"]:
                self._handles.append(layer.register_forward_hook(self._on_output))
            if self._wanted["qkv"]:
                for linear in qkv_linears(layer):
                    self._handles.append(linear.register_forward_hook(self._on_part))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _on_input(self, layer: nn.Module, args: tuple) -> None:
        self.hidden, self.qkv, self._parts = [], [], []
        if self._wanted["embedding"]:
            self.embedding = args[0]

    def _on_output(self, layer: nn.Module, args: tuple, output: Any) -> None:
        self.hidden.append(output[0] if isinstance(output, tuple) else output)

    def _on_part(self, linear: nn.Module, args: tuple, output: torch.Tensor) -> None:
        self._parts.append(output)  # they run in the order q, k, v
        if len(self._parts) == 3:
            self.qkv.append(tuple(self._parts))
            self._parts = []

    def _scores(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        q, k = (x.unflatten(-1, (self._heads, -1)).transpose(1, 2) for x in (q, k))
        return q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5


def encoder_layers(model: nn.Module) -> nn.ModuleList:
    """The transformer layers of a BERT-like model, the first below first."""
    body = getattr(model, "base_model", model)
    stack = getattr(body, "encoder", None) or getattr(body, "transformer", None)
    layers = getattr(stack, "layer", None)
    if not layers or not hasattr(layers[0], "attention"):
        raise KdscaleError(
            f"{type(model).__name__}: its layers are not like BERT's, so language-model "
            "distillation cannot read them; use a BERT, RoBERTa, ELECTRA or DistilBERT model"
        )
    return layers


def qkv_linears(layer: nn.Module) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    """The projections to queries, keys and values of one layer."""
    attention = getattr(layer.attention, "self", layer.attention)
    if hasattr(attention, "q_lin"):  # DistilBERT
        return attention.q_lin, attention.k_lin, attention.v_lin
    return attention.query, attention.key, attention.value
