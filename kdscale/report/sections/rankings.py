"""Both rankings of any query side by side: what the page's script shows, as data in the page."""

from __future__ import annotations

import json
import sys
from typing import Any

from markupsafe import Markup

from kdscale.data.dataset import Dataset
from kdscale.data.runs import read_run, run_tag
from kdscale.data.schema import METRICS
from kdscale.data.shards import read_where
from kdscale.experiment.context import DATASET, EVALUATION
from kdscale.report.evidence import Evidence
from kdscale.report.verdict import Verdict

TOP = 10  # passages of a ranking that are shown
CHARS = 160  # of a passage
# What bounds the size of the page: texts stand in it once each, so some 5 MB at the most.
MAX_QUERIES = 500
MAX_PASSAGES = 20_000

Orders = dict[str, dict[str, list[str]]]  # system -> qid -> pids, best first


def rankings_view(evidence: Evidence, verdict: Verdict) -> dict[str, Any]:
    """What the section needs: the data as JSON that is safe in HTML, how many queries of how many,
    the names of the systems, and which two are shown first."""
    names = [s["system"] for s in evidence.systems]
    baseline = evidence.settings.evaluate.baseline
    others = [n for n in names if n != baseline]
    values = _values(evidence)
    chosen = _most_changed(evidence, values, others)
    queries, passages = _read(evidence, names, chosen, values)
    data = {
        "systems": names,
        "minGrade": evidence.settings.min_grade,
        "queries": queries,
        "passages": passages,
    }
    return {
        "json": safe_json(data),
        "shown": len(queries),
        "of": len(values[baseline]),
        "systems": names,
        "left": baseline,
        "right": verdict.system["system"] if verdict.system else others[0],
        "top": TOP,
    }


def safe_json(value: Any) -> Markup:
    """JSON that HTML reads as plain text whatever is in it: ASCII, without <, > and &."""
    text = json.dumps(value, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _values(evidence: Evidence) -> dict[str, dict[str, float]]:
    """system -> qid -> the primary measure."""
    path = evidence.inputs[EVALUATION].path / "metrics.parquet"
    table = read_where(path, METRICS, "measure", [evidence.primary])
    values: dict[str, dict[str, float]] = {}
    columns = [table[c].to_pylist() for c in ("split", "system", "qid", "value")]
    for split, system, qid, value in zip(*columns, strict=True):
        if split == evidence.split:
            values.setdefault(system, {})[qid] = value
    return values


def _most_changed(
    evidence: Evidence, values: dict[str, dict[str, float]], others: list[str]
) -> list[str]:
    """The queries to show, those first on which a student differs most from the baseline."""
    base = values[evidence.settings.evaluate.baseline]
    compared = [s["system"] for s in evidence.students if s["system"] in others] or others
    change = {q: max(abs(values[s][q] - value) for s in compared) for q, value in base.items()}
    return sorted(change, key=lambda qid: (-change[qid], qid))[:MAX_QUERIES]


def _read(
    evidence: Evidence,
    names: list[str],
    chosen: list[str],
    values: dict[str, dict[str, float]],
) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """The queries, and [pid, text] of every passage that they show.

    A query's passages are [place among the passages, grade or null, [its rank by each system, 0:
    not among the candidates]]: the first of each system, and the relevant ones that are
    candidates.
    """
    dataset, wanted = Dataset(evidence.inputs[DATASET].path), set(chosen)
    grades: dict[str, dict[str, int]] = {}
    for qid, pid, grade in zip(*dataset.qrels(evidence.split).to_pydict().values(), strict=True):
        if qid in wanted:
            grades.setdefault(qid, {})[pid] = grade
    orders = _orders(evidence, names, wanted)
    texts = dataset.query_texts(evidence.split, wanted)
    places: dict[str, int] = {}
    queries = []
    for qid in chosen:
        ranks = [{pid: rank for rank, pid in enumerate(orders[n].get(qid, []), 1)} for n in names]
        judged = grades.get(qid, {})
        shown = _shown(evidence, ranks, judged)
        if len(places) + sum(pid not in places for pid in shown) > MAX_PASSAGES:
            break
        queries.append(
            {
                "id": qid,
                "text": texts[qid],
                "values": [round(values[n][qid], 4) for n in names],
                "passages": [
                    [places.setdefault(p, len(places)), judged.get(p), [r.get(p, 0) for r in ranks]]
                    for p in shown
                ],
            }
        )
    found = dataset.passage_texts(set(places))
    return queries, [[pid, _cut(found[pid])] for pid in places]


def _orders(evidence: Evidence, names: list[str], wanted: set[str]) -> Orders:
    runs = evidence.inputs[EVALUATION].path / "runs" / evidence.split
    return {
        name: {
            # One string an id, however many rankings have it.
            qid: [sys.intern(pid) for pid, _ in ranking]
            for qid, ranking in read_run(runs / f"{run_tag(name)}.trec")
            if qid in wanted
        }
        for name in names
    }


def _shown(
    evidence: Evidence, ranks: list[dict[str, int]], judged: dict[str, int]
) -> dict[str, None]:
    shown = {pid: None for of_system in ranks for pid in list(of_system)[:TOP]}
    least = evidence.settings.min_grade
    relevant = [p for p, grade in judged.items() if grade >= least and p in ranks[0]]
    return shown | dict.fromkeys(relevant[:TOP])


def _cut(text: str) -> str:
    return text if len(text) <= CHARS else text[: CHARS - 1].rstrip() + "…"
