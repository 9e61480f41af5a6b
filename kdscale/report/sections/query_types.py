"""Which types of queries the students lose on: the table of the page, and what follows from it."""

from __future__ import annotations

import math
from typing import Any

from kdscale.data.dataset import Dataset
from kdscale.data.schema import QUERY_TYPES
from kdscale.data.shards import read_table
from kdscale.evaluation.query_types import FEATURES
from kdscale.experiment.context import DATASET, EVALUATION
from kdscale.report.evidence import Evidence
from kdscale.report.verdict import Verdict, p_words, signed

SHADES = 5
WORDS = {
    "length": "Length of the query, tokens",
    "overlap": "Share of its terms in its relevant passage",
    "idf": "Rarity of its terms, mean idf",
    "rank": "BM25 rank of its first relevant passage",
}
# What a positive and a negative correlation with the loss say.
MORE_LOSS = {
    "length": ("the longer the query is", "the shorter the query is"),
    "overlap": (
        "the more of its terms its relevant passage has",
        "the fewer of its terms its relevant passage has",
    ),
    "idf": ("the rarer its terms are", "the more frequent its terms are"),
    "rank": (
        "the further down BM25 ranks its relevant passage",
        "the further up BM25 ranks its relevant passage",
    ),
}

Row = dict[str, Any]  # of QUERY_TYPES


def query_types_view(evidence: Evidence, verdict: Verdict) -> dict[str, Any] | None:
    """The students in page order, the features by which the queries differ with their buckets, a
    cell a student, and the finding as a sentence; None where nothing is compared."""
    path = evidence.inputs[EVALUATION].path / "query_types.parquet"
    rows = read_table(path, QUERY_TYPES).to_pylist()
    found = {(r["system"], r["feature"], r["place"]): r for r in rows}
    compared = {r["system"] for r in rows}
    systems = [s for s in evidence.students if s["system"] in compared]
    if not systems:
        return None
    names = [s["system"] for s in systems]
    limit = max(abs(r["loss"]) for r in rows) or 1.0
    features = []
    for feature in FEATURES:
        places = sorted({place for _, f, place in found if f == feature})
        of_place = [[found[name, feature, place] for name in names] for place in places]
        if len(of_place) > 1:  # in one bucket all queries are alike
            features.append(
                {
                    "words": WORDS[feature],
                    "buckets": [_bucket(cells, limit) for cells in of_place],
                    "related": [{"rho": c["rho"], "sure": _sure(c, evidence)} for c in of_place[0]],
                }
            )
    about = names[0]
    if verdict.system and verdict.system["system"] in compared:
        about = verdict.system["system"]
    return {
        "systems": systems,
        "features": features,
        "finding": _finding(evidence, [r for r in rows if r["system"] == about], about),
        "related": sum(_sure(r, evidence) for r in rows if r["place"] == 0),
        "tried": sum(r["rho"] is not None for r in rows if r["place"] == 0),
    }


def _bucket(cells: list[Row], limit: float) -> dict[str, Any]:
    return {
        "label": cells[0]["bucket"],
        "queries": cells[0]["queries"],
        "cells": [
            {
                "loss": cell["loss"],
                "ci": None if cell["ci_low"] is None else (cell["ci_low"], cell["ci_high"]),
                "sure": cell["ci_low"] is not None and cell["ci_low"] * cell["ci_high"] > 0,
                "shade": _shade(cell["loss"], limit),
            }
            for cell in cells
        ],
    }


def _shade(loss: float, limit: float) -> str:
    """The class of a cell's background: the deeper, the more is lost or won."""
    step = math.ceil(SHADES * abs(loss) / limit - 1e-9)
    return f"{'lost' if loss > 0 else 'won'}-{step}" if step else "even"


def _sure(row: Row, evidence: Evidence) -> bool:
    return row["p_holm"] is not None and row["p_holm"] < evidence.settings.evaluate.alpha


def _finding(evidence: Evidence, rows: list[Row], system: str) -> str:
    """What the query types say of one student's losses."""
    firsts = [r for r in rows if r["place"] == 0 and r["rho"] is not None]
    if not firsts:
        return f"Nothing can be said of {system}: its losses, or its queries, are all of one kind."
    best = max(firsts, key=lambda r: abs(r["rho"]))
    how = f"Spearman's ρ {signed(best['rho'])}, Holm's correction, {p_words(best['p_holm'])}"
    if not _sure(best, evidence):
        return (
            f"No kind of query explains where {system} loses: none of its {len(firsts)} "
            f"correlations is significant (the largest: {WORDS[best['feature']].lower()}, {how})."
        )
    more = MORE_LOSS[best["feature"]][best["rho"] < 0]
    worst = max((r for r in rows if r["feature"] == best["feature"]), key=lambda r: r["loss"])
    sentence = (
        f"Most is explained by this: {system} loses the more on a query, {more} ({how}). Where "
        f"that is {worst['bucket']}, it loses {worst['loss']:.3f} on the mean of "
        f"{worst['queries']:,} queries"
    )
    if worst["example"] is None:
        return f"{sentence}."
    texts = Dataset(evidence.inputs[DATASET].path).query_texts(evidence.split, {worst["example"]})
    return f"{sentence}, most on “{texts[worst['example']]}”."
