"""Is this machine fit for a run: Python, packages, CPUs, memory, disk, DeepSpeed, Ray."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from kdscale.cluster.machine import cpus, limit_threads, memory
from kdscale.config import Cluster
from kdscale.doctor import Check, first_line
from kdscale.errors import KdscaleError

GIB = 2**30
MEMORY_GIB = 4.0  # what the quickstart needs, Ray included
DISK_GIB = 5.0
RAY_TIMEOUT_S = 60
IMPORT_TIMEOUT_S = 180
SHM = Path("/dev/shm")
RAY_STORE_SHARE, RAY_STORE_BYTES = 0.3, 10**10


def check_python() -> Check:
    from packaging.specifiers import SpecifierSet

    have, asked = platform.python_version(), metadata.metadata("kdscale")["Requires-Python"]
    if SpecifierSet(asked).contains(have, prereleases=True):
        return Check("python", "ok", f"{have} ({sys.executable})")
    return Check(
        "python", "problem", f"{have}, kdscale asks for {asked}", "make a venv with a newer Python"
    )


def check_packages() -> Check:
    """Every package that kdscale's metadata asks for, without the extras."""
    from packaging.requirements import Requirement

    wrong, count = [], 0
    for line in metadata.requires("kdscale") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            have = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append((requirement, "not installed"))
            continue
        if not requirement.specifier.contains(have, prereleases=True):
            wrong.append((requirement, have))
    if not wrong:
        return Check("packages", "ok", f"all {count} that kdscale asks for")
    return Check(
        "packages",
        "problem",
        "; ".join(f"{r.name}: {have}, asked for {r.specifier or 'any'}" for r, have in wrong),
        "pip install " + " ".join(f"'{r.name}{r.specifier}'" for r, _ in wrong),
    )


def check_compute(cluster: Cluster) -> Check:
    import torch

    limit_threads()
    here, host, threads = cpus(), os.cpu_count() or 1, torch.get_num_threads()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    limited = f" (of the host's {host}: a limit of this container or process)"
    detail = (
        f"torch {torch.__version__}, {threads} threads on {here} CPUs"
        f"{limited if here < host else ''}, " + (", ".join(gpus) if gpus else "no GPU")
    )
    wants_gpus = max(cluster.gpus_per_worker, cluster.gpus_per_scorer) > 0
    if cluster.address is None and not gpus and wants_gpus:
        return Check(
            "compute", "problem", f"{detail}, but the config asks for GPUs",
            "set cluster.gpus_per_worker and cluster.gpus_per_scorer to 0, set cluster.address, "
            "or install the CUDA build of torch",
        )  # fmt: skip
    if threads < here and not gpus and "OMP_NUM_THREADS" in os.environ:
        return Check(
            "compute", "warning", detail, "unset OMP_NUM_THREADS to compute with every CPU"
        )
    if not gpus and cpu_multiplies_bf16():
        detail += ", which multiply in bf16: try precision: bf16"
    return Check("compute", "ok", detail)


def cpu_multiplies_bf16() -> bool:
    """Whether the CPU has units for it, so that bf16 is faster than fp32 and not slower."""
    import torch

    can: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(can.get("amx_bf16") or can.get("avx512_bf16"))


def check_memory() -> Check:
    free = memory()[1] / GIB
    detail = f"{free:.1f} GiB free"
    if free >= MEMORY_GIB:
        return Check("memory", "ok", detail)
    return Check(
        "memory", "warning", f"{detail}, the quickstart needs about {MEMORY_GIB:.0f}",
        "close other programs, or lower prepare.max_queries and cluster.workers",
    )  # fmt: skip


def check_shared_memory(cluster: Cluster) -> Check:
    """Ray's object store is in /dev/shm where that holds what Ray asks for: a share of the free
    memory, at most RAY_STORE_BYTES. Else it is on a disk, without a word."""
    import psutil

    if cluster.address is not None or not SHM.is_dir():
        return Check("shm", "ok", "not looked at: Ray has its objects elsewhere")
    free = psutil.disk_usage(str(SHM)).free
    wanted = min(RAY_STORE_SHARE * memory()[1], RAY_STORE_BYTES)
    detail = f"{free / GIB:.1f} GiB free in {SHM}"
    if free >= wanted:
        return Check("shm", "ok", detail)
    return Check(
        "shm", "warning", f"{detail}, Ray asks for {wanted / GIB:.1f}: its objects go to the disk",
        f"start the container with --shm-size={-(-int(wanted) // GIB) + 1}g, or give the pod an "
        "emptyDir of medium Memory there",
    )  # fmt: skip


def check_disk(folder: Path) -> Check:
    """Free space where artifacts will be written; the folder need not exist yet."""
    import psutil

    folder = folder.resolve()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = psutil.disk_usage(str(existing)).free / GIB
    detail = f"{free:.1f} GiB free at {existing}"
    if free >= DISK_GIB:
        return Check("disk", "ok", detail)
    return Check(
        "disk", "problem" if free < 1 else "warning", f"{detail}, {DISK_GIB:.0f} are wanted",
        "free some, or set storage.uri (with s3://, KDSCALE_CACHE) to another disk",
    )  # fmt: skip


def check_deepspeed(cluster: Cluster) -> Check:
    """Import DeepSpeed as a training worker will: in a process of its own."""
    failed = _import_failure("deepspeed")
    if failed is None:
        return Check("deepspeed", "ok", f"{metadata.version('deepspeed')}, can be imported")
    return Check(
        "deepspeed",
        "problem" if cluster.engine == "deepspeed" else "warning",
        f"cannot be imported: {failed}",
        "reinstall it (pip install --force-reinstall --no-deps deepspeed), or set "
        "cluster.engine: torch to train without it",
    )


def check_ray(cluster: Cluster) -> Check:
    """Start Ray, or join the cluster of the config, and run one task on it."""
    from kdscale.cluster.session import ray_session

    fix = (
        "check cluster.address, and that no firewall is in between"
        if cluster.address
        else "mend that first: everything but doctor needs Ray"
    )
    try:
        with ray_session(cluster) as ray:
            version = ray.get(ray.remote(platform.python_version).remote(), timeout=RAY_TIMEOUT_S)
            total = ray.cluster_resources()
    except KdscaleError as error:
        return Check("ray", "problem", str(error), fix)
    except Exception as error:  # Ray's own faults are of many kinds
        return Check("ray", "problem", f"a task did not run ({first_line(error)})", fix)
    detail = (
        f"{ray.__version__} ran a task ({total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs)"
    )
    if version != platform.python_version():
        return Check(
            "ray", "problem", f"{detail}, but on Python {version}",
            f"use one Python on all nodes; here it is {platform.python_version()}",
        )  # fmt: skip
    return Check("ray", "ok", detail)


def _import_failure(module: str) -> str | None:
    """Why a module cannot be imported, by a fresh interpreter; None where it can."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"import {module}"],
            capture_output=True,
            text=True,
            timeout=IMPORT_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {IMPORT_TIMEOUT_S} s"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"
