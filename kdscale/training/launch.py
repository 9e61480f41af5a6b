"""Run a training job: DeepSpeed workers under Ray Train, or plain torch in this process.

A job is a `TrainingJob`: plain data that a worker on any node can rebuild its task from. Its
paths must be readable from every worker (this machine, or a folder that all nodes mount).
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kdscale.config import Cluster, Train
from kdscale.errors import KdscaleError
from kdscale.placement import Plan
from kdscale.progress import Reporter
from kdscale.runtime import check_fits, cpus_each, ray_session, threads_of

MAX_WORKER_FAILURES = 3
POLL_S = 1.0


@dataclass
class TrainingJob:
    """What to train and where to write.

    task: "ranker" or "lm" (`kdscale.training.tasks`); settings: that task's own
    out: the export directory; workdir: checkpoints and metrics, kept until the stage is done
    """

    task: str
    settings: dict[str, Any]
    train: Train
    losses: dict[str, float]
    seed: int
    out: str
    workdir: str


def run_job(job: TrainingJob, cluster: Cluster, reporter: Reporter, title: str) -> dict[str, Any]:
    """Train, export below `job.out`, return the facts of the run (steps, seconds, tokens/s)."""
    with reporter.task(title) as bar:

        def on_log(row: dict[str, Any]) -> None:
            note = f"loss {row['loss']:.4f}, {row['tokens_per_s']:,.0f} tokens/s"
            bar.update(row["step"], note, total=row["steps"])

        run = _run_torch if cluster.engine == "torch" else _run_ray
        facts = run(job, cluster, reporter, on_log)
    return {**facts, "engine": cluster.engine}


def _run_torch(
    job: TrainingJob, cluster: Cluster, reporter: Reporter, on_log: Callable[[dict], None]
) -> dict[str, Any]:
    import torch

    from kdscale.training.engines import TorchEngine
    from kdscale.training.tasks import train_and_export

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return train_and_export(job, lambda m: TorchEngine(m, job.train, device), on_log)


def _run_ray(
    job: TrainingJob, cluster: Cluster, reporter: Reporter, on_log: Callable[[dict], None]
) -> dict[str, Any]:
    with ray_session(cluster, reporter) as ray:
        import ray.train
        from ray.train.torch import TorchTrainer

        plan = Plan(cluster.workers, 0.0, cluster.gpus_per_worker, cluster.worker_labels)
        plan = replace(plan, cpus=cpus_each(plan, cluster.cpus_per_worker))
        check_fits(
            f"training with {cluster.workers} workers",
            plan,
            "cluster.workers or cluster.cpus_per_worker",
            cluster.wait_s,
        )
        board = ray.remote(num_cpus=0)(_Board).remote()
        settings = {"job": json.dumps(asdict(job)), "threads": threads_of(plan.cpus)}
        trainer = TorchTrainer(
            _worker,
            train_loop_config={**settings, "board": board},
            scaling_config=ray.train.ScalingConfig(
                num_workers=cluster.workers,
                use_gpu=cluster.gpus_per_worker > 0,
                resources_per_worker=_resources(plan.cpus, cluster.gpus_per_worker),
                label_selector=cluster.worker_labels or None,
            ),
            run_config=ray.train.RunConfig(
                # A name of its own: Ray silently resumes a run whose name it has seen.
                name=f"kdscale-{uuid.uuid4().hex[:12]}",
                storage_path=str(Path(job.workdir, "ray").resolve()),
                failure_config=ray.train.FailureConfig(max_failures=MAX_WORKER_FAILURES),
            ),
        )
        with _polling(ray, board, on_log):
            try:
                trainer.fit()
            except ray.train.TrainingFailedError as error:
                raise KdscaleError(_last_line(error)) from error
        facts = ray.get(board.facts.remote())
        ray.kill(board)
    return facts


def _resources(cpus: float, gpus: float) -> dict[str, float]:
    return {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}


def _worker(settings: dict[str, Any]) -> None:
    """One Ray Train worker."""
    import torch
    from ray.train.torch import get_device

    from kdscale.training.engines import DeepSpeedEngine
    from kdscale.training.tasks import train_and_export

    torch.set_num_threads(settings["threads"])
    values = json.loads(settings["job"])
    job = TrainingJob(**{**values, "train": Train(**values["train"])})
    board = settings["board"]
    facts = train_and_export(
        job, lambda m: DeepSpeedEngine(m, job.train, get_device()), board.log.remote
    )
    if torch.distributed.get_rank() == 0:
        import ray

        ray.get(board.finish.remote(facts))


class _Board:
    """An actor that carries progress from worker 0 to the driver's terminal."""

    def __init__(self) -> None:
        self._row: dict[str, Any] | None = None
        self._facts: dict[str, Any] = {}

    def log(self, row: dict[str, Any]) -> None:
        self._row = row

    def latest(self) -> dict[str, Any] | None:
        return self._row

    def finish(self, facts: dict[str, Any]) -> None:
        self._facts = facts

    def facts(self) -> dict[str, Any]:
        return self._facts


class _polling:
    """Calls `on_log` with the board's newest row while the body runs."""

    def __init__(self, ray: Any, board: Any, on_log: Callable[[dict], None]):
        self._ray, self._board, self._on_log = ray, board, on_log
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _poll(self) -> None:
        while not self._stop.wait(POLL_S):
            row = self._ray.get(self._board.latest.remote())
            if row is not None:
                self._on_log(row)


def _last_line(error: Exception) -> str:
    """What a worker died of, without the layers of tracebacks around it."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return f"training failed: {lines[-1].strip() if lines else repr(cause)}"
