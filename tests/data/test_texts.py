import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdscale.data.readers.base import Reject
from kdscale.data.records import NO_TEXT
from kdscale.data.texts import read_passages, read_queries
from kdscale.errors import KdscaleError

EXPECTED = [("a", "river bank"), ("b", "tax rates")]


def json_lines(path):
    path.write_text('{"_id": "a", "text": "river bank"}\n{"_id": "b", "text": "tax rates"}\n')


def tsv(path):
    path.write_text("a\triver bank\nb\ttax rates\n")


def tsv_gz(path):
    path.write_bytes(gzip.compress(b"a\triver bank\nb\ttax rates\n"))


def parquet(path):
    pq.write_table(pa.table({"pid": ["a", "b"], "text": ["river bank", "tax rates"]}), path)


def parquet_folder(path):
    path.mkdir()
    for part, row in enumerate(EXPECTED):
        table = pa.table({"text": [row[1]], "qid": [row[0]]})
        pq.write_table(table, path / f"part-0000{part}.parquet")


def topics(path):
    path.write_text(
        "<top>\n<num> Number: a\n<title> river bank\n</top>\n"
        "<top>\n<num> Number: b\n<title> tax rates\n</top>\n"
    )


def documents(path):
    path.write_text(
        "<DOC><DOCNO>a</DOCNO><TEXT>river bank</TEXT></DOC>\n"
        "<DOC><DOCNO>b</DOCNO><TEXT>tax rates</TEXT></DOC>\n"
    )


ANY = {
    "c.jsonl": json_lines,
    "c.tsv": tsv,
    "c.txt": tsv,
    "c.tsv.gz": tsv_gz,
    "c.parquet": parquet,
    "folder": parquet_folder,
}


@pytest.mark.parametrize("name", ANY)
@pytest.mark.parametrize("read", [read_passages, read_queries])
def test_formats_of_both(tmp_path, name, read):
    ANY[name](tmp_path / name)
    assert list(read(tmp_path / name)) == EXPECTED


def test_topics_are_queries_and_documents_are_passages(tmp_path):
    topics(tmp_path / "topics.1-2")
    documents(tmp_path / "docs.sgml")
    assert list(read_queries(tmp_path / "topics.1-2")) == EXPECTED
    assert list(read_passages(tmp_path / "docs.sgml")) == EXPECTED


def test_numbers_are_ids_and_rows_without_id_or_text_are_refused(tmp_path):
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"id": [7, None, 9], "text": ["river", "bank", None]}), path)
    found = list(read_passages(path))
    assert found[0] == ("7", "river")
    assert [(r.line, r.reason) for r in found[1:]] == [(2, "empty id"), (3, NO_TEXT)]
    assert all(isinstance(r, Reject) for r in found[1:])


def test_mistakes(tmp_path):
    with pytest.raises(KdscaleError, match=r"passages: .*none.tsv does not exist"):
        list(read_passages(tmp_path / "none.tsv"))
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"PAR1 but no more")
    with pytest.raises(KdscaleError, match=r"cannot read .*bad.parquet as Parquet"):
        list(read_passages(bad))
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"pid": ["a"], "abstract": ["x"]}), other)
    needs = r"columns pid .*, abstract .*; it needs a text .*passage.* and an id .*docid"
    with pytest.raises(KdscaleError, match=needs):
        list(read_queries(other))


def test_parquet_by_the_names_that_collections_use(tmp_path):
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"docid": [1, 2], "title": ["River", None], "text": ["a", "b"]}), path)
    assert list(read_passages(path)) == [("1", "River a"), ("2", "b")]  # as its JSON lines do
    pq.write_table(pa.table({"passage": ["p"], "query": ["why"], "query_id": ["q"]}), path)
    assert list(read_queries(path)) == [("q", "why")]
    pq.write_table(pa.table({"id": ["q"], "title": ["why"]}), path)
    assert list(read_queries(path)) == [("q", "why")]


@pytest.mark.parametrize(
    ("pid", "text"),
    [(pa.int64(), pa.string()), (pa.large_string(), pa.dictionary(pa.int32(), pa.string()))],
)
def test_the_types_of_text_that_parquet_has(tmp_path, pid, text):
    ids = pa.array([1, 2]).cast(pid)
    texts = pa.array(["river", "bank"]).cast(text)
    pq.write_table(pa.table({"pid": ids, "text": texts}), tmp_path / "c.parquet")
    assert list(read_passages(tmp_path / "c.parquet")) == [("1", "river"), ("2", "bank")]


@pytest.mark.parametrize("kind", [pa.binary(), pa.list_(pa.string()), pa.int32(), pa.null()])
def test_a_text_that_is_none_is_refused(tmp_path, kind):
    texts = pa.array([None], kind)
    pq.write_table(pa.table({"pid": ["a"], "text": texts}), tmp_path / "c.parquet")
    with pytest.raises(KdscaleError, match="it needs"):
        list(read_passages(tmp_path / "c.parquet"))


def test_bytes_that_are_not_utf8_in_a_column_of_text(tmp_path):
    texts = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xff")]
    )
    pq.write_table(pa.table({"pid": ["a"], "text": texts}), tmp_path / "c.parquet")
    with pytest.raises(KdscaleError, match="cannot read"):
        list(read_passages(tmp_path / "c.parquet"))
