"""Which tokens of a block a masked language model has to find: a function of the key alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# As in BERT (arXiv 1810.04805): of the tokens chosen eight in ten are replaced by the mask token,
# one in ten by any token of the vocabulary, and one in ten stays, so that a model that learns from
# masked text reads whole text too.
CHOSEN = 0.15
MASKED = 0.8
REPLACED = 0.1


def mask_tokens(
    ids: np.ndarray, special_ids: Sequence[int], mask_id: int, vocab_size: int, key: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The ids with some replaced, [T], and the places of those to be found, [K] in rising order.

    special_ids: tokens that are never chosen. key: (seed, epoch, item).
    """
    rng = np.random.default_rng(key)
    candidates = np.flatnonzero(~np.isin(ids, special_ids))
    count = min(len(candidates), max(1, round(CHOSEN * len(candidates))))
    places = np.sort(rng.choice(candidates, size=count, replace=False))
    lot, others = rng.random(count), rng.integers(vocab_size, size=count)
    masked = ids.copy()
    masked[places[lot < MASKED]] = mask_id
    replaced = (lot >= MASKED) & (lot < MASKED + REPLACED)
    masked[places[replaced]] = others[replaced]
    return masked, places
