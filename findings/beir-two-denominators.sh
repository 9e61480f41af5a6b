#!/bin/sh
# BEIR 2.2.0: EvaluateRetrieval.evaluate and .evaluate_custom average over different queries.
#
# One would guess that a judged query for which nothing was found counts 0 everywhere, as in MRR,
# whose code divides by the number of judged queries.
# Seen: such a query is left out of NDCG@k, MAP@k, Recall@k and P@k (their mean is over the queries
# that pytrec_eval gives back, those of the run), and counts 0 in MRR@k, of one evaluator and one run.
# With one of two queries found, at rank 1: NDCG@10 and Recall@10 1.0, MRR@10 0.5. So a first stage
# that finds nothing for hard queries looks better in NDCG; and what ir-measures reports for the same
# files (0 for such a query) is 0.5 throughout.
#
# It ends with 0 while that is so, and with 1 if it changes.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
# Without its dependencies (PyTorch and more): the evaluator needs these alone.
"$work/venv/bin/pip" install --quiet pytrec-eval-terrier==0.5.11 ir-measures==0.4.3 tqdm
"$work/venv/bin/pip" install --quiet --no-deps beir==2.2.0
"$work/venv/bin/python" -W ignore - <<'PYTHON'
from importlib.metadata import version

import ir_measures
from beir.retrieval.evaluation import EvaluateRetrieval

qrels = {"q1": {"a": 1}, "q2": {"b": 1}}
run = {"q1": {"a": 2.0, "x": 1.0}}
ndcg, _, recall, _ = EvaluateRetrieval.evaluate(qrels, run, [10])
mrr = EvaluateRetrieval.evaluate_custom(qrels, run, [10], "mrr")
names = [ir_measures.nDCG @ 10, ir_measures.R @ 10, ir_measures.RR @ 10]
theirs = ir_measures.calc_aggregate(names, qrels, run)
print("beir", version("beir"), {**ndcg, **recall, **mrr})
print("ir-measures", version("ir-measures"), theirs)
assert (ndcg["NDCG@10"], recall["Recall@10"], mrr["MRR@10"]) == (1.0, 1.0, 0.5), "changed"
assert set(theirs.values()) == {0.5}, "changed"
PYTHON
