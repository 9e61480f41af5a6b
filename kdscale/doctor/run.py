"""`kdscale doctor`: is this machine, and a config, fit for a run, and what to do where not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.text import Text

from kdscale.config import Cluster, Config
from kdscale.doctor import Check, experiment, first_line, machine
from kdscale.errors import KdscaleError
from kdscale.progress import Reporter

REINSTALL = "install kdscale again into a fresh venv"

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def run_checks(config: Config | None, reporter: Reporter, ray: bool = True) -> list[Check]:
    """Look at everything, tell each finding as it is made, return them all.

    With a config its cluster, store, source and teacher are looked at too. `ray=False` leaves
    out the start of Ray, which takes some seconds.
    """
    cluster = config.cluster if config else Cluster()
    looks: dict[str, Callable[[], Check]] = {
        "python": machine.check_python,
        "packages": machine.check_packages,
        "compute": lambda: machine.check_compute(cluster),
        "memory": machine.check_memory,
        "shm": lambda: machine.check_shared_memory(cluster),
        "disk": lambda: machine.check_disk(_disk(config)),
        "deepspeed": lambda: machine.check_deepspeed(cluster),
    }
    if ray:
        looks["ray"] = lambda: machine.check_ray(cluster)
    if config is None:
        looks["model"] = lambda: experiment.check_model("minilm", None, "warning")
    else:
        looks["store"] = lambda: experiment.check_store(config)
        looks["source"] = lambda: experiment.check_source(config)
        looks["queries"] = lambda: experiment.check_queries(config)
        looks["measures"] = lambda: experiment.check_measures_of(config)
        for number, teacher in enumerate(config.teachers, 1):
            looks["model" if number == 1 else f"model {number}"] = partial(
                experiment.check_model, teacher.model, teacher.revision, "problem"
            )
        looks["training"] = lambda: experiment.check_training(config)
    checks = []
    for name, look in looks.items():
        try:
            check = look()
        except KdscaleError as error:
            check = Check(name, "problem", str(error), "mend the config")
        except Exception as error:  # a broken package fails in its own way; go on to the rest
            check = Check(name, "problem", first_line(error), REINSTALL)
        checks.append(check)
        _tell(check, reporter)
    counts = {status: sum(c.status == status for c in checks) for status in _STYLES}
    reporter.info(
        f"{counts['ok']} ok, {counts['warning']} to look at (warning), "
        f"{counts['problem']} to mend (problem)"
    )
    return checks


def _disk(config: Config | None) -> Path:
    from kdscale.store import open_store

    return open_store(config.storage.uri).disk if config else Path.cwd()


def _tell(check: Check, reporter: Reporter) -> None:
    line = Text.assemble(
        (f"{check.status:8}", _STYLES[check.status]), f" {check.name:10} {check.detail}"
    )
    reporter.console.print(line)
    if check.fix:
        reporter.info(f"{'':19} -> {check.fix}")
