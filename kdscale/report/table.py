"""The final table for a terminal: a table a split, at most 100 columns wide."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kdscale.config import by_collection
from kdscale.report.evidence import TEACHER, page_order, test_of
from kdscale.report.verdict import pick

WIDTH = 100
MARK = "*"
NONINFERIOR = "≈"


def results_table(
    systems: list[dict[str, Any]], primary: str | dict[str, str], baseline: str
) -> RenderableType:
    """`systems` are the rows of systems.json; the student to take is marked in each split.
    primary: the setting, which may be a mapping.

    The primary measure is always shown, other measures as far as the width allows: the page and
    `kdscale results --format csv` have all of them.
    """
    splits = list(systems[0]["measures"])
    ordered = page_order(systems)
    return Group(
        *(_split_table(ordered, split, by_collection(primary, split), baseline) for split in splits)
    )


def _split_table(
    systems: list[dict[str, Any]], split: str, primary: str, baseline: str
) -> RenderableType:
    best, standing = pick(systems, split, primary)
    columns = _columns(systems, split, primary)
    table = Table(
        title=f"{split}, {len(systems)} systems",
        title_justify="left",
        caption=_caption(split, primary, baseline, systems, standing),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("  system", overflow="fold")
    for title, cells in columns:
        width = max(len(title), *map(len, cells))
        table.add_column(title, justify="right", no_wrap=True, min_width=width)
    for row, system in enumerate(systems):
        taken = best is not None and system["system"] == best["system"]
        mark = MARK if taken and standing != "useless" else " "
        cells = [cells[row] for _, cells in columns]
        style = "bold" if mark == MARK else ""
        table.add_row(*(Text(c) for c in (f"{mark} {system['system']}", *cells)), style=style)
    return table


def _columns(
    systems: list[dict[str, Any]], split: str, primary: str
) -> list[tuple[str, list[str]]]:
    """(title, a cell a system), with as many of the further measures as fit."""

    def column(title: str, value: Any, form: Any) -> tuple[str, list[str]]:
        values = [value(s) for s in systems]
        return title, ["-" if v is None else form(v) for v in values]

    def measure(name: str) -> tuple[str, list[str]]:
        return column(name, lambda s: s["measures"][split][name], "{:.3f}".format)

    def of_test(key: str) -> Any:
        return lambda s: (test_of(s, split, primary) or {}).get(key)

    before = [
        column("params", lambda s: s["parameters"], lambda v: f"{v / 1e6:.1f}M"),
        column("MB", lambda s: s["bytes"], lambda v: f"{v / 1e6:.1f}"),
        measure(primary),
    ]
    after = [
        ("Δ", _differences(systems, split, primary)),
        column("p", of_test("p_holm"), lambda p: "<.001" if p < 0.001 else f"{p:.3f}"),
        column("ms", _median_ms, lambda v: f"{v:,.0f}" if v >= 100 else f"{v:.1f}"),
        column("faster", lambda s: s["speedup"], "{:.1f}x".format),
    ]
    names = max(len(s["system"]) for s in systems) + 2
    others = [measure(m) for m in systems[0]["measures"][split] if m != primary]
    while others and _width(names, before + others + after) > WIDTH:
        others.pop()
    return before + others + after


def _differences(systems: list[dict[str, Any]], split: str, primary: str) -> list[str]:
    """Each system's Δ; behind it the sign of those shown not to be worse, where any is."""
    tests = [test_of(s, split, primary) for s in systems]
    signs = [NONINFERIOR if t and t.get("noninferior") else " " for t in tests]
    if not any(sign.strip() for sign in signs):
        signs = [""] * len(systems)
    cells = [f"{t['delta']:+.3f}" if t else "-" for t in tests]
    return [cell + sign for cell, sign in zip(cells, signs, strict=True)]


def _width(names: int, columns: list[tuple[str, list[str]]]) -> int:
    # Between columns there are two spaces: the padding and the box's divider.
    return names + sum(max(len(t), *map(len, cells)) + 2 for t, cells in columns) + 1


def _median_ms(system: dict[str, Any]) -> float | None:
    return system["latency"]["total_ms"]["median"] if system["latency"] else None


def _caption(
    split: str, primary: str, baseline: str, systems: list[dict[str, Any]], standing: str
) -> str:
    latency = next((s["latency"] for s in systems if s["latency"]), None)
    n = next((t["n"] for s in systems if (t := test_of(s, split, primary))), 0)
    lines = [f"Δ and p: {primary} against {baseline}, {n:,} queries, paired t-test, Holm"]
    margin = next((t["margin"] for s in systems if (t := test_of(s, split, primary))), None)
    if any((test_of(s, split, primary) or {}).get("noninferior") for s in systems):
        lines.append(f"{NONINFERIOR} not measurably worse: loses less than {margin:g}, one-sided")
    elif margin is not None:
        lines.append(f"no system is shown to lose less than {margin:g} (one-sided test)")
    if latency:
        threads = f"{latency['threads']} thread" + ("s" if latency["threads"] != 1 else "")
        lines.append(
            f"ms: median of a query with {latency['candidates']} candidates, {threads}; "
            f"faster: than {'the teacher' if baseline == TEACHER else TEACHER}"
        )
    lines.append(
        {
            "noninferior": f"{MARK} take this one: not measurably worse than {baseline}",
            "level": f"{MARK} take this one: no difference from {baseline} was shown",
            "worse": f"{MARK} the best student; every student is significantly worse",
            "useless": "no student beats BM25",
            "none": "no students",
        }[standing]
    )
    return "\n".join(lines)
