"""Training groups of a ranker: a query with one relevant passage and hard negatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from kdscale.data.dataset import Dataset, Tokens
from kdscale.data.queries import choose_queries
from kdscale.errors import KdscaleError

# A step's pairs run through the model in so many chunks of like length, which takes most of the
# padding of a mixed step away; where lengths are alike, one chunk keeps the machine busier.
CHUNKS = 4
CHUNK_MIN_PAIRS = 8
WORTHWHILE_SAVING = 0.1  # of the padded tokens


class GroupSource:
    """Query groups made from the training pairs and, where given, the teacher's scores.

    An item is a query. In epoch e it is grouped with its relevant passage number e (in turn) and
    `group_size - 1` of its negatives, drawn anew each epoch by (seed, epoch, item).
    """

    def __init__(
        self,
        dataset: Dataset,
        tokens: Tokens,
        scores: pa.Table | None,
        group_size: int,
        max_queries: int | None,
        seed: int,
    ):
        pairs = dataset.pairs()
        self._seed = seed
        self._group_size = group_size
        self._tokens = tokens
        self._encoder = tokens.encoder()
        self._qids = pairs["qid"].to_pylist()
        self._pids = pairs["pid"].to_pylist()
        self._grades = pairs["grade"].to_numpy()
        self._teacher = None if scores is None else _aligned_scores(pairs, scores)
        members: dict[str, list[int]] = {}
        for row, qid in enumerate(self._qids):
            members.setdefault(qid, []).append(row)
        self._groups = []
        for qid in choose_queries(list(members), max_queries, seed):
            rows = np.asarray(members[qid])
            positive = rows[self._grades[rows] > 0]
            negative = rows[self._grades[rows] == 0]
            if len(positive) and len(negative):
                self._groups.append((positive, negative))
        if not self._groups:
            raise KdscaleError(
                "no training query has both a relevant passage and a negative; check the train "
                "qrels and prepare.depth.train, prepare.negatives"
            )
        self.pairs_per_item = min(group_size, 1 + max(len(n) for _, n in self._groups))
        # [N] padded tokens a group
        self.lengths = np.array(
            [
                self.pairs_per_item * max(self._pair_length(r) for r in np.concatenate(group))
                for group in self._groups
            ]
        )

    def __len__(self) -> int:
        return len(self._groups)

    def _ids(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        return (
            self._tokens.query_ids("train", self._qids[row]),
            self._tokens.passage_ids(self._pids[row]),
        )

    def _pair_length(self, row: int) -> int:
        query, passage = self._ids(row)
        return self._encoder.length(len(query), len(passage))

    def rows(self, item: int, epoch: int) -> np.ndarray:
        """[<= group_size] rows of the pairs table, the relevant passage first."""
        positive, negative = self._groups[item]
        rng = np.random.default_rng((self._seed, epoch, item))
        wanted = min(self._group_size - 1, len(negative))
        chosen = rng.choice(negative, size=wanted, replace=False)
        return np.concatenate([positive[epoch % len(positive)][None], chosen])

    def collate(self, items: np.ndarray, epoch: int) -> dict[str, Any]:
        """Tensors of B groups, padded to G passages:

        chunks: list of model inputs [n, L], pairs of like length together
        slots: [pairs] where each pair's score belongs in the flattened [B * G]
        labels, teacher, mask: [B, G]; teacher only where scores were given
        """
        groups = [self.rows(int(item), epoch) for item in items]
        size = max(len(g) for g in groups)
        mask = torch.zeros(len(groups), size, dtype=torch.bool)
        labels = torch.zeros(len(groups), size)
        teacher = torch.zeros(len(groups), size)
        flat, slots = [], []
        for b, rows in enumerate(groups):
            mask[b, : len(rows)] = True
            labels[b, : len(rows)] = torch.from_numpy(self._grades[rows].astype(np.float32))
            if self._teacher is not None:
                teacher[b, : len(rows)] = torch.from_numpy(self._teacher[rows])
            flat.extend(self._ids(int(row)) for row in rows)
            slots.extend(b * size + g for g in range(len(rows)))
        lengths = np.array([self._encoder.length(len(q), len(p)) for q, p in flat])
        order = np.argsort(lengths, kind="stable")
        parts = _chunks(order, lengths)
        batch = {
            "chunks": [self._encoder.collate([flat[i] for i in part]) for part in parts],
            "slots": torch.as_tensor(slots)[torch.as_tensor(order)],
            "labels": labels,
            "mask": mask,
        }
        if self._teacher is not None:
            batch["teacher"] = teacher
        return batch


def _chunks(order: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """The pairs of a step, given shortest first, in one chunk or in CHUNKS of like length."""
    count = max(1, min(CHUNKS, len(order) // CHUNK_MIN_PAIRS))
    parts = np.array_split(order, count)
    padded = sum(len(part) * lengths[part[-1]] for part in parts)
    whole = len(order) * lengths[order[-1]]
    return parts if padded < (1 - WORTHWHILE_SAVING) * whole else [order]


def _aligned_scores(pairs: pa.Table, scores: pa.Table) -> np.ndarray:
    """[pairs] the teacher's scores in the order of the pairs. Raises KdscaleError on a gap."""
    by_id = dict(zip(scores["pair_id"].to_pylist(), scores["score"].to_pylist(), strict=True))
    try:
        return np.array([by_id[i] for i in pairs["pair_id"].to_pylist()], dtype=np.float32)
    except KeyError as error:
        raise KdscaleError(
            f"the teacher scores lack pair {error.args[0]} of the dataset; run the score stage "
            "again for this dataset"
        ) from None
