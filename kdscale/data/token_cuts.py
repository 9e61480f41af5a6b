"""What `prepare.max_length` cuts off: of the pairs that are trained on, and of those evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdscale.data.dataset import Dataset
from kdscale.data.queries import TRAIN
from kdscale.data.schema import PASSAGE_TOKENS
from kdscale.data.shards import read_batches

if TYPE_CHECKING:
    from kdscale.models.encode import PairEncoder

ROWS = 1_000_000  # ids looked up at a time
MANY = 0.25  # a share of cut pairs to warn of


def count_cuts(
    dataset: Dataset,
    encoder: PairEncoder,
    passages: Path,
    lengths: np.ndarray,
    query_lengths: Mapping[str, Mapping[str, int]],
) -> dict[str, dict[str, int]]:
    """Of the training pairs ("train"), and of each other split's candidates: how many "pairs",
    "queries", "passages" and "tokens" (of all pairs) there are, and of each, under "cut", how many
    are cut (a text: in any of its pairs) or, of tokens, lost.

    passages: PASSAGE_TOKENS, whose rows had `lengths` [N] tokens; query_lengths: split -> qid ->
    tokens. Both before anything was cut. In memory: the ids that pairs name, and a split's pairs.
    """
    named = pa.chunked_array([_pids(table) for _, table in _parts(dataset)], pa.string()).unique()
    tokens = _lengths_of(named, passages, lengths)
    found = {}
    for split, table in _parts(dataset):
        qids = table["qid"].combine_chunks().dictionary_encode()
        of_query = query_lengths[split]
        by_number = np.array([of_query[q] for q in qids.dictionary.to_pylist()], dtype=np.int64)
        query, passage = qids.indices.to_numpy(), pc.index_in(_pids(table), named).to_numpy()
        q_lens, p_lens = by_number[query], tokens[passage]
        q_kept, p_kept = encoder.kept(q_lens, p_lens)
        q_cut, p_cut = q_kept < q_lens, p_kept < p_lens
        found[split] = {
            "pairs": len(query),
            "queries": len(by_number),
            "passages": len(np.unique(passage)),
            "tokens": int((q_lens + p_lens).sum()),
            "cut": {
                "pairs": int((q_cut | p_cut).sum()),
                "queries": len(np.unique(query[q_cut])),
                "passages": len(np.unique(passage[p_cut])),
                "tokens": int((q_lens - q_kept + p_lens - p_kept).sum()),
            },
        }
    return found


def describe(split: str, counts: Mapping[str, Any], max_length: int) -> str | None:
    """What was cut, in a sentence; None where nothing was."""
    cut = counts["cut"]
    if not cut["pairs"]:
        return None
    pairs = "training pairs" if split == TRAIN else f"pairs of {split}"
    queries = f", {cut['queries']} of {counts['queries']} queries too" * bool(cut["queries"])
    return (
        f"{_share(cut['pairs'], counts['pairs'])} of the {pairs} are longer than "
        f"prepare.max_length ({max_length} tokens) and are cut{queries}; "
        f"{_share(cut['tokens'], counts['tokens'])} of all tokens are lost"
    )


def are_many(counts: Mapping[str, Any]) -> bool:
    return counts["cut"]["pairs"] >= MANY * counts["pairs"]


def _share(part: int, whole: int) -> str:
    percent = 100 * part / whole
    return f"{percent:.0f} %" if percent >= 1 else f"{percent:.1g} %"


def _parts(dataset: Dataset) -> Iterator[tuple[str, pa.Table]]:
    """What has qid and pid, of each split with any."""
    for split in dataset.splits():
        table = dataset.pairs() if split == TRAIN else dataset.candidates(split)
        if table.num_rows:
            yield split, table


def _pids(table: pa.Table) -> pa.Array:
    return table["pid"].combine_chunks()


def _lengths_of(named: pa.Array, passages: Path, lengths: np.ndarray) -> np.ndarray:
    """[named] int64: the length of each."""
    found, start = np.zeros(len(named), dtype=np.int64), 0
    for table in read_batches(passages, PASSAGE_TOKENS, ROWS, ["pid"]):
        places = pc.index_in(_pids(table), named)
        rows = np.flatnonzero(places.is_valid().to_numpy(zero_copy_only=False))
        found[places.drop_null().to_numpy()] = lengths[start + rows]
        start += table.num_rows
    return found
