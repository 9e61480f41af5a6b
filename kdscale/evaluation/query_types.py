"""Which types of queries lose most by distillation: features of queries, and losses by feature."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from kdscale.data.dataset import Dataset
from kdscale.data.schema import QUERY_FEATURES, QUERY_TYPES
from kdscale.data.words import words_of
from kdscale.evaluation.collection import Collection
from kdscale.evaluation.significance import EQUAL, compare, holm
from kdscale.progress import Task

FEATURES = ("length", "overlap", "idf", "rank")
QUARTILES = (0.25, 0.5, 0.75)
# Buckets of the BM25 rank of the first relevant candidate: from, to, label.
RANKS = ((1, 1, "1"), (2, 5, "2–5"), (6, 10, "6–10"), (11, np.inf, "> 10"))
NOT_FOUND = "not found"
# A feature's values in a label; lengths are whole numbers.
_FORMS = {"length": "{:.0f}", "overlap": "{:.2f}", "idf": "{:.2f}"}
# Document frequencies are counted in at most so many passages, spread evenly over the
# collection: a share of them is as telling, and a large collection would take many minutes.
SAMPLED_PASSAGES = 200_000


def query_features(
    dataset: Dataset, collection: Collection, min_grade: int, task: Task
) -> pa.Table:
    """QUERY_FEATURES of every judged query of a collection, in the order of its qrels.

    A passage of at least `min_grade` is relevant. Terms are those of BM25: of a query and its
    passages without stop words. Where several passages are relevant, the overlap is that of the
    one that has most of the query's terms. `task` advances by passages read.
    """
    qids = list(collection.qrels)
    texts = dataset.query_texts(collection.split, set(qids))
    terms = {q: set(words) for q, words in zip(qids, words_of(texts[q] for q in qids), strict=True)}
    relevant = {
        qid: {pid for pid, grade in of_query.items() if grade >= min_grade}
        for qid, of_query in collection.qrels.items()
    }
    pids = sorted(set().union(*relevant.values()))
    found = dataset.passage_texts(set(pids))
    cut = dict(zip(pids, map(set, words_of(found[p] for p in pids)), strict=True))
    idf = _idf(dataset, set().union(*terms.values()), task)
    columns: dict[str, list[float | None]] = {name: [] for name in FEATURES}
    for qid in qids:
        own, wanted = terms[qid], relevant[qid]
        columns["length"].append(float(len(collection.query_ids(qid))))
        shares = [len(own & cut[pid]) / len(own) for pid in wanted] if own else []
        columns["overlap"].append(max(shares, default=None))
        columns["idf"].append(float(np.mean([idf[t] for t in sorted(own)])) if own else None)
        candidates = collection.candidates.get(qid, [])
        ranks = (float(r) for r, pid in enumerate(candidates, 1) if pid in wanted)
        columns["rank"].append(next(ranks, None))
    return pa.table([qids, *columns.values()], schema=QUERY_FEATURES)


def _idf(dataset: Dataset, terms: set[str], task: Task) -> dict[str, float]:
    """term -> inverse document frequency, as BM25's (Robertson and Zaragoza 2009,
    doi 10.1561/1500000019): ln(1 + (N - n + 1/2) / (n + 1/2)) for n of N passages with it."""
    counts: Counter[str] = Counter()
    passages = 0
    for texts in dataset.sample_passages(SAMPLED_PASSAGES):
        for words in words_of(texts):
            counts.update(terms.intersection(words))
        passages += len(texts)
        task.advance(len(texts))
    return {t: float(np.log1p((passages - counts[t] + 0.5) / (counts[t] + 0.5))) for t in terms}


def query_types(
    features: pa.Table, values: Mapping[str, np.ndarray], baseline: str, depth: int
) -> pa.Table:
    """QUERY_TYPES: what each system loses against the baseline, by types of queries.

    features: QUERY_FEATURES, [n] rows; values: system -> [n] of the primary measure, in their
    order, with the baseline's. Correlations are Spearman's, one family for Holm's correction; a
    relevant passage that is not among the `depth` candidates counts there as the next rank.
    """
    columns = {
        name: np.array([np.nan if v is None else v for v in features[name].to_pylist()])
        for name in FEATURES
    }
    qids = np.array(features["qid"].to_pylist(), dtype=object)
    split_up = {name: buckets(name, column) for name, column in columns.items()}
    columns["rank"] = np.where(np.isnan(columns["rank"]), depth + 1, columns["rank"])
    losses = {s: values[baseline] - v for s, v in values.items() if s != baseline}
    related = {(s, f): spearman(columns[f], loss) for s, loss in losses.items() for f in FEATURES}
    corrected = holm([p for _, p in related.values()])
    rows = []
    for ((system, feature), (rho, p)), p_holm in zip(related.items(), corrected, strict=True):
        loss = losses[system]
        for place, (label, mask) in enumerate(split_up[feature]):
            compared = compare(values[baseline][mask], values[system][mask])
            most = int(np.argmax(np.where(mask, loss, -np.inf)))
            rows.append(
                (
                    system, feature, place, label, compared.n, compared.delta,
                    *(compared.ci or (None, None)), qids[most] if loss[most] > EQUAL else None,
                    rho, p, p_holm,
                )
            )  # fmt: skip
    columns_of = zip(*rows, strict=True) if rows else [[] for _ in QUERY_TYPES]
    return pa.table([list(column) for column in columns_of], schema=QUERY_TYPES)


def buckets(feature: str, values: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """(label, [n] mask) of the queries of like values: natural steps of the rank, quarters of
    the queries otherwise. Equal values are never parted, so there can be fewer, and uneven ones;
    none is empty. A query without a value (NaN) is in no bucket, but of ranks in the last."""
    missing = np.isnan(values)
    if feature == "rank":
        found = [(label, (values >= low) & (values <= high)) for low, high, label in RANKS]
        found.append((NOT_FOUND, missing))
        return [(label, mask) for label, mask in found if mask.any()]
    if missing.all():
        return []
    edges = np.unique(np.quantile(values[~missing], QUARTILES, method="inverted_cdf"))
    places = np.searchsorted(edges, values)  # a value on an edge is below it
    masks = [(places == place) & ~missing for place in range(len(edges) + 1)]
    return [(_label(feature, values[mask]), mask) for mask in masks if mask.any()]


def _label(feature: str, values: np.ndarray) -> str:
    low, high = (_FORMS[feature].format(v) for v in (values.min(), values.max()))
    return low if low == high else f"{low}–{high}"


def spearman(feature: np.ndarray, loss: np.ndarray) -> tuple[float | None, float | None]:
    """Spearman's rank correlation and its two-sided p, over the queries with a value; None of
    fewer than three, and where either is the same for all."""
    from scipy import stats

    known = ~np.isnan(feature)
    feature, loss = feature[known], loss[known]
    if len(feature) < 3 or np.ptp(feature) < EQUAL or np.ptp(loss) < EQUAL:
        return None, None
    result = stats.spearmanr(feature, loss)
    return float(result.statistic), float(result.pvalue)
