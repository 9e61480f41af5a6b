"""An experiment with two teachers of two tokenizers, and a student whose embeddings are narrow:
the whole road on the tiny world."""

import json

import numpy as np
import pytest

from kdscale.cli import main
from kdscale.data.schema import SCORES
from kdscale.data.shards import read_shards
from kdscale.experiment.load import load_config
from kdscale.experiment.run import run_steps
from kdscale.progress import Reporter
from kdscale.store import open_store
from tests.worlds.world import make_config, make_encoder

pytestmark = pytest.mark.slow
STRATEGIES = ["ranker_distill", "lm_distill_finetune", "lm_distill_ranker_distill"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, ray_cluster):
    """A finished run of it, its outcomes by step, and its store."""
    root = tmp_path_factory.mktemp("ensemble")
    other = make_encoder(root / "other", seed=1, words=50)
    train = {"max_steps": 4, "batch_size": 8, "log_every": 2, "lr": 1e-3, "checkpoint_every": 0}
    shape = {"layers": 1, "hidden": 16, "heads": 2, "intermediate": 32}
    path = make_config(
        root,
        ensemble=[{"model": str(other), "group_size": 3, "train": train}],
        students=[{**shape, "name": "tiny-e4", "embedding": 4}],
        evaluate={"depth": 10, "latency_queries": 3, "baseline": "ensemble"},
        ranker={"group_size": 4, "train": train, "strategies": STRATEGIES},
        cluster={"engine": "torch"},
    )
    assert main(["run", str(path)]) == 0
    config = load_config(path)
    store = open_store(config.storage.uri)
    outcomes = run_steps(config, store, None, Reporter(), dry_run=True)
    assert {o.status for o in outcomes} == {"cached"}
    return path, {o.step.name: o.artifact for o in outcomes}, store


def test_each_teacher_is_scored_alone_and_the_scores_are_joined(finished):
    _, made, store = finished
    assert made["tokens"].digest != made["tokens:2"].digest
    assert len(store.list("teachers")) == 2 and len(store.list("scores")) == 3
    joined = made["ensemble"]
    digests = [made["teacher"].digest, made["teacher:2"].digest]
    assert joined.facts["teachers"] == digests and len(set(digests)) == 2
    assert joined.manifest["inputs"].keys() == {"scores", "scores:2"}
    scores = [
        read_shards(made[name].path, SCORES)["score"].to_numpy().astype(float)
        for name in ("scores", "scores:2", "ensemble")
    ]
    first, second = ((s - s.mean()) / s.std() for s in scores[:2])
    expected = scores[0].mean() + scores[0].std() * (first + second) / 2
    np.testing.assert_allclose(scores[2], expected, rtol=1e-4)


def test_students_that_learn_from_scores_learn_from_the_joined_ones(finished):
    _, made, _ = finished
    for strategy in STRATEGIES:
        inputs = made[f"student:{strategy}:tiny-e4"].manifest["inputs"]
        expected = made["ensemble"].name if strategy.endswith("ranker_distill") else None
        assert inputs.get("scores", {}).get("name") == expected


def test_the_page_and_the_table_show_all_teachers(finished, capsys):
    _, made, store = finished
    page = (made["report"].path / "index.html").read_text(encoding="utf-8")
    assert "the mean of the teachers" in page
    for text in ("teacher 2", "scores 2", "tokens 2", "ensemble"):
        assert f"<strong>{text}</strong>" in page, text
    for artifact in made.values():
        assert artifact is made["report"] or artifact.digest in page
    assert main(["results", store.uri]) == 0
    table = capsys.readouterr().out
    assert "teacher:2" in table and "ensemble" in table and "lm_distill_finetune/tiny-e4" in table
    systems = json.loads((made["evaluation"].path / "systems.json").read_text())
    assert [s["system"] for s in systems][:4] == ["bm25", "teacher", "teacher:2", "ensemble"]


def test_scoring_makes_the_join_too(finished, capsys):
    path, _, _ = finished
    assert main(["score", str(path), "--dry-run"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[-1] for line in lines if line][-3:] == ["scores", "scores:2", "ensemble"]


def test_a_narrow_student_gives_one_score_everywhere(finished, tmp_path):
    """kdscale rank, AutoModelForSequenceClassification, and CrossEncoder agree to 1e-4."""
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path, made, _ = finished
    student = made["student:lm_distill_ranker_distill:tiny-e4"].path
    assert json.loads((student / "config.json").read_text())["model_type"] == "electra"
    beir = path.parent / "beir"
    texts = {
        name: {
            row["_id"]: row["text"]
            for row in map(json.loads, (beir / f"{name}.jsonl").read_text().splitlines())
        }
        for name in ("queries", "corpus")
    }
    run, out = tmp_path / "run.trec", tmp_path / "out.trec"
    pids = sorted(texts["corpus"])[:12]
    run.write_text("".join(f"q001 Q0 {p} {i + 1} {9 - i} x\n" for i, p in enumerate(pids)))
    options = ["--queries", beir / "queries.jsonl", "--passages", beir / "corpus.jsonl"]
    assert main(["rank", *map(str, [student, *options, "--run", run, "-o", out])]) == 0
    ranked = {line.split()[2]: float(line.split()[4]) for line in out.read_text().splitlines()}
    pairs = [(texts["queries"]["q001"], texts["corpus"][p]) for p in ranked]
    predicted = CrossEncoder(str(student)).predict(pairs).tolist()
    assert list(ranked.values()) == pytest.approx(predicted, abs=1e-4)
    model = AutoModelForSequenceClassification.from_pretrained(student).eval()
    batch = AutoTokenizer.from_pretrained(student)(
        *zip(*pairs, strict=True), padding=True, truncation=True, return_tensors="pt"
    )
    with torch.inference_mode():
        logits = model(**batch).logits[:, 0].tolist()
    assert list(ranked.values()) == pytest.approx(logits, abs=1e-4)
