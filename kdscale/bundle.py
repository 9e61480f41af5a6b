"""What a Ray job is sent: the package, the entry points, and the config as it was checked."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

import kdscale
from kdscale.errors import KdscaleError

MIB = 1024**2
LIMIT_BYTES = 100 * MIB  # what Ray's job server takes


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
