"""Further teachers, and all of them together, as systems of an evaluation."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizer

from kdscale.data.runs import read_run
from kdscale.evaluation.ensemble import Scale, write_scales
from kdscale.models.encode import PairEncoder
from kdscale.stages.evaluate import run
from tests.worlds.artifacts import commit, ranker
from tests.worlds.ids import step_id
from tests.worlds.small_world import MAX_LENGTH, SmallWorld
from tests.worlds.tiny_models import WORDS, bert_encoder

SCALES = [Scale(0.5, 2.0), Scale(-3.0, 0.25)]
SYSTEMS = ["bm25", "teacher", "teacher:2", "ensemble"]
SYSTEMS += ["ranker_distill/tiny", "lm_distill_finetune/tiny"]


def other_tokenizer():
    """As that of the world, but every word has another number."""
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", *reversed(WORDS)]
    return BertTokenizer(vocab={token: i for i, token in enumerate(vocab)})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The small world with a second teacher, of another tokenizer, and the scales of both."""
    world = SmallWorld(tmp_path_factory.mktemp("world"))
    world.encoder = PairEncoder(other_tokenizer(), MAX_LENGTH)
    for role, kind, write in (
        ("tokens:2", "tokens", world.write_tokens),
        ("teacher:2", "teachers", ranker(world.encoder, bert_encoder(1, 24, seed=9), 9)),
        ("ensemble", "scores", lambda out: write_scales(out, SCALES)),
    ):
        world.inputs[step_id(role)] = commit(world.store, kind, "second", write)
    return world


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    facts = run(world.context(out, measures=["RR@10"], baseline="ensemble"))
    rows = {row["system"]: row for row in json.loads((out / "systems.json").read_text())}
    return out, rows, facts


def run_of(out, tag):
    return {qid: dict(ranking) for qid, ranking in read_run(out / f"runs/test/{tag}.trec")}


def test_every_teacher_and_the_ensemble_are_systems(done):
    _, rows, facts = done
    assert list(rows) == SYSTEMS and facts["systems"] == 6
    assert rows["ensemble"]["tests"] == {"test": {}}
    assert rows["teacher:2"]["tests"]["test"]["RR@10"]["baseline"] == "ensemble"


def test_a_further_teacher_reads_its_own_tokens(done, world):
    path = world.inputs[step_id("teacher:2")].path
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    for qid, scores in run_of(done[0], "teacher-2").items():
        for pid, score in scores.items():
            texts = world.queries["test"][qid], world.passages[pid]
            inputs = tokenizer(*texts, truncation=True, return_tensors="pt")
            with torch.no_grad():
                assert model(**inputs).logits.item() == pytest.approx(score, abs=1e-4)


def test_the_ensemble_is_the_mean_on_the_first_teachers_scale(done):
    out = done[0]
    first, second, joined = (run_of(out, tag) for tag in ("teacher", "teacher-2", "ensemble"))
    assert joined.keys() == first.keys()
    for qid, scores in joined.items():
        assert scores.keys() == first[qid].keys()
        for pid, score in scores.items():
            brought = 0.5 + 2.0 * (second[qid][pid] + 3.0) / 0.25
            assert score == pytest.approx((first[qid][pid] + brought) / 2)


def test_the_ensemble_costs_what_its_members_cost(done):
    out, rows, _ = done
    members = [rows["teacher"], rows["teacher:2"]]
    for name in ("parameters", "embedding_parameters", "bytes", "flops_per_pair"):
        assert rows["ensemble"][name] == sum(row[name] for row in members)
    systems = json.loads((out / "latency.json").read_text())["systems"]
    for part in ("tokenise_ms", "forward_ms", "total_ms"):
        total = np.add(systems["teacher"][part], systems["teacher:2"][part])
        assert systems["ensemble"][part] == pytest.approx(total, abs=2e-3)
    assert rows["ensemble"]["speedup"] < 1
