#!/usr/bin/env python3
"""The quickstart from nothing: wall time a stage, peak memory, and the table.

    .venv/bin/python benchmarks/quickstart.py [-o benchmarks/results/quickstart.json]

Runs `kdscale run configs/quickstart.yaml` in an empty store. Peak memory is the largest sum of
the proportional set sizes of the command and everything it started, read once a second. Beside
the table it tests the two claims that the quickstart stands for: the teacher beats BM25, and the
student distilled twice beats the one that never saw a teacher.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from kdscale.cluster.machine import cpus
from kdscale.evaluation.significance import compare, holm

STUDENT = "2l-192"
CLAIMS = [
    ("teacher", "bm25"),
    (f"lm_distill_ranker_distill/{STUDENT}", f"finetune/{STUDENT}"),
]

ROOT = Path(__file__).parent.parent


def proportional_bytes(process: psutil.Process) -> int:
    """Memory of a process and its children, shared pages counted once (PSS)."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def test_claims(evaluation: Path, measure: str = "nDCG@10") -> list[dict]:
    """Paired t-tests of the claims, with Holm's correction over them."""
    table = pq.read_table(evaluation / "metrics.parquet").to_pandas()
    by_system = table[table.measure == measure].pivot(index="qid", columns="system", values="value")
    tests = [compare(by_system[a].to_numpy(), by_system[b].to_numpy()) for a, b in CLAIMS]
    return [
        {"better": a, "than": b, "measure": measure, **asdict(test), "p_holm": p}
        for (a, b), test, p in zip(CLAIMS, tests, holm([t.p for t in tests]), strict=True)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as store:
        began = time.monotonic()
        command = [sys.executable, "-m", "kdscale", "run", str(ROOT / "configs/quickstart.yaml")]
        process = subprocess.Popen([*command, "--set", f"storage.uri={store}"])
        watched, peak = psutil.Process(process.pid), 0
        while process.poll() is None:
            peak = max(peak, proportional_bytes(watched))
            time.sleep(1)
        if process.returncode:
            return process.returncode
        seconds = time.monotonic() - began
        stages = {}
        for path in sorted(Path(store).glob("*/*/manifest.json")):
            manifest = json.loads(path.read_text())
            name = path.parent.name.rpartition("-")[0]
            stages[f"{manifest['kind']}/{name}"] = manifest["facts"]["seconds"]
        evaluation = next(Path(store).glob("evaluations/*"))
        result = {
            "date": date.today().isoformat(),
            "hardware": f"{platform.machine()}, {cpus()} CPUs",
            "seconds": round(seconds, 1),
            "peak_bytes": peak,
            "stage_seconds": stages,
            "claims": test_claims(evaluation),
            "systems": json.loads((evaluation / "systems.json").read_text()),
        }
    print(f"{seconds / 60:.1f} minutes, peak memory {peak / 2**30:.1f} GiB")
    for claim in result["claims"]:
        print(
            f"{claim['better']} over {claim['than']}: {claim['delta']:+.3f} {claim['measure']}, "
            f"95% {claim['ci'][0]:+.3f} to {claim['ci'][1]:+.3f}, Holm p {claim['p_holm']:.2g}"
        )
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written to {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
