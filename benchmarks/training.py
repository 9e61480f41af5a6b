#!/usr/bin/env python3
"""Pairs a second of the ranker stage and tokens a second of the LM stage, against others' loops.

    .venv/bin/python -m pip install 'kdscale[bench]'
    .venv/bin/python benchmarks/training.py --beir DIR -o benchmarks/results/training.json

Each way trains a copy of one student for the same steps on the same items in the same order, on the
teacher's scores (drawn at random: time does not depend on them); they take turns. Others' ways, in
benchmarks/training_peers.py: sentence-transformers' CrossEncoderTrainer with MarginMSE, Hugging
Face's Trainer doing the same, and TinyBERT's loop, which reads the teacher in every step and pads
to the longest allowed. Where the CPU multiplies in bf16, ours and the two trainers run in it as
well, and are compared with each other. Correctness first: the loss of the first step is compared
with that of one plain padded batch. Preparing data that is prepared once is not counted, on either
side.

Shares of our step come from runs of their own: waiting for data, forward (the teacher's as well in
the LM stage), backward, communication, optimizer (with clipping); of one process, and of two with
DeepSpeed and a thread each, which share every batch.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import training_peers as peers
from grid import exit_with
from rich.console import Console
from rich.table import Table
from sidebyside import alternate, circumstances, finish, rates, ratio, read_shape
from training_ours import SEED, run_ours, shares_of_workers, time_ours

from kdscale.config import Config, Train
from kdscale.data.dataset import Dataset, Tokens
from kdscale.data.schema import SCORES
from kdscale.doctor.machine import cpu_multiplies_bf16
from kdscale.evaluation.latency import cpu_threads
from kdscale.experiment.context import DATASET, TOKENS
from kdscale.experiment.load import load_config
from kdscale.experiment.run import run_steps
from kdscale.models.pretrained import load_encoder
from kdscale.models.ranker import build_ranker, save_ranker
from kdscale.models.students import build_student, map_layers
from kdscale.progress import Reporter
from kdscale.store import open_store
from kdscale.training.batches import BatchOrder
from kdscale.training.blocks import BlockSource
from kdscale.training.groups import GroupSource
from kdscale.training.intermediate import IntermediateLosses
from kdscale.training.modules import LmTraining, RankerTraining

HERE = Path(__file__).parent
OURS, ST, HF, TINY = "kdscale", "sentence-transformers", "HF Trainer", "TinyBERT's way"
IN_BF16 = ", bf16"
SAME = 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--beir", type=Path, required=True, metavar="DIR", help="the data")
    parser.add_argument("--store", type=Path, help="for the data; default outputs/training-DATA")
    parser.add_argument("--shape", default="2l-192")
    parser.add_argument("--queries", type=int, default=1000, help="training queries")
    parser.add_argument("--ranker-steps", type=int, default=30)
    parser.add_argument("--lm-steps", type=int, default=10)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="of the config")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    reporter = Reporter()
    store = args.store or Path("outputs", f"training-{args.beir.name}")
    config = load_config(
        HERE / "strategies.yaml",
        [
            f"source.path={args.beir.resolve()}",
            f"storage.uri={store.resolve()}",
            f"prepare.max_queries={{train: {args.queries}, dev: 10, test: 10}}",
            "prepare.max_length=128",
            "prepare.block_length=128",
            "prepare.max_chars=20000",
            *args.set,
        ],
    )
    made = run_steps(config, open_store(config.storage.uri), [DATASET, TOKENS], reporter)
    places = {outcome.step.id: outcome.artifact.path for outcome in made}
    dataset, tokens = Dataset(places[DATASET]), Tokens(places[TOKENS])
    with cpu_threads(args.threads), tempfile.TemporaryDirectory() as scratch:
        ranker = ranker_stage(config, args, dataset, tokens, Path(scratch), reporter)
        lm = lm_stage(config, args, tokens, reporter)
    for stage in (ranker, lm):
        show(stage)
    finish(
        {
            "circumstances": circumstances(args.threads),
            "data": args.beir.name,
            "student": args.shape,
            "ranker": ranker,
            "lm": lm,
        },
        args.output,
    )
    return 0


def ranker_stage(
    config: Config,
    args: argparse.Namespace,
    dataset: Dataset,
    tokens: Tokens,
    scratch: Path,
    reporter: Reporter,
) -> dict[str, Any]:
    pairs, encoder = dataset.pairs(), tokens.encoder()
    scores = np.random.default_rng(SEED).normal(size=pairs.num_rows).astype(np.float32)
    columns = [*pairs.select(["pair_id", "qid", "pid"]).columns, pa.array(scores)]
    table = pa.table(columns, schema=SCORES)
    source = GroupSource(dataset, tokens, table, config.ranker.group_size, None, SEED)
    steps, train = args.ranker_steps, config.ranker.train
    train = Train(max_steps=steps, batch_size=train.batch_size, lr=train.lr, checkpoint_every=0)
    order = BatchOrder(source.lengths, train.batch_size, SEED)
    body = load_encoder("minilm")
    student = build_ranker(build_student(read_shape(args.shape), body, "random", SEED), 0.0, SEED)
    teacher = build_ranker(body, 0.0, SEED).eval()
    groups = peers.Groups(source, order, steps, peers.texts_of(dataset, pairs), scores)
    folder, length = scratch / "student", encoder.max_length
    save_ranker(student, encoder, folder)
    weights = {"margin_mse": 1.0}

    def module() -> RankerTraining:
        return RankerTraining(copy.deepcopy(student), weights)

    lr, tokenizer = train.lr, encoder.tokenizer
    check_ranker(module(), copy.deepcopy(student), tokenizer, source, order, groups, length)
    ways = in_both(
        {
            OURS: partial(time_ours, module, source, train, weights),
            ST: partial(peers.sentence_transformers, folder, groups, length, lr),
            HF: partial(peers.hugging_face, student, tokenizer, groups, length, lr),
        }
    )
    ways[TINY] = partial(peers.tinybert_ranker, student, teacher, tokenizer, groups, length, lr)
    count = sum(len(row) for _, row in groups.rows)
    result = measure(ways, args.runs, count, "pairs", reporter)
    shares = shares_of(module, args.runs, source, train, weights)
    return {**result, "stage": "ranker", "steps": steps, "shares": shares}


def lm_stage(
    config: Config, args: argparse.Namespace, tokens: Tokens, reporter: Reporter
) -> dict[str, Any]:
    source, shape = BlockSource(tokens), read_shape(args.shape)
    teacher, steps = load_encoder("minilm"), args.lm_steps
    layer_map = map_layers(None, shape.layers, teacher.config.num_hidden_layers)
    weights = config.lm.losses
    train = config.lm.train
    train = Train(max_steps=steps, batch_size=train.batch_size, lr=train.lr, checkpoint_every=0)
    student = build_student(shape, teacher, "random", SEED)

    def module() -> LmTraining:
        intermediate = IntermediateLosses(
            shape.hidden, teacher, layer_map, weights, config.lm.relation_heads, SEED
        )
        return LmTraining(copy.deepcopy(student), intermediate)

    order = BatchOrder(source.lengths, train.batch_size, SEED)
    # The rows that our loop reads, one batch after the other.
    wanted = np.concatenate([np.sort(order.batch(step)[1]) for step in range(steps)])
    blocks = torch.as_tensor(tokens.blocks()[wanted], dtype=torch.long)
    size, lr = order.batch_size, train.lr
    ways = in_both(
        {
            OURS: partial(time_ours, module, source, train, weights),
            HF: partial(peers.hugging_face_lm, module, weights, blocks, size, steps, lr),
        }
    )
    ways[TINY] = partial(peers.tinybert_lm, student, teacher, layer_map, blocks, size, steps, lr)
    # First, since a model that has given its hidden states to a peer cannot be sent to a process.
    shares = shares_of(module, args.runs, source, train, weights)
    result = measure(ways, args.runs, blocks.numel(), "tokens", reporter)
    return {**result, "stage": "lm", "steps": steps, "shares": shares}


def in_both(ways: dict[str, Callable[..., float]]) -> dict[str, Callable[..., float]]:
    """Each way in fp32, and in bf16 where the CPU has what multiplies in it."""
    if not cpu_multiplies_bf16():
        return dict(ways)
    return ways | {name + IN_BF16: partial(way, bf16=True) for name, way in ways.items()}


def shares_of(
    module: Callable[[], torch.nn.Module], runs: int, *what: Any
) -> dict[str, dict[str, float]]:
    """By what runs the loop: the medians over the runs."""
    two = [shares_of_workers(2, module(), *what) for _ in range(runs)]
    one = [run_ours(module(), *what)[1] for _ in range(runs)]
    return {"one process": median_of(one), "two workers": median_of(two)}


@torch.no_grad()
def check_ranker(
    module: RankerTraining, student: Any, tokenizer: Any, source: GroupSource, order: BatchOrder,
    groups: peers.Groups, max_length: int,
) -> None:  # fmt: skip
    """The loss of our first step, against one padded batch of the same texts."""
    epoch, items = order.batch(0)
    ours = module.eval()(source.collate(items, epoch))["margin_mse"].mean()
    rows = groups.rows[: order.batch_size]
    batch = tokenizer(
        [texts[0] for texts, _ in rows for _ in texts[1:]],
        [text for texts, _ in rows for text in texts[1:]],
        truncation=True, max_length=max_length, padding=True, return_tensors="pt",
    )  # fmt: skip
    target = torch.tensor([scores for _, scores in rows])
    plain = peers.group_loss(student.eval()(**batch).logits.view(target.shape), target)
    if abs(float(ours - plain)) > SAME * max(1.0, float(plain)):
        raise SystemExit(f"our loss is {float(ours):.6f}, a padded batch's {float(plain):.6f}")


def measure(
    ways: dict[str, Any], runs: int, amount: int, unit: str, reporter: Reporter
) -> dict[str, Any]:
    for way in ways.values():
        way()  # warms it up
    seconds = alternate(ways, runs, reporter)
    return {
        "unit": unit,
        "amount": amount,
        "ways": rates(seconds, amount),
        "ratios": {
            name: ratio(seconds, OURS + IN_BF16 if name.endswith(IN_BF16) else OURS, name)
            for name in ways
            if not name.startswith(OURS)
        },
    }


def median_of(shares: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(float(np.median([s[name] for s in shares])), 4) for name in shares[0]}


def show(stage: dict[str, Any]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), title=f"{stage['stage']} stage")
    for title in ("way", f"{stage['unit']}/s", "from", "to", "kdscale is faster"):
        table.add_column(title, justify="left" if title == "way" else "right")
    for name, row in stage["ways"].items():
        times = stage["ratios"].get(name)
        low, high = row["per_s_range"]
        figures = (f"{value:,.0f}" for value in (row["per_s"], low, high))
        table.add_row(name, *figures, f"{times:.2f}x" if times else "")
    Console(width=110).print(table)
    for by, shares in stage["shares"].items():
        print(f"our step, {by}: " + ", ".join(f"{part} {s:.1%}" for part, s in shares.items()))


if __name__ == "__main__":
    exit_with(main)
