"""Our run files are measured the same by every program that people measure them with."""

import ir_measures
import numpy as np
import pytest
import pytrec_eval

from kdscale.data.runs import read_run, write_run
from kdscale.evaluation.measures import parse_measures, per_query

MEASURES = [
    "RR@10",
    "RR",
    "nDCG@10",
    "nDCG",
    "AP",
    "AP@10",
    "R@10",
    "P@5",
    "AP(rel=2)",
    "Judged@10",
]
TREC_NAMES = {
    "RR": "recip_rank", "nDCG@10": "ndcg_cut_10", "nDCG": "ndcg", "AP": "map",
    "AP@10": "map_cut_10", "R@10": "recall_10", "P@5": "P_5",
}  # fmt: skip


def _scores(rng, kind, count):
    """Scores of which many are equal, or become equal in 32 bits."""
    return {
        "equal": np.full(count, 3.25),
        "few": rng.choice([0.0, -0.0, 1.5, -2.0], count),
        "close": 10 + 1e-9 * rng.integers(0, 6, count),
        "small": 1e-42 * rng.integers(-3, 4, count),
        "large": 1e300 * rng.integers(-3, 4, count),
        "bf16": np.round(8 * rng.normal(size=count)) / 8,
    }[kind]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(qrels, the run file, what we report): two queries of each kind of score."""
    rng = np.random.default_rng(0)
    qrels, rankings = {}, []
    for kind in ("equal", "few", "close", "small", "large", "bf16"):
        for number in range(2):
            qid = str(len(qrels) + 1)
            pids = [f"{number}-{n}" for n in rng.permutation(30)]
            qrels[qid] = {p: int(g) for p, g in zip(pids, rng.integers(0, 4, 25), strict=False)}
            rankings.append((qid, list(zip(pids, _scores(rng, kind, 30).tolist(), strict=True))))
    path = tmp_path_factory.mktemp("run") / "system.trec"
    write_run(path, rankings, "system")
    run = {qid: [pid for pid, _ in ranking] for qid, ranking in read_run(path)}
    return qrels, path, per_query(parse_measures(MEASURES), qrels, run)


def _results(path):
    """A run file as pytrec_eval and BEIR take it."""
    results = {}
    for line in path.read_text().splitlines():
        qid, _, pid, _, score, _ = line.split()
        results.setdefault(qid, {})[pid] = float(score)
    return results


def test_ir_measures_finds_the_values_that_are_reported(world):
    qrels, path, reported = world
    measures = {ir_measures.parse_measure(name): name for name in MEASURES}
    rows = {qid: row for row, qid in enumerate(qrels)}
    run = list(ir_measures.read_trec_run(str(path)))
    seen = 0
    for found in ir_measures.iter_calc(list(measures), qrels, run):
        value = reported[measures[found.measure]][rows[found.query_id]]
        assert found.value == pytest.approx(value, abs=1e-9), found
        seen += 1
    assert seen == len(MEASURES) * len(qrels)


@pytest.mark.parametrize("name", ["ERR@10", "nDCG(dcg='exp-log2')@10"])
def test_gdeval_finds_the_values_that_are_reported(world, name):
    qrels, path, _ = world
    run = {qid: [pid for pid, _ in ranking] for qid, ranking in read_run(path)}
    [reported] = per_query(parse_measures([name]), qrels, run).values()
    found = {
        m.query_id: m.value
        for m in ir_measures.gdeval.iter_calc(
            [ir_measures.parse_measure(name)], qrels, ir_measures.read_trec_run(str(path))
        )
    }
    assert 0 < reported.mean() < 1
    np.testing.assert_allclose(reported, [found[qid] for qid in qrels], atol=1e-9)


def test_trec_eval_finds_the_values_that_are_reported(world):
    qrels, path, reported = world
    found = pytrec_eval.RelevanceEvaluator(qrels, set(TREC_NAMES.values())).evaluate(_results(path))
    for name, trec_name in TREC_NAMES.items():
        values = [found[qid][trec_name] for qid in qrels]
        np.testing.assert_allclose(reported[name], values, atol=1e-9, err_msg=name)


def test_beir_finds_the_values_that_are_reported(world):
    """Its evaluator averages what pytrec_eval gives it and rounds that to five digits."""
    evaluation = pytest.importorskip(
        "beir.retrieval.evaluation", reason="pip install --no-deps beir (it brings much with it)"
    )
    qrels, path, reported = world
    results = _results(path)
    evaluate = evaluation.EvaluateRetrieval
    found = {k: v for part in evaluate.evaluate(qrels, results, [5, 10]) for k, v in part.items()}
    found |= evaluate.evaluate_custom(qrels, results, [10], "mrr")
    for name, theirs in (
        ("nDCG@10", "NDCG@10"), ("AP@10", "MAP@10"), ("R@10", "Recall@10"), ("P@5", "P@5"),
        ("RR@10", "MRR@10"),
    ):  # fmt: skip
        assert found[theirs] == round(reported[name].mean(), 5), name


def test_the_order_of_equal_scores_is_kept_whoever_sorts_them(world):
    """By 32 bits as by 64, ties by either end of the ids: there are none."""
    _, path, _ = world
    for qid, scores in _results(path).items():
        ours = [pid for pid, _ in dict(read_run(path))[qid]]
        for precision in (np.float32, np.float64):
            for last in (False, True):
                ids = sorted(scores, reverse=last)
                ids.sort(key=lambda pid: -precision(scores[pid]))
                assert ids == ours
