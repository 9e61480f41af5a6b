"""The results of an evaluation as rows, and the rows as a table, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table

from kdscale.errors import KdscaleError
from kdscale.store import open_store
from kdscale.store.artifact import MANIFEST, parse_manifest

EVALUATIONS = "evaluations"
SYSTEMS = "systems.json"


def load_results(uri: str) -> list[dict[str, Any]]:
    """A row a system, from the newest evaluation of a store, or from the evaluation at `uri`.

    A row has: system, strategy, student, parameters, bytes, flops_per_pair; "SPLIT MEASURE" for
    every split and measure; latency_ms and latency_p95_ms (tokenise and forward, a query's
    candidates); speedup (over the teacher); and for every split "SPLIT p" and "SPLIT p_holm", of
    the primary measure against the baseline. None where a value does not apply. Raises
    KdscaleError where there is no evaluation.
    """
    systems, settings = load_systems(uri)
    return [_row(system, settings["primary"]) for system in systems]


def load_systems(uri: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """systems.json of the evaluation that `load_results` takes, and its `evaluate` settings."""
    directory = _find(uri)
    manifest_path = directory / MANIFEST
    manifest = parse_manifest(manifest_path.read_bytes(), str(manifest_path))
    systems = json.loads((directory / SYSTEMS).read_text(encoding="utf-8"))
    return systems, manifest["config"]["evaluate"]


def _find(uri: str) -> Path:
    store = open_store(uri)
    if (store.root / SYSTEMS).is_file() and (store.root / MANIFEST).is_file():
        return store.root
    evaluations = store.list(EVALUATIONS)
    if not evaluations:
        raise KdscaleError(
            f"no evaluation in {store.root}; make one with: kdscale evaluate CONFIG (or give the "
            "folder that storage.uri of the config names)"
        )
    return evaluations[0].path


def _row(system: dict[str, Any], primary: str) -> dict[str, Any]:
    total = (system["latency"] or {}).get("total_ms", {})
    row = {k: system[k] for k in ("system", "strategy", "student", "parameters", "bytes")}
    row["flops_per_pair"] = system["flops_per_pair"]
    for split, measures in system["measures"].items():
        row |= {f"{split} {measure}": value for measure, value in measures.items()}
    row["latency_ms"], row["latency_p95_ms"] = total.get("median"), total.get("p95")
    row["speedup"] = system["speedup"]
    for split in system["measures"]:
        test = system["tests"].get(split, {}).get(primary, {})
        row[f"{split} p"], row[f"{split} p_holm"] = test.get("p"), test.get("p_holm")
    return row


def format_json(rows: list[dict[str, Any]]) -> str:
    return json.dumps(rows, indent=1, ensure_ascii=False)


def format_csv(rows: list[dict[str, Any]]) -> str:
    """With a header line; an empty field where a value does not apply."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().removesuffix("\n")


def format_table(rows: list[dict[str, Any]]) -> Group:
    """For a terminal: a table a split."""
    splits = [c.removesuffix(" p_holm") for c in rows[0] if c.endswith(" p_holm")]
    return Group(*(_split_table(rows, split) for split in splits))


def _split_table(rows: list[dict[str, Any]], split: str) -> _FullWidth:
    measures = [
        c
        for c in rows[0]
        if c.startswith(f"{split} ") and c not in (f"{split} p", f"{split} p_holm")
    ]
    table = Table(title=split, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("system", no_wrap=True)
    columns = [
        ("params", "parameters", lambda v: f"{v / 1e6:.1f} M"),
        ("size", "bytes", lambda v: f"{v / 1e6:.1f} MB"),
        *((m.removeprefix(f"{split} "), m, "{:.3f}".format) for m in measures),
        ("ms", "latency_ms", "{:.1f}".format),
        ("p95", "latency_p95_ms", "{:.1f}".format),
        ("faster", "speedup", "{:.1f}x".format),
        ("p", f"{split} p", _p_value),
        ("Holm p", f"{split} p_holm", _p_value),
    ]
    for title, _, _ in columns:
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["system"], *(_shown(row[key], form) for _, key, form in columns))
    return _FullWidth(table)


class _FullWidth:
    """A table as wide as it needs to be: a narrow terminal, or a pipe, must not cut numbers."""

    def __init__(self, table: Table):
        self._table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        unlimited = options.update(max_width=10_000)
        width = console.measure(self._table, options=unlimited).maximum
        yield from console.render(self._table, options.update(width=width))


def _shown(value: Any, form: Any) -> str:
    return "-" if value is None else form(value)


def _p_value(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"
