"""What a Ray job is sent: the package, the entry points, and the config as it was checked."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

import kdscale
from kdscale.config import Config
from kdscale.configload import to_dict
from kdscale.errors import KdscaleError

MIB = 1024**2
LIMIT_BYTES = 100 * MIB  # what Ray's job server takes
# The settings of each source that are paths, or hold them.
SOURCE_PATHS = {
    "beir": ("path",),
    "msmarco": ("collection", "queries", "qrels", "candidates", "triples"),
    "trec": ("documents", "topics", "qrels", "runs"),
}


def build_bundle(settings: dict[str, Any], folder: Path) -> int:
    """Fill the empty `folder` with what a job needs and nothing else; its size in bytes.

    settings: the config, which goes as one file with overrides and student shapes in it: what was
    checked is what runs. Raises KdscaleError where there are no entry points, or above Ray's limit.
    """
    package = Path(kdscale.__file__).parent
    jobs = package.parent / "jobs"
    if not (jobs / "run.py").is_file():
        raise KdscaleError(
            f"no folder jobs beside {package}; install kdscale from a clone of its repository "
            "(pip install -e .) to submit jobs"
        )
    for source in (package, jobs):
        shutil.copytree(
            source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__", ".*")
        )
    (folder / "config.yaml").write_text(
        yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    sizes = {p: p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    total = sum(sizes.values())
    if total >= LIMIT_BYTES:
        largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:3]
        raise KdscaleError(
            f"the job would be {total / MIB:.0f} MiB, Ray takes {LIMIT_BYTES // MIB}; move out of "
            + ", ".join(f"{p.relative_to(folder)} ({sizes[p] / MIB:.0f} MiB)" for p in largest)
        )
    return total


def check_paths(config: Config) -> None:
    """Raise KdscaleError for a path that is meant from this working directory: a job has another,
    which holds the package and the config alone. (`check_storage` is about the store.)"""
    for key, path in _paths(config):
        if path and not path.startswith(("/", "~")):
            raise KdscaleError(
                f"{key}: {path!r} is relative, and would be looked for in the job's own folder on "
                "the cluster; give an absolute path that every node mounts"
            )
    for number, teacher in enumerate(config.teachers):
        if Path(teacher.model).is_dir() and not teacher.model.startswith(("/", "~")):
            key = f"ensemble[{number - 1}].model" if number else "teacher.model"
            raise KdscaleError(
                f"{key}: {teacher.model!r} is a folder here, and on the cluster would be taken for "
                "a model of the hub; give an absolute path that every node mounts, or submit from "
                "another folder if the hub's is meant"
            )


def _paths(config: Config) -> Iterator[tuple[str, str]]:
    """Key and path of each file or folder that a job reads."""
    sources = {"source": config.source}
    sources |= {f"transfer.{name}.source": t.source for name, t in config.transfer.items()}
    for where, source in sources.items():
        for name in SOURCE_PATHS.get(source.type, ()):
            yield from _flat(f"{where}.{name}", to_dict(source)[name])
    yield from _flat("prepare.extra_text", config.prepare.extra_text)
    yield from _flat("report.trials", config.report.trials)


def _flat(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(f"{key}.{name}", inner)
    else:
        for i, inner in enumerate(value or ()):
            yield from _flat(f"{key}[{i}]", inner)
