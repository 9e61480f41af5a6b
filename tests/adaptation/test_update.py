"""`kdscale adapt`: an update that is taken, one that is not, and what is refused."""

import shutil

import pytest

from kdscale.adaptation.acceptance import NEW, OLD
from kdscale.adaptation.update import Update
from kdscale.data.dataset import Dataset
from kdscale.data.schema import SCORES
from kdscale.data.shards import read_shards
from kdscale.errors import KdscaleError
from kdscale.experiment.lineage import origin_of
from kdscale.store import open_store
from tests.adaptation.conftest import NEW_QUERIES, adapt, student_of

HARD = ["--set", "ranker.train.max_steps=80", "--set", "ranker.train.lr=0.01"]


@pytest.mark.slow
def test_an_update_that_is_better_is_taken(world, tmp_path, capsys):
    old = student_of(world, "ranker_distill")
    out = tmp_path / "updated"
    given = ["--margin", "0.1", "-o", str(out), *HARD]
    assert adapt(world, old.name, "new.qrels", *given) == 0
    shown = capsys.readouterr().out
    assert "new queries improve: nDCG@10" in shown and "old queries lose less than 0.1" in shown
    store = open_store(str(world.parent / "store"))
    updated = store.list("students")[0]
    assert f"accepted: {updated.uri}" in shown
    assert updated.manifest["inputs"]["student"] == {"name": old.name, "digest": old.digest}
    facts = updated.facts["update"]
    assert facts["accepted"] and facts["after"][NEW] > facts["before"][NEW]
    assert (out / "model.safetensors").is_file()

    # What it was made of: new and replayed queries, none of those that judge it.
    made = {role: store.find(*entry["name"].split("/"))
            for role, entry in updated.manifest["inputs"].items()}  # fmt: skip
    dataset = Dataset(made["dataset"].path)
    ids = {s: set(dataset.queries(s)["qid"].to_pylist()) for s in dataset.splits()}
    assert ids[OLD] == {f"q{i:03d}" for i in range(60, 100)}
    assert not ids["train"] & (ids["dev"] | ids[NEW] | ids[OLD])
    new = {qid for qid in ids["train"] if qid.startswith("n")}
    assert len(new) == len(ids["train"]) - len(new)  # half is replayed
    assert sum(map(len, (new, ids["dev"], ids[NEW]))) == NEW_QUERIES
    scores, known = made["scores"], store.list("scores")[-1]
    assert scores.facts["pairs_known"] == (len(ids["train"]) - len(new)) * 5
    before = {(r["qid"], r["pid"]): r["score"] for r in read_shards(known.path, SCORES).to_pylist()}
    replayed = [r for r in read_shards(scores.path, SCORES).to_pylist() if r["qid"][0] == "q"]
    assert replayed and all(before[r["qid"], r["pid"]] == r["score"] for r in replayed)

    # The same again is done already; an updated student can be updated, from the same origin.
    assert adapt(world, old.name, "new.qrels", "--margin", "0.1", *HARD) == 0
    assert "student: up to date" in capsys.readouterr().out
    origin = origin_of(store, updated)
    assert (origin.student, origin.first.name) == (updated, old.name)
    assert origin.teacher.kind == "teachers"


@pytest.mark.slow
def test_an_update_from_shuffled_labels_is_not_taken(world, capsys):
    """With candidates of the user's own, which nothing ranks but BM25."""
    old = student_of(world, "finetune")
    store = open_store(str(world.parent / "store"))
    there = {a.name for a in store.list("students")}
    run = world.parent / "shuffled.tsv"
    given = ["--candidates", str(run), "--margin", "0.1", *HARD]
    assert adapt(world, old.key, "shuffled.qrels", *given) == 3
    shown = capsys.readouterr().out
    assert "new queries are not shown to improve" in shown
    assert f"kept: {old.uri} stays as it is" in shown
    assert {a.name for a in store.list("students")} == there
    dataset = Dataset(store.list("datasets")[0].path)
    assert "nothing ranks the candidates of 90 queries: BM25 does" in shown
    brought = {tuple(line.split()) for line in run.read_text().splitlines()}
    found = dataset.candidates(NEW)
    assert found["score"].to_pylist()[:10] == sorted(found["score"].to_pylist()[:10])[::-1]
    assert max(found["score"].to_pylist()) > 0
    pairs = set(zip(found["qid"].to_pylist(), found["pid"].to_pylist(), strict=True))
    assert len(pairs) == 180 and pairs <= brought


@pytest.mark.slow
def test_what_a_student_was_made_from_must_be_there(world, tmp_path, capsys):
    copy = tmp_path / "store"
    shutil.copytree(world.parent / "store", copy)
    student = student_of(world, "ranker_distill")
    shutil.rmtree(copy / "teachers")
    store = open_store(str(copy))
    with pytest.raises(KdscaleError, match=r"was made from teachers/tiny-.* does not have"):
        origin_of(store, store.find("students", student.key))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"replay": 1.0}, "--replay: below 1, not 1.0"),
        ({"replay": -0.1}, "--replay: 0 or more, not -0.1"),
        ({"holdout": 0.0}, "--holdout: above 0, not 0.0"),
        ({"holdout": 1.0}, "--holdout: below 1, not 1.0"),
        ({"queries": "none"}, "--queries: no file"),
        ({"qrels": "none"}, "--qrels: no file"),
        ({"candidates": "none"}, "--candidates: no file"),
    ],
)
def test_arguments_that_cannot_be(tmp_path, changes, message):
    there = tmp_path / "f"
    there.write_text("")
    given = {"queries": there, "qrels": there, "candidates": None, "replay": 0.5, "holdout": 0.4}
    changed = {k: tmp_path / v if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises(KdscaleError, match=message):
        Update(**{**given, **changed}).check()
