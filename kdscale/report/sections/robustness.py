"""Whether the answer holds: at other reranking depths, and on collections not trained on."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from kdscale.data.schema import DEPTHS
from kdscale.data.shards import read_table
from kdscale.experiment.context import EVALUATION
from kdscale.report import figures
from kdscale.report.evidence import Evidence, baseline_of, test_of
from kdscale.report.verdict import Verdict, signed


def depths_view(evidence: Evidence, verdict: Verdict) -> dict[str, Any] | None:
    """The primary measure of each system by reranking depth, drawn and as rows: of the collection
    that was looked at at the most depths, the page's own split before others. None where each was
    looked at at one alone."""
    path = evidence.inputs[EVALUATION].path / "depths.parquet"
    primary_of = evidence.settings.evaluate.primary_of
    rows = [
        r for r in read_table(path, DEPTHS).to_pylist() if r["measure"] == primary_of(r["split"])
    ]
    of_collection: dict[str, set[int]] = {evidence.split: set()}
    for row in rows:
        of_collection.setdefault(row["split"], set()).add(row["depth"])
    collection = max(of_collection, key=lambda name: len(of_collection[name]))
    depths, primary = sorted(of_collection[collection]), primary_of(collection)
    if len(depths) < 2:
        return None
    found = {(r["system"], r["depth"]): r for r in rows if r["split"] == collection}
    shapes = list(dict.fromkeys(s["student"] for s in evidence.students))
    lines: list[dict[str, Any]] = []
    for system in evidence.systems:
        dash = shapes.index(system["student"]) % figures.SHAPES if system["student"] else 0
        lines.append(
            {
                "system": system,
                "color": figures.color_of(system["system"], system["strategy"]),
                "dash": dash,
                "svg_dash": figures.SVG_DASHES[dash],
                "cells": [found[system["system"], depth] for depth in depths],
            }
        )
    drawn = [
        (f"{primary} on {collection}", depths, [c["value"] for c in line["cells"]], line)
        for line in lines
    ]
    return {
        "collection": collection,
        "primary": primary,
        "wide": Markup(figures.depth_lines(drawn, 8.6, 3.8, "depths")),
        "narrow": Markup(figures.depth_lines(drawn, 4.0, 3.8, "depths-narrow")),
        "label": _label(primary, depths, lines),
        "depths": depths,
        "lines": lines,
        "finding": _depth_finding(evidence, verdict, depths, found),
    }


def _label(primary: str, depths: list[int], lines: list[dict[str, Any]]) -> str:
    said = [
        f"{line['system']['system']} from {line['cells'][0]['value']:.3f} to "
        f"{line['cells'][-1]['value']:.3f}"
        for line in lines
    ]
    return f"{primary} when {depths[0]} to {depths[-1]} candidates are reranked: {'; '.join(said)}."


def _depth_finding(
    evidence: Evidence, verdict: Verdict, depths: list[int], found: dict[Any, dict[str, Any]]
) -> str:
    if verdict.system is None:
        return ""
    name, baseline = verdict.system["system"], baseline_of(evidence.settings.evaluate)
    cells = [found[name, depth] for depth in depths]
    least, most = (pick(cells, key=lambda c: c["delta"]) for pick in (min, max))
    surely = [str(c["depth"]) for c in cells if c["ci_high"] is not None and c["ci_high"] < 0]
    below = (
        f"its 95 % interval lies below zero with {', '.join(surely)} candidates"
        if surely
        else "at no depth does its 95 % interval lie below zero"
    )
    return (
        f"The difference of {name} from {baseline} is {signed(least['delta'])} with "
        f"{least['depth']} candidates, where it is lowest, and {signed(most['delta'])} with "
        f"{most['depth']}, where it is highest; {below} (uncorrected)."
    )


def transfer_view(evidence: Evidence) -> list[dict[str, Any]]:
    """The collections that nothing was trained on, each with a row a system in page order."""
    evaluate = evidence.settings.evaluate
    own, base = evaluate.splits, evaluate.baseline
    collections = [name for name in evidence.systems[0]["measures"] if name not in own]
    of_name = {f"{t}/{of.split}": of for t, of in evidence.settings.transfers.items()}
    views = []
    for name in collections:
        primary = evaluate.primary_of(name)
        best = evidence.row(base)["measures"][name][primary]
        rows = [_transfer_row(s, name, primary, best, evidence) for s in evidence.systems]
        queries = next((r["test"]["n"] for r in rows if r["test"]), 0)
        depth = of_name[name].depth
        told = {"name": name, "primary": primary, "queries": queries, "depth": depth}
        views.append({**told, "rows": rows})
    return views


def _transfer_row(
    system: dict[str, Any], name: str, primary: str, best: float, evidence: Evidence
) -> dict[str, Any]:
    value, home = system["measures"][name][primary], evidence.value(system)
    at_home = evidence.value(evidence.row(evidence.settings.evaluate.baseline))
    return {
        "system": system,
        "value": value,
        "kept": value / best if best else None,
        "kept_at_home": home / at_home if at_home else None,
        "test": test_of(system, name, primary),
    }
