#!/usr/bin/env python3
"""Our default recipe against its parts, the paper's and sentence-transformers': one student shape.

    .venv/bin/python -m pip install 'kdscale[bench]'
    .venv/bin/python benchmarks/recipes.py --beir DIR -o benchmarks/results/recipes.parquet

Every variant trains the same shape on the same training groups of the same teacher's scores, in the
same order for the same seed, and is measured on the dev split: what is chosen here is never chosen
on test. `--variants` names some of them:

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
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
from grid import MEASURES, Cell, Grid, add_settings, exit_with, machine, rows_of, settings_of
from rich.console import Console
from rich.table import Table
from training_peers import Groups, sentence_transformers, texts_of

from kdscale.config import Config, Shape
from kdscale.configload import load_config
from kdscale.data.batches import BatchOrder
from kdscale.data.groups import GroupSource, align_scores
from kdscale.data.schema import SCORES
from kdscale.data.shards import read_shards
from kdscale.evaluation.trial_groups import Group, against, group_trials, students
from kdscale.evaluation.trials import write_trials
from kdscale.progress import Reporter
from kdscale.training.loop import total_steps

HERE = Path(__file__).parent
PRIMARY = MEASURES[0]
STRATEGY, LABELS = "lm_distill_ranker_distill", "lm_distill_finetune"
SHAPE = Shape("2l-192", 2, 192, 6, 768)
# The same sizes; as many heads as the teacher, since the paper's attention terms ask for it.
PAPER_SHAPE = Shape("2l-192-h12", 2, 192, 12, 768)
WITHOUT = ["ranker.intermediate_losses={}"]
# fmt: off
VARIANTS: dict[str, list[str]] = {
    "default": [],
    "labels alone": [],
    "no labels": ["ranker.soft_losses={listwise_kl: 1}"],
    "+ margin_mse": ["ranker.soft_losses={listwise_kl: 1, lce: 1, margin_mse: 1}"],
    "temperature 2": ["ranker.temperature=2"],
    "2 epochs": ["ranker.train.epochs=2"],
    "hidden for qkv": ["ranker.intermediate_losses={hidden: 1}"],
    "no qkv": [*WITHOUT],
    "no qkv, lr 3e-4": [*WITHOUT, "ranker.train.lr=3.0e-4"],
    "no qkv, no labels": [*WITHOUT, "ranker.soft_losses={listwise_kl: 1}"],
    "no qkv, no labels, lr 3e-4": [
        *WITHOUT, "ranker.soft_losses={listwise_kl: 1}", "ranker.train.lr=3.0e-4",
    ],
    "no qkv, no labels, lr 3e-4, 2 epochs": [
        *WITHOUT, "ranker.soft_losses={listwise_kl: 1}", "ranker.train.lr=3.0e-4",
        "ranker.train.epochs=2",
    ],
    "lm: half the tokens": ["lm.train.max_steps=200"],
    "lm: twice the tokens": ["lm.train.max_steps=800"],
    "lm: 4 x the tokens": ["lm.train.max_steps=1600"],
    "lm: 4 x the tokens, 4 epochs": ["lm.train.max_steps=1600", "ranker.train.epochs=4"],
    "lm: none, SVD start": ["lm.train.max_steps=1"],
    "lm: random start": ["lm.init=random"],
    "lm: no qkv": ["lm.losses={hidden: 1, embedding: 1}"],
    "lm: no hidden": ["lm.losses={embedding: 1, qkv: 1}"],
    "lm: no embedding": ["lm.losses={hidden: 1, qkv: 1}"],
    "paper": [
        "lm.init=random",
        "lm.losses={hidden: 1, embedding: 1, attention: 1}",
        "ranker.soft_losses={pointwise_mse: 1}",
        "ranker.intermediate_losses={hidden: 1, embedding: 1, attention: 1}",
    ],
}
# fmt: on
PEER = "sentence-transformers"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--beir", type=Path, required=True, metavar="DIR", help="the data")
    parser.add_argument("--store", type=Path, help="a folder; default outputs/strategies-DATA")
    parser.add_argument("--variants", nargs="+", default=[*VARIANTS, PEER], metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--peer-lr", nargs="+", type=float, default=[5e-4, 1e-4])
    parser.add_argument("--budget", type=float, default=1.0, help="share of the training queries")
    parser.add_argument("--split", default="dev")
    add_settings(parser)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    for name in args.variants:
        if name not in VARIANTS and name != PEER:
            parser.error(f"no variant {name!r}; there are: {', '.join([*VARIANTS, PEER])}")
    args.set = settings_of(args)
    store = args.store or Path("outputs", f"strategies-{args.beir.name}")

    def config(overrides: list[str]) -> Config:
        places = [f"source.path={args.beir.resolve()}", f"storage.uri={store.resolve()}"]
        return load_config(HERE / "strategies.yaml", [*places, *args.set, *overrides])

    reporter = Reporter()
    grid = Grid(config([]), args.split, reporter)
    tables = [
        rows_of(None, name, artifact, grid.measure(name, artifact))
        for name, artifact in (("bm25", None), ("teacher", grid.shared["teacher"]))
    ]
    for seed in args.seeds:
        for name in args.variants:
            if name == PEER:
                continue
            shape = PAPER_SHAPE if name == "paper" else SHAPE
            strategy = LABELS if name == "labels alone" else STRATEGY
            cell = Cell(config(VARIANTS[name]), strategy, shape, args.budget, seed, name)
            reporter.info(f"{name}, seed {seed}")
            artifact = grid.train(cell)
            tables.append(rows_of(cell, name, artifact, grid.measure(name, artifact)))
        if PEER in args.variants:
            for lr in args.peer_lr:
                name = f"{PEER}, lr {lr:g}"
                reporter.info(f"{name}, seed {seed}")
                cell = Cell(config([]), STRATEGY, SHAPE, args.budget, seed, name)
                key = f"peer-{grid.language_model(cell).digest[:16]}-{lr:g}-{args.budget:g}-{seed}"
                values = grid.remember(key, lambda: train_peer(grid, cell, lr))  # noqa: B023
                facts = {n: values.pop(n).item() for n in ("pairs_seen", "seconds")}
                peer = SimpleNamespace(facts=facts, name=None, digest=None)
                tables.append(rows_of(cell, name, peer, values))
    if args.output:
        write_trials(
            args.output, tables, **machine(), data=args.beir.name, split=args.split,
            depth=grid.base.evaluate.depth, train_queries=grid.train_queries,
            queries=len(grid.collection.qrels), variants=VARIANTS, overrides=args.set,
        )  # fmt: skip
    show(group_trials(pa.concat_tables(tables)), grid.base.evaluate.margin)
    if args.output:
        print(f"written to {args.output}")
    return 0


def train_peer(grid: Grid, cell: Cell, lr: float) -> dict[str, np.ndarray]:
    """CrossEncoderTrainer on the groups that our loop reads, in its order, from the very language
    model that our student starts from.

    Returns measure -> [queries], and "seconds" and "pairs_seen" of the training.
    """
    ranker = cell.config.ranker
    pairs, scores = grid.dataset.pairs(), read_shards(grid.shared["scores"].path, SCORES)
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
            seed=cell.seed, save_to=model,
        )  # fmt: skip
        values = grid.measure_model(f"{PEER} {cell.seed}", model)
    seen = len(groups) * source.pairs_per_item
    return {**values, "seconds": np.array(seconds), "pairs_seen": np.array(seen)}


def show(groups: list[Group], margin: float) -> None:
    """Means over seeds, and each variant against the default: paired over queries, Holm."""
    base = next((g for g in groups if g.variant == "default"), None)
    others = [g for g in students(groups) if g is not base]
    tests = {}
    if base is not None:
        tests = dict(zip(map(id, others), against(others, base, PRIMARY, margin), strict=True))
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("variant")
    for title in (*MEASURES, "sd", "Δ to default", "p"):
        table.add_column(title, justify="right")
    for group in groups:
        spread, test = group.spread(PRIMARY), tests.get(id(group))
        table.add_row(
            group.variant or group.system, *(f"{group.mean(m):.3f}" for m in MEASURES),
            "" if spread is None else f"{spread:.3f}",
            f"{test[0].delta:+.3f}" if test else "", f"{test[1]:.2g}" if test else "",
        )  # fmt: skip
    Console(width=110).print(table)


if __name__ == "__main__":
    exit_with(main)
