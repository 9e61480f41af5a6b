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

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


def launch(world: int, stage: int, folder: Path, *what: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, HERE / "zero_run.py", str(stage), str(folder), *what],
            env={
                **os.environ,
                "PYTHONPATH": str(HERE.parents[1]),
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


@pytest.mark.parametrize("stage", [1, 2])
def test_a_run_goes_on_exactly_and_on_another_number_of_workers(tmp_path, stage):
    launch(2, stage, tmp_path, "whole", "stopped")
    # On one worker without ZeRO, and on three with the other stage, from the same checkpoint.
    for world, other in ((1, 0), (3, 2 if stage == 1 else 1)):
        copy = tmp_path / f"on-{world}"
        shutil.copytree(tmp_path / "work", copy / "work")
        launch(world, other, copy, "resumed")
        resumed = copy / f"resumed-{world}.safetensors"
        assert difference(resumed, tmp_path / "whole-2.safetensors") < 1e-5
    launch(2, stage, tmp_path, "resumed")
    ours = load_file(tmp_path / "resumed-2.safetensors")
    theirs = load_file(tmp_path / "whole-2.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
