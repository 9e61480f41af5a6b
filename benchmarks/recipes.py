#!/usr/bin/env python3
"""Our default recipe against its parts, the paper's and sentence-transformers'.

    .venv/bin/python -m pip install 'kdscale[bench]'
    .venv/bin/python benchmarks/recipes.py --beir DIR -o benchmarks/results/recipes.parquet

Every variant trains a shape (--shapes) on the same training groups of the same teacher's scores, in
the same order for the same seed, and is measured on the dev split: what is chosen here is never
chosen on test. `--variants` names some of them:

- default, and one thing changed: a loss of the ranker or of the language model left out or added,
  labels added, another start;
- paper: TinyBERT's recipe (arXiv 1909.10351), which arXiv 2007.11088 uses: a random start, hidden,
  embedding and attention terms in both stages, pointwise logits;
- sentence-transformers: CrossEncoderTrainer with MarginMSE, from the very language model that
  default starts from, at each learning rate of --peer-lr (the best is the one that counts).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
from grid import (
    MEASURES,
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
from training_peers import Groups, sentence_transformers, texts_of

from kdscale.config import Config, Shape
from kdscale.data.schema import SCORES as SCORES_SCHEMA
from kdscale.data.shards import read_shards
from kdscale.errors import KdscaleError
from kdscale.evaluation.collection import scoring_device
from kdscale.evaluation.trials import Group, against, group_trials, students, write_trials
from kdscale.experiment.context import SCORES, TEACHER, StepId
from kdscale.progress import Reporter
from kdscale.training.batches import BatchOrder
from kdscale.training.groups import GroupSource, align_scores
from kdscale.training.loop import total_steps

PRIMARY = MEASURES[0]
STRATEGY, LABELS = "lm_distill_ranker_distill", "lm_distill_finetune"
TEACHER_HEADS = 12  # the paper's attention terms ask for as many
WITHOUT = ["ranker.intermediate_losses={}"]
PAPER_TERMS = [
    "lm.init=random",
    "lm.losses={hidden: 1, embedding: 1, attention: 1}",
    "ranker.soft_losses={pointwise_mse: 1}",
    "ranker.intermediate_losses={hidden: 1, embedding: 1, attention: 1}",
]
# fmt: off
VARIANTS: dict[str, list[str]] = {
    "default": [],
    "labels alone": [],
    "no labels": ["ranker.soft_losses={listwise_kl: 1}"],
    "no qkv": WITHOUT,
    "hidden for qkv": ["ranker.intermediate_losses={hidden: 1}"],
    "12 heads": [],
    "12 heads, attention for qkv": ["ranker.intermediate_losses={attention: 1}"],
    "12 heads, + attention": ["ranker.intermediate_losses={qkv: 1, attention: 1}"],
    "12 heads, + attention, in the lm too": [
        "lm.losses={hidden: 1, embedding: 1, qkv: 1, attention: 1}",
        "ranker.intermediate_losses={qkv: 1, attention: 1}",
    ],
    "+ margin_mse": ["ranker.soft_losses={listwise_kl: 1, lce: 1, margin_mse: 1}"],
    "temperature 2": ["ranker.temperature=2"],
    "lr 3e-4": ["ranker.train.lr=3.0e-4"],
    "lr 1.2e-3": ["ranker.train.lr=1.2e-3"],
    "lm: none, SVD start": ["lm.train.max_steps=1"],
    "lm: random start": ["lm.init=random"],
    "lm: no qkv": ["lm.losses={hidden: 1, embedding: 1}"],
    "lm: no hidden": ["lm.losses={embedding: 1, qkv: 1}"],
    "lm: no embedding": ["lm.losses={hidden: 1, qkv: 1}"],
    "negatives of the first 10": ["prepare.depth={train: 10, dev: 50, test: 50}"],
    "negatives of the first 100": ["prepare.depth={train: 100, dev: 50, test: 50}"],
    "no easy negatives": ["prepare.negatives=4", "prepare.easy_negatives=0"],
    "paper": PAPER_TERMS,
    "paper, lr 3e-4": [*PAPER_TERMS, "ranker.train.lr=3.0e-4"],
    "paper, lr 1.2e-3": [*PAPER_TERMS, "ranker.train.lr=1.2e-3"],
}
# fmt: on
# By so much more of the language model's steps, and of the ranker's, than the config has.
LONGER = {
    "half the pairs": (1, 0.5),
    "twice the pairs": (1, 2),
    "4 x the pairs": (1, 4),
    "lm: a quarter of the tokens": (0.25, 1),
    "lm: half the tokens": (0.5, 1),
    "lm: twice the tokens": (2, 1),
    "lm: twice the tokens, 4 x the pairs": (2, 4),
    "lm: 4 x the tokens, 4 x the pairs": (4, 4),
}
PEER = "sentence-transformers"
NAMES = [*VARIANTS, *LONGER, PEER]
Peer = tuple[Cell, float, bool]  # what it stands beside, its learning rate, whether in bf16


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", nargs="+", default=NAMES, metavar="NAME")
    parser.add_argument("--shapes", nargs="+", default=["2l-192"], metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--peer-lr", nargs="+", type=float, default=[5e-4, 1e-3, 2e-3])
    parser.add_argument("--budget", type=float, default=1.0, help="share of the training queries")
    add_settings(parser, split="dev")
    add_time(parser)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.minutes
    for name in args.variants:
        if name not in NAMES:
            parser.error(f"no variant {name!r}; there are: {', '.join(NAMES)}")
    config = partial(make_config, args)
    reporter = Reporter()
    grid = Grid(config([]), args.split, reporter, args.all_queries)
    tables = [
        rows_of(None, name, artifact, grid.measure(name, artifact))
        for name, artifact in (("bm25", None), ("teacher", grid.shared[TEACHER]))
    ]
    settings = VARIANTS | {name: longer(grid.base, *by) for name, by in LONGER.items()}
    cells, peers = [], []
    for seed in args.seeds:
        for shape in shipped_shapes(args.shapes):
            for name in args.variants:
                if name == PEER:
                    cell = Cell(config([]), STRATEGY, shape, args.budget, seed, name)
                    peers += [(cell, lr, args.precision == "bf16") for lr in args.peer_lr]
                else:
                    strategy = LABELS if name == "labels alone" else STRATEGY
                    its = with_heads(shape) if name.startswith(("paper", "12 heads")) else shape
                    cells.append(
                        Cell(config(settings[name]), strategy, its, args.budget, seed, name)
                    )
    ahead(grid, cells, peers, args.processes, until)
    for cell, artifact, values in grid.students(cells, until):
        tables.append(rows_of(cell, f"{cell.strategy}/{cell.shape.name}", artifact, values))
    for cell, lr, bf16 in peers:
        name = f"{PEER}, lr {lr:g}"
        reporter.info(f"{cell.title}, lr {lr:g}")
        is_there = grid.has(cell, StepId("lm", shape=cell.shape.name)) and grid.remembers(
            peer_key(grid, cell, lr, bf16)
        )
        if not grid.in_time(until, is_there):
            continue
        values = peer_values(grid, cell, lr, bf16)
        facts = {n: values.pop(n).item() for n in ("pairs_seen", "seconds")}
        peer = SimpleNamespace(facts=facts, name=None, digest=None)
        tables.append(rows_of(replace(cell, variant=name), PEER, peer, values))
    if args.output:
        write_trials(
            args.output, tables, **machine(), data=args.beir.name, split=args.split,
            depth=grid.base.evaluate.depth, train_queries=grid.train_queries,
            queries=len(grid.collection.qrels), small=args.small, precision=args.precision,
            variants=settings, overrides=args.set,
        )  # fmt: skip
    show(group_trials(pa.concat_tables(tables)), grid.base.evaluate.margin)
    if args.output:
        print(f"written to {args.output}")
    return 0


def with_heads(shape: Shape) -> Shape:
    """The same sizes. Raises KdscaleError for a width that has no so many heads."""
    if shape.hidden % TEACHER_HEADS:
        raise KdscaleError(f"{shape.name}: {TEACHER_HEADS} heads do not divide {shape.hidden}")
    return replace(shape, name=f"{shape.name}-h{TEACHER_HEADS}", heads=TEACHER_HEADS)


def longer(base: Config, tokens: float, pairs: float) -> list[str]:
    """Settings of so many times the tokens of the language model and the pairs of the ranker."""
    steps, epochs = base.lm.train.max_steps * tokens, base.ranker.train.epochs * pairs
    return [f"lm.train.max_steps={round(steps)}", f"ranker.train.epochs={epochs:g}"]


def ahead(grid: Grid, cells: list[Cell], peers: list[Peer], processes: int, until: float) -> None:
    """In several processes; first the teachers' scores and the language models, each once."""
    first = {}
    for cell in [*cells, *(cell for cell, *_ in peers)]:
        texts = repr(cell.config.prepare)
        first.setdefault(texts, (f"scores of {cell.title}", partial(Grid.scores, cell=cell)))
        made_of = repr((cell.shape, cell.config.prepare, cell.config.lm))
        first.setdefault(made_of, (f"lm of {cell.title}", partial(Grid.language_model, cell=cell)))
    then = [(cell.title, partial(train_and_measure, cell=cell)) for cell in cells]
    for cell, lr, bf16 in peers:
        work = partial(peer_values, cell=cell, lr=lr, bf16=bf16)
        then.append((f"{cell.title}, lr {lr:g}", work))
    make_ahead(grid, processes, until, first.values(), then)


def peer_key(grid: Grid, cell: Cell, lr: float, bf16: bool) -> str:
    start = grid.language_model(cell).digest[:16]
    return f"peer-{start}-{lr:g}-{cell.budget:g}-{cell.seed}" + "-bf16" * bf16


def peer_values(grid: Grid, cell: Cell, lr: float, bf16: bool) -> dict[str, np.ndarray]:
    """`train_peer`, once."""
    key = peer_key(grid, cell, lr, bf16)
    return grid.remember(key, lambda: train_peer(grid, cell, lr, bf16))


def train_peer(grid: Grid, cell: Cell, lr: float, bf16: bool) -> dict[str, np.ndarray]:
    """CrossEncoderTrainer on the groups that our loop reads, in its order, from the very language
    model that our student starts from.

    Returns measure -> [queries], and "seconds" and "pairs_seen" of the training.
    """
    ranker = cell.config.ranker
    pairs, scores = grid.dataset.pairs(), read_shards(grid.shared[SCORES].path, SCORES_SCHEMA)
    source = GroupSource(
        grid.dataset, grid.tokens, scores, ranker.group_size,
        round(cell.budget * grid.train_queries), cell.seed,
    )  # fmt: skip
    order = BatchOrder(source.lengths, ranker.train.batch_size, cell.seed)
    steps = total_steps(ranker.train, order.steps_per_epoch)
    groups = Groups(
        source, order, steps, texts_of(grid.dataset, pairs), align_scores(pairs, scores)
    )
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        seconds = sentence_transformers(
            grid.language_model(cell).path, groups, grid.tokens.info["max_length"], lr,
            device=scoring_device(), bf16=bf16, seed=cell.seed, save_to=model,
        )  # fmt: skip
        values = grid.measure_model(PEER, model)
    seen = len(groups) * source.pairs_per_item
    return {**values, "seconds": np.array(seconds), "pairs_seen": np.array(seen)}


def show(groups: list[Group], margin: float) -> None:
    """Means over seeds, and each variant against the default of its shape: paired over queries,
    Holm over the variants of a shape."""
    tests = {}
    defaults = [g for g in students(groups) if g.variant == "default"]
    for base in defaults:
        shapes = (base.shape, f"{base.shape}-h{TEACHER_HEADS}")
        others = [g for g in students(groups) if g.shape in shapes and g is not base]
        tests |= dict(zip(map(id, others), against(others, base, PRIMARY, margin), strict=True))
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("shape")
    table.add_column("variant")
    for title in (*MEASURES, "sd", "Δ to default", "p"):
        table.add_column(title, justify="right")
    for group in groups:
        spread, test = group.spread(PRIMARY), tests.get(id(group))
        table.add_row(
            group.shape or "", group.variant or group.system,
            *(f"{group.mean(m):.3f}" for m in MEASURES),
            "" if spread is None else f"{spread:.3f}",
            f"{test[0].delta:+.3f}" if test else "", f"{test[1]:.2g}" if test else "",
        )  # fmt: skip
    Console(width=110).print(table)


if __name__ == "__main__":
    exit_with(main)
