"""What BM25 finds for the queries of a BEIR folder, in memory and as Parquet: the pairs that a
ranker is asked to score."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdscale.config import BeirSource, Prepare
from kdscale.data.bm25 import Bm25
from kdscale.data.parallel import InProcess
from kdscale.data.readers import open_reader
from kdscale.data.readers.base import Reject
from kdscale.data.schema import PASSAGES
from kdscale.evaluation.measures import parse_measures, per_query

NDCG = "nDCG@10"


@dataclass(frozen=True)
class Candidates:
    """queries, passages: texts by id; pairs: (qid, pid), query by query; qrels: of `queries`."""

    queries: Mapping[str, str]
    passages: Mapping[str, str]
    pairs: Sequence[tuple[str, str]]
    qrels: Mapping[str, Mapping[str, int]]

    def first(self, queries: int) -> Candidates:
        """Of so many queries alone."""
        chosen = dict(list(self.queries.items())[:queries])
        pairs = [(qid, pid) for qid, pid in self.pairs if qid in chosen]
        return Candidates(
            chosen,
            {pid: self.passages[pid] for _, pid in pairs},
            pairs,
            {qid: self.qrels[qid] for qid in chosen},
        )

    def ndcg(self, scores: np.ndarray) -> float:
        """The mean nDCG@10 of the pairs ranked by [len(pairs)] scores."""
        run: dict[str, list[str]] = {qid: [] for qid in self.queries}
        for i in np.argsort(-scores, kind="stable"):
            qid, pid = self.pairs[i]
            run[qid].append(pid)
        return float(per_query(parse_measures([NDCG]), self.qrels, run)[NDCG].mean())


def find_candidates(folder: Path, queries: int, depth: int) -> Candidates:
    """Of the first `queries` judged queries of the split "test" (or of the only one), by the
    defaults of `kdscale prepare`."""
    reader = open_reader(BeirSource(path=str(folder)))
    splits = reader.splits()
    split = "test" if "test" in splits else splits[0]
    qrels: dict[str, dict[str, int]] = {}
    for judged in reader.qrels(split):
        if not isinstance(judged, Reject) and judged[2] > 0:
            qrels.setdefault(judged[0], {})[judged[1]] = judged[2]
    texts = dict(p for p in reader.passages() if not isinstance(p, Reject))
    wanted = [q for q in reader.queries(split) if not isinstance(q, Reject) and q[0] in qrels]
    chosen = dict(wanted[:queries])
    settings = Prepare()
    queries = list(chosen.values())
    with tempfile.TemporaryDirectory() as folder:
        index = Bm25(queries, settings.bm25_k1, settings.bm25_b, Path(folder), InProcess())
        index.index([pa.table([list(texts), list(texts.values())], schema=PASSAGES)])
        found = index.search(list(chosen), queries, depth)
    pairs = list(zip(found["qid"].to_pylist(), found["pid"].to_pylist(), strict=True))
    return Candidates(
        chosen,
        {pid: texts[pid] for _, pid in pairs},
        pairs,
        {qid: qrels[qid] for qid in chosen},
    )


def write_tables(folder: Path, found: Candidates) -> int:
    """Passages, queries and pairs as Parquet files of a folder; the number of pairs."""
    for name, texts in (("p", found.passages), ("q", found.queries)):
        table = {"id": list(texts), "text": list(texts.values())}
        pq.write_table(pa.table(table), folder / name)
    qids, pids = zip(*found.pairs, strict=True)
    pq.write_table(pa.table({"qid": qids, "pid": pids}), folder / "pairs")
    return len(found.pairs)


def read_tables(folder: Path) -> tuple[dict[str, str], dict[str, str], list[tuple[str, str]]]:
    def texts(name: str) -> dict[str, str]:
        table = pq.read_table(folder / name)
        return dict(zip(*(c.to_pylist() for c in table.columns), strict=True))

    table = pq.read_table(folder / "pairs")
    pairs = list(zip(table["qid"].to_pylist(), table["pid"].to_pylist(), strict=True))
    return texts("q"), texts("p"), pairs


def write_scores(folder: Path, scores: np.ndarray) -> None:
    table = pq.read_table(folder / "pairs").append_column("score", pa.array(scores, pa.float32()))
    pq.write_table(table, folder / "scores")
