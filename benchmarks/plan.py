#!/usr/bin/env python3
"""`kdscale plan` against the clock: predicted and measured seconds of every step, on this machine.

    .venv/bin/python benchmarks/plan.py                    # docstrings, some ten minutes, two cores
    .venv/bin/python benchmarks/plan.py --beir DIR -o benchmarks/results/plan.json
    .venv/bin/python benchmarks/plan.py --beir DIR --smoke # a few minutes: does it run at all

Measures the machine as `kdscale plan --calibrate` does, prepares the data (predicted from the
config alone), predicts the other steps from the facts of the data, runs them in an empty store and
prints the ratio of predicted to measured, which is to be within 25 % of one. Run it on an idle
machine: what else runs slows down either side.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path

from grid import exit_with
from rich.console import Console
from rich.table import Table

from kdscale.cluster.machine import cpus
from kdscale.config import Config
from kdscale.data.readers import open_reader
from kdscale.evaluation.latency import hardware
from kdscale.experiment.context import DATASET, TOKENS, StepId
from kdscale.experiment.load import load_config
from kdscale.experiment.run import run_steps
from kdscale.experiment.steps import build_steps
from kdscale.planning.calibrate import calibrate
from kdscale.planning.counts import counts_of
from kdscale.planning.model import CostModel, Machines, Stage
from kdscale.planning.rates import Rates
from kdscale.progress import Reporter
from kdscale.store import Artifact, open_store

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
TARGET = 0.25
DATA = [DATASET, TOKENS]
SMOKE = [
    "prepare.max_queries={train: 400, dev: 50, test: 50}",
    "lm.train.max_steps=10",
    "evaluate.latency_queries=3",
    "ranker.strategies=[finetune, lm_distill_ranker_distill]",
]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--beir", type=Path, metavar="DIR", help="the data; default: docstrings")
    parser.add_argument("--smoke", action="store_true", help="as little as can be run")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="of the config")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    overrides = [*SMOKE, *args.set] if args.smoke else args.set
    if args.beir:
        overrides = [f"source={{type: beir, path: {args.beir.resolve()}}}", *overrides]
    reporter = Reporter()
    open_reader(load_config(CONFIG, overrides).source)  # a wrong path is told at once
    # First, and in this process: Ray is then up, as it is for all steps but the first.
    rates = calibrate(reporter)
    with tempfile.TemporaryDirectory(prefix="kdscale-plan-") as folder:
        config = load_config(CONFIG, [*overrides, f"storage.uri={folder}"])
        rows = measure(config, rates, reporter)
    show(rows)
    if args.output:
        told = {
            "date": str(date.today()),
            "hardware": hardware(),
            "data": args.beir.name if args.beir else "docstrings",
            "smoke": args.smoke,
            "rates": asdict(rates),
            "steps": rows,
        }
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(told, indent=1) + "\n")
        print(f"written to {args.output}")
    return 0


def measure(config: Config, rates: Rates, reporter: Reporter) -> list[dict]:
    """A row a step: predicted and measured seconds and bytes."""
    store = open_store(config.storage.uri)
    predicted = predict(config, rates, {})
    seconds: dict[str, float] = {}
    artifacts: dict[StepId, Artifact] = {}
    ids = list(build_steps(config))
    for wanted in (DATA, [id_ for id_ in ids if id_ not in DATA]):
        if wanted is not DATA:
            later = predict(config, rates, artifacts)
            predicted |= {str(id_): later[str(id_)] for id_ in wanted}
        for outcome in run_steps(config, store, wanted, reporter):
            artifacts[outcome.step.id] = outcome.artifact
            if outcome.status == "done":
                seconds[outcome.step.name] = outcome.seconds
    return [
        {
            "step": name,
            "predicted_s": predicted[name].total,
            "measured_s": seconds[name],
            "ratio": predicted[name].total / seconds[name],
            "predicted_bytes": predicted[name].bytes,
            "measured_bytes": artifacts[id_].bytes,
            "parts": predicted[name].seconds,
        }
        for id_, name in ((id_, str(id_)) for id_ in ids)
    ]


def predict(config: Config, rates: Rates, found: dict[StepId, Artifact]) -> dict[str, Stage]:
    counts = counts_of(config, found, None, None)
    cores = cpus()
    machines = Machines(rates, 1, replace(rates, ray_start=0.0), cores)
    return {stage.name: stage for stage in CostModel(config, counts, machines).stages()}


def show(rows: list[dict]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("step")
    for title in ("predicted s", "measured s", "ratio", "predicted MB", "measured MB"):
        table.add_column(title, justify="right")
    whole = {key: sum(row[key] for row in rows) for key in ("predicted_s", "measured_s")}
    whole |= {key: sum(row[key] for row in rows) for key in ("predicted_bytes", "measured_bytes")}
    whole |= {"step": "all", "ratio": whole["predicted_s"] / whole["measured_s"]}
    for row in [*rows, whole]:
        table.add_row(
            row["step"], f"{row['predicted_s']:.1f}", f"{row['measured_s']:.1f}",
            f"{row['ratio']:.2f}", f"{row['predicted_bytes'] / 1e6:.1f}",
            f"{row['measured_bytes'] / 1e6:.1f}",
        )  # fmt: skip
    Console(width=110).print(table)
    near = sum(abs(row["ratio"] - 1) <= TARGET for row in rows)
    print(f"within {TARGET:.0%}: {near} of {len(rows)} steps; the whole: {whole['ratio']:.2f}")


if __name__ == "__main__":
    exit_with(main)
