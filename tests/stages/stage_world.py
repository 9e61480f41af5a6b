"""What the tests of the stages before training share: a config, and running a stage in a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from kdscale.config import BeirSource, Config, Prepare, Teacher
from kdscale.progress import Reporter
from kdscale.stages.context import StageContext
from kdscale.store import Artifact, LocalStore, LocalWorkspace
from kdscale.store.artifact import build_manifest, list_files


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
    manifest = build_manifest(
        kind=path.name,
        stage="test",
        config={},
        inputs={},
        files=list_files(path),
        facts={},
        created="2026-01-01T00:00:00+00:00",
        version="0",
    )
    store, key = LocalStore(path.parent / "artifacts"), manifest["digest"][:12]
    if store.find(path.name, key) is None:
        with store.staging(path.name, key) as staged:
            shutil.copytree(path, staged, dirs_exist_ok=True)
            store.commit(staged, path.name, key, manifest)
    return store.find(path.name, key)


def run_stage(stage, config: Config, out: Path, **inputs: Path) -> dict:
    out.mkdir(parents=True, exist_ok=True)
    context = StageContext(
        config,
        {role: artifact(path) for role, path in inputs.items()},
        out,
        LocalWorkspace(out.with_name(f"{out.name}-work")),
        Reporter(),
    )
    return stage(context)


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
