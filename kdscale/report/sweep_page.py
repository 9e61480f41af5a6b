"""The page of a sweep: what its trials are worth, at what cost, and what made the difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup

import kdscale
from kdscale.config import STRATEGIES, Evaluate
from kdscale.evaluation.trials import Group, group_trials, students
from kdscale.report import figures, sweep_figures
from kdscale.report.evidence import FIRST_STAGE, TEACHER
from kdscale.report.page import asset, environment
from kdscale.report.sections.trials import show_trials
from kdscale.report.sweep_figures import Point, Scale

COSTS = {  # a column of the table of trials -> what it is called, and by how much it is divided
    "ms": ("ms a query", 1.0),
    "parameters": ("parameters, millions", 1e6),
    "bytes": ("megabytes", 1e6),
    "train_seconds": ("seconds of training", 1.0),
}
AXES = ("strategy", "shape", "budget", "seed")  # of a trial, beside its settings
TICKS = 4  # of an axis of numbers


def render_sweep(table: pa.Table, summary: dict[str, Any]) -> str:
    """The whole page as HTML. summary: of a sweep (`kdscale.sweep.session.Session.state`) with the
    keys metric, name, created, counts, shared and trials.

    A sweep without a finished student has no figures, only what became of its trials.
    """
    groups = group_trials(table)
    metric = summary["metric"]
    recipes = [g for g in students(groups) if metric in g.values]
    trials = [t for t in summary["trials"] if t["status"] == "finished"]
    levels = {g.system: g.mean(metric) for g in groups if g.system in (FIRST_STAGE, TEACHER)}
    evaluate = Evaluate(primary=metric)
    return (
        environment()
        .get_template("sweep.html")
        .render(
            version=kdscale.__version__,
            style=Markup(asset("page.css")),
            summary=summary,
            title="Sweep",
            name=summary["name"],
            script_hash=None,
            strategies=[s for s in STRATEGIES if any(g.strategy == s for g in recipes)],
            evaluate=evaluate,
            counts=summary["counts"],
            best=max(recipes, key=lambda g: g.mean(metric), default=None),
            fronts=_fronts(recipes, metric, levels),
            trials=show_trials(groups, summary, evaluate)
            if recipes and TEACHER in levels
            else None,
            importance=importance(trials),
            parallel=_parallel(trials, metric),
            curves=_curves(summary["trials"], metric),
            rest=[t for t in summary["trials"] if t["status"] != "finished"],
        )
    )


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which (cost, quality) no other point beats: at most its cost, at least its quality, and one
    of them truly."""
    return [
        not any(
            x <= own_x and y >= own_y and (x, y) != (own_x, own_y)
            for x, y in points
        )
        for own_x, own_y in points
    ]  # fmt: skip


def importance(trials: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each thing that differs between trials, the share of the variance of their values that
    it explains alone: eta squared of a one-way analysis of variance. Numbers of a range are taken
    in three parts of like size. The largest first; empty of fewer than three trials.

    On a grid the shares add up to at most one; elsewhere two that vary together share theirs.
    """
    if len(trials) < 3:
        return []
    found = []
    for key in _keys(trials):
        having = [t for t in trials if _value(t, key) is not None]
        values = np.array([t["value"] for t in having], dtype=float)
        total = ((values - values.mean()) ** 2).sum() if len(values) else 0.0
        labels = _levels([_value(t, key) for t in having])
        if len({*labels}) < 2 or len({*labels}) == len(having) or total <= 0:
            continue
        levels: list[dict[str, Any]] = []
        between = 0.0
        for label in dict.fromkeys(labels):
            own = values[[at == label for at in labels]]
            between += len(own) * (own.mean() - values.mean()) ** 2
            levels.append({"label": label, "mean": float(own.mean()), "trials": len(own)})
        levels.sort(key=lambda level: -level["mean"])
        found.append({"key": key, "share": float(between / total), "levels": levels})
    return sorted(found, key=lambda row: -row["share"])


def _keys(trials: Sequence[dict[str, Any]]) -> list[str]:
    """What may differ: the axes, then the settings in the order in which they first stand."""
    settings = dict.fromkeys(key for t in trials for key in t.get("settings") or {})
    return [*AXES, *settings]


def _value(trial: dict[str, Any], key: str) -> Any:
    return trial.get(key) if key in AXES else (trial.get("settings") or {}).get(key)


def _levels(values: list[Any]) -> list[str]:
    """A label a value; numbers of which there are many are divided into three."""
    if len({*map(str, values)}) <= 6 or not all(isinstance(v, int | float) for v in values):
        return [_said(v) for v in values]
    low, high = np.quantile(values, [1 / 3, 2 / 3])
    names = f"up to {low:.3g}", f"{low:.3g} to {high:.3g}", f"above {high:.3g}"
    return [names[int(v > low) + int(v > high)] for v in values]


def _said(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _fronts(groups: list[Group], metric: str, levels: dict[str, float]) -> list[dict[str, Any]]:
    """A figure a cost: quality against it, with the front that no recipe beats."""
    fronts = []
    for cost, (title, unit) in COSTS.items():
        costs = [(g, g.costs[cost]) for g in groups]
        known = [(g, n / unit, g.mean(metric)) for g, n in costs if n]
        if not known:
            continue
        flags = pareto_front([(x, y) for _, x, y in known])
        points = [
            Point(_title(g), g.strategy or "", x, y, g.spread(metric), flag)
            for (g, x, y), flag in zip(known, flags, strict=True)
        ]
        front = sorted((p for p in points if p.on_front), key=lambda p: p.x)
        said = "; ".join(f"{p.name} {p.y:.3f} at {p.x:.3g}" for p in front)
        slug = figures.slug(f"front-{cost}")

        def draw(width: float, height: float, suffix: str) -> Markup:
            return Markup(
                sweep_figures.pareto(
                    points, title, metric, levels, width, height, slug + suffix  # noqa: B023
                )
            )  # fmt: skip

        fronts.append(
            {
                "title": title,
                "front": front,
                "label": f"{metric} against {title}; not beaten: {said}.",
                "wide": draw(8.6, 4.4, ""),
                "narrow": draw(4.0, 4.2, "-narrow"),
            }
        )
    return fronts


def _title(group: Group) -> str:
    more = "" if group.variant in (None, "default") else f", {group.variant}"
    budget = "" if group.budget is None else f", {100 * group.budget:g} %"
    return f"{group.system}{budget}{more}"


def _parallel(trials: Sequence[dict[str, Any]], metric: str) -> dict[str, Any] | None:
    """Every finished trial as a line through what it was made with, to its value."""
    keys = [k for k in _keys(trials) if len({str(_value(t, k)) for t in trials}) > 1]
    if len(trials) < 2 or not keys:
        return None
    columns = [_column(k, [_value(t, k) for t in trials]) for k in keys]
    columns.append(_column(metric, [t["value"] for t in trials]))
    values = np.array([places for _, places in columns]).T
    best = values[:, -1]
    lines = [
        (own, trial["strategy"] if trial["strategy"] in STRATEGIES else "muted", 0.25 + 0.7 * rank)
        for own, trial, rank in sorted(
            zip(values, trials, best, strict=True), key=lambda line: line[2]
        )
    ]
    scales = [scale for scale, _ in columns]
    width = max(8.6, 1.6 * len(scales))
    return {
        "svg": Markup(sweep_figures.parallel(scales, lines, width, 4.6, "parallel")),
        "label": f"Parallel coordinates of {len(trials)} trials over {', '.join(keys)} and "
        f"{metric}; each line is a trial, the better the stronger.",
    }


def _column(title: str, values: list[Any]) -> tuple[Scale, list[float]]:
    """An axis and the place of each value on it; NaN where a trial has none."""
    known = [v for v in values if v is not None]
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in known):
        low, high = min(known), max(known)
        wide = low > 0 and high / low > 20
        turn = math.log if wide else float
        span = (turn(high) - turn(low)) or 1.0
        ends = np.linspace(turn(low), turn(high), TICKS)
        ticks = [
            ((end - turn(low)) / span, f"{math.exp(end) if wide else end:.3g}") for end in ends
        ]
        if low == high:
            ticks = ticks[:1]
        places = [math.nan if v is None else (turn(v) - turn(low)) / span for v in values]
        return Scale(title, ticks), places
    labels = list(dict.fromkeys(_said(v) for v in known))
    if title == "strategy":
        labels.sort(key=lambda s: list(STRATEGIES).index(s) if s in STRATEGIES else len(STRATEGIES))
    at = {label: (i + 0.5) / len(labels) for i, label in enumerate(labels)}
    ticks = [(place, label) for label, place in at.items()]
    return Scale(title, ticks), [math.nan if v is None else at[_said(v)] for v in values]


def _curves(trials: Sequence[dict[str, Any]], metric: str) -> dict[str, Any] | None:
    """What the looks at dev saw while the trials trained."""
    watched = [t for t in trials if len(t.get("curve") or []) > 1]
    if not watched:
        return None
    shapes = list(dict.fromkeys(t["shape"] for t in watched))
    lines = [
        figures.Line(
            looks[:, 0],
            looks[:, 1],
            trial["strategy"] if trial["strategy"] in STRATEGIES else "muted",
            shapes.index(trial["shape"]) % len(figures.DASHES),
        )
        for trial in watched
        for looks in [np.array(trial["curve"], dtype=float)]
    ]
    label = f"{metric} of some dev queries"
    return {
        "svg": Markup(figures.progress_panel(lines, "sweep-curves", "step", label, {}, (8.6, 3.8))),
        "label": f"{label} over the steps of {len(watched)} trials.",
        "shapes": [
            {"name": shape, "dash": figures.SVG_DASHES[i % len(figures.SVG_DASHES)]}
            for i, shape in enumerate(shapes)
        ],
    }
