"""The logs of a training run: metrics.jsonl, and watch.jsonl of one that is watched, while it
runs; TensorBoard events made of them after."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

METRICS, WATCH = "metrics.jsonl", "watch.jsonl"
CURVES = ("loss", "lr", "grad_norm", "tokens_per_s")


class MetricsLog:
    """Rows added to a file; those that a checkpoint brought along stay."""

    def __init__(self, path: Path):
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def batch_digest(items: np.ndarray) -> str:
    """Eight hex digits of the items of a step, by which a log shows what was read and when."""
    return hashlib.sha256(np.asarray(items, dtype="<i8").tobytes()).hexdigest()[:8]


def write_events(logs: Path, directory: Path) -> None:
    """The rows of metrics.jsonl, and of watch.jsonl where there is one, as TensorBoard events."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(directory)) as events:
        for row in read_rows(logs / METRICS):
            values = {name: row[name] for name in CURVES}
            values.update({f"terms/{name}": value for name, value in row["terms"].items()})
            for name, value in values.items():
                events.add_scalar(name, value, row["step"], walltime=row["time"])
        for row in read_rows(logs / WATCH) if (logs / WATCH).is_file() else []:
            for name in ("dev", "train"):
                events.add_scalar(f"watch/{name}", row[name], row["step"], walltime=row["time"])


def read_rows(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
