"""One trial: what Ray Tune runs, in an actor on the driver's node.

The actor holds nothing of the cluster but, without Ray Train, the CPUs that it trains on: the
student is trained by the workers of a Ray Train run of its own, and measured by a Ray task where
those have been. When the actor goes, what it started goes with it, and Ray Train frees the place of
its workers, which it learns of by Ray's State API; `kdscale.sweep.placement` frees what it misses.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from kdscale.cluster.session import threads_of
from kdscale.config import Cluster, Config
from kdscale.errors import KdscaleError
from kdscale.evaluation.trials import trial_rows
from kdscale.experiment.run import run_steps
from kdscale.progress import Reporter
from kdscale.store import Artifact, open_store
from kdscale.sweep.record import Record, Result
from kdscale.sweep.shared import student_step
from kdscale.sweep.space import Trial
from kdscale.sweep.spec import Sweep
from kdscale.training.metrics import WATCH, read_rows

SHOWN = ("loss", "lr", "tokens_per_s")  # of a training's log, for TensorBoard and the table


@dataclass(frozen=True)
class Work:
    """What every trial of a sweep is given; plain data.

    sweep: with the CPUs of a worker settled, and a place of the store that is the same everywhere;
    costs: of each shape; dataset, tokens: references; folder: where the command was given, from
    which the config's other paths are meant
    """

    sweep: Sweep
    store: str
    key: str
    train_queries: int
    measures: list[str]
    costs: dict[str, dict[str, Any]]
    dataset: dict[str, str]
    tokens: dict[str, str]
    folder: str


def run_trial(work: Work, trial: Trial) -> None:
    """Train and measure, and report to Ray Tune on the way. What it is worth is in the store
    before Tune hears of the end, so that it cannot be lost with Tune, the driver or this actor."""
    from ray import tune

    os.chdir(work.folder)  # of this node; where Ray was started elsewhere, actors begin there
    news: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def run() -> None:
        try:
            news.put({"ended": _train_and_measure(work, trial, news)})
        except BaseException as error:  # it is raised again by the thread that Tune watches
            news.put({"error": error})

    # Tune takes reports from its own thread alone, and the training keeps one waiting.
    threading.Thread(target=run, daemon=True).start()
    while True:
        message = news.get()
        if "error" in message:
            # Tune keeps the exception as a pickle, which nobody here is to read.
            tune.report({"trouble": f"{type(message['error']).__name__}: {message['error']}"})
            raise message["error"]
        if "ended" in message:
            result = message["ended"]
            tune.report({"status": result.status, "value": result.value, "reason": result.reason})
            return
        tune.report(message)


def _train_and_measure(work: Work, trial: Trial, news: queue.SimpleQueue) -> Result:
    began = time.monotonic()
    store = open_store(work.store)
    record = Record(store, work.key)
    there = record.result(trial.id)
    if there is not None:  # of an attempt that went before Tune heard of it
        return there[0]
    config = work.sweep.config(trial, work.train_queries)
    reporter = _Follower(news)
    try:
        student = _train(config, store, reporter)
        values, size = _measure(work, config, student)
    except (KdscaleError, FloatingPointError) as error:
        # Another try would end in the same way, and the other trials are to go on.
        result = _result(trial, "failed", reporter, began, reason=str(error))
        record.put(result)
        return result
    value = float(values[work.measures[0]].mean())
    reporter.curve = _curve(student)  # all of it, also where the training was another session's
    result = _result(
        trial,
        "finished",
        reporter,
        began,
        value=value,
        pairs=student.facts.get("pairs_seen"),
        student={"name": student.name, "digest": student.digest},
    )
    record.put(result, _rows(work, trial, student, values, size))
    return result


def _train(config: Config, store: Any, reporter: Reporter) -> Artifact:
    if config.cluster.engine == "torch":
        import torch

        torch.set_num_threads(threads_of(_cpus(config.cluster)))
    step = student_step(config)
    outcomes = run_steps(config, store, [step.id], reporter)
    return next(o.made for o in outcomes if o.step.id == step.id)


def _cpus(cluster: Cluster) -> float:
    """Of one worker."""
    assert cluster.cpus_per_worker is not None  # the sweep found room for them
    return cluster.cpus_per_worker


def _measure(work: Work, config: Config, student: Artifact) -> tuple[dict[str, Any], int]:
    """The student's values on dev, and the bytes of its weights."""
    asked = (student.ref(), work.dataset, work.tokens, config, work.measures)
    size = sum(f["bytes"] for f in student.manifest["files"] if f["path"].endswith(".safetensors"))
    cluster = config.cluster
    if cluster.engine == "torch":  # the actor has the CPUs itself
        from kdscale.sweep.measure import measure

        return measure(*asked), size
    import ray

    task = ray.remote(  # type: ignore[call-overload] # label_selector may be None
        num_cpus=_cpus(cluster),
        num_gpus=cluster.gpus_per_worker,
        label_selector=cluster.worker_labels or None,
        max_retries=3,
        scheduling_strategy="DEFAULT",  # outside of the trial's own placement group
    )(_measure_there)
    return ray.get(task.remote(threads_of(_cpus(cluster)), asked)), size


def _measure_there(threads: int, asked: tuple) -> dict[str, Any]:
    import torch

    from kdscale.sweep.measure import measure

    torch.set_num_threads(threads)
    return measure(*asked)


def _curve(student: Artifact) -> list[list[float]]:
    """[step, quality on dev] of each look at it, if there were any."""
    log = student.path / WATCH
    return [[row["step"], row["dev"]] for row in read_rows(log)] if log.is_file() else []


def _rows(
    work: Work, trial: Trial, student: Artifact, values: dict[str, Any], size: int
) -> pa.Table:
    from kdscale.sweep.measure import columns_of

    budget = trial.budget
    return trial_rows(
        values,
        system=trial.system,
        strategy=trial.strategy,
        shape=trial.shape,
        variant=trial.variant,
        budget=budget if isinstance(budget, float) else budget / work.train_queries,
        seed=trial.seed,
        pairs_seen=student.facts.get("pairs_seen"),
        train_seconds=student.facts.get("seconds"),
        bytes=size,
        artifact=student.name,
        digest=student.digest,
        **columns_of(work.costs[trial.shape]),
    )


def _result(trial: Trial, status: str, reporter: _Follower, began: float, **more: Any) -> Result:
    return Result(
        trial.id,
        status,
        trial.settings,
        step=reporter.step,
        seconds=round(time.monotonic() - began, 1),
        curve=reporter.curve,
        **more,
    )


class _Follower(Reporter):
    """Hands the rows of a training's log on.

    A row has "dev" only when there was a new look: a scheduler is not to see one twice.
    """

    def __init__(self, news: queue.SimpleQueue):
        super().__init__()
        self._news = news
        self.step: int | None = None
        self.curve: list[list[float]] = []

    def logged(self, row: dict[str, Any]) -> None:
        self.step = row["step"]
        message = {name: row[name] for name in SHOWN}
        message |= {"step": row["step"], "steps": row["steps"]}
        seen = row.get("dev_step")
        if seen is not None and (not self.curve or seen > self.curve[-1][0]):
            self.curve.append([seen, row["dev"]])
            if seen < row["steps"]:  # at its end a training is not to be stopped any more
                message |= {"dev": row["dev"], "dev_step": seen}
                message["progress"] = 100 * seen / row["steps"]
        self._news.put(message)


def settings_for_tune(trial: Trial) -> dict[str, Any]:
    """What Tune, TensorBoard and Weights & Biases see of a trial."""
    return {k: v for k, v in asdict(trial).items() if k != "settings"} | trial.settings


def trial_from_tune(config: dict[str, Any]) -> Trial:
    cell = {k: config[k] for k in ("id", "strategy", "shape", "budget", "seed")}
    return Trial(**cell, settings={k: v for k, v in config.items() if k not in cell})
