"""A model of the same architecture, small enough to be built and run before the real one is read.

What a model does with an input (how it counts positions, whether a student can be made of it) is
asked of such a model: names and settings of a configuration tell only some of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import AutoModel, PreTrainedConfig
from transformers import logging as transformers_logging

TOKENS = 64  # of a shrunk vocabulary, beside those up to the padding token


def shrunk_config(config: PreTrainedConfig, layers: Sequence[int] = (1,)) -> PreTrainedConfig:
    """The same architecture at full width, with those of its layers (from 1) and a short
    vocabulary."""
    small = type(config).from_dict(config.to_dict())
    small.num_hidden_layers = len(layers)
    if getattr(small, "layer_types", None):  # one of each layer
        small.layer_types = [small.layer_types[n - 1] for n in layers]
    # Some families count positions from the padding id on, so it stays where that can be; of
    # others it may be the last of a long vocabulary.
    if (config.pad_token_id or 0) >= (getattr(config, "max_position_embeddings", None) or 0):
        small.pad_token_id = 0
    small.vocab_size = min(config.vocab_size, (small.pad_token_id or 0) + TOKENS)
    small.architectures = None
    return small


def build_quietly(auto_class: Any, config: PreTrainedConfig) -> Any:
    """The model of a class with random weights, always the same, in evaluation mode."""
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return auto_class.from_config(config, trust_remote_code=False).eval()


def counted_positions(config: PreTrainedConfig) -> int | None:
    """How many tokens the model's table of positions has room for; None where it has no such
    table (positions that are relative or rotated), or cannot be run on a text alone.

    Families count from 0, from the padding token's id + 1, or from another number. So two texts
    are read, one a token longer: the table is the one whose highest row went up by one.
    """
    # Not every configuration can be hashed, and none says what in it matters here.
    kind: Any = type(config)  # it can, though its instances cannot
    return _counted_positions(kind, config.to_json_string(use_diff=False))


@lru_cache(maxsize=32)
def _counted_positions(kind: type[PreTrainedConfig], text: str) -> int | None:
    config = kind.from_dict(json.loads(text))
    try:
        model = build_quietly(AutoModel, shrunk_config(config))
    except Exception:  # of any kind; whoever loads the model itself tells what is wrong
        return None
    shorter, longer = (_rows_read(model, length) for length in (2, 3))
    rooms = [
        rows - (highest - 2)
        for (rows, ids, highest), (_, _, before) in zip(longer, shorter, strict=False)
        # As many as there are tokens (the first lookup): not one for each two of them.
        if ids == longer[0][1] and highest == before + 1
    ]
    return min(rooms, default=None)


@torch.no_grad()
def _rows_read(model: Any, length: int) -> list[tuple[int, int, int]]:
    """Of each table that a text of `length` equal tokens was looked up in: rows, ids, highest."""
    token = (model.config.pad_token_id or 0) + 1
    # What was looked up before a failure is what counts.
    with _quiet(), _Lookups() as lookups, suppress(Exception):
        model(torch.full((1, length), token))
    return lookups.seen


class _Lookups(TorchFunctionMode):
    """Notes every lookup in a table of embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int, int]] = []

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if function is F.embedding:
            ids, table = args[:2]
            self.seen.append((table.shape[0], ids.numel(), int(ids.max())))
        return function(*args, **(kwargs or {}))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' remarks, which are of a model that nobody has."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
