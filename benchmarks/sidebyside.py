"""What the benchmarks of speed share: ways of doing one thing, run in turns on one machine.

A machine that slows down for a while then slows all ways down, and the ratio of medians stays fair.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from kdscale.config import Shape
from kdscale.evaluation.latency import hardware
from kdscale.progress import Reporter

PACKAGES = ("torch", "transformers", "sentence-transformers", "onnxruntime", "ray", "deepspeed")


def alternate(
    ways: Mapping[str, Callable[[], float | None]], runs: int, reporter: Reporter
) -> dict[str, list[float]]:
    """name -> [runs] seconds. Each round begins with another way.

    A way returns its seconds, or None to have the call itself timed.
    """
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with reporter.task("runs", runs * len(names)) as task:
        for number in range(runs):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                began = time.perf_counter()
                own = ways[name]()
                seconds[name].append(time.perf_counter() - began if own is None else own)
                task.advance(note=f"{name} {seconds[name][-1]:.2f} s")
    return seconds


def rates(seconds: Mapping[str, list[float]], amount: float) -> dict[str, dict[str, Any]]:
    """Per way: the median of amount / seconds, its range over the runs, and the seconds."""
    return {
        name: {
            "per_s": round(amount / float(np.median(values)), 2),
            "per_s_range": [round(amount / max(values), 2), round(amount / min(values), 2)],
            "seconds": [round(value, 4) for value in values],
        }
        for name, values in seconds.items()
    }


def ratio(seconds: Mapping[str, list[float]], fast: str, slow: str) -> float:
    """How many times faster: the ratio of the medians."""
    return round(float(np.median(seconds[slow]) / np.median(seconds[fast])), 3)


def matrix_peak(dtype: torch.dtype = torch.float32, device: str = "cpu", size: int = 2048) -> float:
    """FLOP/s of the best of a dozen products of square matrices, with torch's threads."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(12):
        wait(device)
        began = time.perf_counter()
        a @ b
        wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def read_shape(name: str) -> Shape:
    """Of configs/students."""
    path = Path(__file__).parent.parent / "configs" / "students" / f"{name}.yaml"
    return Shape(**{"name": name, **yaml.safe_load(path.read_text(encoding="utf-8"))})


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


def circumstances(threads: int) -> dict[str, Any]:
    """What it was measured on, with what, and when."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": date.today().isoformat(),
        "hardware": hardware(),
        "threads": threads,
        "versions": found,
    }


def finish(result: dict[str, Any], output: Path | None) -> None:
    """Say what it was measured on, and write the figures where they are wanted."""
    of = result["circumstances"]
    versions = ", ".join(f"{name} {version}" for name, version in of["versions"].items())
    print(f"{of['hardware']['cpu']}, {of['threads']} threads; {versions}; {of['date']}")
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
        print(f"written to {output}")
