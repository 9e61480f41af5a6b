import json

import pytest

from kdscale.data.records import NO_ID, NO_TEXT, read_json_passages, read_json_queries
from tests.worlds.reader_files import rejects


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"_id": "1", "text": ', "not a JSON object"),
        ('["1", "text"]', "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        ('{"text": "x"}', NO_ID),
        ('{"_id": null, "text": "x"}', NO_ID),
        ('{"_id": true, "text": "x"}', NO_ID),
        ('{"_id": 1.0, "text": "x"}', NO_ID),
        ('{"_id": " ", "text": "x"}', "empty id"),
        ('{"_id": "1"}', NO_TEXT),
        ('{"_id": "1", "text": 3}', NO_TEXT),
        ('{"_id": "1", "text": "x", "title": ["y"]}', NO_TEXT),
    ],
)
def test_malformed_json_lines(tmp_path, line, reason):
    path = tmp_path / "f.jsonl"
    path.write_text('{"_id": "0", "text": "x"}\n' + line + "\n")
    items = list(read_json_passages(path))
    assert items[0] == ("0", "x")
    assert rejects(items) == [("f.jsonl", 2, reason)]
    assert len(items[1].text) <= 200


def test_names_that_are_not_known_are_refused_with_those_that_are(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text('{"key": "0", "text": "x"}\n{"docid": "1", "abstract": "x"}\n')
    no_id, no_text = read_json_passages(path)
    for name in ("_id", "id", "pid", "docid", "doc_id", "docno", "qid", "query_id"):
        assert f" {name}," in no_id.reason or f" {name}:" in no_id.reason
    for name in ("text", "contents", "passage", "segment", "body", "query"):
        assert f" {name}," in no_text.reason or f" {name}:" in no_text.reason


@pytest.mark.parametrize("field", ["_id", "title", "text"])
def test_half_a_surrogate_pair_is_not_utf8(tmp_path, field):
    record = {"_id": "1", "title": "t", "text": "x", field: "a\ud800b"}
    path = tmp_path / "f.jsonl"
    path.write_text(json.dumps(record) + "\n")
    assert rejects(read_json_passages(path)) == [("f.jsonl", 1, "not UTF-8")]


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"_id": "p1", "title": "T", "text": "x", "metadata": {}}, ("p1", "T x")),
        ({"id": "p1", "contents": "x"}, ("p1", "x")),
        (
            {"pid": "msmarco_passage_00_0", "passage": "x", "spans": "(0,1)", "docid": "d_00_0"},
            ("msmarco_passage_00_0", "x"),
        ),
        (
            {"docid": "d#1_2", "url": "u", "title": "T", "headings": "h", "segment": "x"},
            ("d#1_2", "T x"),
        ),
        ({"docid": "d", "url": "u", "title": "T", "headings": "h", "body": "x"}, ("d", "T x")),
        ({"docid": "d", "title": "", "text": "x"}, ("d", "x")),
        ({"doc_id": "d", "title": None, "text": "x"}, ("d", "x")),
        ({"docno": 7, "text": "x"}, ("7", "x")),
        ({"docid": "d", "text": "x", "query": "asked of it"}, ("d", "x")),
    ],
    ids=["beir", "anserini", "marco v2", "segment", "doc", "tevatron", "ir", "trec", "doc2query"],
)
def test_passages_by_the_names_that_collections_use(tmp_path, record, found):
    path = tmp_path / "f.jsonl"
    path.write_text(json.dumps(record) + "\n")
    assert list(read_json_passages(path)) == [found]


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"_id": "q1", "text": "why"}, ("q1", "why")),
        (
            {"query_id": "q1", "query": "why", "positive_passages": [{"docid": "d", "text": "x"}]},
            ("q1", "why"),
        ),
        ({"qid": 3, "query": "why", "docid": "d", "passage": "because"}, ("3", "why")),
        ({"id": "1", "title": "why", "description": "whether"}, ("1", "why")),
        ({"id": "1", "title": "T", "text": "why"}, ("1", "T why")),
    ],
    ids=["beir", "tevatron", "with a passage", "topic", "title"],
)
def test_queries_by_the_names_that_collections_use(tmp_path, record, found):
    path = tmp_path / "f.jsonl"
    path.write_text(json.dumps(record) + "\n")
    assert list(read_json_queries(path)) == [found]
