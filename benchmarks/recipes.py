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
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from grid import MEASURES, Cell, Grid, machine, rows_of
from rich.console import Console
from rich.table import Table

from kdscale.config import Config, Shape
from kdscale.configload import load_config
from kdscale.data.batches import BatchOrder
from kdscale.data.groups import GroupSource
from kdscale.data.schema import SCORES
from kdscale.data.shards import read_shards
from kdscale.evaluation.significance import compare, holm
from kdscale.evaluation.trials import write_trials
from kdscale.progress import Reporter
from kdscale.training.loop import total_steps

HERE = Path(__file__).parent
PRIMARY = MEASURES[0]
STRATEGY = "lm_distill_ranker_distill"
SHAPE = Shape("2l-192", 2, 192, 6, 768)
# The same sizes; as many heads as the teacher, since the paper's attention terms ask for it.
PAPER_SHAPE = Shape("2l-192-h12", 2, 192, 12, 768)
WITHOUT = ["ranker.intermediate_losses={}"]
# fmt: off
VARIANTS: dict[str, list[str]] = {
    "default": [],
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
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="of the config")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    for name in args.variants:
        if name not in VARIANTS and name != PEER:
            parser.error(f"no variant {name!r}; there are: {', '.join([*VARIANTS, PEER])}")
    store = args.store or Path("outputs", f"strategies-{args.beir.name}")

    def config(overrides: list[str]) -> Config:
        places = [f"source.path={args.beir.resolve()}", f"storage.uri={store.resolve()}"]
        return load_config(HERE / "strategies.yaml", [*places, *args.set, *overrides])

    reporter = Reporter()
    grid = Grid(config([]), args.split, reporter)
    tables, found = [], {}
    for name, artifact in (("bm25", None), ("teacher", grid.shared["teacher"])):
        found[name] = [grid.measure(name, artifact)]
        tables.append(rows_of(None, name, artifact, found[name][0]))
    for seed in args.seeds:
        for name in args.variants:
            if name == PEER:
                continue
            shape = PAPER_SHAPE if name == "paper" else SHAPE
            cell = Cell(config(VARIANTS[name]), STRATEGY, shape, args.budget, seed, name)
            reporter.info(f"{name}, seed {seed}")
            artifact = grid.train(cell)
            values = grid.measure(name, artifact)
            found.setdefault(name, []).append(values)
            tables.append(rows_of(cell, name, artifact, values))
        if PEER in args.variants:
            for lr in args.peer_lr:
                name = f"{PEER}, lr {lr:g}"
                reporter.info(f"{name}, seed {seed}")
                cell = Cell(config([]), STRATEGY, SHAPE, args.budget, seed, name)
                key = f"peer-{grid.language_model(cell).digest[:16]}-{lr:g}-{args.budget:g}-{seed}"
                values = grid.remember(key, lambda: train_peer(grid, cell, lr))  # noqa: B023
                facts = {n: values.pop(n).item() for n in ("pairs_seen", "seconds")}
                found.setdefault(name, []).append(values)
                peer = SimpleNamespace(facts=facts, name=None, digest=None)
                tables.append(rows_of(cell, name, peer, values))
    if args.output:
        write_trials(
            args.output, tables, **machine(), data=args.beir.name, split=args.split,
            depth=grid.base.evaluate.depth, train_queries=grid.train_queries,
            queries=len(grid.collection.qrels), variants=VARIANTS, overrides=args.set,
        )  # fmt: skip
    show(found)
    if args.output:
        print(f"written to {args.output}")
    return 0


def train_peer(grid: Grid, cell: Cell, lr: float) -> dict[str, np.ndarray]:
    """CrossEncoderTrainer on the groups that our loop reads, in its order.

    Schedule, batch size, AdamW's settings and clipping are ours; the rest is the trainer's own.
    Returns measure -> [queries], and "seconds" and "pairs_seen" of the training.
    """
    from datasets import Dataset
    from sentence_transformers.cross_encoder import (
        CrossEncoder,
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
    )
    from sentence_transformers.cross_encoder.losses import MarginMSELoss
    from torch.utils.data import BatchSampler, SequentialSampler

    class InOrder(CrossEncoderTrainer):
        def get_batch_sampler(
            self, dataset: Any, batch_size: int, drop_last: bool, **_: Any
        ) -> Any:

            return BatchSampler(SequentialSampler(dataset), batch_size, drop_last)

    train = cell.config.ranker.train
    source = GroupSource(
        grid.dataset, grid.tokens, read_shards(grid.shared["scores"].path, SCORES),
        cell.config.ranker.group_size, round(cell.budget * grid.train_queries), cell.seed,
    )  # fmt: skip
    groups, steps = training_groups(grid, source, train, cell.seed)
    lm = grid.language_model(cell)
    model = CrossEncoder(
        str(lm.path), num_labels=1, max_length=grid.tokens.info["max_length"], device="cpu"
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = CrossEncoderTrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=train.batch_size,
            learning_rate=lr, warmup_steps=max(1, round(train.warmup * steps)),
            weight_decay=train.weight_decay, adam_beta2=0.98, adam_epsilon=1e-6,
            max_grad_norm=train.max_grad_norm, seed=cell.seed, save_strategy="no", report_to="none",
            disable_tqdm=True, use_cpu=True, logging_steps=100,
        )  # fmt: skip
        trainer = InOrder(
            model=model,
            args=settings,
            train_dataset=Dataset.from_dict(groups),
            loss=MarginMSELoss(model),
        )
        began = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - began
        model.save_pretrained(str(Path(folder, "model")))
        values = grid.measure_model(f"{PEER} {cell.seed}", Path(folder, "model"))
    pairs = steps * train.batch_size * source.pairs_per_item
    return {**values, "seconds": np.array(seconds), "pairs_seen": np.array(pairs)}


def training_groups(grid: Grid, source: GroupSource, train: Any, seed: int) -> tuple[dict, int]:
    """Columns of texts and labels, a row a group, in the order in which our loop reads them."""
    order = BatchOrder(source.lengths, train.batch_size, seed)
    steps = total_steps(train, order.steps_per_epoch)
    pairs = grid.dataset.pairs()
    scores = dict(
        zip(
            *(
                read_shards(grid.shared["scores"].path, SCORES)[c].to_pylist()
                for c in ("pair_id", "score")
            ),
            strict=True,
        )
    )
    qids, pids, ids = (pairs[c].to_pylist() for c in ("qid", "pid", "pair_id"))
    queries = dict(zip(*grid.dataset.queries("train").to_pydict().values(), strict=True))
    passages = grid.dataset.passage_texts(set(pids))
    size = source.pairs_per_item
    names = ["query", "positive", *(f"negative_{i}" for i in range(1, size)), "label"]
    columns: dict[str, list] = {name: [] for name in names}
    for step in range(steps):
        epoch, items = order.batch(step)
        for item in items:
            rows = source.rows(int(item), epoch)
            texts = [queries[qids[rows[0]]], *(passages[pids[r]] for r in rows)]
            for name, value in zip(names, [*texts, [scores[ids[r]] for r in rows]], strict=True):
                columns[name].append(value)
    return columns, steps


def show(found: dict[str, list[dict[str, np.ndarray]]]) -> None:
    """Means over seeds, and each variant against the default: paired over queries, Holm."""
    means = {
        n: {m: np.mean([v[m] for v in vs], axis=0) for m in MEASURES} for n, vs in found.items()
    }
    base = means.get("default")
    tests = {
        name: compare(values[PRIMARY], base[PRIMARY])
        for name, values in means.items()
        if base is not None and name not in ("default", "bm25", "teacher")
    }
    corrected = dict(zip(tests, holm([t.p for t in tests.values()]), strict=True))
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("variant")
    for title in (*MEASURES, "sd", "Δ to default", "p"):
        table.add_column(title, justify="right")
    for name, values in means.items():
        seeds = [v[PRIMARY].mean() for v in found[name]]
        test = tests.get(name)
        table.add_row(
            name, *(f"{values[m].mean():.3f}" for m in MEASURES),
            f"{np.std(seeds, ddof=1):.3f}" if len(seeds) > 1 else "",
            f"{test.delta:+.3f}" if test else "", f"{corrected[name]:.2g}" if test else "",
        )  # fmt: skip
    Console(width=110).print(table)


if __name__ == "__main__":
    raise SystemExit(main())
