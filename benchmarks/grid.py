"""What the benchmarks of quality share: students of many settings over one teacher, each measured
once.

A cell is a config whose students differ from another's; dataset, teacher, scores and language
models are artifacts of one store and so are made once. What a student is worth is kept beside the
store by the student's digest, so that a stopped benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console

from kdscale.cluster.machine import cpus
from kdscale.config import STRATEGIES, Config, Shape, Train
from kdscale.data.dataset import Dataset, Tokens
from kdscale.errors import KdscaleError
from kdscale.evaluation.collection import Collection, count_pairs, score_queries, scoring_device
from kdscale.evaluation.latency import (
    count_parameters,
    forward_flops,
    hardware,
    measure_latency,
    speedup,
    weight_bytes,
)
from kdscale.evaluation.measures import parse_measures
from kdscale.evaluation.trials import trial_rows
from kdscale.experiment.context import DATASET, SCORES, TEACHER, TOKENS, StepId
from kdscale.experiment.load import load_config
from kdscale.experiment.run import run_steps
from kdscale.models.ranker import Scorer, load_ranker
from kdscale.progress import Reporter
from kdscale.store import Artifact, open_store

MEASURES = ("nDCG@10", "RR@10", "AP")
HERE = Path(__file__).parent
WITH_LM = tuple(name for name, strategy in STRATEGIES.items() if strategy.from_lm)


@dataclass(frozen=True)
class Cell:
    """A student to be trained: how it is named in the results, and the config that makes it."""

    config: Config
    strategy: str
    shape: Shape
    budget: float  # share of the training queries
    seed: int
    variant: str = "default"  # of the recipe

    @property
    def title(self) -> str:
        return (
            f"{self.strategy}/{self.shape.name}, {self.variant}, {self.budget:.0%} of the queries, "
            f"seed {self.seed}"
        )


class Grid:
    """Cells of one store, trained and measured on one split of one dataset."""

    def __init__(self, base: Config, split: str, reporter: Reporter, all_queries: bool = False):
        """all_queries: measured on all queries of the split, not on those that the config takes."""
        self.base, self.split, self.reporter = base, split, reporter
        self.all_queries = all_queries
        self.store = open_store(base.storage.uri)
        self._memory = Path(base.storage.uri) / ".measured"
        self._memory.mkdir(parents=True, exist_ok=True)
        self.shared = self._make(base, [DATASET, TOKENS, TEACHER, SCORES])
        self.dataset = Dataset(self.shared[DATASET].path)
        self.tokens = Tokens(self.shared[TOKENS].path)
        self.collection = self._collection()
        self.train_queries = self.dataset.queries("train").num_rows

    def _collection(self) -> Collection:
        if not self.all_queries:
            return Collection(self.dataset, self.tokens, self.split, self.base.evaluate.depth)
        # Nothing is trained on it: one training query will do.
        prepare = replace(self.base.prepare, max_queries={"train": 1})
        made = self._make(replace(self.base, prepare=prepare), [TOKENS])
        dataset, tokens = Dataset(made[DATASET].path), Tokens(made[TOKENS].path)
        return Collection(dataset, tokens, self.split, self.base.evaluate.depth)

    def train(self, cell: Cell) -> Artifact:
        """The cell's student, trained now or found in the store."""
        step = _student(cell)
        return self._make(self._config(cell), [step])[step]

    def students(
        self, cells: list[Cell], until: float
    ) -> Iterator[tuple[Cell, Artifact, dict[str, np.ndarray]]]:
        """Each cell with its student and what that is worth; one that would have to be trained
        after `until` is left out."""
        for number, cell in enumerate(cells, 1):
            self.reporter.info(f"student {number} of {len(cells)}: {cell.title}")
            if self.in_time(until, self.has(cell, _student(cell))):
                artifact = self.train(cell)
                yield cell, artifact, self.measure(f"{cell.strategy}/{cell.shape.name}", artifact)

    def in_time(self, until: float, is_there: bool) -> bool:
        """Whether it is there, or may still be begun; says so where it is left out."""
        if is_there or time.monotonic() <= until:
            return True
        self.reporter.warn("left out: the time is up")
        return False

    def has(self, cell: Cell, step: StepId) -> bool:
        """Whether a step of the cell is there already."""
        steps = run_steps(self._config(cell), self.store, [step], self.reporter, dry_run=True)
        return steps[-1].artifact is not None

    def language_model(self, cell: Cell) -> Artifact:
        """What the cell's student starts from, for a strategy that distils it."""
        step = StepId("lm", shape=cell.shape.name)
        return self._make(self._config(cell), [step])[step]

    def scores(self, cell: Cell) -> Artifact:
        """Those of the cell's teacher, of its own dataset where its config changes that."""
        return self._make(self._config(cell), [SCORES])[SCORES]

    def _config(self, cell: Cell) -> Config:
        train = cell.config.ranker.train
        queries = max(1, round(cell.budget * self.train_queries))
        least = least_steps(self.train_queries, train)
        if train.max_steps is None and queries * train.epochs < least * train.batch_size:
            train = replace(train, max_steps=least)
        ranker = replace(
            cell.config.ranker,
            strategies=[cell.strategy],
            max_queries=queries,
            seed=cell.seed,
            train=train,
        )
        return replace(cell.config, students=[cell.shape], ranker=ranker)

    def measure(self, name: str, artifact: Artifact | None) -> dict[str, np.ndarray]:
        """measure -> [queries]; artifact None: the candidates as they come (BM25)."""
        key = artifact.digest[:16] if artifact else "bm25"
        return self.remember(key, lambda: self.measure_model(name, artifact and artifact.path))

    def remembers(self, key: str) -> bool:
        return self._place(key).is_file()

    def remember(
        self, key: str, make: Callable[[], dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """What `make` gave for this key, these queries and this depth."""
        path = self._place(key)
        if not path.is_file():
            part = path.with_name(f"{os.getpid()}.npz")
            np.savez(part, **make())
            part.replace(path)
        return dict(np.load(path))

    def _place(self, key: str) -> Path:
        settings = [self.split, self.base.evaluate.depth, len(self.collection.qrels)]
        return self._memory / f"{'-'.join(map(str, [key, *settings]))}.npz"

    def measure_model(self, name: str, model: Path | None) -> dict[str, np.ndarray]:
        """The same for a model's folder, measured anew."""
        if model is None:
            scored = self.collection.found()
        else:
            scorer = Scorer(load_ranker(model), self.tokens.encoder(), device=scoring_device())
            scored = score_queries(scorer, self.collection.token_pairs())
        with self.reporter.task(f"{name} on {self.split}", self.collection.pairs) as task:
            return self.collection.values(parse_measures(MEASURES), count_pairs(scored, task))

    def latency(self, students: dict[str, Artifact], queries: int, threads: int) -> dict[str, dict]:
        """Per name (and "teacher"): parameters, FLOPs a pair, median milliseconds a query of the
        collection's depth, and how many times faster than the teacher."""
        artifacts = {"teacher": self.shared[TEACHER], **students}
        models = {name: load_ranker(a.path) for name, a in artifacts.items()}
        encoder = self.tokens.encoder()
        requests = self.collection.requests(queries)
        with self.reporter.task("latency", len(requests) * len(models)) as task:
            timings = measure_latency(
                {name: (model, encoder) for name, model in models.items()}, requests, threads, task
            )
        slow = timings["teacher"].total_ms
        return {
            name: {
                "parameters": count_parameters(model)[0],
                "bytes": weight_bytes(artifacts[name].path),
                "flops_per_pair": forward_flops(model, encoder.max_length),
                "candidates": len(requests[0][1]),
                "threads": threads,
                "ms": float(np.median(timings[name].total_ms)),
                "speedup": speedup(slow, timings[name].total_ms),
            }
            for name, model in models.items()
        }

    def _make(self, config: Config, wanted: list[StepId]) -> dict[StepId, Artifact]:
        outcomes = run_steps(config, self.store, wanted, self.reporter)
        return {o.step.id: o.artifact for o in outcomes}


def least_steps(train_queries: int, train: Train) -> int:
    """A student of a small budget reads its queries again and again, as its user would let it: at
    least for three tenths of the steps that all queries, or 8,000, would take once."""
    return round(0.3 * min(train_queries, 8_000) / train.batch_size)


def _student(cell: Cell) -> StepId:
    return StepId("student", STRATEGIES[cell.strategy], cell.shape.name)


Work = Callable[[Grid], Any]  # picklable: a method of Grid or a function, or a partial of one


def train_and_measure(grid: Grid, cell: Cell) -> None:
    grid.measure(f"{cell.strategy}/{cell.shape.name}", grid.train(cell))


def make_ahead(
    grid: Grid,
    processes: int,
    until: float,
    first: Iterable[tuple[str, Work]],
    then: Iterable[tuple[str, Work]],
) -> None:
    """What a benchmark is about to ask of its grid, made by several processes: it then finds it.

    first, then: (name, work); `then` begins when all of `first` is done. processes: 1: nothing is
    made ahead. until: no work is begun after this `time.monotonic()`.
    """
    if processes == 1:
        return
    # One thread each where there are as many as CPUs, so that none waits for another's.
    threads = max(1, cpus() // processes)
    settings = (grid.base, grid.split, grid.all_queries, threads)
    with ProcessPoolExecutor(processes, get_context("spawn"), _start, settings) as pool:
        for works in (first, then):
            futures = {pool.submit(_run, work, until): name for name, work in works}
            for number, future in enumerate(as_completed(futures), 1):
                name, error = futures[future], future.exception()
                if error is not None:  # whoever asks the grid for it meets the error again
                    grid.reporter.warn(f"{name}: {type(error).__name__}: {error}")
                elif future.result():
                    grid.reporter.info(f"{number} of {len(futures)}: {name}")


_grid: Grid | None = None  # of a process of `make_ahead`


def _start(base: Config, split: str, all_queries: bool, threads: int) -> None:
    global _grid
    torch.set_num_threads(threads)
    _grid = Grid(base, split, Reporter(Console(quiet=True)), all_queries)


def _run(work: Work, until: float) -> bool:
    if time.monotonic() > until:
        return False
    work(_grid)
    return True


def rows_of(
    cell: Cell | None,
    system: str,
    artifact: Artifact | None,
    values: dict[str, np.ndarray],
    costs: dict[str, Any] | None = None,
) -> pa.Table:
    """The results of one system: a row a measure. costs: of its shape, as `Grid.latency`."""
    facts: dict[str, Any] = artifact.facts if artifact else {}
    fields: dict[str, Any] = {
        "pairs_seen": facts.get("pairs_seen"),
        "train_seconds": facts.get("seconds"),
        "artifact": artifact and artifact.name,
        "digest": artifact and artifact.digest,
        **{name: (costs or {}).get(name) for name in ("parameters", "bytes", "ms", "speedup")},
    }
    if cell is not None:
        fields |= {
            "strategy": cell.strategy,
            "shape": cell.shape.name,
            "variant": cell.variant,
            "budget": cell.budget,
            "seed": cell.seed,
        }
    return trial_rows(values, system=system, **fields)


def add_settings(parser: argparse.ArgumentParser, split: str) -> None:
    """The options of the data and of the config, which `make_config` reads."""
    parser.add_argument("--beir", type=Path, required=True, metavar="DIR", help="the data")
    parser.add_argument("--store", type=Path, help="a folder; default outputs/strategies-DATA")
    parser.add_argument("--split", default=split)
    parser.add_argument(
        "--all-queries", action="store_true", help="of the split, not those that the config takes"
    )
    parser.add_argument("--small", action="store_true", help="strategies-small.yaml: two cores")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="of training and scoring; bf16 for a CPU with matrix units for it (kdscale doctor)",
    )
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="of the config")


def make_config(args: argparse.Namespace, overrides: list[str]) -> Config:
    """What is measured is measured in fp32, whatever the precision of training and scoring."""
    name = "strategies-small" if args.small else "strategies"
    stages = ("teacher.train", "score", "lm.train", "ranker.train")
    store = args.store or Path("outputs", f"{name}-{args.beir.name}")
    settings = [
        f"source.path={args.beir.resolve()}",
        f"storage.uri={store.resolve()}",
        *(f"{stage}.precision={args.precision}" for stage in stages),
        *args.set,
    ]
    return load_config(HERE / f"{name}.yaml", [*settings, *overrides])


def shipped_shapes(names: list[str]) -> list[Shape]:
    """Those of configs/students."""
    config = HERE.parent / "configs" / "quickstart.yaml"
    fit_all = "lm.relation_heads=1"  # the shapes are not this config's own
    return load_config(config, [f"students=[{', '.join(names)}]", fit_all]).students


def add_time(parser: argparse.ArgumentParser) -> None:
    """The options --processes and --minutes."""
    parser.add_argument(
        "--processes", type=int, default=1, help="that train and measure students side by side"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=float("inf"),
        help="begin no student after so many; the results are of those that are there",
    )


def exit_with(main: Callable[[], int]) -> NoReturn:
    """Run it, and end with its status; a user's mistake is one line and status 1."""
    try:
        status = main()
    except KdscaleError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    sys.exit(status)


def machine() -> dict[str, Any]:
    """Of what a figure was measured on."""
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {"hardware": {**hardware(), **gpu}, "threads": torch.get_num_threads()}
