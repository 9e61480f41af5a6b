"""The trials that a config's `report.trials` names: every recipe with its seeds, as one table and
curves over the data budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from kdscale.config import STRATEGIES, Evaluate
from kdscale.data.queries import DEV
from kdscale.errors import KdscaleError
from kdscale.evaluation.trials import (
    FULL,
    Claim,
    Group,
    against,
    claims_of_paper,
    group_trials,
    read_trials,
    students,
)
from kdscale.report import figures
from kdscale.report.evidence import FIRST_STAGE, TEACHER
from kdscale.report.verdict import p_words, signed


def trials_view(path: Path, evaluate: Evaluate) -> dict[str, Any]:
    """What sections/trials.html shows. Raises KdscaleError for a table that cannot be shown."""
    table, about = read_trials(path)
    groups = group_trials(table)
    if not students(groups) or all(g.system != TEACHER for g in groups):
        raise KdscaleError(f"report.trials: {path} has no teacher, or no student, to show")
    return show_trials(groups, about, evaluate)


def show_trials(groups: list[Group], about: dict[str, Any], evaluate: Evaluate) -> dict[str, Any]:
    """The same of groups, of which one is the teacher and one at least a student."""
    teacher = next(g for g in groups if g.system == TEACHER)
    found = students(groups)
    measures = list(teacher.values)
    primary = evaluate.primary_of(about.get("split") or DEV)
    if primary not in measures:
        primary = measures[0]
    measures.sort(key=lambda m: m != primary)
    ordered = sorted(found, key=_place)
    tests = against(ordered, teacher, primary, evaluate.margin)
    rows = [_row(g, measures, None, teacher) for g in groups if g.strategy not in STRATEGIES]
    rows += [_row(g, measures, t, teacher) for g, t in zip(ordered, tests, strict=True)]
    levels = {g.system: g.mean(primary) for g in groups if g.system in (FIRST_STAGE, TEACHER)}
    return {
        "about": about,
        "queries": len(teacher.values[primary]),
        "measures": measures,
        "primary": primary,
        "rows": rows,
        "claims": [_said(claim, primary) for claim in claims_of_paper(groups, primary)],
        "panels": _panels(ordered, primary, levels, about),
    }


def _place(group: Group) -> tuple:
    """Shape by shape from large to small, the full budget first, strategies from plain to full."""
    assert group.strategy is not None  # it is of students
    size = -(group.costs["parameters"] or 0)
    return (
        size,
        group.shape,
        group.variant,
        -(group.budget or 0),
        list(STRATEGIES).index(group.strategy),
    )


def _row(group: Group, measures: list[str], test: Any, teacher: Group) -> dict[str, Any]:
    comparison, p, kept_p = test or (None, None, None)
    return {
        "group": group,
        "values": [group.mean(measure) for measure in measures],
        "spread": group.spread(measures[0]),
        "of_teacher": group.mean(measures[0]) / (teacher.mean(measures[0]) or np.nan),
        "test": comparison,
        "p": p,
        "kept_p": kept_p,
    }


def _said(claim: Claim, primary: str) -> dict[str, Any]:
    """A line of what the paper claims, and whether it was seen here."""
    shown = claim.test.delta > 0 and claim.p_holm is not None and claim.p_holm < 0.05
    interval = ""
    if claim.test.ci is not None and claim.p_holm is not None:
        low, high = claim.test.ci
        interval = f" (95 % {signed(low)} … {signed(high)}, Holm, {p_words(claim.p_holm)})"
    return {
        "shape": claim.shape,
        "better": claim.better,
        "worse": claim.worse,
        "shown": shown,
        "text": f"{signed(claim.test.delta)} {primary}{interval}",
    }


def _panels(
    groups: list[Group], primary: str, levels: dict[str, float], about: dict[str, Any]
) -> list[dict[str, Any]]:
    """Quality by data budget and by training time, a panel of each a shape."""
    split, queries = about.get("split", ""), about.get("train_queries")
    panels = []
    for shape in dict.fromkeys(g.shape for g in groups):
        own = [g for g in groups if g.shape == shape and g.variant in (None, "default")]
        x_words = "training queries" if queries else "share of the training queries"
        unit = queries or 1.0
        budgets: list[float | None] = [(g.budget or FULL) * unit for g in own]
        for title, words, places in (
            ("by data budget", x_words, budgets),
            ("by training time", "seconds", [g.costs["train_seconds"] for g in own]),
        ):
            x = [place for place in places if place is not None]
            if len(x) < len(places) or len({*x}) < 2:
                continue
            panels.append(_panel(f"{shape}, {title}", words, x, own, primary, levels, split))
    return panels


def _panel(
    title: str, words: str, x: list[float], groups: list[Group], primary: str,
    levels: dict[str, float], split: str,
) -> dict[str, Any]:  # fmt: skip
    lines, said = [], []
    for number, strategy in enumerate(STRATEGIES):
        points = sorted((x[i], g) for i, g in enumerate(groups) if g.strategy == strategy)
        if not points:
            continue
        values = [g.mean(primary) for _, g in points]
        spread = np.array([g.spread(primary) or 0.0 for _, g in points])
        xs = np.array([place for place, _ in points])
        lines.append((strategy, figures.Line(xs, np.array(values), strategy, number, spread)))
        said.append(f"{strategy} from {values[0]:.3f} to {values[-1]:.3f}")
    slug = figures.slug(f"trials-{title}")
    label = f"{primary} on {split}" if split else primary
    return {
        "title": title,
        "svg": Markup(figures.progress_panel([ln for _, ln in lines], slug, words, label, levels)),
        "label": f"{title}: {'; '.join(said)}.",
        "lines": [
            {
                "name": name,
                "color": line.color,
                "dash": figures.SVG_DASHES[line.dash],
                "last": line.y[-1],
            }
            for name, line in lines
        ],
    }
