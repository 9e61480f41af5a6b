#!/usr/bin/env python3
"""MB/s of `kdscale push` and `pull` against `aws s3 cp --recursive`, the same files, one server.

    python3 -m venv /tmp/aws && /tmp/aws/bin/pip install awscli
    .venv/bin/python benchmarks/transfer.py --aws /tmp/aws/bin/aws [-o FILE]

A local S3 server (scripts/object-store) on this machine, so the figures are of the tools, not of
a network. Runs alternate; each is a whole process, its start included. kdscale does more: it
computes and checks a SHA-256 of every file. (awscli is not in an extra: it pins botocore.)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from kdscale.cluster.machine import cpus
from kdscale.store.artifact import MANIFEST, build_manifest, list_files

ROOT = Path(__file__).parent.parent
LARGE, SMALL = [220_000_000, 90_000_000], [200_000] * 200
KEY = "students/bench"


def make_artifact(directory: Path) -> int:
    """Write files that do not compress, and their manifest; returns bytes."""
    (directory / "parts").mkdir(parents=True)
    for number, size in enumerate(LARGE):
        (directory / f"large-{number}.bin").write_bytes(os.urandom(size))
    for number, size in enumerate(SMALL):
        (directory / "parts" / f"{number:03d}.bin").write_bytes(os.urandom(size))
    files = list_files(directory)
    manifest = build_manifest(
        kind="students",
        stage="distill_ranker",
        config={},
        inputs={},
        files=files,
        facts={},
        created=f"{date.today()}T00:00:00+00:00",
        version="0",
    )
    (directory / MANIFEST).write_text(json.dumps(manifest))
    return sum(file["bytes"] for file in files)


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command[:3])} failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--aws", required=True, help="the aws command")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kdscale-transfer-") as name:
        scratch = Path(name)
        os.environ["KDSCALE_CACHE"] = str(scratch / "cache")
        command = [sys.executable, ROOT / "scripts" / "object-store", "--dir", scratch / "s3"]
        server = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True)
        for line in server.stdout:
            if not line.startswith("export "):
                break
            key, _, value = line.removeprefix("export ").strip().partition("=")
            os.environ[key] = value
        try:
            figures = measure(args, scratch)
        finally:
            server.terminate()
            server.wait(60)
    print(json.dumps(figures, indent=1))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def measure(args: argparse.Namespace, scratch: Path) -> dict:
    source = scratch / "artifact"
    source.mkdir()
    megabytes = make_artifact(source) / 1e6
    kdscale = [sys.executable, "-m", "kdscale"]
    rates: dict[str, list[float]] = {n: [] for n in ("push", "aws_up", "pull", "aws_down")}
    for run in range(args.runs):
        there = f"s3://kdscale/ours-{run}/{KEY}"
        theirs = f"s3://kdscale/theirs-{run}"
        copy = [args.aws, "s3", "cp", "--recursive", "--quiet"]
        for tool, command in (
            ("push", [*kdscale, "push", str(source), there]),
            ("aws_up", [*copy, str(source), theirs]),
            ("pull", [*kdscale, "pull", there, str(scratch / "ours")]),
            ("aws_down", [*copy, theirs, str(scratch / "theirs")]),
        ):
            rates[tool].append(megabytes / seconds(command))
            print(f"run {run + 1}: {tool} {rates[tool][-1]:.0f} MB/s", file=sys.stderr)
        if list_files(scratch / "ours") != list_files(scratch / "theirs"):
            sys.exit("the two tools brought different files")
        shutil.rmtree(scratch / "ours")
        shutil.rmtree(scratch / "theirs")
        seconds([args.aws, "s3", "rm", "--recursive", "--quiet", f"s3://kdscale/ours-{run}"])
        seconds([args.aws, "s3", "rm", "--recursive", "--quiet", theirs])
    median = {tool: round(statistics.median(values), 1) for tool, values in rates.items()}
    version = subprocess.run([args.aws, "--version"], capture_output=True, text=True).stdout
    return {
        "date": str(date.today()),
        "cpus": cpus(),
        "python": platform.python_version(),
        "aws": version.split()[0],
        "files": len(LARGE) + len(SMALL),
        "megabytes": round(megabytes, 1),
        "runs": args.runs,
        "MB_per_s": {tool: [round(v, 1) for v in values] for tool, values in rates.items()},
        "median_MB_per_s": median,
        "push_over_aws": round(median["push"] / median["aws_up"], 2),
        "pull_over_aws": round(median["pull"] / median["aws_down"], 2),
    }


if __name__ == "__main__":
    sys.exit(main())
