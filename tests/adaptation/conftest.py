"""A collection, a config and its students for the tests of `kdscale adapt`, made once."""

import json

import numpy as np
import pytest

from kdscale.cli import main
from kdscale.store import open_store
from tests.worlds.world import KEYS, WORDS, make_config

GOOD = KEYS[0]  # a word of every relevant passage, and of few others
PASSAGES, OLD_QUERIES, NEW_QUERIES = 240, 110, 90


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


@pytest.fixture(scope="session")
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
        if a.manifest["stage"] == "distill-ranker" and a.manifest["config"]["strategy"] == strategy
    )


def adapt(config, student, qrels="new.qrels", *arguments):
    root = config.parent
    given = ["--queries", str(root / "new.jsonl"), "--qrels", str(root / qrels)]
    return main(["adapt", student, "--config", str(config), *given, *arguments])
