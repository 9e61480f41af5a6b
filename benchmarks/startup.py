#!/usr/bin/env python3
"""Seconds until something happens: importing, `kdscale --help`, the first training step of a run.

    .venv/bin/python benchmarks/startup.py -o benchmarks/results/startup.json

The run is that of a config over a BEIR folder and a random encoder that are made here, small enough
that nothing but starting takes time; "first step" is the first row of a training's progress,
prepared data and Ray included. --imports lists the slowest imports of `kdscale --help`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sidebyside import alternate, circumstances, finish

from kdscale.cluster.machine import cpus
from kdscale.progress import Reporter

ROOT = Path(__file__).parent.parent
WORDS = [f"word{i}" for i in range(60)]
IMPORTS = {
    "import kdscale.cli": "import kdscale.cli",
    "import kdscale.experiment.run": "import kdscale.experiment.run",
    "import torch": "import torch",
    "import transformers (a BERT)": "from transformers import BertModel",
    "import ray.train, ray.data": "import ray.train, ray.data",
    "import deepspeed": "import deepspeed",
    "ray.init": "import ray; ray.init(logging_level=50, include_dashboard=False)",
}
TARGET_S = 25.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="some of the rows, by a part of their names")
    parser.add_argument("--imports", action="store_true", help="the slowest ones of kdscale --help")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    reporter = Reporter()
    python = sys.executable
    ways: dict[str, Any] = {
        "python": partial(call, [python, "-c", "pass"]),
        "kdscale --help": partial(call, [python, "-m", "kdscale", "--help"]),
        **{name: partial(call, [python, "-c", code]) for name, code in IMPORTS.items()},
    }
    for engine in ("torch", "deepspeed"):
        ways[f"first step, {engine}"] = partial(first_step, engine)
    if args.only:
        ways = {n: w for n, w in ways.items() if any(part in n for part in args.only)}
    for name, way in ways.items():
        if not name.startswith("first"):
            way()  # files are in the cache from here on
    seconds = alternate(ways, args.runs, reporter)
    rows = {
        name: {"seconds": round(float(np.median(s)), 3), "runs": [round(x, 3) for x in s]}
        for name, s in seconds.items()
    }
    for name, row in rows.items():
        print(f"{row['seconds']:8.2f} s  {name}")
    slowest = slowest_imports() if args.imports else []
    for milliseconds, module in slowest:
        print(f"{milliseconds:8.1f} ms  {module}")
    finish(
        {
            "circumstances": circumstances(cpus()),
            "target_first_step_s": TARGET_S,
            "rows": rows,
            "slowest_imports_ms": {module: ms for ms, module in slowest},
        },
        args.output,
    )
    return 0


def call(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)


def slowest_imports() -> list[tuple[float, str]]:
    """Own time in milliseconds of the ten slowest modules."""
    command = [sys.executable, "-X", "importtime", "-m", "kdscale", "--help"]
    told = subprocess.run(command, check=True, capture_output=True, cwd=ROOT, text=True).stderr
    found = re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", told)
    return sorted(((int(us) / 1e3, name) for us, name in found), reverse=True)[:10]


def first_step(engine: str) -> float:
    """Seconds from the command to the first trained step: its log is in the store's workspace, so
    the moment is that of the first row that any training writes to its terminal."""
    with tempfile.TemporaryDirectory(prefix="kdscale-startup-") as name:
        config = make_world(Path(name), engine)
        command = [sys.executable, "-u", "-c", WATCHED, "run", str(config)]
        began = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        told = []
        for line in process.stdout:
            told.append(line)
            if line.startswith("FIRST STEP"):
                seconds = time.perf_counter() - began
                process.terminate()
                process.wait(60)
                return seconds
        raise SystemExit("the run ended without a step:\n" + "".join(told[-20:]))


# The command itself, but for a word at the first row of progress that has a loss.
WATCHED = """
import sys
from kdscale import progress
from kdscale.cli import main

update = progress.Task.update

def told(self, completed, note="", total=None):
    if note.startswith("loss"):
        print("FIRST STEP", flush=True)
    update(self, completed, note, total)

progress.Task.update = told
sys.exit(main(sys.argv[1:]))
"""


def make_world(folder: Path, engine: str) -> Path:
    """An encoder with random weights, a BEIR folder of 100 passages, and their config."""
    import torch
    import yaml
    from transformers import BertConfig, BertModel, BertTokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    tokenizer = BertTokenizer(vocab={t: i for i, t in enumerate([*special, *WORDS])})
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    body = BertModel(BertConfig(vocab_size=len(tokenizer), intermediate_size=64, **shape))
    body.save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    rng, beir = np.random.default_rng(0), folder / "beir"
    (beir / "qrels").mkdir(parents=True)
    texts = [" ".join(rng.choice(WORDS, 12)) for _ in range(100)]
    corpus = [{"_id": f"p{i}", "title": "", "text": text} for i, text in enumerate(texts)]
    queries = [{"_id": f"q{i}", "text": " ".join(texts[i].split()[:3])} for i in range(60)]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (beir / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split, part in (("train", range(40)), ("dev", range(40, 50)), ("test", range(50, 60))):
        lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\tp{i}\t1" for i in part)]
        (beir / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    train = {"max_steps": 4, "batch_size": 4, "log_every": 1, "checkpoint_every": 0}
    config = {
        "name": "startup",
        "storage": {"uri": str(folder / "store")},
        "source": {"type": "beir", "path": str(beir)},
        "prepare": {"max_length": 32, "block_length": 16, "negatives": 3},
        "cluster": {"engine": engine},
        "teacher": {"model": str(folder / "encoder"), "group_size": 4, "train": train},
        "students": [{"name": "s", "layers": 1, "hidden": 16, "heads": 2, "intermediate": 32}],
        "lm": {"relation_heads": 2},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


if __name__ == "__main__":
    raise SystemExit(main())
