"""The log of a training run: metrics.jsonl while it runs, TensorBoard events made of it after."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

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


def write_events(log: Path, directory: Path) -> None:
    """The rows of metrics.jsonl as TensorBoard events."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(directory)) as events:
        for line in log.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            values = {name: row[name] for name in CURVES}
            values.update({f"terms/{name}": value for name, value in row["terms"].items()})
            for name, value in values.items():
                events.add_scalar(name, value, row["step"], walltime=row["time"])
