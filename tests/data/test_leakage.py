import pytest

from kdscale.config import BeirSource, Prepare
from kdscale.data.clean import RejectLog
from kdscale.data.readers import open_reader
from kdscale.data.splits import describe, leaked, read_query_sets, read_texts, repeated
from kdscale.errors import KdscaleError
from kdscale.store import LocalWorkspace

QUERIES = {
    "t1": "Which birds fish?",
    "t2": "which birds  fish",
    "t3": "Do owls sing?",
    "t4": "Where do swifts sleep?",
    "d1": "DO OWLS SING",
    "d2": "Can cranes dance?",
    "e1": "Which birds fish",
}
SPLITS = {"train": ["t1", "t2", "t3", "t4"], "dev": ["d1", "d2"], "test": ["e1"]}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text('{"_id": "p", "text": "Herons fish."}\n')
    lines = [f'{{"_id": "{qid}", "text": "{text}"}}\n' for qid, text in QUERIES.items()]
    (tmp_path / "queries.jsonl").write_text("".join(lines))
    for split, qids in SPLITS.items():
        lines = [f"{qid}\tp\t1\n" for qid in qids]
        (tmp_path / "qrels" / f"{split}.tsv").write_text("".join(lines))
    return tmp_path


def read(folder, **settings):
    with RejectLog(folder / "rejected.jsonl", 0.0) as log:
        sets = read_query_sets(
            open_reader(BeirSource(path=str(folder))), Prepare(**settings), 1, log, {"p"},
            LocalWorkspace(folder / "kept"),
        )  # fmt: skip
    return {split.name: split for of in sets for split in of.splits}


def test_queries_of_another_split_are_found_by_their_text():
    train = {qid: QUERIES[qid] for qid in SPLITS["train"]}
    others = {split: {q: QUERIES[q] for q in SPLITS[split]} for split in ("dev", "test")}
    assert leaked(train, others) == {"dev": ["t3"], "test": ["t1", "t2"]}
    assert leaked(train, {"other": {"q": "Do owls sing alone?"}}) == {}
    assert repeated(train) == 1
    assert "1 in dev, 2 in test" in describe({"dev": 1, "test": 2})


def test_leaked_queries_are_counted_and_kept_unless_they_are_to_be_dropped(folder):
    kept = read(folder)
    assert list(kept["train"].texts) == ["t1", "t2", "t3", "t4"]
    counts = kept["train"].counts
    assert counts["leaked"] == {"dev": 1, "test": 2} and counts["repeated"] == 1
    assert counts["dropped_as_leaked"] == 0 and "leaked" not in kept["dev"].counts
    dropped = read(folder, leakage="drop")
    assert list(dropped["train"].texts) == list(dropped["train"].judgments) == ["t4"]
    assert dropped["train"].counts["dropped_as_leaked"] == 3
    assert dropped["train"].counts["kept"] == 1
    for split in ("dev", "test"):
        assert list(dropped[split].texts) == SPLITS[split]


def test_what_is_dropped_does_not_depend_on_the_caps(folder):
    dropped = read(folder, leakage="drop", max_queries={"dev": 1, "test": 1, "train": 1})
    assert list(dropped["train"].texts) == ["t4"]


def test_a_train_split_of_leaked_queries_alone_is_an_error(folder):
    (folder / "qrels" / "train.tsv").write_text("t1\tp\t1\nt3\tp\t1\n")
    with pytest.raises(KdscaleError, match=r"prepare\.leakage: all 2 training queries"):
        read(folder, leakage="drop")


def test_texts_are_read_and_divided_as_they_are_prepared(folder):
    reader = open_reader(BeirSource(path=str(folder)))
    assert {split: list(texts) for split, texts in read_texts(reader, {}).items()} == SPLITS
    (folder / "qrels" / "all.tsv").write_text("".join(f"{qid}\tp\t1\n" for qid in QUERIES))
    whole = open_reader(BeirSource(path=str(folder), splits={"all": "all"}))
    divided = read_texts(whole, {"train": 0.5, "test": 0.5})
    assert list(divided) == ["train", "test"] and sum(map(len, divided.values())) == len(QUERIES)
