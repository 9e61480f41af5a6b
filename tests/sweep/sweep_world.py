"""Sweeps over the tiny world of `tests/world.py`."""

from __future__ import annotations

from pathlib import Path

import yaml
from world import make_config

SHAPES = [
    {"name": "narrow", "layers": 1, "hidden": 16, "heads": 2, "intermediate": 32},
    {"name": "wide", "layers": 1, "hidden": 24, "heads": 2, "intermediate": 48},
]
SPACE = {
    "strategy": {"grid": ["finetune", "lm_distill_ranker_distill"]},
    "shape": {"grid": SHAPES},
}


def make_sweep(
    directory: Path,
    space: dict | None = None,
    engine: str = "torch",
    file: str = "sweep.yaml",
    **changes: object,
) -> Path:
    """A sweep file in `directory`, whose sweeps have one world and one store; changes: of the
    section sweep, and of the config around it."""
    directory.mkdir(parents=True, exist_ok=True)
    section = {"space": SPACE if space is None else space}
    section |= {k: changes.pop(k) for k in ("search", "limits", "seed", "wandb") if k in changes}
    cluster = {"workers": 1, "scorers": 1, "engine": engine, **changes.pop("cluster", {})}
    path = make_config(directory, cluster=cluster, **{"students": SHAPES, **changes})
    data = yaml.safe_load(path.read_text())
    sweep = directory / file
    sweep.write_text(yaml.safe_dump({**data, "sweep": section}, sort_keys=False))
    return sweep
