"""The students of a config and a seed stay the same to the last bit.

The scores in data_files/students.json are those of the code before a change of its structure. On
another kind of CPU, or with another PyTorch, sums are rounded otherwise: there they are compared
with a tolerance.
"""

import json
from pathlib import Path

import pytest
import torch

from kdscale.cli import main
from tests.worlds.world import make_config

EXPECTED = Path(__file__).parent / "data_files" / "students.json"
TRAIN = {
    "max_steps": 6, "batch_size": 8, "log_every": 2, "lr": 1e-3, "checkpoint_every": 0,
    "dropout": 0.1,
}  # fmt: skip
SETTINGS = {
    "plain": {},
    "full": {
        "lm": {
            "relation_heads": 2,
            "layer_map": [2],
            "losses": {"hidden": 1.0, "embedding": 0.5, "qkv": 1.0, "mlm": 0.3, "mlm_kl": 0.2},
            "head_steps": 3,
            "train": TRAIN,
        },
        "ranker": {
            "group_size": 4,
            "train": TRAIN,
            "strategies": ["ranker_distill", "lm_distill_ranker_distill"],
            "soft_losses": {"margin_mse": 0.1, "listwise_kl": 1.0, "lambdaloss": 0.2, "lce": 1.0},
            "intermediate_losses": {"qkv": 1.0, "hidden": 0.5, "cosine": 0.1},
            "temperature": 2.0,
            "max_queries": 40,
            "seed": 5,
            "watch": {"every": 2, "keep_best": True, "depth": 10},
        },
    },
}


def machine() -> dict[str, str]:
    return {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}


def scores_of(folder: Path, name: str) -> dict[str, list[str]]:
    """Run file -> the scores of its lines, as they stand there, query by query and passage by
    passage."""
    path = make_config(folder, cluster={"engine": "torch", "scorers": 0}, **SETTINGS[name])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main(["evaluate", str(path)]) == 0
    finally:
        torch.set_num_threads(threads)
    (evaluation,) = (folder / "store" / "evaluations").iterdir()
    found = {}
    for run in sorted((evaluation / "runs" / "test").glob("*.trec")):
        lines = sorted(line.split() for line in run.read_text().splitlines())
        found[run.stem] = [line[4] for line in lines]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_students_are_what_they_were(tmp_path, name):
    expected = json.loads(EXPECTED.read_text())
    found, wanted = scores_of(tmp_path, name), expected[name]
    assert found.keys() == wanted.keys()
    same_machine = expected["machine"] == machine()
    for system, scores in wanted.items():
        if same_machine:
            assert found[system] == scores, system
        else:
            got, want = ([float(score) for score in s] for s in (found[system], scores))
            assert got == pytest.approx(want, abs=1e-3), system
