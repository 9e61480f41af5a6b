"""The order of training batches: a pure function of (seed, epoch), the same on every rank.

A global batch is a list of items (query groups, token blocks). Any rank of any world size can
compute every batch, so a run that resumes at step k reads exactly the batches from k on, and a
change of the number of workers changes who computes an item and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch


@dataclass(frozen=True)
class Batch:
    """Tensors of some items, as a module takes them. Fields are tensors, lists of model inputs, or
    None."""

    def to(self, device: torch.device) -> Self:
        """The same on a device, copied while other work goes on where it can be."""
        moved = {f.name: _moved(getattr(self, f.name), device) for f in fields(self)}
        return replace(self, **moved)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {name: _moved(inner, device) for name, inner in value.items()}
    if isinstance(value, list):
        return [_moved(inner, device) for inner in value]
    return value


# Batches are cut from pools of so many batches sorted by length: enough for even lengths inside
# a batch, few enough that the order of an epoch stays random.
POOL_BATCHES = 32


class BatchOrder:
    """Which items make up step `s`: every item once an epoch, like lengths together.

    lengths: [N] a cost an item (its tokens); equal lengths keep the order random.
    The tail that does not fill a batch is left out of that epoch (another tail each epoch),
    unless it is all there is.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int):
        if len(lengths) == 0:
            raise ValueError("no items to train on")
        self.lengths = np.asarray(lengths)
        self.batch_size = min(batch_size, len(self.lengths))
        self.seed = seed
        self.steps_per_epoch = len(self.lengths) // self.batch_size
        self._cached: tuple[int, np.ndarray] | None = None

    def epoch_batches(self, epoch: int) -> np.ndarray:
        """[steps_per_epoch, batch_size] item indices."""
        if self._cached is None or self._cached[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            order = rng.permutation(len(self.lengths))
            order = order[: self.steps_per_epoch * self.batch_size]
            pool = POOL_BATCHES * self.batch_size
            for start in range(0, len(order), pool):
                part = order[start : start + pool]
                order[start : start + pool] = part[np.argsort(self.lengths[part], kind="stable")]
            batches = order.reshape(self.steps_per_epoch, self.batch_size)
            self._cached = (epoch, batches[rng.permutation(len(batches))])
        return self._cached[1]

    def batch(self, step: int) -> tuple[int, np.ndarray]:
        """(epoch, item indices [batch_size]) of a global step, from 0."""
        epoch, index = divmod(step, self.steps_per_epoch)
        return epoch, self.epoch_batches(epoch)[index]


def rank_share(items: np.ndarray, rank: int, world: int) -> np.ndarray:
    """The items of one rank: dealt out in turn, so that ranks get like lengths."""
    return items[rank::world]


def split_micro(share: np.ndarray, lengths: np.ndarray, budget: int, parts: int) -> list:
    """Cut a share into at least `parts` micro-batches, none above `budget` padded tokens.

    lengths: [N] padded cost an item of the whole data. An item that alone exceeds the budget
    gets a micro-batch of its own.
    """
    ordered = share[np.argsort(lengths[share], kind="stable")]
    micros: list[list[int]] = []
    for item in ordered:
        if micros and (len(micros[-1]) + 1) * lengths[item] <= budget:
            micros[-1].append(item)
        else:
            micros.append([item])
    while len(micros) < parts:
        largest = max(range(len(micros)), key=lambda i: len(micros[i]), default=None)
        if largest is None or len(micros[largest]) < 2:
            micros.append([])
            continue
        whole = micros.pop(largest)
        micros[largest:largest] = [whole[: len(whole) // 2], whole[len(whole) // 2 :]]
    return [np.asarray(m, dtype=np.int64) for m in micros]


def count_micro(items: np.ndarray, lengths: np.ndarray, budget: int, world: int) -> int:
    """Micro-batches a step: the most that any rank needs, since all must take part in each."""
    return max(
        len(split_micro(rank_share(items, r, world), lengths, budget, 1)) for r in range(world)
    )
