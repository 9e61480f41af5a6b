import pytest

from kdscale.config import BeirSource
from kdscale.data.readers import open_reader
from kdscale.data.records import NO_ID
from kdscale.errors import KdscaleError
from tests.worlds.reader_files import (
    FILES,
    accepted,
    append,
    compress,
    copy_of,
    everything,
    rejects,
)


@pytest.fixture
def folder(tmp_path):
    return copy_of("beir", tmp_path)


def open_beir(folder, **splits):
    return open_reader(BeirSource(path=str(folder), **({"splits": splits} if splits else {})))


def test_the_tiny_set():
    reader = open_beir(FILES / "beir")
    passages = dict(reader.passages())
    assert list(passages) == ["b1", "b2", "b3", "b4", "5"]
    assert passages["b1"].startswith("Heron The grey heron")
    assert passages["b2"].startswith("A woodpecker")  # an empty title adds nothing
    assert reader.splits() == ["train", "dev", "test"]
    assert [qid for qid, _ in reader.queries("train")] == ["q1", "q2"]
    assert list(reader.queries("test")) == [("q4", "how do owls hunt in the dark")]
    assert list(reader.qrels("dev")) == [("q3", "b3", 2), ("q3", "b4", 0)]
    assert list(reader.qrels("test")) == [("q4", "5", 1)]  # has no header
    assert reader.candidates("dev") is None
    assert reader.negatives() is None


def test_compressed_files_read_alike(folder):
    plain = everything(open_beir(folder))
    for path in [*folder.glob("*.jsonl"), *folder.glob("qrels/*")]:
        compress(path)
    assert everything(open_beir(folder)) == plain


def test_malformed_lines_are_refused_once(folder):
    append(folder / "corpus.jsonl", b'{"_id": "b6"', b'{"_id": "b7", "text": "na\xefve"}')
    append(folder / "queries.jsonl", b'{"text": "no id"}')
    append(folder / "qrels" / "dev.tsv", b"q3\tb1\tyes")
    reader = open_beir(folder)
    assert rejects(reader.passages()) == [
        ("corpus.jsonl", 6, "not a JSON object"),
        ("corpus.jsonl", 7, "not UTF-8"),
    ]
    assert len(accepted(reader.passages())) == 5
    assert rejects(reader.queries("train")) == [("queries.jsonl", 6, NO_ID)]
    assert rejects(reader.queries("dev")) == []
    assert rejects(reader.qrels("dev")) == [("dev.tsv", 4, "grade is not a whole number")]


def test_a_missing_file_is_named_with_its_key(folder):
    (folder / "qrels" / "dev.tsv").unlink()
    with pytest.raises(
        KdscaleError, match=r"source\.splits\.dev: no file .*dev\.tsv .*has test\.tsv, train\.tsv"
    ):
        open_beir(folder)
    assert open_beir(folder, all="test").splits() == ["all"]
    (folder / "corpus.jsonl").unlink()
    with pytest.raises(KdscaleError, match=r"source\.path: no file .*corpus\.jsonl"):
        open_beir(folder, test="test")
    with pytest.raises(KdscaleError, match=r"source\.path: no folder 'nowhere'"):
        open_beir("nowhere")


def test_the_fingerprint_follows_the_content_not_the_place(folder):
    before = open_beir(folder).fingerprint()
    assert before == open_beir(FILES / "beir").fingerprint()
    append(folder / "queries.jsonl", b'{"_id": "q6", "text": "one more"}')
    assert open_beir(folder).fingerprint() != before


def test_medquad(shared_data):
    reader = open_beir(shared_data("medquad"))
    found = everything(reader)
    assert len(found["passages"]) == 15_809
    counts = {split: len(queries) for split, queries in found["queries"].items()}
    assert counts == {"train": 11_830, "dev": 1_513, "test": 1_636}
    for split, queries in found["queries"].items():
        assert not rejects(queries) and not rejects(found["qrels"][split])
        assert {qid for qid, _, _ in found["qrels"][split]} == {qid for qid, _ in queries}
