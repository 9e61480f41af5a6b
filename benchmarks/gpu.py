#!/usr/bin/env python3
"""Scoring and training on a GPU, with plain torch: no Ray, no DeepSpeed, no network, no data.

    .venv/bin/python benchmarks/gpu.py -o benchmarks/results/gpu.json
    .venv/bin/python benchmarks/gpu.py --tiny           # the same ways on a CPU, in a minute

Weights are random, texts are drawn words of natural lengths, and a tokenizer is made here: time
does not depend on any of them. Models: MiniLM's and BERT-base's shape, and two students.

Correctness first: each way's scores against plain fp32 (fp32: 1e-4; lower precision: the
correlation, and nDCG@10 within 0.001, or the row says that it is not). Then the ways take turns:

- sentence-transformers' predict in bf16, at each batch size (the best counts);
- kdscale's `Scorer` in bf16: no padding, variable-length attention; the same with weights in bf16,
  and with its layers compiled; and padded, as it runs where there is no such kernel.

Training: kdscale's loop (bf16 autocast, fused AdamW; and with the ranker compiled) against
sentence-transformers' CrossEncoderTrainer in bf16, MarginMSE on cached scores. MFU counts the FLOPs
that a way computes for real tokens (three times the forward's in training) against --peak, or the
measured peak of bf16 products where that is not given.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import training_peers as peers
from rich.console import Console
from rich.table import Table
from sidebyside import alternate, circumstances, finish, matrix_peak, rates, wait
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizer

from kdscale.config import Train
from kdscale.data.schema import PAIRS, SCORES
from kdscale.evaluation.latency import forward_flops
from kdscale.evaluation.measures import parse_measures, per_query
from kdscale.models.encode import PairEncoder
from kdscale.models.packed import PackedPairs, PackedRanker, first_token_only
from kdscale.models.ranker import Scorer, build_ranker, save_ranker
from kdscale.progress import Reporter
from kdscale.store import LocalWorkspace
from kdscale.training.batches import BatchOrder
from kdscale.training.engines import TorchEngine
from kdscale.training.groups import GroupSource
from kdscale.training.loop import Hooks, train_loop
from kdscale.training.modules import RankerTraining

# layers, hidden, heads, intermediate
SHAPES = {
    "minilm": (6, 384, 12, 1536),
    "bert-base": (12, 768, 12, 3072),
    "4l-312": (4, 312, 12, 1200),
    "2l-192": (2, 192, 6, 768),
}
TINY_SHAPES = {"tiny": (2, 32, 4, 64)}
SAME_FP32, SAME_NDCG = 1e-4, 0.001
PEER = "sentence-transformers"
GROUP = 8


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", metavar="NAME", help=", ".join(SHAPES))
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--batch-tokens", type=int, default=131_072)
    parser.add_argument("--peer-batch", nargs="+", type=int, default=[64, 256, 1024])
    parser.add_argument("--steps", type=int, default=50, help="of training")
    parser.add_argument("--batch-size", type=int, default=64, help="groups of a training step")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--peak", type=float, help="of bf16 products, in TFLOP/s")
    parser.add_argument("--compile-training", action="store_true", help="another way to train")
    parser.add_argument("--tiny", action="store_true", help="small enough for a CPU")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    shapes = TINY_SHAPES if args.tiny else SHAPES
    if args.tiny:
        args.queries, args.candidates, args.max_length, args.batch_tokens = 4, 12, 48, 512
        args.peer_batch, args.steps, args.batch_size, args.runs = [8], 2, 4, min(args.runs, 2)
        torch.set_num_threads(1)  # threads would wait for each other longer than they work
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.tiny:
        parser.error("there is no GPU here; --tiny runs the same ways on a CPU")
    reporter = Reporter()
    world = World(args.queries, args.candidates, args.max_length)
    size = 512 if args.tiny else 8192
    peak = args.peak * 1e12 if args.peak else matrix_peak(torch.bfloat16, device, size)
    result = {
        "circumstances": {
            **circumstances(torch.get_num_threads()),
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        },
        "peak_flops": round(peak),
        "pairs": len(world.pairs),
        "tokens_per_pair": round(float(world.lengths.mean()), 1),
        "results": [],
    }
    for name in args.models or list(shapes):
        ranker = make_ranker(shapes[name], world)
        reporter.info(f"{name}: scoring")
        scoring = score_model(ranker, world, args, device, peak, reporter)
        reporter.info(f"{name}: training")
        training = train_model(ranker, world, args, device, peak, reporter)
        result["results"].append({"model": name, "scoring": scoring, "training": training})
        show(result["results"][-1])
        finish(result, args.output)  # after each model: what is measured is kept
    return 0


class World:
    """Queries and passages of drawn words, a word a token, and all pairs of them as candidates.

    texts, pairs: [P] (query, passage) as texts and as token ids; lengths: [P] tokens of a pair
    """

    def __init__(self, queries: int, candidates: int, max_length: int):
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
        vocab = [*special, *(f"w{i}" for i in range(30_522 - len(special)))]
        tokenizer = BertTokenizer(vocab={token: i for i, token in enumerate(vocab)})
        self.pair_encoder = PairEncoder(tokenizer, max_length)
        rng = np.random.default_rng(0)

        def text(words: int) -> str:
            return " ".join(f"w{i}" for i in rng.integers(0, 30_000, max(1, words)))

        # About what web passages have: a long tail, a third of them cut.
        draws = rng.lognormal(np.log(max_length * 0.6), 0.6, queries * candidates).astype(int)
        self.queries = [text(int(n)) for n in rng.integers(3, 13, queries)]
        self.passages = [text(min(int(n), 2 * max_length)) for n in draws]
        self.candidates = candidates
        self.texts = [
            (self.queries[i // candidates], passage) for i, passage in enumerate(self.passages)
        ]
        self.query_ids_of = self.pair_encoder.tokenise(self.queries)
        self.passage_ids_of = self.pair_encoder.tokenise(self.passages)
        self.pairs = [
            (self.query_ids_of[i // candidates], ids) for i, ids in enumerate(self.passage_ids_of)
        ]
        self.lengths = np.array([self.pair_encoder.length(len(q), len(p)) for q, p in self.pairs])

    def ndcg(self, scores: np.ndarray) -> float:
        """One passage of each query, drawn, is the relevant one."""
        rng, qrels, run = np.random.default_rng(1), {}, {}
        for q in range(len(self.queries)):
            own = scores[q * self.candidates : (q + 1) * self.candidates]
            qrels[str(q)] = {str(rng.integers(self.candidates)): 1}
            run[str(q)] = [str(i) for i in np.argsort(-own, kind="stable")]
        return float(per_query(parse_measures(["nDCG@10"]), qrels, run)["nDCG@10"].mean())

    def flops(self, model: nn.Module) -> float:
        """Of one forward of all pairs, without padding."""
        longest = self.pair_encoder.max_length
        at = [longest // 4, longest // 2, longest]
        curve = np.polyfit(at, [forward_flops(model, length) for length in at], 2)
        return float(np.polyval(curve, self.lengths).sum())

    # What GroupSource asks of a dataset and its tokens.

    def encoder(self) -> PairEncoder:
        return self.pair_encoder

    def pairs_table(self) -> pa.Table:
        count = len(self.passages)
        rows = np.arange(count)
        first = (rows % self.candidates == 0).astype(np.int32)
        qids = [str(i) for i in rows // self.candidates]
        pids = [str(i) for i in rows]
        return pa.table([rows, qids, pids, first, 1 - first], schema=PAIRS)

    def source(self, scores: np.ndarray) -> GroupSource:
        table = self.pairs_table()
        columns = [*table.select(["pair_id", "qid", "pid"]).columns, pa.array(scores)]
        dataset = type("Pairs", (), {"pairs": staticmethod(lambda: table)})
        return GroupSource(dataset, self, pa.table(columns, schema=SCORES), GROUP, None, 0)

    def query_ids(self, split: str, qid: str) -> np.ndarray:
        return self.query_ids_of[int(qid)]

    def passage_ids(self, pids: Iterable[str]) -> dict[str, np.ndarray]:
        return {pid: self.passage_ids_of[int(pid)] for pid in pids}


def make_ranker(shape: tuple[int, int, int, int], world: World) -> nn.Module:
    layers, hidden, heads, intermediate = shape
    config = BertConfig(
        vocab_size=world.pair_encoder.vocab_size, hidden_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, intermediate_size=intermediate, initializer_range=0.05,
    )  # fmt: skip
    torch.manual_seed(0)
    body = BertModel._from_config(config, attn_implementation="sdpa").eval()
    return build_ranker(body, 0.0, 0).eval()


def compiled(what: Any) -> Any:
    """torch.compile; without a GPU, graphs run as they were taken: no compiler needed."""
    backend = "inductor" if torch.cuda.is_available() else "eager"
    return torch.compile(what, dynamic=True, backend=backend)


class HalfRanker(PackedRanker):
    """Weights and all that flows between them in bf16, not the products alone."""

    def __init__(self, model: nn.Module):
        super().__init__(model.to(torch.bfloat16))

    def __call__(self, packed: PackedPairs) -> torch.Tensor:
        with torch.autocast(packed.ids.device.type, enabled=False):
            return super().__call__(packed)


def score_model(
    ranker: nn.Module, world: World, args: argparse.Namespace, device: str, peak: float,
    reporter: Reporter,
) -> dict[str, Any]:  # fmt: skip
    def scorer(precision: str, on: str = device) -> Scorer:
        model = copy.deepcopy(ranker)
        return Scorer(model, world.pair_encoder, args.batch_tokens, on, precision)

    expected = scorer("fp32").score(world.pairs)
    some = world.pairs[: 2 * world.candidates]
    difference = float(np.abs(scorer("fp32", "cpu").score(some) - expected[: len(some)]).max())
    if difference > SAME_FP32 * max(1.0, float(np.abs(expected).max())):
        raise SystemExit(f"in fp32 a score of {device} is {difference:.2g} from the CPU's")
    ours = scorer("bf16")
    scorers = {"kdscale": ours}
    if ours.packed is not None:
        padded, half, faster = scorer("bf16"), scorer("bf16"), scorer("bf16")
        padded.packed = None
        half.packed, faster.packed = HalfRanker(half.model), HalfRanker(faster.model)
        faster.packed.layer = compiled(faster.packed.layer)
        scorers |= {
            "kdscale, padded": padded,
            "kdscale, bf16 weights": half,
            "kdscale, bf16 weights, compiled": faster,
        }
    ways: dict[str, Callable[[], np.ndarray]] = {
        name: partial(of.score, world.pairs) for name, of in scorers.items()
    }
    # What ours computes: of the last layer, the first token's part. The others compute all of it.
    with first_token_only(ranker):
        flops = dict.fromkeys(ways, world.flops(ranker))
    with tempfile.TemporaryDirectory() as folder:
        save_ranker(ranker, world.pair_encoder, folder)
        theirs = peer_ways(folder, world, args, device)
        ways |= theirs
        flops |= dict.fromkeys(theirs, world.flops(ranker))
        checks = {}
        with reporter.task("correctness", len(ways)) as task:
            for name, way in ways.items():
                found = way()
                loss = abs(world.ndcg(found) - world.ndcg(expected))
                checks[name] = {
                    "correlation": round(float(np.corrcoef(found, expected)[0, 1]), 6),
                    "ndcg_difference": round(loss, 6),
                    "within": bool(loss <= SAME_NDCG),
                }
                task.advance(note=name)
        timed = {name: partial(_done, way, device) for name, way in ways.items()}
        seconds = alternate(timed, args.runs, reporter)
    return summary(seconds, len(world.pairs), flops, peak, checks)


def peer_ways(
    folder: str, world: World, args: argparse.Namespace, device: str
) -> dict[str, Callable[[], np.ndarray]]:
    from sentence_transformers import CrossEncoder

    peer = CrossEncoder(
        folder, device=device, max_length=args.max_length, model_kwargs={"dtype": torch.bfloat16}
    )

    def predict(batch_size: int) -> np.ndarray:
        scores = peer.predict(
            world.texts, batch_size=batch_size, show_progress_bar=False, convert_to_tensor=True
        )
        return scores.float().cpu().numpy()

    return {f"{PEER}, {size} pairs": partial(predict, size) for size in args.peer_batch}


def train_model(
    ranker: nn.Module, world: World, args: argparse.Namespace, device: str, peak: float,
    reporter: Reporter,
) -> dict[str, Any]:  # fmt: skip
    scores = np.random.default_rng(2).normal(size=len(world.pairs)).astype(np.float32)
    source = world.source(scores)
    order = BatchOrder(source.lengths, args.batch_size, 0)

    def texts(rows: np.ndarray) -> list[str]:
        return [world.queries[rows[0] // world.candidates], *(world.passages[r] for r in rows)]

    groups = peers.Groups(source, order, args.steps, texts, scores)
    train = Train(
        max_steps=args.steps, batch_size=args.batch_size, precision="bf16", checkpoint_every=0,
        micro_tokens=max(int(source.lengths.max()), 8 * args.batch_tokens), log_every=args.steps,
    )  # fmt: skip
    batches = [order.batch(step) for step in range(args.steps)]
    rows = np.concatenate([source.rows(int(i), epoch) for epoch, items in batches for i in items])
    count = len(rows)
    share = 3 * float(world.lengths[rows].sum() / world.lengths.sum())

    def ours(is_compiled: bool) -> float:
        model = copy.deepcopy(ranker).train()
        module = RankerTraining(model, {"margin_mse": 1.0})
        if is_compiled:
            module.ranker = compiled(model)
        engine = TorchEngine(module, train, torch.device(device))
        with tempfile.TemporaryDirectory() as scratch:
            facts = train_loop(
                module=module, engine=engine, source=source, train=train,
                weights={"margin_mse": 1.0}, seed=0,
                workspace=LocalWorkspace(Path(scratch, "work")),
                log=Path(scratch, "metrics.jsonl"),
                hooks=Hooks(lambda row: None, lambda line: None),
            )  # fmt: skip
            wait(device)
        return facts["seconds"]

    with tempfile.TemporaryDirectory() as folder:
        save_ranker(ranker, world.pair_encoder, folder)
        ways: dict[str, Callable[[], float]] = {
            "kdscale": partial(ours, False),
            **({"kdscale, compiled": partial(ours, True)} if args.compile_training else {}),
            PEER: lambda: peers.sentence_transformers(
                Path(folder), groups, args.max_length, train.lr, device, bf16=True
            ),
        }
        for way in ways.values():
            way()
        seconds = alternate(ways, args.runs, reporter)
    flops = dict.fromkeys(ways, share * world.flops(ranker))
    with first_token_only(ranker):
        flops["kdscale"] = share * world.flops(ranker)
    return summary(seconds, count, flops, peak, {})


def _done(way: Callable[[], np.ndarray], device: str) -> None:
    way()
    wait(device)


def summary(
    seconds: dict[str, list[float]], pairs: int, flops: dict[str, float], peak: float,
    checks: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """flops: of each way, without padding."""
    ways = rates(seconds, pairs)
    for name, row in ways.items():
        row["mfu"] = round(flops[name] * row["per_s"] / pairs / peak, 4)
        row |= checks.get(name, {})
    ours = max((n for n in ways if not n.startswith(PEER)), key=lambda n: ways[n]["per_s"])
    theirs = max((n for n in ways if n.startswith(PEER)), key=lambda n: ways[n]["per_s"])
    return {
        "pairs": pairs,
        "ways": ways,
        "best": [ours, theirs],
        "ratio": round(ways[ours]["per_s"] / ways[theirs]["per_s"], 3),
    }


def show(result: dict[str, Any]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), title=result["model"])
    for title in ("", "way", "pairs/s", "from", "to", "MFU", "ΔnDCG"):
        table.add_column(title, justify="right" if title not in ("", "way") else "left")
    for part in ("scoring", "training"):
        for name, row in result[part]["ways"].items():
            low, high = row["per_s_range"]
            loss = f"{row['ndcg_difference']:.4f}" if "ndcg_difference" in row else ""
            figures = (f"{value:,.0f}" for value in (row["per_s"], low, high))
            table.add_row(part, name, *figures, f"{row['mfu']:.1%}", loss)
    Console(width=110).print(table)
    for part in ("scoring", "training"):
        ours, theirs = result[part]["best"]
        print(f"{part}: {ours} is {result[part]['ratio']:.2f}x {theirs}")


if __name__ == "__main__":
    raise SystemExit(main())
