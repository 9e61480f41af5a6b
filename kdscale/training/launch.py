"""Run a training: DeepSpeed workers under Ray Train, or plain torch in this process.

A worker on any node gets the stage's settings and references to artifacts, and what it makes are
pieces of a workspace: a driver, a worker or a node that goes takes along only what was not
published, and a run whose model was published is never repeated.
"""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdscale.cluster.session import plan_workers, ray_session, threads_of
from kdscale.config import Cluster
from kdscale.errors import KdscaleError
from kdscale.experiment.context import StepId
from kdscale.experiment.settings import LmSettings, RankerSettings
from kdscale.progress import Reporter
from kdscale.store import DamagedError, Workspace
from kdscale.store.artifact import MANIFEST

MAX_WORKER_FAILURES = 3  # a node taken away with a notice does not count
POLL_S = 1.0


Settings = RankerSettings | LmSettings
References = dict[StepId, dict[str, str]]  # of artifacts, by their roles


def run_training(
    settings: Settings,
    inputs: References,
    workspace: Workspace,
    out: Path,
    cluster: Cluster,
    reporter: Reporter,
    title: str,
) -> dict[str, Any]:
    """Train, put the model below `out`, return the facts of the run (steps, seconds, tokens/s).

    A run that was stopped is resumed from its last checkpoint.
    """
    from kdscale.training.tasks import EXPORT, FACTS

    finished = _finished(workspace, reporter)
    if finished is None:
        with reporter.task(title) as bar:

            def on_log(row: dict[str, Any]) -> None:
                note = f"loss {row['loss']:.4f}, {row['tokens_per_s']:,.0f} tokens/s"
                if row.get("dev") is not None:
                    note += f", dev {row['dev']:.3f}"
                bar.update(row["step"], note, total=row["steps"])
                reporter.logged(row)

            train = _train_here if cluster.engine == "torch" else _train_on_ray
            train(settings, inputs, workspace, cluster, reporter, on_log)
        finished = workspace.fetch(EXPORT)
    shutil.copytree(
        finished, out, ignore=shutil.ignore_patterns(MANIFEST, FACTS), dirs_exist_ok=True
    )
    return {**json.loads((finished / FACTS).read_text()), "engine": cluster.engine}


def _finished(workspace: Workspace, reporter: Reporter) -> Path | None:
    """The model that an earlier run published before it could be committed, if any."""
    from kdscale.training.tasks import EXPORT

    if EXPORT not in workspace.names():
        return None
    try:
        return workspace.fetch(EXPORT)
    except DamagedError as error:
        reporter.warn(f"{error}; trained again from the last checkpoint")
        workspace.remove(EXPORT)
        return None


def _train_here(
    settings: Settings,
    inputs: References,
    workspace: Workspace,
    cluster: Cluster,
    reporter: Reporter,
    on_log: Callable[[dict], None],
) -> None:
    import torch

    from kdscale.training.engines import TorchEngine
    from kdscale.training.loop import Hooks
    from kdscale.training.tasks import train_and_export

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hooks = Hooks(on_log, lambda line: reporter.info(f"  {line}"))
    train_and_export(
        settings, inputs, workspace, lambda m: TorchEngine(m, settings.train, device), hooks
    )


def _train_on_ray(
    settings: Settings,
    inputs: References,
    workspace: Workspace,
    cluster: Cluster,
    reporter: Reporter,
    on_log: Callable[[dict], None],
) -> None:
    with (
        ray_session(cluster, reporter) as ray,
        tempfile.TemporaryDirectory(prefix="kdscale-ray-") as scratch,
    ):
        import ray.train
        from ray.train.torch import TorchTrainer
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        plan = plan_workers(
            f"training with {cluster.workers} workers",
            cluster.workers,
            cluster.cpus_per_worker,
            cluster.gpus_per_worker,
            cluster.worker_labels,
            "cluster.workers or cluster.cpus_per_worker",
            cluster.wait_s,
        )
        # On the driver's node: it must not go with a worker's.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        progress = ray.remote(num_cpus=0, scheduling_strategy=here)(_Progress).remote()
        trainer = TorchTrainer(
            _worker,
            train_loop_config={
                "settings": settings,
                "inputs": inputs,
                "workspace": workspace,
                "threads": threads_of(plan.cpus),
                "progress": progress,
            },
            scaling_config=ray.train.ScalingConfig(
                num_workers=cluster.workers,
                use_gpu=cluster.gpus_per_worker > 0,
                resources_per_worker=_resources(plan.cpus, cluster.gpus_per_worker),
                label_selector=cluster.worker_labels or None,
            ),
            run_config=ray.train.RunConfig(
                # A name of its own: Ray silently resumes a run whose name it has seen.
                name=f"kdscale-{uuid.uuid4().hex[:12]}",
                # Only Ray's controller writes here, which runs on this node: a checkpoint is
                # published to the workspace and never reported to Ray.
                storage_path=scratch,
                failure_config=ray.train.FailureConfig(max_failures=MAX_WORKER_FAILURES),
            ),
        )
        with _polling(ray, progress, on_log, reporter), _own_sigint():
            try:
                trainer.fit()
            except ray.train.TrainingFailedError as error:
                raise KdscaleError(_last_line(error)) from error
        ray.kill(progress)


@contextmanager
def _own_sigint() -> Iterator[None]:
    """Ray Train takes Ctrl-C to end its run, and would keep it when the run is long over."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _resources(cpus: float, gpus: float) -> dict[str, float]:
    return {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}


def _worker(given: dict[str, Any]) -> None:
    """One Ray Train worker."""
    import torch
    from ray.train.torch import get_device

    from kdscale.training.engines import DeepSpeedEngine, Notice
    from kdscale.training.loop import Hooks
    from kdscale.training.tasks import train_and_export

    torch.set_num_threads(given["threads"])
    settings, progress = given["settings"], given["progress"]
    hooks = Hooks(progress.log.remote, progress.say.remote, Notice())
    train_and_export(
        settings,
        given["inputs"],
        given["workspace"],
        lambda m: DeepSpeedEngine(m, settings.train, get_device()),
        hooks,
    )


class _Progress:
    """An actor that carries progress from worker 0 to the driver's terminal."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._lines: list[str] = []

    def log(self, row: dict[str, Any]) -> None:
        self._rows.append(row)

    def say(self, line: str) -> None:
        self._lines.append(line)

    def news(self) -> tuple[list[dict[str, Any]], list[str]]:
        """The rows and the lines that were not asked for yet."""
        rows, lines, self._rows, self._lines = self._rows, self._lines, [], []
        return rows, lines


class _polling:
    """Shows the rows and lines of `_Progress` while the body runs."""

    def __init__(self, ray: Any, progress: Any, on_log: Callable[[dict], None], reporter: Reporter):
        self._ray, self._progress, self._on_log, self._reporter = ray, progress, on_log, reporter
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _poll(self) -> None:
        stopped = False
        while not stopped:
            stopped = self._stop.wait(POLL_S)  # once more after the end, for the last lines
            rows, lines = self._ray.get(self._progress.news.remote())
            for line in lines:
                self._reporter.info(f"  {line}")
            for row in rows:
                self._on_log(row)


def _last_line(error: Exception) -> str:
    """What a worker died of, without the layers of tracebacks around it."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return f"training failed: {lines[-1].strip() if lines else repr(cause)}"
