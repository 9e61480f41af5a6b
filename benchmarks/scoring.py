#!/usr/bin/env python3
"""Pairs a second of teacher scoring, from Parquet to Parquet, against sentence-transformers and a
plain loop.

    .venv/bin/python -m pip install 'kdscale[bench]'
    .venv/bin/python benchmarks/scoring.py --beir DIR -o benchmarks/results/scoring.json

Every way reads passages, queries and pairs (BM25's candidates) from Parquet, scores each pair with
the same MiniLM cross-encoder, and writes the scores. Loading the model is not counted, nor starting
Ray, which cuts the same work into blocks. Passages have the length that they have.

Correctness first: in fp32 all scores are compared with the plain loop's (1e-4). Where the CPU
multiplies bf16 and --model gives a ranker that is trained, both kdscale and sentence-transformers
take part in bf16 too, and their nDCG@10 over more queries is compared with fp32's (0.001; a peer
that is further off is told of, and still timed). Then the ways take turns. sentence-transformers
takes part at each of --peer-batch, and kdscale at each of --batch-tokens; of each the best counts,
and the product's own setting is shown too. Beside pairs a second stands the share of the measured
fp32 matrix peak that the FLOPs of real tokens make (kdscale does fewer: of the last layer it
computes what the head reads); --profile adds which operations take the time.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from first_stage import Candidates, find_candidates, read_tables, write_scores, write_tables
from grid import exit_with
from rich.console import Console
from rich.table import Table
from sidebyside import alternate, circumstances, finish, matrix_peak, rates

from kdscale.doctor.machine import cpu_multiplies_bf16
from kdscale.evaluation.latency import cpu_threads, forward_flops
from kdscale.models.encode import PairEncoder
from kdscale.models.onnx_ranker import MODEL_FILE, OnnxScorer, write_onnx
from kdscale.models.packed import first_token_only
from kdscale.models.pretrained import load_encoder, resolve_model
from kdscale.models.ranker import (
    BATCH_TOKENS,
    PairScorer,
    Scorer,
    build_ranker,
    load_ranker,
    save_ranker,
)
from kdscale.progress import Reporter

SAME, SAME_NDCG = 1e-4, 0.001
PEER, LOOP, OURS, BF16 = "sentence-transformers", "plain loop", "kdscale", "bf16"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--beir", type=Path, required=True, metavar="DIR", help="the data")
    parser.add_argument("--model", help="a trained ranker; default: MiniLM, random head")
    parser.add_argument("--queries", type=int, default=15)
    parser.add_argument("--check-queries", type=int, default=300, help="for nDCG@10 in bf16")
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--batch-tokens", nargs="+", type=int, default=[BATCH_TOKENS["cpu"], 8192])
    parser.add_argument("--peer-batch", nargs="+", type=int, default=[16, 32])
    parser.add_argument("--ways", nargs="+", default=["compiled", "onnx"], help="more of kdscale's")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    reporter = Reporter()
    with tempfile.TemporaryDirectory() as name, cpu_threads(args.threads):
        folder = Path(name)
        ranker = write_ranker(folder / "model", args.model, args.max_length)
        in_bf16 = cpu_multiplies_bf16() and args.model is not None
        queries = max(args.queries, args.check_queries) if in_bf16 else args.queries
        found = find_candidates(args.beir, queries, args.candidates)
        pairs = write_tables(folder, found.first(args.queries))
        ways = make_ways(folder, args, in_bf16, reporter)
        flops, own_flops, tokens = useful_flops(folder, ranker, args.max_length)
        reporter.info(f"{pairs} pairs, {tokens / pairs:.0f} tokens each on average")
        differences = check(ways, folder, reporter)
        losses = check_bf16(ways, folder, found, reporter) if in_bf16 else {}
        # Before the runs and after them: a machine that is not idle shows.
        peaks = [matrix_peak()]
        seconds = alternate({n: partial(w, folder) for n, w in ways.items()}, args.runs, reporter)
        peaks.append(matrix_peak())
        profile = profile_of(ranker, folder, args) if args.profile else None
    rows = rates(seconds, pairs)
    for name, row in rows.items():
        done = own_flops if name.startswith(OURS) else flops
        row["share_of_peak"] = round(done * row["per_s"] / pairs / max(peaks), 4)
    ratios = compare(rows)
    show(rows, ratios, peaks)
    for line in profile or []:
        print(f"  {line['share']:6.1%}  {line['operation']}")
    finish(
        {
            "circumstances": circumstances(args.threads),
            "data": args.beir.name,
            "pairs": pairs,
            "tokens_per_pair": round(tokens / pairs, 1),
            "max_length": args.max_length,
            "useful_flops_per_pair": {
                "whole": round(flops / pairs),
                OURS: round(own_flops / pairs),
            },
            "matrix_peak_flops": [round(peak) for peak in peaks],
            "differences_from_plain_loop": differences,
            "bf16_ndcg_differences": losses,
            "ways": rows,
            "ratios": ratios,
            "profile": profile,
        },
        args.output,
    )
    return 0


def write_ranker(folder: Path, given: str | None, max_length: int) -> Any:
    model = load_ranker(given) if given else build_ranker(load_encoder("minilm"), 0.0, 0).eval()
    encoder = PairEncoder.load(given or resolve_model("minilm"), max_length)
    save_ranker(model, encoder, folder)
    return model


def compare(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """How many times as fast kdscale's best way is as the best of each other kind: in fp32, in
    bf16, and kdscale in bf16 beside the others in fp32."""

    def best(kind: str, bf16: bool) -> str | None:
        names = [n for n in found if n.startswith(kind) and (BF16 in n) == bf16]
        return max(names, key=lambda name: found[name]["per_s"], default=None)

    wanted = [(False, LOOP, False), (False, PEER, False), (True, PEER, True), (True, PEER, False)]
    pairs = [(best(OURS, own), best(kind, its)) for own, kind, its in wanted]
    return {
        f"{ours} / {other}": round(found[ours]["per_s"] / found[other]["per_s"], 3)
        for ours, other in pairs
        if ours and other
    }


def kdscale_way(scorer: PairScorer, folder: Path) -> None:
    """As the score stage's actor: every text is cut once, and pairs of like length go together."""
    queries, passages, pairs = read_tables(folder)
    cut = scorer.encoder.tokenise
    query_ids = dict(zip(queries, cut(list(queries.values())), strict=True))
    passage_ids = dict(zip(passages, cut(list(passages.values())), strict=True))
    write_scores(folder, scorer.score([(query_ids[q], passage_ids[p]) for q, p in pairs]))


def peer_way(model: Any, batch_size: int, folder: Path) -> None:
    queries, passages, pairs = read_tables(folder)
    texts = [(queries[q], passages[p]) for q, p in pairs]
    write_scores(folder, model.predict(texts, batch_size=batch_size, show_progress_bar=False))


@torch.inference_mode()
def plain_way(model: Any, tokenizer: Any, max_length: int, folder: Path) -> None:
    """Batches of 32 in the order given, padded to the longest."""
    queries, passages, pairs = read_tables(folder)
    scores = []
    for start in range(0, len(pairs), 32):
        part = pairs[start : start + 32]
        batch = tokenizer(
            [queries[q] for q, _ in part], [passages[p] for _, p in part],
            truncation=True, max_length=max_length, padding=True, return_tensors="pt",
        )  # fmt: skip
        scores.append(model(**batch).logits[:, 0])
    write_scores(folder, torch.cat(scores).numpy())


def make_ways(
    folder: Path, args: argparse.Namespace, in_bf16: bool, reporter: Reporter
) -> dict[str, Callable[[Path], None]]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    place = str(folder / "model")
    encoder = PairEncoder.load(place)
    plain = AutoModelForSequenceClassification.from_pretrained(place).eval()
    tokenizer = AutoTokenizer.from_pretrained(place)
    ways: dict[str, Callable[[Path], None]] = {
        LOOP: partial(plain_way, plain, tokenizer, args.max_length)
    }
    for tokens in args.batch_tokens:
        scorer = Scorer(load_ranker(place), encoder, tokens)
        ways[f"{OURS}, {tokens} tokens"] = partial(kdscale_way, scorer)
    if in_bf16:
        scorer = Scorer(load_ranker(place), encoder, args.batch_tokens[0], precision="bf16")
        ways[f"{OURS}, {BF16}"] = partial(kdscale_way, scorer)
    if "compiled" in args.ways:
        scorer = Scorer(load_ranker(place), encoder, args.batch_tokens[0])
        first_token_only(scorer.model).__enter__()  # for good: what is compiled stays so
        scorer.model = torch.compile(scorer.model, dynamic=True)
        ways[f"{OURS}, compiled"] = partial(kdscale_way, scorer)
    if "onnx" in args.ways:
        write_onnx(load_ranker(place), encoder, folder / "model" / MODEL_FILE)
        onnx = OnnxScorer(place, encoder, args.batch_tokens[0])
        ways[f"{OURS}, onnx"] = partial(kdscale_way, onnx)
    from sentence_transformers import CrossEncoder

    for batch in args.peer_batch:
        peer = CrossEncoder(place, device="cpu", max_length=args.max_length)
        ways[f"{PEER}, {batch} pairs"] = partial(peer_way, peer, batch)
        if in_bf16:
            peer = CrossEncoder(
                place,
                device="cpu",
                max_length=args.max_length,
                model_kwargs={"dtype": torch.bfloat16},
            )
            ways[f"{PEER}, {BF16}, {batch} pairs"] = partial(peer_way, peer, batch)
    try:
        peer = CrossEncoder(place, device="cpu", max_length=args.max_length, backend="onnx")
        ways[f"{PEER}, onnx"] = partial(peer_way, peer, args.peer_batch[-1])
    except Exception as error:  # it needs optimum-onnx, which holds transformers at 4
        first = (str(error).splitlines() or [repr(error)])[0]
        reporter.info(f"{PEER}'s onnx backend does not work here: {first}")
    return ways


def check(
    ways: dict[str, Callable[[Path], None]], folder: Path, reporter: Reporter
) -> dict[str, float]:
    """A run of each, which warms it up; the largest difference from the plain loop's scores."""
    found, expected = {}, None
    with reporter.task("correctness", len(ways)) as task:
        for name, way in ways.items():
            way(folder)
            scores = pq.read_table(folder / "scores")["score"].to_numpy()
            expected = scores if expected is None else expected
            found[name] = float(np.abs(scores - expected).max())
            if BF16 not in name and found[name] > SAME * max(1.0, float(np.abs(expected).max())):
                raise SystemExit(f"{name}: a score is {found[name]:.2g} from the plain loop's")
            task.advance(note=name)
    return found


def check_bf16(
    ways: dict[str, Callable[[Path], None]],
    folder: Path,
    found: Candidates,
    reporter: Reporter,
) -> dict[str, float]:
    """By how much the nDCG@10 of each way in bf16 is off that of kdscale in fp32. Raises
    SystemExit where kdscale's own is too far; of others it is told."""
    more = folder / "more"
    more.mkdir()
    write_tables(more, found)
    first = next(name for name in ways if name.startswith(OURS))
    names = [first, *(name for name in ways if BF16 in name)]
    values = {}
    with reporter.task(f"nDCG@10 of {len(found.queries)} queries", len(names)) as task:
        for name in names:
            ways[name](more)
            values[name] = found.ndcg(pq.read_table(more / "scores")["score"].to_numpy())
            task.advance(note=f"{name} {values[name]:.4f}")
    fp32 = values.pop(first)
    for name, value in values.items():
        if abs(value - fp32) > SAME_NDCG:
            told = f"{name}: nDCG@10 {value:.4f}, in fp32 {fp32:.4f}: too far"
            if name.startswith(OURS):
                raise SystemExit(told)
            reporter.info(told)
    return {name: round(value - fp32, 6) for name, value in values.items()}


def useful_flops(folder: Path, ranker: Any, max_length: int) -> tuple[float, float, int]:
    """FLOPs of all pairs without padding: of the whole model, and of it with the last layer's for
    the first token alone, as kdscale computes it; and the pairs' tokens. Of a pair of L tokens
    they are a·L + b·L² + c: fitted to counts at three lengths."""
    encoder = PairEncoder.load(folder / "model", max_length)
    queries, passages, pairs = read_tables(folder)
    q_len = dict(zip(queries, map(len, encoder.tokenise(list(queries.values()))), strict=True))
    p_len = dict(zip(passages, map(len, encoder.tokenise(list(passages.values()))), strict=True))
    lengths = np.array([encoder.length(q_len[q], p_len[p]) for q, p in pairs])
    at = [max_length // 4, max_length // 2, max_length]

    def all_pairs() -> float:
        curve = np.polyfit(at, [forward_flops(ranker, length) for length in at], 2)
        return float(np.polyval(curve, lengths).sum())

    whole = all_pairs()
    with first_token_only(ranker):
        return whole, all_pairs(), int(lengths.sum())


def profile_of(ranker: Any, folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The operations of kdscale's way by their share of the time, the largest first."""
    from torch.profiler import ProfilerActivity, profile

    scorer = Scorer(ranker, PairEncoder.load(folder / "model"), args.batch_tokens[0])
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        kdscale_way(scorer, folder)
    events = [(event.key, event.self_cpu_time_total) for event in seen.key_averages()]
    total = sum(time for _, time in events)
    events.sort(key=lambda event: -event[1])
    return [{"operation": k, "share": round(t / total, 4)} for k, t in events[:12]]


def show(found: dict[str, dict[str, Any]], ratios: dict[str, float], peaks: list[float]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("way", "pairs/s", "from", "to", "of the peak"):
        table.add_column(title, justify="left" if title == "way" else "right")
    for name, row in found.items():
        low, high = row["per_s_range"]
        share = f"{row['share_of_peak']:.0%}"
        table.add_row(name, f"{row['per_s']:.1f}", f"{low:.1f}", f"{high:.1f}", share)
    Console(width=110).print(table)
    print("matrix peak before and after: " + ", ".join(f"{p / 1e9:.0f} GFLOP/s" for p in peaks))
    for name, value in ratios.items():
        print(f"{value:.2f}x: {name}")


if __name__ == "__main__":
    exit_with(main)
