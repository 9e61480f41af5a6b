#!/usr/bin/env python3
"""Peak memory of all steps up to a student, as the corpus grows tenfold.

    .venv/bin/python benchmarks/memory.py --passages 200000 -o benchmarks/results/memory.json

Generates a BEIR folder of N passages and of 10 N (drawn words, as many queries for both), and runs
`kdscale distill-ranker` over each, with models of one small layer and few steps, in a process and
a store of its own. Peak memory is the largest sum of the proportional set sizes of the command and
everything that it started, read twice a second, by the step that it had last told of. Flat means
that ten times the passages take no more than what holds them: what grows is named in the table.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from quickstart import proportional_bytes
from rich.console import Console
from rich.table import Table
from sidebyside import circumstances, finish

from kdscale.cluster.machine import cpus

ROOT = Path(__file__).parent.parent
VOCABULARY = 20_000
QUERIES = {"train": 400, "dev": 20, "test": 20}
EVERY_S = 0.5
STEP = re.compile(r"^([a-z_:0-9-]+): (prepare|finetune|score|distill-lm|distill-ranker)\b")
STEPS = {"max_steps": 200, "checkpoint_every": 0}  # seconds: seen by several looks


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passages", type=int, default=200_000, help="N; the other run has 10 N")
    parser.add_argument("--words", type=int, default=40, help="of a passage, on average")
    parser.add_argument("--scratch", type=Path, help="where the corpora go; default: the system's")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    rows = []
    for passages in (args.passages, 10 * args.passages):
        with tempfile.TemporaryDirectory(dir=args.scratch, prefix="kdscale-memory-") as name:
            corpus_bytes = generate(Path(name), passages, args.words)
            print(f"{passages:,} passages, {corpus_bytes / 1e6:,.0f} MB")
            steps, seconds = watch(write_config(Path(name)))
        rows.append(
            {
                "passages": passages,
                "corpus_bytes": corpus_bytes,
                "seconds": round(seconds, 1),
                "peak_bytes": max(steps.values()),
                "peak_bytes_by_step": steps,
            }
        )
    small, large = rows
    growth = {
        step: {
            "times": round(peak / small["peak_bytes_by_step"][step], 2),
            "bytes_per_further_passage": round(
                (peak - small["peak_bytes_by_step"][step]) / (9 * args.passages), 1
            ),
        }
        for step, peak in large["peak_bytes_by_step"].items()
        if step in small["peak_bytes_by_step"]
    }
    show(rows, growth)
    finish(
        {"circumstances": circumstances(cpus()), "rows": rows, "growth": growth},
        args.output,
    )
    return 0


def generate(folder: Path, passages: int, words: int) -> int:
    """A BEIR folder below `folder`; the bytes of its corpus. Written as it is drawn."""
    rng, beir = np.random.default_rng(0), folder / "beir"
    (beir / "qrels").mkdir(parents=True)
    names = np.array([f"w{i}" for i in range(VOCABULARY)])
    queries, qrels = [], {split: ["query-id\tcorpus-id\tscore"] for split in QUERIES}
    wanted = [split for split, count in QUERIES.items() for _ in range(count)]
    spread = max(1, passages // len(wanted))
    with (beir / "corpus.jsonl").open("w", encoding="utf-8") as corpus:
        for i in range(passages):
            # Some words are in most texts, most words in few: as Zipf has it.
            drawn = rng.zipf(1.2, max(3, int(rng.normal(words, words / 4)))) % VOCABULARY
            text = " ".join(names[drawn])
            corpus.write(json.dumps({"_id": f"p{i}", "title": "", "text": text}) + "\n")
            if i % spread == 0 and len(queries) < len(wanted):
                qid = f"q{len(queries)}"
                qrels[wanted[len(queries)]].append(f"{qid}\tp{i}\t1")
                queries.append({"_id": qid, "text": " ".join(text.split()[:4])})
    (beir / "queries.jsonl").write_text("".join(json.dumps(q) + "\n" for q in queries))
    for split, lines in qrels.items():
        (beir / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return (beir / "corpus.jsonl").stat().st_size


def write_config(folder: Path) -> Path:
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    vocab = [*special, *(f"w{i}" for i in range(VOCABULARY))]
    tokenizer = BertTokenizer(vocab={token: i for i, token in enumerate(vocab)})
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(vocab), intermediate_size=64, **shape)).save_pretrained(
        folder / "encoder"
    )
    tokenizer.save_pretrained(folder / "encoder")
    config = {
        "name": "memory",
        "storage": {"uri": str(folder / "store")},
        "source": {"type": "beir", "path": str(folder / "beir")},
        "prepare": {"max_length": 64, "block_length": 64, "max_block_tokens": 2_000_000},
        "cluster": {"engine": "torch"},
        "teacher": {
            "model": str(folder / "encoder"),
            "train": STEPS,
        },
        "students": [{"name": "tiny", "layers": 1, "hidden": 16, "heads": 2, "intermediate": 32}],
        "lm": {"relation_heads": 2, "train": STEPS},
        "ranker": {"strategies": ["lm_distill_ranker_distill"], "train": STEPS},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def watch(config: Path) -> tuple[dict[str, int], float]:
    """Peak bytes by step, and seconds, of `kdscale distill-ranker`."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "kdscale", "distill-ranker", str(config)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    step = ["start"]

    def follow() -> None:
        for line in process.stdout:
            found = STEP.match(line)
            if found:
                step[0] = found[1]
                print(f"  {line.rstrip()}")

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    peaks: dict[str, int] = {}
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        peaks[step[0]] = max(peaks.get(step[0], 0), proportional_bytes(watched))
        time.sleep(EVERY_S)
    reader.join(10)
    if process.returncode:
        raise SystemExit(process.returncode)
    return peaks, time.monotonic() - began


def show(rows: list[dict[str, Any]], growth: dict[str, dict[str, float]]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    titles = ["step", *(f"MB, {row['passages']:,}" for row in rows), "times", "bytes a passage"]
    for title in titles:
        table.add_column(title, justify="left" if title == "step" else "right")
    for step, grown in growth.items():
        peaks = (f"{row['peak_bytes_by_step'][step] / 1e6:,.0f}" for row in rows)
        further = f"{grown['bytes_per_further_passage']:,.0f}"
        table.add_row(step, *peaks, f"{grown['times']:.2f}", further)
    Console(width=110).print(table)


if __name__ == "__main__":
    raise SystemExit(main())
