"""`kdscale adapt`: an update that is taken, one that is not, and what is refused."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from world import KEYS, WORDS, make_config

from kdscale.adaptation.origin import find_student, origin_of
from kdscale.adaptation.update import Update
from kdscale.cli import main
from kdscale.data.dataset import Dataset
from kdscale.data.schema import PAIRS, SCORES
from kdscale.data.score_blocks import known_scores, pairs_without
from kdscale.data.shards import read_shards, write_shards
from kdscale.errors import KdscaleError
from kdscale.evaluation.acceptance import NEW, OLD, decide
from kdscale.store import open_store
from kdscale.store.artifact import build_manifest

GOOD = KEYS[0]  # a word of every relevant passage, and of few others
PASSAGES, OLD_QUERIES, NEW_QUERIES = 240, 110, 90
HARD = ["--set", "ranker.train.max_steps=80", "--set", "ranker.train.lr=0.01"]


def make_world(root):
    """A collection where the passages with the word GOOD are the relevant ones, and a config whose
    students have learned next to nothing of it."""
    make_config(root)
    rng = np.random.default_rng(3)
    corpus = []
    for i in range(PASSAGES):
        words = [*rng.choice(WORDS, size=8, replace=False), *([GOOD] if i % 5 == 0 else [])]
        corpus.append(words)
    good = [i for i in range(PASSAGES) if i % 5 == 0]

    def ask(name, count):
        targets = rng.choice(good, size=count)
        texts = {f"{name}{j:03d}": " ".join(rng.choice(corpus[t][:8], 2, replace=False))
                 for j, t in enumerate(targets)}  # fmt: skip
        return texts, {qid: f"p{t:03d}" for qid, t in zip(texts, targets, strict=True)}

    def jsonl(path, rows):
        lines = [json.dumps({"_id": key, "text": text}) + "\n" for key, text in rows.items()]
        path.write_text("".join(lines))

    def qrels(path, pairs):
        path.write_text("".join(f"{qid} 0 {pid} 1\n" for qid, pid in pairs.items()))

    beir = root / "beir"
    jsonl(beir / "corpus.jsonl", {f"p{i:03d}": " ".join(w) for i, w in enumerate(corpus)})
    texts, relevant = ask("q", OLD_QUERIES)
    jsonl(beir / "queries.jsonl", texts)
    qids = list(texts)
    for split, part in (("train", qids[:60]), ("dev", qids[60:100]), ("test", qids[100:])):
        qrels(beir / "qrels" / f"{split}.tsv", {qid: relevant[qid] for qid in part})
    texts, relevant = ask("n", NEW_QUERIES)
    jsonl(root / "new.jsonl", texts)
    qrels(root / "new.qrels", relevant)
    shuffled = {qid: f"p{rng.integers(PASSAGES):03d}" for qid in texts}
    qrels(root / "shuffled.qrels", shuffled)
    with (root / "shuffled.tsv").open("w") as pairs:  # the labelled ones among others, no order
        for qid, pid in shuffled.items():
            others = [f"p{i:03d}" for i in rng.choice(PASSAGES, 10, replace=False)]
            for found in list(dict.fromkeys([pid, *others]))[:10]:
                pairs.write(f"{qid}\t{found}\n")
    teacher = {"max_steps": 120, "batch_size": 8, "lr": 3e-3, "log_every": 20}
    student = {"max_steps": 1, "batch_size": 8, "lr": 1e-5, "log_every": 1}
    return make_config(
        root,
        cluster={"engine": "torch"},
        teacher={"model": str(root / "encoder"), "group_size": 4, "train": teacher},
        ranker={"group_size": 4, "train": student, "strategies": ["finetune", "ranker_distill"]},
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory, ray_cluster):
    """The config's path, once its students are made."""
    root = tmp_path_factory.mktemp("adapt")
    config = make_world(root)
    assert main(["distill-ranker", str(config)]) == 0
    return config


def student_of(config, strategy):
    store = open_store(str(config.parent / "store"))
    return next(
        a
        for a in store.list("students")
        if a.manifest["config"]["strategy"] == strategy and a.manifest["stage"] == "distill-ranker"
    )


def adapt(config, student, qrels="new.qrels", *arguments):
    root = config.parent
    given = ["--queries", str(root / "new.jsonl"), "--qrels", str(root / qrels)]
    return main(["adapt", student, "--config", str(config), *given, *arguments])


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
def test_too_few_queries_are_refused(world, tmp_path, capsys):
    old = student_of(world, "finetune")
    assert adapt(world, old.key, "new.qrels", "--holdout", "0.05") == 1
    assert "--holdout 0.05 leaves 2 of 90 new queries for dev" in capsys.readouterr().err
    few = tmp_path / "few.qrels"
    few.write_text("n000 0 p000 1\n")
    assert adapt(world, old.key, str(few)) == 1
    assert "1 new queries with a relevant passage (of 90 read)" in capsys.readouterr().err


@pytest.mark.slow
def test_judgments_name_queries_by_their_number(world, tmp_path, capsys):
    numbered = tmp_path / "numbered.qrels"
    lines = (world.parent / "new.qrels").read_text().splitlines()
    numbered.write_text("".join(f"{line.removeprefix('n').lstrip('0')}\n" for line in lines[1:]))
    old = student_of(world, "finetune")
    assert adapt(world, old.key, str(numbered), "--holdout", "0.05") == 1
    shown = capsys.readouterr()
    assert "leaves 2 of 89 new queries for dev" in shown.err
    said = "89 query ids of numbered.qrels are those of new.jsonl by their number"
    assert said in " ".join(shown.out.split())


@pytest.mark.slow
def test_judgments_of_passages_that_are_not_there_are_refused(world, tmp_path, capsys):
    strange = tmp_path / "strange.qrels"
    strange.write_text("n000 0 nowhere 1\n")
    assert adapt(world, student_of(world, "finetune").key, str(strange)) == 1
    assert "unknown passage id" in capsys.readouterr().err


@pytest.mark.slow
def test_what_a_student_was_made_from_must_be_there(world, tmp_path, capsys):
    copy = tmp_path / "store"
    shutil.copytree(world.parent / "store", copy)
    student = student_of(world, "ranker_distill")
    shutil.rmtree(copy / "teachers")
    store = open_store(str(copy))
    with pytest.raises(KdscaleError, match=r"was made from teachers/tiny-.* does not have"):
        origin_of(store, store.find("students", student.key))


def verdict(new_gain, old_gain, queries=50, margin=0.02):
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.02, (4, queries))
    before = {NEW: 0.5 + noise[0], OLD: 0.6 + noise[1]}
    after = {NEW: before[NEW] + new_gain + noise[2], OLD: before[OLD] + old_gain + noise[3]}
    return decide(before, after, "nDCG@10", margin, 0.05)


def test_better_on_the_new_and_not_worse_on_the_old_is_accepted():
    found = verdict(0.1, 0.0)
    assert found.accepted and found.facts()["accepted"]
    assert "new queries improve: nDCG@10 0.5" in found.text()
    assert "old queries lose less than 0.02" in found.text()


@pytest.mark.parametrize(
    "new_gain, old_gain, why",
    [
        (0.0, 0.0, "new queries are not shown to improve"),
        (-0.1, 0.0, "new queries are not shown to improve"),
        (0.1, -0.05, "old queries are not shown to lose less than 0.02"),
        (0.1, -0.02, "old queries are not shown to lose less than 0.02"),
    ],
)
def test_else_the_student_is_kept_and_it_is_said_why(new_gain, old_gain, why):
    found = verdict(new_gain, old_gain)
    assert not found.accepted and why in found.text()


def test_one_query_shows_nothing():
    found = verdict(0.1, 0.0, queries=1)
    assert not found.accepted and "p not known" in found.text()


def test_equal_rankings_are_no_improvement_and_no_loss():
    values = {NEW: np.full(9, 0.5), OLD: np.full(9, 0.5)}
    found = decide(values, values, "AP", 0.01, 0.05)
    assert found.holds and not found.improves


def test_scores_that_are_known(tmp_path):
    ids = {"qid": ["a", "a", "b"], "pid": ["1", "2", "1"]}
    scores = pa.table({"pair_id": [7, 8, 9], **ids, "score": [0.5, 1.5, 2.5]}).cast(SCORES)
    write_shards(tmp_path, scores, SCORES, 2)
    pairs = pa.table(
        {"pair_id": [0, 1, 2], "qid": ["b", "a", "a"], "pid": ["1", "3", "2"],
         "grade": [1, 0, 0], "rank": [1, 2, 3]}
    ).cast(PAIRS)  # fmt: skip
    known = known_scores(pairs, tmp_path)
    assert known.to_pydict() == {"pair_id": [0, 2], "score": [2.5, 1.5]}
    assert pairs_without(pairs, known)["pair_id"].to_pylist() == [1]


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


def commit(store, kind, key, inputs, stage="test", **config):
    with store.staging(kind, key) as out:
        manifest = build_manifest(
            kind=kind, stage=stage, config=config, files=[], facts={}, created="2026", version="0",
            inputs={r: {"name": a.name, "digest": a.digest} for r, a in inputs.items()},
        )  # fmt: skip
        store.commit(out, kind, key, manifest)
    return store.find(kind, key)


def test_students_that_are_not_there(tmp_path):
    store = open_store(str(tmp_path / "store"))
    student = commit(store, "students", "2l-192-finetune-0123", {})
    for name in (student.key, student.name, student.uri):
        assert find_student(store, name).name == student.name
    with pytest.raises(KdscaleError, match="did you mean 2l-192-finetune-0123"):
        find_student(store, "2l-192-finetune-0124")
    for other in (str(tmp_path / "other" / "students" / "k"), f"{store.uri}/teachers/k"):
        with pytest.raises(KdscaleError, match="is no student of"):
            find_student(store, other)


def test_a_student_of_several_teachers_and_one_that_says_nothing(tmp_path):
    store = open_store(str(tmp_path))
    dataset, tokens = (commit(store, kind, "d", {}) for kind in ("datasets", "tokens"))
    made = {"dataset": dataset, "tokens": tokens}
    joined = commit(store, "scores", "s", {}, stage="ensemble")
    student = commit(store, "students", "a", {**made, "scores": joined})
    with pytest.raises(KdscaleError, match="several teachers"):
        origin_of(store, student)
    silent = origin_of(store, commit(store, "students", "b", made))
    with pytest.raises(KdscaleError, match="does not say how it was trained"):
        _ = silent.settings
