"""The training pairs: each query with relevant passages and sampled hard negatives."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa

from kdscale.data.schema import EASY, PAIRS

# (pid, grade, rank): grade 0 for a negative; rank as in the schema PAIRS
PairRow = tuple[str, int, int]


def query_rng(seed: int, qid: str) -> np.random.Generator:
    """A generator that depends on (seed, qid) alone, so that no query disturbs another's draw."""
    digest = hashlib.sha256(f"{seed}:{qid}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


class Ids(Protocol):
    """A list of them, or `kdscale.data.pids.PassageIds`."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[str]: ...

    def __getitem__(self, row: int, /) -> str: ...


class PairSampler:
    """Pairs of a query, the same whenever seed, query, judgments and candidates are.

    pids: every passage id of the collection, from which hard negatives are topped up and easy ones
    drawn. Hard negatives share their words with the query, so that a student which cannot yet tell
    whether two texts share words learns next to nothing from them alone.
    """

    def __init__(
        self,
        pids: Ids,
        seed: int,
        negatives: int,
        skip_top: int = 0,
        max_positives: int = 1,
        min_grade: int = 1,
        easy: int = 0,
    ):
        self._pids = pids
        self._seed = seed
        self._negatives = negatives
        self._skip_top = skip_top
        self._max_positives = max_positives
        self._min_grade = min_grade
        self._easy = easy

    def sample(
        self,
        qid: str,
        judgments: dict[str, int],
        candidates: Sequence[str],
        given: Sequence[str] = (),
        never: Collection[str] = (),
    ) -> list[PairRow]:
        """Relevant passages, best grade first, then negatives: the source's own (`given`), then
        candidates (in rank order) drawn without replacement, then random passages; easy ones last.

        never: passages that are no negatives, whoever brings them (`RelevantByText`)
        """
        relevant = {pid for pid, grade in judgments.items() if grade >= self._min_grade}
        rank = {pid: i for i, pid in enumerate(candidates, 1)}
        positives = sorted(relevant, key=lambda pid: (-judgments[pid], pid))
        positives = positives[: self._max_positives]
        rng = query_rng(self._seed, qid)
        banned = relevant.union(never)

        own = dict.fromkeys(pid for pid in given if pid not in banned)
        chosen = dict.fromkeys(list(own)[: self._negatives])
        pool = [p for p in candidates[self._skip_top :] if p not in banned and p not in chosen]
        picks = rng.permutation(len(pool))[: self._negatives - len(chosen)]
        chosen.update(dict.fromkeys(pool[i] for i in picks))
        self._top_up(rng, chosen, banned.union(candidates[: self._skip_top]), self._negatives)
        easy: dict[str, None] = {}
        self._top_up(rng, easy, banned.union(chosen, candidates), self._easy)
        return (
            [(pid, judgments[pid], rank.get(pid, 0)) for pid in positives]
            + [(pid, 0, rank.get(pid, 0)) for pid in chosen]
            + [(pid, 0, EASY) for pid in easy]
        )

    def _top_up(
        self, rng: np.random.Generator, chosen: dict[str, None], banned: set[str], count: int
    ) -> None:
        """Random passages but `banned` ones, until `chosen` has `count`."""
        missing = count - len(chosen)
        if missing <= 0:
            return
        excluded = banned.union(chosen)
        if len(self._pids) <= 4 * (len(excluded) + missing):  # few to choose from: list them
            pool = [pid for pid in self._pids if pid not in excluded]
            picks = rng.permutation(len(pool))[:missing]
            chosen.update(dict.fromkeys(pool[i] for i in picks))
            return
        while len(chosen) < count:
            pid = self._pids[int(rng.integers(len(self._pids)))]
            if pid not in excluded:
                chosen[pid] = None


def pair_table(groups: Iterable[tuple[str, list[PairRow]]]) -> pa.Table:
    """PAIRS of (qid, its rows) in turn, pair_id from 0."""
    qids: list[str] = []
    rows: list[PairRow] = []
    for qid, group in groups:
        qids.extend([qid] * len(group))
        rows.extend(group)
    columns = [list(c) for c in zip(*rows, strict=True)] if rows else [[], [], []]
    return pa.table([np.arange(len(qids)), qids, *columns], schema=PAIRS)
