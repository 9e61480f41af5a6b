"""A store of the format before this one: what people have of it can still be used.

data_files/store_v3 was made by that code, from `tests.worlds.world.make_config`. The weights of its
student are not kept there: others are put in their place.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from kdscale.cli import main
from kdscale.store.artifact import build_manifest, list_files
from tests.worlds.world import make_beir

MADE = Path(__file__).parents[1] / "data_files" / "store_v3"


@pytest.fixture
def store(tmp_path):
    """The store; its student's weights are drawn, and its manifest names them."""
    store = tmp_path / "store"
    shutil.copytree(MADE, store)
    (student,) = (store / "students").iterdir()
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(student))
    save_file(model.state_dict(), student / "model.safetensors", {"format": "pt"})
    manifest = json.loads((student / "manifest.json").read_text())
    (student / "manifest.json").unlink()
    kept = {name: manifest[name] for name in ("kind", "stage", "config", "inputs", "created")}
    files = list_files(student)
    made = build_manifest(**kept, files=files, facts=manifest["facts"], version=manifest["kdscale"])
    (student / "manifest.json").write_text(json.dumps(made))
    return store


def test_its_results_are_shown(store, capsys):
    assert main(["results", str(store), "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    (evaluation,) = (MADE / "evaluations").iterdir()
    systems = json.loads((evaluation / "systems.json").read_text())
    assert [row["system"] for row in rows] == [system["system"] for system in systems]
    for row, system in zip(rows, systems, strict=True):
        assert row["test nDCG@10"] == pytest.approx(system["measures"]["test"]["nDCG@10"])
    assert main(["results", str(store)]) == 0
    assert "lm_distill_ranker_distill/tiny" in capsys.readouterr().out
    assert main(["artifacts", str(store)]) == 0


def test_its_students_are_pulled_and_rank(store, tmp_path):
    (student,) = (store / "students").iterdir()
    pulled, beir = tmp_path / "pulled", make_beir(tmp_path / "beir")
    assert main(["pull", str(student), str(pulled)]) == 0
    assert (pulled / "model.safetensors").read_bytes() == (
        student / "model.safetensors"
    ).read_bytes()
    run, out = tmp_path / "run.trec", tmp_path / "out.trec"
    run.write_text("".join(f"q001 Q0 p{i:03d} {i + 1} {9 - i} x\n" for i in range(9)))
    files = ["--queries", beir / "queries.jsonl", "--passages", beir / "corpus.jsonl"]
    for model in (pulled, student):
        assert main(["rank", *map(str, [model, *files, "--run", run, "-o", out])]) == 0
        lines = [line.split() for line in out.read_text().splitlines()]
        assert sorted(line[2] for line in lines) == [f"p{i:03d}" for i in range(9)]
        scores = [float(line[4]) for line in lines]
        assert scores == sorted(scores, reverse=True)


def test_a_student_of_it_is_not_updated(store, tmp_path, capsys):
    """Its manifest says nothing in today's words of how it was trained."""
    from kdscale.config import Train
    from kdscale.errors import KdscaleError
    from kdscale.experiment.lineage import Origin
    from kdscale.store import open_store

    student = open_store(str(store)).list("students")[0]
    origin = Origin(student, student, student, student, None, None)
    with pytest.raises(KdscaleError, match="does not say how it was trained"):
        origin.settings(Train())
