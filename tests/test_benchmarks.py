"""The benchmarks that are measured elsewhere run here, small."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("accelerate")  # of sentence-transformers' trainer: kdscale[bench]
pytest.importorskip("datasets")
pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_the_gpu_benchmark_runs_on_a_cpu(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, BENCHMARKS / "gpu.py", "--tiny", "--runs", "1", "-o", out]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr[-2000:]
    (result,) = json.loads(out.read_text())["results"]
    ways = result["scoring"]["ways"]
    assert {name.split(", ")[0] for name in ways} == {"kdscale", "sentence-transformers"}
    assert all(way["correlation"] > 0.99 and way["per_s"] > 0 for way in ways.values())
    assert {"kdscale", "kdscale, compiled", "sentence-transformers"} == set(
        result["training"]["ways"]
    )
    assert "a GPU" not in told.stdout


def test_without_a_gpu_it_says_so():
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, BENCHMARKS / "gpu.py"]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 2 and "--tiny" in told.stderr
