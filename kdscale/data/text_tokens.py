"""Some of a dataset's texts as any tokenizer cuts them, where there is no tokens artifact of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from kdscale.data.dataset import Dataset

if TYPE_CHECKING:
    from kdscale.models.encode import PairEncoder


class TextTokens:
    """Token ids of the queries and passages named, by the methods of `Tokens`."""

    def __init__(
        self,
        dataset: Dataset,
        encoder: PairEncoder,
        pids: Iterable[str],
        qids: dict[str, Iterable[str]],
    ):
        """qids: split -> queries of it."""
        self._encoder = encoder
        self._passages = self._cut(dataset.passage_texts(set(pids)))
        self._queries = {
            split: self._cut(dataset.query_texts(split, set(of_split)))
            for split, of_split in qids.items()
        }

    def passage_ids(self, pid: str) -> np.ndarray:
        """[tokens] int32."""
        return self._passages[pid]

    def query_ids(self, split: str, qid: str) -> np.ndarray:
        """[tokens] int32."""
        return self._queries[split][qid]

    def encoder(self) -> PairEncoder:
        return self._encoder

    def _cut(self, texts: dict[str, str]) -> dict[str, np.ndarray]:
        return dict(zip(texts, self._encoder.tokenise(list(texts.values())), strict=True))
