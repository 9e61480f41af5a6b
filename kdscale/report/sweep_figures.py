"""The figures of a sweep's page, drawn as those of `kdscale.report.figures`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator

from kdscale.report.figures import MARKERS, PLACEHOLDERS, STYLE, label_line, plain_ticks, to_svg


@dataclass(frozen=True)
class Point:
    """A recipe on the plane of cost and quality; spread: over its seeds, on either side."""

    name: str
    strategy: str
    x: float
    y: float
    spread: float | None
    on_front: bool


@dataclass(frozen=True)
class Scale:
    """An axis of the parallel coordinates. ticks: (place from 0 to 1, label)."""

    title: str
    ticks: Sequence[tuple[float, str]]


def pareto(
    points: Sequence[Point], x_label: str, y_label: str, levels: dict[str, float],
    width: float, height: float, name: str,
) -> str:  # fmt: skip
    """Quality against cost, the front as a staircase: below and right of it all is worse."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
        for title, y in levels.items():
            color = PLACEHOLDERS["teacher" if title == "teacher" else "muted"]
            axes.axhline(y, color=color, linewidth=1.2, linestyle=(0, (2, 2)))
            label_line(axes, y, f"{'BM25' if title == 'bm25' else title} {y:.3f}")
        front = sorted((p for p in points if p.on_front), key=lambda p: p.x)
        right = max(p.x for p in points) * 1.3
        steps = [*((p.x, p.y) for p in front), (right, front[-1].y)]
        axes.step(
            *zip(*steps, strict=True), where="post", color=PLACEHOLDERS["ink"], linewidth=1,
            alpha=0.6,
        )  # fmt: skip
        for point in points:
            color = PLACEHOLDERS[point.strategy]
            alpha = 1.0 if point.on_front else 0.45
            if point.spread is not None:
                axes.errorbar(
                    point.x, point.y, point.spread, fmt="none", ecolor=color, elinewidth=1.2,
                    capsize=3, alpha=alpha,
                )  # fmt: skip
            axes.plot(
                point.x, point.y, MARKERS[point.strategy], color=color, markersize=8, alpha=alpha,
                markeredgecolor=PLACEHOLDERS["paper"], zorder=3,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlim(min(p.x for p in points) / 1.3, right)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        plain_ticks(axes.xaxis)
        axes.set_xlabel(f"{x_label}, log scale")
        axes.set_ylabel(y_label)
        axes.margins(y=0.12)
        return to_svg(figure, name)


def parallel(
    scales: Sequence[Scale], lines: Sequence[tuple[np.ndarray, str, float]],
    width: float, height: float, name: str,
) -> str:  # fmt: skip
    """Parallel coordinates. lines: ([scales] places from 0 to 1, NaN where an axis does not apply;
    a CSS variable; how opaque)."""
    with plt.rc_context({**STYLE, "axes.grid": False, "axes.spines.left": False}):
        figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
        places = np.arange(len(scales))
        for values, color, alpha in lines:
            known = ~np.isnan(values)
            axes.plot(
                places[known], values[known], color=PLACEHOLDERS[color], linewidth=1.4, alpha=alpha
            )
        for place, scale in zip(places, scales, strict=True):
            axes.axvline(float(place), color=PLACEHOLDERS["muted"], linewidth=1)
            for at, label in scale.ticks:
                axes.annotate(
                    label, (place, at), xytext=(5, 0), textcoords="offset points", va="center",
                    fontsize=9, color=PLACEHOLDERS["ink"],
                    bbox={"boxstyle": "round,pad=0.1", "fc": PLACEHOLDERS["paper"], "ec": "none"},
                )  # fmt: skip
        axes.set_xticks(places, labels=[scale.title for scale in scales])
        axes.set_yticks([])
        axes.spines["bottom"].set_visible(False)
        axes.set_xlim(-0.15, len(scales) - 0.35)
        axes.set_ylim(-0.06, 1.06)
        return to_svg(figure, name)
