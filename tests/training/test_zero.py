"""Checkpoints under DeepSpeed's ZeRO stages, whose optimizer state is cut over the ranks."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.worlds.clusters import REPOSITORY

pytestmark = pytest.mark.slow


def launch(world: int, *runs: tuple[int, Path, str]) -> None:
    """Runs one after the other, each (ZeRO stage, folder, what), on so many ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [str(word) for run in runs for word in run]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.zero_run", *words],
            env={
                **os.environ,
                "PYTHONPATH": str(REPOSITORY),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    for rank in ranks:
        output, _ = rank.communicate(timeout=300)
        assert rank.returncode == 0, output


def difference(a: Path, b: Path) -> float:
    ours, theirs = load_file(a), load_file(b)
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)


def test_runs_go_on_exactly_and_on_another_number_of_workers(tmp_path):
    began = {stage: tmp_path / f"zero-{stage}" for stage in (1, 2)}
    launch(2, *((stage, began[stage], what) for stage in began for what in ("whole", "stopped")))
    # On one worker without ZeRO, and on three with the other stage, from the same checkpoint.
    for world, stages in ((1, {1: 0, 2: 0}), (3, {1: 2, 2: 1})):
        copies = {stage: tmp_path / f"zero-{stage}-on-{world}" for stage in began}
        for stage, copy in copies.items():
            shutil.copytree(began[stage] / "work", copy / "work")
        launch(world, *((stages[stage], copy, "resumed") for stage, copy in copies.items()))
        for stage, copy in copies.items():
            resumed = copy / f"resumed-{world}.safetensors"
            assert difference(resumed, began[stage] / "whole-2.safetensors") < 1e-5
    launch(2, *((stage, folder, "resumed") for stage, folder in began.items()))
    for folder in began.values():
        ours = load_file(folder / "resumed-2.safetensors")
        theirs = load_file(folder / "whole-2.safetensors")
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
