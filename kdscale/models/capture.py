"""The intermediate states of an encoder during a forward pass, for losses that compare them.

SDPA returns no attention, and Hugging Face returns it only after the softmax, so queries and keys
are taken where they arise and multiplied here, and only when a loss asks for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import nn

from kdscale.errors import KdscaleError

# A layer of Hugging Face's, or a part of one: torch's types know nothing of what is in it.
Layer = Any

# BERT's, DistilBERT's, MPNet's and DeBERTa's names.
QKV_NAMES = (
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
    ("query_proj", "key_proj", "value_proj"),
)


class _Enough(Exception):
    """Ends a forward pass that has given what was asked for."""


class Capture:
    """A context in which a forward pass of `model` leaves its intermediate states here.

    hidden: [L] tensors [B, T, H], the output of each layer. embedding: [B, T, H], the input of
    the first. qkv: [L] triples (q, k, v), each [B, T, H] before the split into heads. scores:
    [L] tensors [B, heads, T, T], q k^T / sqrt(d) before mask and softmax. They stay after the
    context ends; a second forward inside it replaces them. What was not asked for is empty.
    windows: [L], how many places apart two tokens may be to see each other; None: any.

    until: the pass ends inside the context, without an output, once layer `until` (from 1) has
    given what was asked for: what lies above costs nothing. For passes without gradients.

    For models built of BERT's or DistilBERT's layers (RoBERTa, ELECTRA, MPNet, ...), DeBERTa and
    ModernBERT. Scores are without what MPNet and DeBERTa add for relative positions.
    Of ModernBERT hidden is the stream between layers, without the final norm; q and k are those
    before the rotation by position, scores those after it. A local layer's scores are captured
    for all pairs of tokens, also those that its window shuts out.
    """

    def __init__(
        self,
        model: nn.Module,
        hidden: bool = False,
        embedding: bool = False,
        qkv: bool = False,
        scores: bool = False,
        until: int | None = None,
    ):
        self.hidden: list[torch.Tensor] = []
        self.embedding: torch.Tensor | None = None
        self.qkv: list[tuple[torch.Tensor, ...]] = []
        config: Any = model.config
        self._heads: int = config.num_attention_heads
        self._layers = encoder_layers(model)
        self._wanted = {"hidden": hidden, "embedding": embedding, "qkv": qkv or scores}
        self._until = until
        self.windows = [_window(config, layer) for layer in self._layers]
        self._parts: list[torch.Tensor] = []
        self._turns: list[tuple[torch.Tensor, torch.Tensor]] = []  # ModernBERT's (cos, sin)
        self._handles: list[Any] = []

    @property
    def scores(self) -> list[torch.Tensor]:
        turns: Sequence[tuple[torch.Tensor, torch.Tensor] | None]
        turns = self._turns or [None] * len(self.qkv)
        return [self._scores(q, k, turn) for (q, k, _), turn in zip(self.qkv, turns, strict=True)]

    def __enter__(self) -> Capture:
        first = self._layers[0]
        self._handles.append(first.register_forward_pre_hook(self._on_input))
        for number, layer in enumerate(self._layers):
            if self._wanted["hidden"]:
                self._handles.append(layer.register_forward_hook(self._on_output))
            if self._wanted["qkv"] and _is_fused(layer):
                linear, attention = layer.attn.Wqkv, layer.attn
                self._handles.append(linear.register_forward_hook(self._on_fused))
                hook = attention.register_forward_pre_hook(self._on_turn, with_kwargs=True)
                self._handles.append(hook)
            elif self._wanted["qkv"]:
                for place, linear in enumerate(qkv_linears(layer)):
                    hook = partial(self._on_part, number, place)
                    self._handles.append(linear.register_forward_hook(hook))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        return kind is _Enough

    def _on_input(self, layer: nn.Module, args: tuple) -> None:
        self.hidden, self.qkv, self._parts, self._turns = [], [], [], []
        if self._wanted["embedding"]:
            self.embedding = args[0]
        if self._until and not (self._wanted["hidden"] or self._wanted["qkv"]):
            raise _Enough

    def _on_output(self, layer: nn.Module, args: tuple, output: Any) -> None:
        self.hidden.append(output[0] if isinstance(output, tuple) else output)
        if len(self.hidden) == self._until:
            raise _Enough

    def _on_part(
        self, layer: int, place: int, linear: nn.Module, args: tuple, output: torch.Tensor
    ) -> None:
        # They run in the order q, k, v; DeBERTa runs some again, on its relative positions.
        if (layer, place) != (len(self.qkv), len(self._parts)):
            return
        self._parts.append(output)
        if len(self._parts) == 3:
            parts, self._parts = tuple(self._parts), []
            self._on_qkv(parts)

    def _on_fused(self, linear: nn.Module, args: tuple, output: torch.Tensor) -> None:
        self._on_qkv(output.chunk(3, dim=-1))

    def _on_qkv(self, parts: tuple[torch.Tensor, ...]) -> None:
        self.qkv.append(parts)
        if len(self.qkv) == self._until and not self._wanted["hidden"]:
            raise _Enough

    def _on_turn(self, attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._turns.append(kwargs["position_embeddings"])

    def _scores(
        self, q: torch.Tensor, k: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor] | None
    ) -> torch.Tensor:
        q, k = (x.unflatten(-1, (self._heads, -1)).transpose(1, 2) for x in (q, k))
        if turn is not None:
            q, k = _turned(q, *turn), _turned(k, *turn)
        q, k = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k))
        with torch.autocast(q.device.type, enabled=False):  # rounded, they compare badly
            return q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5


def encoder_layers(model: nn.Module) -> Sequence[Layer]:
    """The transformer layers of a BERT-like model, the first below first."""
    body = getattr(model, "base_model", model)
    layers = getattr(body, "layers", None)
    if layers and _is_fused(layers[0]):
        return layers
    stack = getattr(body, "encoder", None) or getattr(body, "transformer", None)
    layers = getattr(stack, "layer", None)
    if not layers or not hasattr(layers[0], "attention"):
        raise KdscaleError(
            f"{type(model).__name__}: its layers are not like BERT's, so language-model "
            "distillation cannot read them; use a BERT, RoBERTa, ELECTRA, DistilBERT or "
            "ModernBERT model"
        )
    return layers


def qkv_linears(layer: Layer) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    """The projections to queries, keys and values of one layer."""
    attention = layer.attention
    for part in ("self", "attn"):  # BERT's, MPNet's
        attention = getattr(attention, part, attention)
    for names in QKV_NAMES:
        if all(hasattr(attention, name) for name in names):
            return tuple(getattr(attention, name) for name in names)
    raise KdscaleError(
        f"{type(layer).__name__}: its queries, keys and values cannot be read; leave the losses "
        "qkv, attention and attention_kl out, or use another teacher.model"
    )


def _is_fused(layer: Layer) -> bool:
    """ModernBERT's layers make queries, keys and values with one matrix."""
    return hasattr(getattr(layer, "attn", None), "Wqkv")


def _window(config: Any, layer: Layer) -> int | None:
    local = getattr(layer, "attention_type", None) == "sliding_attention"
    return config.sliding_window if local else None


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding (arXiv 2104.09864). x: [B, heads, T, d]; cos, sin: [1, T, d]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.unsqueeze(1) + torch.cat([-second, first], dim=-1) * sin.unsqueeze(1)
