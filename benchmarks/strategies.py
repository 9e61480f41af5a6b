#!/usr/bin/env python3
"""The strategies against each other: strategy x shape x data budget, with repeated seeds.

    .venv/bin/python benchmarks/strategies.py --beir DIR --quick
    .venv/bin/python benchmarks/strategies.py --beir DIR -o benchmarks/results/strategies.parquet

DIR is a BEIR folder with the splits train, dev and test. One teacher is fine-tuned and scores the
pairs once, a language model is distilled once a shape; every student is measured on the same test
queries. Stopped, it goes on where it was. Written are a row a system, seed and measure with the
values of all queries; printed is the table, each line the mean over its seeds, tested query by
query against the teacher and, for the paper's claims, strategy against strategy.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from grid import (
    MEASURES,
    WITH_LM,
    Cell,
    Grid,
    add_settings,
    add_time,
    exit_with,
    machine,
    make_ahead,
    make_config,
    rows_of,
    shipped_shapes,
    train_and_measure,
)
from rich.console import Console
from rich.table import Table

from kdscale.config import STRATEGIES
from kdscale.evaluation.trials import (
    Group,
    against,
    claims_of_paper,
    group_trials,
    students,
    write_trials,
)
from kdscale.experiment.context import TEACHER
from kdscale.progress import Reporter
from kdscale.store import Artifact

PRIMARY = MEASURES[0]
QUICK = {
    "prepare.max_queries": "{train: 2000, dev: 100, test: 200}",
    "prepare.depth": "{train: 30, dev: 30, test: 30}",
    "lm.train.max_steps": "200",
    "evaluate.depth": "30",
}
Values = dict[str, np.ndarray]  # measure -> [queries]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one shape, one seed, fewer queries")
    parser.add_argument("--shapes", nargs="+", default=["2l-192"], metavar="NAME")
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.01, 0.1, 1.0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--latency-queries", type=int, default=10, metavar="N")
    add_settings(parser, split="test")
    add_time(parser)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.minutes
    if args.quick:
        args.shapes, args.seeds, args.budgets = args.shapes[:1], args.seeds[:1], [0.1, 1.0]
        args.set = [f"{key}={value}" for key, value in QUICK.items()] + args.set
        args.store = args.store or Path("outputs", f"strategies-{args.beir.name}-quick")
    base = make_config(args, [])
    shapes = shipped_shapes(args.shapes)
    reporter = Reporter()
    grid = Grid(replace(base, students=[]), args.split, reporter, args.all_queries)
    cells = [
        Cell(base, strategy, shape, budget, seed)
        for seed in args.seeds
        for budget in args.budgets
        for shape in shapes
        for strategy in STRATEGIES
    ]
    found: list[tuple[Cell | None, str, Artifact | None, Values]] = []
    for name, artifact in (("bm25", None), ("teacher", grid.shared[TEACHER])):
        found.append((None, name, artifact, grid.measure(name, artifact)))
    ahead(grid, cells, args.processes, until)
    shaped = {}
    for cell, artifact, values in grid.students(cells, until):
        found.append((cell, f"{cell.strategy}/{cell.shape.name}", artifact, values))
        shaped.setdefault(cell.shape.name, artifact)
    costs = grid.latency(shaped, queries=args.latency_queries, threads=1)
    tables = [
        rows_of(*row, costs=costs.get(row[0].shape.name if row[0] else row[1])) for row in found
    ]
    about = {
        **machine(), "data": args.beir.name, "split": args.split, "quick": args.quick,
        "depth": base.evaluate.depth, "train_queries": grid.train_queries,
        "queries": len(grid.collection.qrels), "small": args.small, "precision": args.precision,
        "overrides": args.set,
        "latency": {name: costs["teacher"][name] for name in ("candidates", "threads")},
    }  # fmt: skip
    if args.output:
        write_trials(args.output, tables, **about)
    show(group_trials(pa.concat_tables(tables)), base.evaluate.margin)
    if args.output:
        print(f"written to {args.output}")
    return 0


def ahead(grid: Grid, cells: list[Cell], processes: int, until: float) -> None:
    """Students in several processes: first the language models and the students that need none."""
    shapes = {cell.shape.name: cell for cell in cells if cell.strategy in WITH_LM}
    models = [
        (f"lm/{name}", partial(Grid.language_model, cell=cell)) for name, cell in shapes.items()
    ]
    rest = {True: [], False: []}
    for cell in cells:
        rest[cell.strategy in WITH_LM].append((cell.title, partial(train_and_measure, cell=cell)))
    make_ahead(grid, processes, until, [*models, *rest[False]], rest[True])


def show(groups: list[Group], margin: float) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("shape", "strategy", "data"):
        table.add_column(title)
    for title in (*MEASURES, "sd", "of teacher", "Δ", "p", "not worse p", "params", "faster"):
        table.add_column(title, justify="right")
    teacher = next(g for g in groups if g.system == "teacher")
    rows = students(groups)
    tests = against(rows, teacher, PRIMARY, margin)
    for group in (g for g in groups if g not in rows):
        size = group.costs["parameters"]
        table.add_row(
            "", group.system, "", *(f"{group.mean(m):.3f}" for m in MEASURES), "", "", "", "", "",
            f"{size / 1e6:.1f}M" if size else "", "1.0x" if size else "",
        )  # fmt: skip
    for group, (test, p, kept_p) in zip(rows, tests, strict=True):
        spread = group.spread(PRIMARY)
        table.add_row(
            group.shape, group.strategy, f"{group.budget:.0%}",
            *(f"{group.mean(m):.3f}" for m in MEASURES),
            "" if spread is None else f"{spread:.3f}",
            f"{group.mean(PRIMARY) / teacher.mean(PRIMARY):.1%}",
            f"{test.delta:+.3f}", f"{p:.2g}", f"{kept_p:.2g}",
            f"{group.costs['parameters'] / 1e6:.1f}M", f"{group.costs['speedup']:.1f}x",
        )  # fmt: skip
    console = Console(width=140)
    console.print(table)
    for claim in claims_of_paper(groups, PRIMARY):
        low, high = claim.test.ci
        console.print(
            f"{claim.shape}: {claim.better} over {claim.worse} {claim.test.delta:+.3f} "
            f"(95 % {low:+.3f} to {high:+.3f}, Holm p {claim.p_holm:.2g})"
        )


if __name__ == "__main__":
    exit_with(main)
