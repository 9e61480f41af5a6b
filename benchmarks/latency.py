#!/usr/bin/env python3
"""Milliseconds to rerank a query's candidates: teacher and students, in torch, compiled, and ONNX.

    .venv/bin/python -m pip install 'kdscale[export]'
    .venv/bin/python benchmarks/latency.py --beir DIR -o benchmarks/results/latency.json

Rankers are the teacher's encoder and the shapes of --shapes with random weights, since time does
not depend on their values; --ranker NAME=DIR takes trained ones in their place, the teacher first.
Of each form the scores are compared with torch's before any time is taken: 1e-4 in fp32, and of
int8 the correlation is printed. The forms take turns, request by request. Tokenising is timed
apart, and is part of the total.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from grid import exit_with
from rich.console import Console
from rich.table import Table
from sidebyside import circumstances, finish, read_shape

from kdscale.config import BeirSource
from kdscale.data.readers import open_reader
from kdscale.data.readers.base import Reject
from kdscale.evaluation.latency import Request, Timings, cpu_threads, measure_latency, speedup
from kdscale.models.encode import PairEncoder
from kdscale.models.int8 import write_int8
from kdscale.models.onnx_ranker import MODEL_FILE, OnnxModel, write_onnx
from kdscale.models.packed import first_token_only
from kdscale.models.pretrained import load_encoder, resolve_model
from kdscale.models.ranker import build_ranker, load_ranker
from kdscale.models.students import build_student
from kdscale.progress import Reporter

SAME = 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--beir", type=Path, required=True, metavar="DIR", help="the data")
    parser.add_argument("--ranker", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--shapes", nargs="+", default=["3l-192", "2l-192"], metavar="NAME")
    parser.add_argument("--candidates", nargs="+", type=int, default=[100, 1000])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--requests", type=int, default=20, help="of the smallest depth")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--forms", nargs="+", default=["torch", "compiled", "onnx", "int8"])
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    reporter = Reporter()
    rankers, encoder = make_rankers(args)
    requests = make_requests(args.beir, args.requests, max(args.candidates))
    rows: list[dict[str, Any]] = []
    checks: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for threads in args.threads:
            forms: dict[str, Any] = {}
            for name, model in rankers.items():
                place = Path(folder, name)
                forms |= forms_of(name, model, encoder, place, threads, args.forms, reporter)
            checks[str(threads)] = check(forms, encoder, requests[0], threads)
            for depth in args.candidates:
                # A request of ten times the candidates is ten times the time: fewer will do.
                count = max(5, args.requests * min(args.candidates) // depth)
                cut = [(query, texts[:depth]) for query, texts in requests[:count]]
                with reporter.task(
                    f"{depth} candidates, {threads} threads", len(cut) * len(forms)
                ) as task:
                    timings = measure_latency(
                        {name: (form, encoder) for name, form in forms.items()}, cut, threads, task
                    )
                rows += [row_of(name, depth, threads, timings) for name in forms]
    show(rows)
    finish(
        {
            "circumstances": circumstances(max(args.threads)),
            "rankers": args.ranker or ["teacher", *args.shapes],
            "data": args.beir.name,
            "max_length": args.max_length,
            "differences_from_torch": checks,
            "rows": rows,
        },
        args.output,
    )
    return 0


def make_rankers(args: argparse.Namespace) -> tuple[dict[str, Any], PairEncoder]:
    """The first is the teacher; all read what its tokenizer makes."""
    if args.ranker:
        folders = dict(entry.split("=", 1) for entry in args.ranker)
        models = {name: load_ranker(folder) for name, folder in folders.items()}
        return models, PairEncoder.load(next(iter(folders.values())), args.max_length)
    body = load_encoder("minilm")
    models = {"teacher": build_ranker(body, 0.0, 0).eval()}
    for name in args.shapes:
        student = build_student(read_shape(name), body, "random", 0)
        models[name] = build_ranker(student, 0.0, 0).eval()
    return models, PairEncoder.load(resolve_model("minilm"), args.max_length)


def make_requests(folder: Path, count: int, candidates: int) -> list[Request]:
    """Queries of a BEIR folder, each with as many passages, spread over the collection."""
    reader = open_reader(BeirSource(path=str(folder)))
    texts = [p[1] for p in reader.passages() if not isinstance(p, Reject)]
    split = reader.splits()[0]
    queries = [q[1] for q in reader.queries(split) if not isinstance(q, Reject)]
    rng = np.random.default_rng(0)
    size = min(candidates, len(texts))
    return [
        (query, [texts[i] for i in rng.choice(len(texts), size, replace=False)])
        for query in queries[:count]
    ]


def forms_of(
    name: str,
    model: torch.nn.Module,
    encoder: PairEncoder,
    folder: Path,
    threads: int,
    wanted: list[str],
    reporter: Reporter,
) -> dict[str, Any]:
    """ "NAME torch" and so on, each callable as the model is."""
    made: dict[str, Any] = {f"{name} torch": model}
    if "compiled" in wanted:
        whole = copy.deepcopy(model)
        first_token_only(whole).__enter__()  # for good: what is compiled stays so
        made[f"{name} compiled"] = torch.compile(whole, dynamic=True)
    for form in ("onnx", "int8"):
        if form not in wanted:
            continue
        (folder / form).mkdir(parents=True, exist_ok=True)
        path = folder / form / MODEL_FILE
        if not path.is_file():
            reporter.info(f"{name}: writing {form}")
            if form == "onnx":
                write_onnx(model, encoder, path)
            else:
                fp32 = folder / "onnx" / MODEL_FILE
                fp32.parent.mkdir(exist_ok=True)
                if not fp32.is_file():
                    write_onnx(model, encoder, fp32)
                write_int8(fp32, path)
        made[f"{name} {form}"] = OnnxModel(folder / form, threads)
    return made


def check(
    forms: dict[str, Any], encoder: PairEncoder, request: Request, threads: int
) -> dict[str, float]:
    """The largest difference of a score from torch's; of int8, 1 - the correlation. Raises
    SystemExit where an fp32 form has other scores."""
    query, passages = request
    query_ids, *passage_ids = encoder.tokenise([query, *passages[:16]])
    batch = encoder.collate([(query_ids, ids) for ids in passage_ids])
    found: dict[str, float] = {}
    with cpu_threads(threads), torch.inference_mode():
        scores = {name: scores_of(form(**batch)) for name, form in forms.items()}
    for name, values in scores.items():
        expected = scores[f"{name.rpartition(' ')[0]} torch"]
        if name.endswith("int8"):
            found[name] = 1 - float(np.corrcoef(values, expected)[0, 1])
            continue
        found[name] = float(np.abs(values - expected).max())
        if found[name] > SAME * max(1.0, float(np.abs(expected).max())):
            raise SystemExit(f"{name}: a score is {found[name]:.2g} from torch's")
    return {name: round(value, 8) for name, value in found.items()}


def scores_of(output: Any) -> np.ndarray:
    logits = output if isinstance(output, np.ndarray) else output.logits.numpy()
    return logits[:, 0]


def row_of(name: str, depth: int, threads: int, timings: dict[str, Timings]) -> dict[str, Any]:
    slow = next(iter(timings.values()))
    return {
        "ranker": name,
        "candidates": depth,
        "threads": threads,
        "requests": len(slow.forward_ms),
        **timings[name].summary(),
        "speedup": speedup(slow.total_ms, timings[name].total_ms),
    }


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("ranker", "candidates", "threads", "tokenise", "forward", "total", "p95", "x"):
        table.add_column(title, justify="left" if title == "ranker" else "right")
    for row in rows:
        table.add_row(
            row["ranker"], str(row["candidates"]), str(row["threads"]),
            *(f"{row[part]['median']:.1f}" for part in ("tokenise_ms", "forward_ms", "total_ms")),
            f"{row['total_ms']['p95']:.1f}", f"{row['speedup']:.2f}",
        )  # fmt: skip
    Console(width=110).print(table)
    print("medians in milliseconds; x: how many times faster than the first in its group")


if __name__ == "__main__":
    exit_with(main)
