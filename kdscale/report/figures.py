"""The figures of the page, as inline SVG whose colours are CSS variables: one drawing serves both
themes. Matplotlib draws in placeholder colours; `to_svg` replaces each by `var(--name)`.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from kdscale.config import STRATEGIES
from kdscale.report.evidence import Curve, Evidence, Paired, baseline_of

matplotlib.use("svg")


SHAPES = 4  # colours of student shapes; a fifth shape has the first one's again
# CSS variable -> the placeholder that matplotlib draws with. page.css gives them values.
PLACEHOLDERS = {
    "ink": "#0a0b01",
    "muted": "#0a0b02",
    "grid": "#0a0b03",
    "paper": "#0a0b04",
    "teacher": "#0a0b05",
    "win": "#0a0b06",
    "loss": "#0a0b07",
    **{f"shape_{i}": f"#0a0d{i:02x}" for i in range(1, SHAPES + 1)},
    **{strategy: f"#0a0c{i:02x}" for i, strategy in enumerate(STRATEGIES, 1)},
}
# A second sign beside the colour, for whoever cannot tell the colours apart.
MARKERS = dict(zip(STRATEGIES, ("s", "o", "^", "D"), strict=True))
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
SVG_DASHES = ("none", "5 2", "2 2", "6 2 2 2")  # of a legend, as DASHES in the figures
MAX_POINTS = 240  # of a line: more cannot be seen, and would make the page heavy

STYLE: dict[Any, Any] = {  # matplotlib has a type for the keys, in some releases
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name with $ in it is no formula
    "font.size": 11,
    "axes.edgecolor": PLACEHOLDERS["muted"],
    "axes.labelcolor": PLACEHOLDERS["ink"],
    "text.color": PLACEHOLDERS["ink"],
    "xtick.color": PLACEHOLDERS["muted"],
    "ytick.color": PLACEHOLDERS["muted"],
    "xtick.labelcolor": PLACEHOLDERS["ink"],
    "ytick.labelcolor": PLACEHOLDERS["ink"],
    "grid.color": PLACEHOLDERS["grid"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True)
class Line:
    """A line of a panel: x and y [points], a CSS variable, the index of a dash; spread: [points],
    half the length of the bars around y."""

    x: np.ndarray
    y: np.ndarray
    color: str
    dash: int
    spread: np.ndarray | None = None


def color_of(system: str, strategy: str | None = None) -> str:
    """The CSS variable of a system: its strategy's, or a neutral one."""
    if strategy in STRATEGIES:
        return strategy
    return "teacher" if system == "teacher" else "muted"


def tradeoff(evidence: Evidence, width: float, height: float, name: str) -> str:
    """Quality against the latency of a query, all systems; width and height in inches.

    Systems that rerank are points, with the 95 % interval of their difference from the baseline
    drawn around them; BM25, which does not rerank, is a line.
    """
    split, primary = evidence.split, evidence.primary
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
        xs = []
        for system in evidence.systems:
            x, y = _latency(system), evidence.value(system)
            color = PLACEHOLDERS[color_of(system["system"], system["strategy"])]
            if x is None:
                axes.axhline(y, color=color, linewidth=1.2, linestyle=(0, (2, 2)))
                label_line(axes, y, f"{_title(system)} {y:.3f}")
                continue
            xs.append(x)
            low, high = _interval(evidence, system)
            if evidence.test(system) is not None:
                axes.plot([x, x], [low, high], color=color, linewidth=1.6, alpha=0.5, zorder=2)
            else:
                axes.axhline(y, color=color, linewidth=1.2, linestyle=(0, (6, 3)), zorder=1)
            marker = MARKERS.get(system["strategy"], "*")
            edge = PLACEHOLDERS["paper"]
            size = 13 if marker == "*" else 8
            axes.plot(x, y, marker, color=color, markersize=size, markeredgecolor=edge, zorder=3)
        _label_shapes(axes, evidence)
        axes.set_xscale("log")
        axes.set_xlim(min(xs) / 1.5, max(xs) * 1.8)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        plain_ticks(axes.xaxis)
        axes.set_xlabel("ms to rerank a query, median, log scale")
        axes.set_ylabel(f"{primary} on {split}")
        axes.margins(y=0.12)
        return to_svg(figure, name)


def curve_panel(lines: list[tuple[Curve, str, int]], name: str) -> str:
    """One loss term over the steps; `lines` holds (curve, CSS variable, index of a dash)."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(3.6, 2.3), layout="constrained")
        values = []
        for curve, color, dash in lines:
            steps, means = _thinned(curve.steps, curve.values)
            values.append(means)
            axes.plot(
                steps, means, color=PLACEHOLDERS[color], linewidth=1.6, linestyle=DASHES[dash]
            )
        flat = np.concatenate(values)
        if flat.min() > 0 and flat.max() > 30 * flat.min():
            axes.set_yscale("log")
            plain_ticks(axes.yaxis)
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.set_ylim(min(0.0, 1.08 * float(flat.min())), max(0.0, 1.08 * float(flat.max())))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_xlabel("step")
        return to_svg(figure, name)


def progress_panel(
    lines: list[Line],
    name: str,
    x_label: str,
    y_label: str,
    levels: Mapping[str, float],
    size: tuple[float, float] = (3.6, 2.5),
) -> str:
    """How something went on; `levels` (system -> y) are drawn across, for comparison. size: width
    and height in inches."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        for system, level in levels.items():
            color = PLACEHOLDERS[color_of(system)]
            axes.axhline(level, color=color, linewidth=1.2, linestyle=(0, (2, 2)))
            label_line(axes, level, f"{_title({'system': system})} {level:.3f}")
        for line in lines:
            x, y = _thinned(line.x, line.y)
            color, dash = PLACEHOLDERS[line.color], DASHES[line.dash]
            axes.plot(x, y, color=color, linewidth=1.6, linestyle=dash, marker=".", markersize=4)
            if line.spread is not None:
                axes.errorbar(
                    line.x, line.y, line.spread, fmt="none", ecolor=color, elinewidth=1, capsize=2
                )
        if min(line.y.min() for line in lines) < 0:
            axes.axhline(0, color=PLACEHOLDERS["ink"], linewidth=0.8)
        later = np.concatenate([line.x for line in lines])
        later = later[later > 0]
        if len(later) and later.max() > 30 * later.min():
            axes.set_xscale("log", nonpositive="mask")  # without the start
            plain_ticks(axes.xaxis)
            x_label += ", log scale"
        else:
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        return to_svg(figure, name)


def delta_panel(paired: Paired, limit: float, name: str, primary: str) -> str:
    """The differences of one student, sorted, a query a place; `limit` is half the y range."""
    ordered = np.sort(paired.delta)[::-1]
    x = np.arange(1, len(ordered) + 1)
    if len(ordered) > MAX_POINTS:
        keep = np.unique(np.linspace(0, len(ordered) - 1, MAX_POINTS).round().astype(int))
        x, ordered = x[keep], ordered[keep]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(3.6, 2.3), layout="constrained")
        for sign, color in ((1, "win"), (-1, "loss")):
            part = np.where(ordered * sign > 0, ordered, 0.0)
            axes.fill_between(
                x, part, step="mid", color=PLACEHOLDERS[color], linewidth=0.4, zorder=2
            )
        axes.axhline(0, color=PLACEHOLDERS["ink"], linewidth=0.8)
        mean = paired.delta.mean()
        axes.axhline(mean, color=PLACEHOLDERS["ink"], linewidth=1.2, linestyle=(0, (2, 2)))
        axes.set_ylim(-limit, limit)
        axes.set_xlim(0.5, max(1.5, len(paired.delta) + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_xlabel("queries, most won to most lost")
        axes.set_ylabel(f"Δ {primary}")
        return to_svg(figure, name)


def depth_lines(
    lines: list[tuple[str, list[int], list[float], dict[str, Any]]],
    width: float,
    height: float,
    name: str,
) -> str:
    """A measure against the reranking depth, a line a system: (label of y, depths, values, its
    system, color and dash)."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
        for label, depths, values, line in lines:
            marker = MARKERS.get(line["system"]["strategy"], "*")
            axes.plot(
                depths, values, marker, color=PLACEHOLDERS[line["color"]], markersize=6,
                linestyle=DASHES[line["dash"]], linewidth=1.6, zorder=3,
            )  # fmt: skip
            axes.set_ylabel(label)
        axes.set_xscale("log")
        axes.set_xticks(depths, labels=[f"{depth:,}" for depth in depths])
        axes.minorticks_off()
        axes.margins(y=0.12)
        axes.set_xlabel("candidates reranked, log scale")
        return to_svg(figure, name)


def plain_ticks(axis: Axis) -> None:
    """Numbers on a logarithmic axis: matplotlib's own are formulas, which are not parsed here."""
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def tradeoff_label(evidence: Evidence) -> str:
    """What the first figure shows, for a screen reader."""
    split, primary = evidence.split, evidence.primary
    parts = []
    for system in evidence.systems:
        x = _latency(system)
        time = f"{x:.1f} ms a query" if x is not None else "no reranking"
        parts.append(f"{system['system']}: {evidence.value(system):.3f}, {time}")
    return (
        f"Scatter plot of {primary} on {split} against reranking time, compared with "
        f"{baseline_of(evidence.settings.evaluate)}. " + "; ".join(parts)
    )


def slug(text: str) -> str:
    """An HTML id of plain characters; a hash keeps two texts of like letters apart."""
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower())
    return f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _latency(system: dict[str, Any]) -> float | None:
    latency = system.get("latency")
    median = latency["total_ms"]["median"] if latency else None
    return median if median else None


def _interval(evidence: Evidence, system: dict[str, Any]) -> tuple[float, float]:
    """The 95 % interval of the difference from the baseline, around the system's own value."""
    test, value = evidence.test(system), evidence.value(system)
    if test is None or test["ci"] is None:
        return value, value
    low, high = (bound - test["delta"] for bound in test["ci"])
    return value + low, value + high


def _title(system: dict[str, Any]) -> str:
    return "BM25" if system["system"] == "bm25" else system["system"]


def label_line(axes: Axes, y: float, text: str) -> None:
    axes.annotate(
        text, (0.99, y), xycoords=("axes fraction", "data"), xytext=(0, 3), ha="right",
        textcoords="offset points", color=PLACEHOLDERS["muted"], fontsize=10,
    )  # fmt: skip


def _label_shapes(axes: Axes, evidence: Evidence) -> None:
    """A shape's name once, over the highest of its points; the teacher's over its own."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for system in evidence.systems:
        x = _latency(system)
        if x is None:
            continue
        group = system["student"] or system["system"]
        groups.setdefault(group, []).append((x, _interval(evidence, system)[1]))
    for name, points in groups.items():
        x = float(np.exp(np.mean([np.log(p[0]) for p in points])))
        axes.annotate(
            name, (x, max(p[1] for p in points)), xytext=(0, 7), textcoords="offset points",
            ha="center", fontsize=11, fontweight="bold",
        )  # fmt: skip


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of equal runs of points, at most MAX_POINTS of them."""
    if len(steps) <= MAX_POINTS:
        return steps, values
    bins = np.array_split(np.arange(len(steps)), MAX_POINTS)
    return np.array([steps[b].mean() for b in bins]), np.array([values[b].mean() for b in bins])


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element whose ids start with `name`."""
    buffer = io.StringIO()
    with plt.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)([^")]+)', rf"\1{name}-\2", svg)
    for variable, placeholder in PLACEHOLDERS.items():
        svg = svg.replace(placeholder, f"var(--{variable.replace('_', '-')})")
    view = re.search(r'viewBox="[^"]+"', svg)
    assert view is not None  # matplotlib writes one
    # The figure around it names the picture for a screen reader.
    return re.sub(r"<svg[^>]*>", f'<svg {view[0]} aria-hidden="true">', svg, count=1)
