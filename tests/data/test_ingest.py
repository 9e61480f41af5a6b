import gzip
import json

import pytest

from kdscale.config import DocstringsSource
from kdscale.data import ingest
from kdscale.data.clean import RejectLog
from kdscale.data.ingest import (
    ingest_extra_text,
    ingest_judgments,
    ingest_negatives,
    ingest_queries,
    parse_in_parallel,
)
from kdscale.data.readers import open_reader
from kdscale.data.readers.base import Reject
from kdscale.data.records import NO_TEXT
from kdscale.errors import KdscaleError
from kdscale.progress import Reporter
from kdscale.store import LocalWorkspace

PASSAGES = {"a": 0, "b": 1, "c": 2}


@pytest.fixture
def log(tmp_path):
    with RejectLog(tmp_path / "rejected.jsonl", 1.0) as log:
        yield log


def reasons(log, kind):
    return log.counts()[kind]["reasons"]


def test_queries_are_cleaned_and_checked(log):
    items = [
        ("q1", "  why\tis  it "),
        Reject("queries.tsv", 2, "not two columns", "q2"),
        ("q1", "again"),
        ("q3", " \u200b"),
        ("q4", "lone \udcff"),
        ("q 5", "text"),
        ("q6", "x" * 30),
    ]
    queries, cut = ingest_queries(items, "queries/dev", log, max_chars=20)
    assert queries == {"q1": "why is it", "q6": "x" * 20} and cut == 1
    assert reasons(log, "queries/dev") == {
        "not two columns": 1,
        "duplicate id (the first stays)": 1,
        "empty text": 1,
        "not UTF-8": 1,
        "id with white space (a run file cannot hold it)": 1,
    }


def test_judgments_name_known_ids_once(log):
    items = [
        ("q1", "a", 1),
        ("q9", "a", 1),
        ("q1", "z", 1),
        ("q1", "a", 0),
        ("q1", "b", 0),
        ("q2", "a", 2),
    ]
    queries = {"q1": "x", "q2": "y"}
    judgments = ingest_judgments(items, "qrels/train", log, queries, PASSAGES)
    assert judgments == {"q1": {"a": 1, "b": 0}, "q2": {"a": 2}}
    assert reasons(log, "qrels/train") == {
        "unknown query id": 1,
        "unknown passage id": 1,
        "query and passage named twice (the first stays)": 1,
    }


def test_negatives_are_the_first_that_serve(log):
    items = [
        ("q1", "a"),  # relevant
        ("q1", "b"),
        ("q1", "b"),  # again
        ("q1", "c"),  # beyond the limit
        ("q2", "b"),  # a query that a cap left out: passed over
        ("q7", "b"),
        ("q1", "z"),
    ]
    judgments = {"q1": {"a": 1, "c": 0}, "q3": {"a": 1}}
    known = {"q1": "x", "q2": "y", "q3": "z"}
    negatives = ingest_negatives(items, log, known, judgments, PASSAGES, min_grade=1, limit=1)
    assert negatives == {"q1": ["b"], "q3": []}
    assert reasons(log, "negatives") == {"unknown query id": 1, "unknown passage id": 1}


def test_extra_text(tmp_path, log):
    good, zipped = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    lines = [{"text": " one  two "}, {"other": 1}, ["text"], {"text": 5}, {"text": "  "}]
    good.write_text("\n".join(map(json.dumps, lines)) + "\nno json\n")
    with gzip.open(zipped, "wb") as handle:
        handle.write(b'{"text": "three"}\n\n{"text": "\xff"}\n{"text": "long text"}\n')
    paths = [str(good), str(zipped)]
    rows = list(ingest_extra_text(paths, log, max_chars=7, keep=LocalWorkspace(tmp_path)))
    assert rows == [("one two",), ("three",), ("long te",)]
    assert reasons(log, str(good)) == {NO_TEXT: 4, "empty text": 1}
    assert reasons(log, str(zipped)) == {"not UTF-8": 1}
    rejected = (tmp_path / "rejected.jsonl").read_text  # lines are those of the files
    log.__exit__()
    assert [json.loads(x)["line"] for x in rejected().splitlines()] == [2, 3, 4, 5, 6, 3]


def test_extra_text_that_is_missing_or_mostly_malformed(tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text("x\n" * 3 + '{"text": "fine"}\n')
    kept = LocalWorkspace(tmp_path / "kept")
    with RejectLog(tmp_path / "rejected.jsonl", 0.5) as log:
        with pytest.raises(KdscaleError, match=r"3 of 4 lines of .*bad\.jsonl"):
            list(ingest_extra_text([str(bad)], log, 100, kept))
        with pytest.raises(
            KdscaleError, match=r"prepare\.extra_text: .*none\.jsonl does not exist"
        ):
            list(ingest_extra_text([str(tmp_path / "none.jsonl")], log, 100, kept))


@pytest.mark.slow
def test_parsing_by_workers_changes_nothing(ray_cluster, monkeypatch):
    monkeypatch.setattr(ingest, "UNITS_PER_BLOCK", 5)
    source = DocstringsSource(packages=["bm25s", "rich"])
    alone, fed = open_reader(source), open_reader(source)
    with Reporter().task("parsing") as task:
        parse_in_parallel(fed, task)
    assert task.completed == task.total == len(fed.units()) > 5
    assert list(fed.passages()) == list(alone.passages()) != []
    for split in alone.splits():
        assert list(fed.queries(split)) == list(alone.queries(split))
