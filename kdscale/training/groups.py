"""Training groups of a ranker: a query with one relevant passage and negatives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from kdscale.data.dataset import Dataset, PairTokens
from kdscale.data.queries import choose_queries
from kdscale.data.schema import EASY
from kdscale.errors import KdscaleError
from kdscale.training.batches import Batch

# A step's pairs run through the model in so many chunks of like length, which takes most of the
# padding of a mixed step away; where lengths are alike, one chunk keeps the machine busier.
CHUNKS = 4
CHUNK_MIN_PAIRS = 8
WORTHWHILE_SAVING = 0.1  # of the padded tokens


@dataclass(frozen=True)
class GroupBatch(Batch):
    """B query groups, padded to G passages.

    chunks: model inputs [n, L], pairs of like length together; slots: [pairs] where each pair's
    score belongs in the flattened [B * G]; labels, teacher, mask: [B, G]; teacher: None without
    scores
    """

    chunks: list[dict[str, torch.Tensor]]
    slots: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor
    teacher: torch.Tensor | None = None


class GroupSource:
    """Query groups made from the training pairs and, where given, the teacher's scores.

    An item is a query. In epoch e it is grouped with its relevant passage number e (in turn) and
    `group_size - 1` of its negatives, drawn anew each epoch by (seed, epoch, item); only of its
    hard ones where `easy` is false.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokens: PairTokens,
        scores: pa.Table | None,
        group_size: int,
        max_queries: int | None,
        seed: int,
        easy: bool = True,
    ):
        pairs = dataset.pairs()
        self._seed = seed
        self._group_size = group_size
        self._tokens = tokens
        self._encoder = tokens.encoder()
        self._qids = pairs["qid"].to_pylist()
        self._pids = pairs["pid"].to_pylist()
        self._grades = pairs["grade"].to_numpy()
        self._teacher = None if scores is None else align_scores(pairs, scores)
        usable = np.ones(len(pairs), dtype=bool) if easy else pairs["rank"].to_numpy() != EASY
        members: dict[str, list[int]] = {}
        for row, qid in enumerate(self._qids):
            members.setdefault(qid, []).append(row)
        self._groups = []
        self.qids: list[str] = []  # of the groups
        for qid in choose_queries(list(members), max_queries, seed):
            rows = np.asarray(members[qid])
            positive = rows[self._grades[rows] > 0]
            negative = rows[(self._grades[rows] == 0) & usable[rows]]
            if len(positive) and len(negative):
                self._groups.append((positive, negative))
                self.qids.append(qid)
        if not self._groups:
            raise KdscaleError(
                "no training query has both a relevant passage and a negative; check the train "
                "qrels and prepare.depth.train, prepare.negatives"
            )
        self.pairs_per_item = min(group_size, 1 + max(len(n) for _, n in self._groups))
        in_groups = np.concatenate([rows for group in self._groups for rows in group]).tolist()
        self._passages = tokens.passage_ids(self._pids[row] for row in in_groups)
        self._pair_lengths = np.zeros(len(self._qids), dtype=np.int64)  # of rows in groups
        for row in in_groups:
            query, passage = self._ids(row)
            self._pair_lengths[row] = self._encoder.length(len(query), len(passage))
        # [N] padded tokens a group
        self.lengths = self.pairs_per_item * np.array(
            [self._pair_lengths[np.concatenate(group)].max() for group in self._groups]
        )

    def __len__(self) -> int:
        return len(self._groups)

    def _ids(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        return (
            self._tokens.query_ids("train", self._qids[row]),
            self._passages[self._pids[row]],
        )

    def rows(self, item: int, epoch: int) -> np.ndarray:
        """[<= group_size] rows of the pairs table, the relevant passage first."""
        positive, negative = self._groups[item]
        rng = np.random.default_rng((self._seed, epoch, item))
        wanted = min(self._group_size - 1, len(negative))
        chosen = rng.choice(negative, size=wanted, replace=False)
        return np.concatenate([positive[epoch % len(positive)][None], chosen])

    def collate(self, items: np.ndarray, epoch: int) -> GroupBatch:
        groups = [self.rows(int(item), epoch) for item in items]
        rows = np.concatenate(groups)
        sizes = np.array([len(group) for group in groups])
        mask = np.arange(sizes.max()) < sizes[:, None]
        order = np.argsort(self._pair_lengths[rows], kind="stable")
        flat = [self._ids(row) for row in rows.tolist()]
        parts = _chunks(order, self._pair_lengths[rows])
        return GroupBatch(
            chunks=[self._encoder.collate([flat[i] for i in part]) for part in parts],
            slots=torch.from_numpy(np.flatnonzero(mask)[order]),
            labels=_spread(self._grades[rows], mask),
            mask=torch.from_numpy(mask),
            teacher=None if self._teacher is None else _spread(self._teacher[rows], mask),
        )


def _spread(values: np.ndarray, mask: np.ndarray) -> torch.Tensor:
    """[B, G] float32: the values in the places of the mask, zero elsewhere."""
    spread = np.zeros(mask.shape, dtype=np.float32)
    spread[mask] = values
    return torch.from_numpy(spread)


def _chunks(order: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """The pairs of a step, given shortest first, in one chunk or in CHUNKS of like length."""
    count = max(1, min(CHUNKS, len(order) // CHUNK_MIN_PAIRS))
    parts = np.array_split(order, count)
    padded = sum(len(part) * lengths[part[-1]] for part in parts)
    whole = len(order) * lengths[order[-1]]
    return parts if padded < (1 - WORTHWHILE_SAVING) * whole else [order]


def align_scores(pairs: pa.Table, scores: pa.Table) -> np.ndarray:
    """[pairs] the teacher's scores in the order of the pairs. Raises KdscaleError on a gap."""
    by_id = dict(zip(scores["pair_id"].to_pylist(), scores["score"].to_pylist(), strict=True))
    try:
        return np.array([by_id[i] for i in pairs["pair_id"].to_pylist()], dtype=np.float32)
    except KeyError as error:
        raise KdscaleError(
            f"the teacher scores lack pair {error.args[0]} of the dataset; run the score stage "
            "again for this dataset"
        ) from None
