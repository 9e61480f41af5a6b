#!/usr/bin/env python3
"""The strategies against each other: strategy x shape x data budget, with repeated seeds.

    .venv/bin/python benchmarks/strategies.py --beir DIR --quick       # under 40 minutes, two cores
    .venv/bin/python benchmarks/strategies.py --beir DIR -o benchmarks/results/strategies.parquet

DIR is a BEIR folder with the splits train, dev and test. One teacher is fine-tuned and scores the
pairs once, a language model is distilled once a shape; every student is measured on the same test
queries. Stopped, it goes on where it was. Written are a row a system, seed and measure with the
values of all queries; printed is the table, each line the mean over its seeds, tested query by
query against the teacher and, for the paper's claims, strategy against strategy.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from grid import MEASURES, Cell, Grid, machine, rows_of
from rich.console import Console
from rich.table import Table

from kdscale.config import STRATEGIES
from kdscale.configload import load_config
from kdscale.evaluation.significance import compare, holm
from kdscale.evaluation.trials import write_trials
from kdscale.progress import Reporter

HERE = Path(__file__).parent
PRIMARY = MEASURES[0]
FULL, BEST = 1.0, "lm_distill_ranker_distill"
# (better, worse): what the paper found.
CLAIMS = [
    (BEST, "lm_distill_finetune"),
    ("lm_distill_finetune", "finetune"),
    (BEST, "ranker_distill"),
]
QUICK = {
    "prepare.max_queries": "{train: 2000, dev: 100, test: 200}",
    "teacher.max_queries": "2000",
    "lm.train.max_steps": "200",
    "evaluate.depth": "30",
}
Values = dict[str, np.ndarray]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--beir", type=Path, required=True, metavar="DIR", help="the data")
    parser.add_argument("--store", type=Path, help="a folder; default outputs/strategies-DATA")
    parser.add_argument("--quick", action="store_true", help="one shape, one seed, fewer queries")
    parser.add_argument("--shapes", nargs="+", default=["2l-192"], metavar="NAME")
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.01, 0.1, 1.0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--split", default="test")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="of the config")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.shapes, args.seeds, args.budgets = args.shapes[:1], args.seeds[:1], [0.1, 1.0]
        args.set = [f"{key}={value}" for key, value in QUICK.items()] + args.set
    store = args.store or Path("outputs", f"strategies-{args.beir.name}" + "-quick" * args.quick)
    base = load_config(
        HERE / "strategies.yaml",
        [f"source.path={args.beir.resolve()}", f"storage.uri={store.resolve()}", *args.set],
    )
    # Shapes are looked up beside the configs that we ship.
    shapes = load_config(
        HERE.parent / "configs" / "quickstart.yaml", [f"students=[{', '.join(args.shapes)}]"]
    ).students
    reporter = Reporter()
    grid = Grid(replace(base, students=[]), args.split, reporter)
    cells = [
        Cell(base, strategy, shape, budget, seed)
        for seed in args.seeds
        for budget in args.budgets
        for shape in shapes
        for strategy in STRATEGIES
    ]
    tables, measured = [], {}
    for name, artifact in (("bm25", None), ("teacher", grid.shared["teacher"])):
        measured[name] = grid.measure(name, artifact)
        tables.append(rows_of(None, name, artifact, measured[name]))
    groups: dict[tuple[str, str, float], list[Values]] = {}
    students = {}
    for number, cell in enumerate(cells, 1):
        name = f"{cell.strategy}/{cell.shape.name}"
        reporter.info(f"student {number} of {len(cells)}: {name}, {cell.budget:.0%}, {cell.seed}")
        artifact = grid.train(cell)
        values = grid.measure(name, artifact)
        tables.append(rows_of(cell, name, artifact, values))
        groups.setdefault((cell.shape.name, cell.strategy, cell.budget), []).append(values)
        students.setdefault(cell.shape.name, artifact)
    latency = grid.latency(students, queries=10, threads=1)
    means = {
        key: {m: np.mean([v[m] for v in of_seeds], axis=0) for m in MEASURES}
        for key, of_seeds in groups.items()
    }
    claims = test_claims(means)
    if args.output:
        write_trials(
            args.output, tables, **machine(), data=args.beir.name, split=args.split,
            quick=args.quick, depth=base.evaluate.depth, train_queries=grid.train_queries,
            queries=len(grid.collection.qrels), latency=latency, claims=claims,
        )  # fmt: skip
    show(measured, groups, means, latency, claims)
    if args.output:
        print(f"written to {args.output}")
    return 0


def test_claims(means: dict[tuple[str, str, float], Values]) -> list[dict]:
    """The paper's order, shape by shape at the full budget; Holm's correction over all of them."""
    found = []
    for shape in dict.fromkeys(shape for shape, _, _ in means):
        for better, worse in CLAIMS:
            pair = [means.get((shape, strategy, FULL)) for strategy in (better, worse)]
            if None in pair:
                continue
            test = compare(pair[0][PRIMARY], pair[1][PRIMARY])
            found.append(
                {"shape": shape, "better": better, "than": worse, "delta": test.delta}
                | {"ci": test.ci, "p": test.p}
            )
    for claim, p in zip(found, holm([c["p"] for c in found]), strict=True):
        claim["p_holm"] = p
    return found


def show(
    measured: dict[str, Values],
    groups: dict[tuple[str, str, float], list[Values]],
    means: dict[tuple[str, str, float], Values],
    latency: dict[str, dict],
    claims: list[dict],
) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("shape", "strategy", "data"):
        table.add_column(title)
    for title in (*MEASURES, "sd", "of teacher", "Δ", "p", "params", "faster"):
        table.add_column(title, justify="right")
    teacher = measured["teacher"][PRIMARY]
    tests = {key: compare(values[PRIMARY], teacher) for key, values in means.items()}
    corrected = dict(zip(tests, holm([t.p for t in tests.values()]), strict=True))
    for name, values in measured.items():
        cost = latency.get(name)
        table.add_row(
            "", name, "", *(f"{values[m].mean():.3f}" for m in MEASURES), "", "", "", "",
            f"{cost['parameters'] / 1e6:.1f}M" if cost else "", "1.0x" if cost else "",
        )  # fmt: skip
    for key, values in means.items():
        shape, strategy, budget = key
        seeds = [v[PRIMARY].mean() for v in groups[key]]
        table.add_row(
            shape, strategy, f"{budget:.0%}",
            *(f"{values[m].mean():.3f}" for m in MEASURES),
            f"{np.std(seeds, ddof=1):.3f}" if len(seeds) > 1 else "",
            f"{values[PRIMARY].mean() / teacher.mean():.1%}",
            f"{tests[key].delta:+.3f}", f"{corrected[key]:.2g}",
            f"{latency[shape]['parameters'] / 1e6:.1f}M", f"{latency[shape]['speedup']:.1f}x",
        )  # fmt: skip
    console = Console(width=120)
    console.print(table)
    for claim in claims:
        console.print(
            f"{claim['shape']}: {claim['better']} over {claim['than']} {claim['delta']:+.3f} "
            f"(95 % {claim['ci'][0]:+.3f} to {claim['ci'][1]:+.3f}, Holm p {claim['p_holm']:.2g})"
        )


if __name__ == "__main__":
    raise SystemExit(main())
