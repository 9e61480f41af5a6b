"""What the tests of the stages before training share: a config, and running a stage in a folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from kdscale.config import BeirSource, Config, Prepare, Teacher
from kdscale.experiment.context import StageContext
from kdscale.experiment.steps import build_steps
from kdscale.progress import Reporter
from kdscale.store import Artifact, LocalStore, LocalWorkspace
from tests.worlds.artifacts import commit, manifest_of
from tests.worlds.ids import step_id


def small_config(encoder: Path, source: object, **prepare: object) -> Config:
    settings = {
        "depth": {"train": 10, "dev": 10, "test": 10},
        "negatives": 4,
        "max_length": 32,
        "block_length": 16,
        "shards": 3,
        **prepare,
    }
    if isinstance(source, Path):
        source = BeirSource(path=str(source))
    return Config(source=source, prepare=Prepare(**settings), teacher=Teacher(model=str(encoder)))


def artifact(path: Path) -> Artifact:
    """A copy of a folder as a stage's input, committed to a store beside it."""
    kind, store = path.name, LocalStore(path.parent / "artifacts")
    key = manifest_of(path, kind=kind)["digest"][:12]

    def copy(out: Path) -> None:
        shutil.copytree(path, out, dirs_exist_ok=True)

    return store.find(kind, key) or commit(store, kind, key, copy)


def run_stage(stage, config: Config, out: Path, **inputs: Path) -> dict:
    """stage: of those that a first teacher needs. inputs: folders by role."""
    steps = build_steps(replace(config, ensemble=config.ensemble or [config.teacher]))
    step = next(s for s in steps.values() if s.load() is stage)
    out.mkdir(parents=True, exist_ok=True)
    context = StageContext(
        step.id,
        step.settings,
        {step_id(role): artifact(path) for role, path in inputs.items()},
        out,
        LocalWorkspace(out.with_name(f"{out.name}-work")),
        Reporter(),
        config.cluster,
    )
    return stage(context)


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
