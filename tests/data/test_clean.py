import json

import pyarrow as pa
import pytest

from kdscale.data.clean import RejectLog, clean_table, clean_text, fault_of
from kdscale.data.readers.base import Reject
from kdscale.errors import KdscaleError
from kdscale.store import LocalWorkspace


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  a\tb\r\n\n c  ", "a b c"),
        ("form\x0cfeed\x00zero\x85next", "form feed zero next"),
        ("cafe\u0301", "caf\u00e9"),  # NFC joins the accent to its letter
        ("soft\u00adhyphen zero\u200bwidth \ufeffmark", "softhyphen zerowidth mark"),
        ("no\u00a0break\u3000wide", "no break wide"),
        ("\u0915\u094d\u200d\u0937", "\u0915\u094d\u200d\u0937"),  # a joiner that has meaning
        ("\x01 \u200b", ""),
    ],
)
def test_clean_text(raw, clean):
    assert clean_text(raw) == clean
    assert clean_text(clean) == clean


def test_long_text_is_cut_and_marked():
    table = pa.table({"pid": ["a", "b", "c"], "text": ["x" * 11, "x" * 10, "four and more"]})
    done = clean_table(table, max_chars=10)
    assert done["text"].to_pylist() == ["x" * 10, "x" * 10, "four and m"]
    assert done["cut"].to_pylist() == [True, False, True]
    assert done["pid"].to_pylist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("identifier", "text", "fault"),
    [
        ("d1", "text", None),
        ("d1", "lone \ud800 surrogate", "not UTF-8"),
        ("d\udcff", "text", "not UTF-8"),
        ("d 1", "text", "id with white space"),
        ("", "text", "id with white space"),
    ],
)
def test_fault_of(identifier, text, fault):
    found = fault_of(identifier, text)
    assert found is None if fault is None else found.startswith(fault)


def test_reject_log_counts_and_writes_each_line(tmp_path):
    items = [("a", "x"), Reject.of("c.tsv", 2, "no tab", "b\udcff" + "y" * 300), ("c", "z")]
    with RejectLog(tmp_path / "rejected.jsonl", max_fraction=0.9) as log:
        taken = list(log.accepted("passages", items))
        log.reject("passages", 3, "empty text", "c")
        log.check("passages", LocalWorkspace(tmp_path / "kept"))
    assert taken == [(1, ("a", "x")), (3, ("c", "z"))]
    assert log.counts() == {
        "passages": {"read": 3, "rejected": 2, "reasons": {"empty text": 1, "no tab": 1}}
    }
    lines = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [(x["file"], x["line"], x["reason"]) for x in lines] == [
        ("c.tsv", 2, "no tab"),
        ("passages", 3, "empty text"),
    ]
    assert len(lines[0]["text"]) == 200
    assert not (tmp_path / "kept").exists()


def test_too_many_rejects_stop_and_keep_a_copy(tmp_path):
    items = [("a", "x"), Reject("f", 2, "no tab", ""), *[Reject("f", n, "bad", "") for n in (3, 4)]]
    with RejectLog(tmp_path / "out" / "rejected.jsonl", max_fraction=0.5) as log:
        list(log.accepted("qrels/train", items))
        log.check("passages", LocalWorkspace(tmp_path / "kept"))  # another kind is not to blame
        with pytest.raises(KdscaleError) as error:
            log.check("qrels/train", LocalWorkspace(tmp_path / "kept"))
    message = str(error.value)
    kept = tmp_path / "kept" / "rejected" / "rejected.jsonl"
    assert "3 of 4 lines of qrels/train" in message and "(2): bad" in message
    assert str(kept) in message and "\n" not in message
    assert len(kept.read_text().splitlines()) == 3


def test_exactly_the_allowed_fraction_passes(tmp_path):
    items = [("a", "x"), Reject("f", 2, "no tab", "")]
    with RejectLog(tmp_path / "rejected.jsonl", max_fraction=0.5) as log:
        list(log.accepted("passages", items))
        log.check("passages", LocalWorkspace(tmp_path))
