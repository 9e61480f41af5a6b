"""Some of a dataset's texts as any tokenizer cuts them, where there is no tokens artifact of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from kdscale.data.dataset import Dataset

if TYPE_CHECKING:
    from kdscale.models.encode import PairEncoder


class TextTokens:
    """Token ids of passages and of the queries named, by the methods of `Tokens`."""

    def __init__(self, dataset: Dataset, encoder: PairEncoder, qids: dict[str, Iterable[str]]):
        """qids: split -> queries of it."""
        self._dataset, self._encoder = dataset, encoder
        self._queries = {
            split: self._cut(dataset.query_texts(split, set(of_split)))
            for split, of_split in qids.items()
        }

    def passage_ids(self, pids: Iterable[str]) -> dict[str, np.ndarray]:
        """pid -> [tokens] int32."""
        return self._cut(self._dataset.passage_texts(set(pids)))

    def query_ids(self, split: str, qid: str) -> np.ndarray:
        """[tokens] int32."""
        return self._queries[split][qid]

    def encoder(self) -> PairEncoder:
        return self._encoder

    def _cut(self, texts: dict[str, str]) -> dict[str, np.ndarray]:
        return dict(zip(texts, self._encoder.tokenise(list(texts.values())), strict=True))
