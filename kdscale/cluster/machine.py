"""What of this machine a process may use: in a container, or a control group, less than there is.

`os.cpu_count()` and psutil tell what the host has. A process that believes them in a container of
two CPUs on a host of 64 starts Ray and torch for 64.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def cpus(root: Path = ROOT) -> int:
    """CPUs that this process may use: those of its affinity (taskset, a cpuset), and no more than
    the quota of its control group, rounded down, at least 1.

    A quota of 1.5 counts as 1: where there are more threads than it lasts for, all of them are
    stopped for a part of each period. The rest is left to Ray's own processes.
    root: where /proc and /sys lie.
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    return max(1, int(min([allowed, *_quotas(root)])))


def memory(root: Path = ROOT) -> tuple[int, int]:
    """Bytes in all, and bytes free: of the machine, or of a control group that has less."""
    import psutil

    host = psutil.virtual_memory()
    limits = list(_memory_limits(root))
    total = min([host.total, *(limit for limit, _ in limits)])
    return total, max(0, min([host.available, *(limit - used for limit, used in limits)]))


def limit_threads() -> None:
    """Give torch no more threads than `cpus`: it counts the host's. A number that the user has set
    (OMP_NUM_THREADS) stays."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cpus():
        torch.set_num_threads(cpus())


def _quotas(root: Path) -> Iterator[float]:
    """CPUs by the quota of each control group that this process is in."""
    for group in _groups("cpu", root):
        quota, period = _numbers(group / "cpu.max", 2)  # version 2; no number: no quota
        if quota is None:
            (quota,) = _numbers(group / "cpu.cfs_quota_us", 1)
            (period,) = _numbers(group / "cpu.cfs_period_us", 1)
        if quota and period and quota > 0:  # version 1 writes -1 for none
            yield quota / period


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """The limit of each control group, and what of it is in use for more than cached files."""
    for group in _groups("memory", root):
        for limited, in_use, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            (limit,), (used,) = _numbers(group / limited, 1), _numbers(group / in_use, 1)
            if limit is not None and used is not None:
                lines = dict(line.split(None, 1) for line in _read(group / "memory.stat"))
                yield int(limit), int(used) - int(lines.get(cached, 0))


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of this process's control groups, each with those that it lies in.

    In a container the path of a group may be the host's, of which the container sees only the
    top: what is not there has no files, and no limit.
    """
    mounts = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2, alone or beside version 1
            tops = [mounts, mounts / "unified"]
        elif controller in controllers.split(","):
            tops = [mounts / controllers, mounts / controller]
        else:
            continue
        for top in dict.fromkeys(tops):
            own = top / path.lstrip("/")
            yield from (g for g in (own, *own.parents) if g.is_relative_to(top))


def _read(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _numbers(path: Path, count: int) -> list[float | None]:
    """The words of a file's first line; None for each that is absent or no number ("max")."""
    words = [*" ".join(_read(path)[:1]).split(), *[""] * count][:count]
    return [float(w) if w.lstrip("-").isdecimal() else None for w in words]
