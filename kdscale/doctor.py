"""`kdscale doctor`: is this machine, and a config, fit for a run, and what to do where not."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from rich.text import Text

from kdscale.config import BeirSource, Cluster, Config, MsMarcoSource, TrecSource
from kdscale.errors import KdscaleError
from kdscale.machine import cpus, limit_threads, memory
from kdscale.progress import Reporter

GIB = 2**30
MEMORY_GIB = 4.0  # what the quickstart needs, Ray included
DISK_GIB = 5.0
REINSTALL = "install kdscale again into a fresh venv"
RAY_TIMEOUT_S = 60
IMPORT_TIMEOUT_S = 180
SHM = Path("/dev/shm")
RAY_STORE_SHARE, RAY_STORE_BYTES = 0.3, 10**10
QUICK_SOURCES = (BeirSource, MsMarcoSource, TrecSource)

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


@dataclass(frozen=True)
class Check:
    """One finding. `fix` says what to do, and is empty where nothing is to be done."""

    name: str
    status: Literal["ok", "warning", "problem"]
    detail: str
    fix: str = ""


def run_checks(config: Config | None, reporter: Reporter, ray: bool = True) -> list[Check]:
    """Look at everything, tell each finding as it is made, return them all.

    With a config its cluster, store, source and teacher are looked at too. `ray=False` leaves
    out the start of Ray, which takes some seconds.
    """
    cluster = config.cluster if config else Cluster()
    looks: dict[str, Callable[[], Check]] = {
        "python": check_python,
        "packages": check_packages,
        "compute": lambda: check_compute(cluster),
        "memory": check_memory,
        "shm": lambda: check_shared_memory(cluster),
        "disk": lambda: check_disk(_disk(config)),
        "deepspeed": lambda: check_deepspeed(cluster),
    }
    if ray:
        looks["ray"] = lambda: check_ray(cluster)
    if config is None:
        looks["model"] = lambda: check_model("minilm", None, "warning")
    else:
        looks["store"] = lambda: check_store(config)
        looks["source"] = lambda: check_source(config)
        looks["queries"] = lambda: check_queries(config)
        looks["measures"] = lambda: check_measures_of(config)
        for number, teacher in enumerate(config.teachers, 1):
            looks["model" if number == 1 else f"model {number}"] = lambda teacher=teacher: (
                check_model(teacher.model, teacher.revision, "problem")
            )
        looks["training"] = lambda: check_training(config)
    checks = []
    for name, look in looks.items():
        try:
            check = look()
        except KdscaleError as error:
            check = Check(name, "problem", str(error), "mend the config")
        except Exception as error:  # a broken package fails in its own way; go on to the rest
            check = Check(name, "problem", _first_line(error), REINSTALL)
        checks.append(check)
        _tell(check, reporter)
    counts = {status: sum(c.status == status for c in checks) for status in _STYLES}
    reporter.info(
        f"{counts['ok']} ok, {counts['warning']} to look at (warning), "
        f"{counts['problem']} to mend (problem)"
    )
    return checks


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

    can = getattr(torch.cpu, "get_capabilities", dict)()
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


def _disk(config: Config | None) -> Path:
    from kdscale.store import open_store

    return open_store(config.storage.uri).disk if config else Path.cwd()


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
    from kdscale.runtime import ray_session

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
        return Check("ray", "problem", f"a task did not run ({_first_line(error)})", fix)
    detail = (
        f"{ray.__version__} ran a task ({total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs)"
    )
    if version != platform.python_version():
        return Check(
            "ray", "problem", f"{detail}, but on Python {version}",
            f"use one Python on all nodes; here it is {platform.python_version()}",
        )  # fmt: skip
    return Check("ray", "ok", detail)


def check_store(config: Config) -> Check:
    from kdscale.store import open_store

    def look() -> str:
        store = open_store(config.storage.uri)
        store.preflight()
        return f"{store.uri} can be written to"

    return _attempt("store", "set storage.uri to a folder or bucket that you may write to", look)


def check_source(config: Config) -> Check:
    from kdscale.data.readers import open_reader
    from kdscale.transfer import transfer_config

    def look() -> str:
        splits = open_reader(config.source).splits()
        for name in config.transfer:
            open_reader(transfer_config(config, name).source)
        also = f"; transfer {', '.join(config.transfer)}" if config.transfer else ""
        return f"{config.source.type}, splits {', '.join(splits)}{also}"

    return _attempt("source", "mend the section source (or transfer) of the config", look)


def check_queries(config: Config) -> Check:
    """Training queries that are judged by too, where queries are quickly read: from files."""
    from kdscale.data.leakage import describe, leaked, read_texts
    from kdscale.data.queries import TRAIN
    from kdscale.data.readers import open_reader
    from kdscale.transfer import transfer_config

    def look() -> str:
        if not isinstance(config.source, QUICK_SOURCES):
            return f"those of {config.source.type} are counted when they are prepared"
        texts = read_texts(open_reader(config.source), config.prepare.split)
        said = ", ".join(f"{split} {len(of)}" for split, of in texts.items())
        train = texts.pop(TRAIN, {})
        for name, transfer in config.transfer.items():
            if isinstance(transfer.source, QUICK_SOURCES):
                reader = open_reader(transfer_config(config, name).source)
                (of_transfer,) = read_texts(reader, {}).values()
                texts[f"{name}/{transfer.split}"] = of_transfer
        leaks = {split: len(qids) for split, qids in leaked(train, texts).items()}
        if config.prepare.leakage == "drop":
            leaks = {split: count for split, count in leaks.items() if "/" in split}
        if leaks:
            raise KdscaleError(describe(leaks))
        return said

    fix = "set prepare.leakage to drop, or part the queries; a transfer's are to be new"
    return _attempt("queries", fix, look, "warning")


def check_measures_of(config: Config) -> Check:
    from kdscale.evaluation.measures import check_measures

    def look() -> str:
        check_measures(config)
        evaluate = config.evaluate
        told = (f"{evaluate.primary_of(split)} on {split}" for split in evaluate.splits)
        return f"all can be computed; the primary one: {', '.join(told)}"

    return _attempt("measures", "mend evaluate or ranker.watch of the config", look)


def check_model(name: str, revision: str | None, severity: Literal["warning", "problem"]) -> Check:
    """The teacher's encoder: a folder must have weights, a hub id must be within reach."""
    from transformers.utils import has_file

    from kdscale.models.pretrained import WEIGHTS, read_config, resolve_model

    def look() -> str:
        place = resolve_model(name, revision)
        kind = read_config(place, revision).model_type
        if Path(place).is_dir():
            return f"{name}: {kind}, weights in {place}"
        if not any(has_file(place, weights, revision=revision) for weights in WEIGHTS):
            raise KdscaleError(f"{name} has no {WEIGHTS[0]} on the hub; choose another model")
        return f"{name}: {kind}, will be downloaded on first use"

    return _attempt("model", "set teacher.model to a model folder or a hub id", look, severity)


def check_training(config: Config) -> Check:
    """Teachers and students, made small by the code that will make them."""
    from kdscale.modelcheck import check_models
    from kdscale.steps import build_steps

    fix = "mend teacher, students, lm or ranker of the config"
    warnings: list[str] = []

    def look() -> str:
        warnings.extend(check_models(config, build_steps(config)))
        teachers, shapes = len(config.teachers), len(config.students)
        return (
            f"{teachers} teacher{'s' * (teachers != 1)} and {shapes} "
            f"student shape{'s' * (shapes != 1)} can be made"
        )

    check = _attempt("training", fix, look)
    return Check("training", "warning", "; ".join(warnings)) if warnings else check


def _attempt(
    name: str,
    fix: str,
    look: Callable[[], str],
    severity: Literal["warning", "problem"] = "problem",
) -> Check:
    """The finding of a look that raises KdscaleError where something is wrong."""
    try:
        return Check(name, "ok", look())
    except KdscaleError as error:
        return Check(name, severity, str(error), fix)


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


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


def _tell(check: Check, reporter: Reporter) -> None:
    line = Text.assemble(
        (f"{check.status:8}", _STYLES[check.status]), f" {check.name:10} {check.detail}"
    )
    reporter.console.print(line)
    if check.fix:
        reporter.info(f"{'':19} -> {check.fix}")
