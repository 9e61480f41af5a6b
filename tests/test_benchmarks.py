"""The benchmarks that are measured elsewhere run here, small."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kdscale.evaluation.trials import read_trials
from tests.worlds.world import make_beir, make_encoder

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def peers():
    """sentence-transformers' trainer: kdscale[bench]."""
    pytest.importorskip("accelerate")
    pytest.importorskip("datasets")


def test_the_gpu_benchmark_runs_on_a_cpu(tmp_path, peers):
    out = tmp_path / "gpu.json"
    command = [sys.executable, BENCHMARKS / "gpu.py", "--tiny", "--runs", "1", "-o", out]
    command.append("--compile-training")
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr[-2000:]
    (result,) = json.loads(out.read_text())["results"]
    ways = result["scoring"]["ways"]
    assert {name.split(", ")[0] for name in ways} == {"kdscale", "sentence-transformers"}
    # Of a model so small, and drawn at random, bf16 leaves this much.
    assert all(way["correlation"] > 0.9 and way["per_s"] > 0 for way in ways.values())
    assert {"kdscale", "kdscale, compiled", "sentence-transformers"} == set(
        result["training"]["ways"]
    )
    assert "a GPU" not in told.stdout


def test_without_a_gpu_it_says_so(peers):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, BENCHMARKS / "gpu.py"]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 2 and "--tiny" in told.stderr


def test_a_run_reaches_its_first_step(tmp_path):
    out = tmp_path / "startup.json"
    command = [sys.executable, BENCHMARKS / "startup.py", "--runs", "1", "-o", out]
    command += ["--only", "first step, torch"]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr[-2000:]
    assert json.loads(out.read_text())["rows"]["first step, torch"]["seconds"] > 0


def test_the_pace_of_spread_work_leaves_out_the_start(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from scaling import pace

    # Two workers begin at 108, after 8 s of start-up; 20 pairs in 4 s, then 50 in 10 s.
    ends = [(112.0, 10), (112.0, 10), (116.0, 20), (122.0, 30)]
    assert pace(ends, began=100.0, workers=2) == (5.0, 8.0)
    # One worker: its first block ends at 112.
    assert pace(ends, began=100.0, workers=1) == pytest.approx((6.0, 10 + 1 / 3))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """A function that runs a benchmark of quality on a tiny collection: (stdout, rows, about)."""
    root = tmp_path_factory.mktemp("quality")
    settings = {
        "teacher.model": make_encoder(root / "encoder"), "lm.init": "random",
        "teacher.train.max_steps": 1, "lm.train.max_steps": 1, "ranker.train.max_steps": 1,
        "lm.relation_heads": 8, "cluster.scorers": 0,
        "prepare.depth": "{train: 20, dev: 20, test: 20}",
    }  # fmt: skip
    beir = make_beir(root / "beir")

    def run(name, *options):
        out = root / "out.parquet"
        command = [sys.executable, BENCHMARKS / name, "--beir", beir, "--store", root / "store"]
        command += [part for k, v in settings.items() for part in ("--set", f"{k}={v}")]
        command += ["--small", "--set", "evaluate.depth=5", "-o", out, *options]
        told = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert told.returncode == 0, told.stderr[-2000:]
        table, about = read_trials(out)
        return told.stdout, [r for r in table.to_pylist() if r["measure"] == "nDCG@10"], about

    return run


def test_strategies_side_by_side_and_what_was_not_reached_in_time(experiment):
    _, rows, about = experiment(
        "strategies.py", "--seeds", "1", "--budgets", "1", "--processes", "2", "--latency-queries",
        "2",
    )  # fmt: skip
    assert [row["system"] for row in rows] == [
        "bm25", "teacher", "finetune/2l-192", "ranker_distill/2l-192",
        "lm_distill_finetune/2l-192", "lm_distill_ranker_distill/2l-192",
    ]  # fmt: skip
    assert len({row["digest"] for row in rows[2:]}) == 4
    assert all(row["speedup"] > 0 and row["seed"] == 1 for row in rows[2:])
    assert about["queries"] == 20 and about["small"] and about["split"] == "test"
    said, again, _ = experiment(
        "strategies.py", "--seeds", "1", "2", "--budgets", "1", "--minutes", "0",
        "--latency-queries", "2",
    )  # fmt: skip
    assert said.count("left out: the time is up") == 4
    assert [row["digest"] for row in again] == [row["digest"] for row in rows]


def test_recipes_against_the_default_and_a_peer(experiment, peers):
    said, rows, about = experiment(
        "recipes.py", "--seeds", "1", "--variants", "default", "lm: no qkv",
        "sentence-transformers", "--peer-lr", "1e-3", "--processes", "2", "--all-queries",
    )  # fmt: skip
    assert [row["variant"] for row in rows] == [
        None, None, "default", "lm: no qkv", "sentence-transformers, lr 0.001",
    ]  # fmt: skip
    assert rows[2]["digest"] != rows[3]["digest"]
    assert rows[4]["pairs_seen"] == rows[2]["pairs_seen"] > 0
    assert about["queries"] == 10 and about["split"] == "dev" and "Δ to default" in said
