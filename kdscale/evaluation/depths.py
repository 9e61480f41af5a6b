"""What reranking fewer candidates would give, from the scores of the one evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from kdscale.data.schema import DEPTHS
from kdscale.evaluation.collection import Collection
from kdscale.evaluation.measures import per_query
from kdscale.evaluation.significance import compare

if TYPE_CHECKING:
    from ir_measures.measures import Measure

Run = Mapping[str, Sequence[str]]  # qid -> pids, best first


def depths_of(depths: Iterable[int], deepest: int) -> list[int]:
    """The depths that a collection reranked to `deepest` can be looked at, ascending."""
    return sorted({depth for depth in depths if depth < deepest} | {deepest})


def cut_run(run: Run, candidates: Run, depth: int) -> dict[str, list[str]]:
    """The run as it were, had only the first `depth` candidates of each query been reranked.

    A ranker scores a passage by itself, so fewer candidates change no score and no order; the
    other candidates are not shown at all.
    """
    cut = {}
    for qid, ranking in run.items():
        kept = set(candidates[qid][:depth])
        cut[qid] = [pid for pid in ranking if pid in kept]
    return cut


class DepthRows:
    """The measures of every system at the depths that are looked at.

    depths: those of the config; of each collection only those below its own are looked at, and
    its own. Collects what `add` is given, then `table` compares with the baseline.
    """

    def __init__(self, depths: Iterable[int], baseline: str):
        self._depths, self._baseline = list(depths), baseline
        # (collection, depth, measure) -> system -> [judged queries]
        self._values: dict[tuple[str, int, str], dict[str, np.ndarray]] = {}

    def add(
        self,
        system: str,
        collection: Collection,
        measures: Mapping[str, Measure],
        run: Run,
        values: Mapping[str, np.ndarray],
    ) -> None:
        """One system's run of one collection. values: by measure, at the full depth."""
        for depth in depths_of(self._depths, collection.depth):
            if depth < collection.depth:
                cut = cut_run(run, collection.candidates, depth)
                of_depth: Mapping[str, np.ndarray] = per_query(measures, collection.qrels, cut)
            else:
                of_depth = values
            for measure, of_queries in of_depth.items():
                place = (collection.name, depth, measure)
                self._values.setdefault(place, {})[system] = of_queries

    def table(self) -> pa.Table:
        """DEPTHS, with each system's mean difference from the baseline at the same depth."""
        rows = []
        for place, of_systems in self._values.items():
            for system, of_queries in of_systems.items():
                delta, low, high = None, None, None
                if system != self._baseline:
                    compared = compare(of_queries, of_systems[self._baseline])
                    delta, (low, high) = compared.delta, compared.ci or (None, None)
                rows.append((system, *place, float(of_queries.mean()), delta, low, high))
        return pa.table([list(column) for column in zip(*rows, strict=True)], schema=DEPTHS)
