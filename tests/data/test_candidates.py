import pyarrow as pa
import pytest

from kdscale.data.candidates import Bm25, candidates_by_query, source_candidates
from kdscale.data.clean import RejectLog
from kdscale.data.readers.base import Reject
from kdscale.data.schema import CANDIDATES


def index(passages: dict[str, str]) -> Bm25:
    return Bm25(pa.array(list(passages), pa.string()), list(passages.values()), k1=1.2, b=0.75)


def test_better_match_first_and_only_matches():
    bm25 = index(
        {"p1": "green apple", "p2": "red apple pie apple", "p3": "blue sky", "p4": "the sea"}
    )
    table = bm25.search(["q1", "q2", "q3"], ["apple pie", "the of", "unseen"], depth=10)
    assert table.schema == CANDIDATES
    assert table["qid"].to_pylist() == ["q1", "q1"]  # stop words and unseen words find nothing
    assert table["pid"].to_pylist() == ["p2", "p1"]
    assert table["rank"].to_pylist() == [1, 2]
    scores = table["score"].to_pylist()
    assert scores[0] > scores[1] > 0


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 8])
def test_ties_go_by_id_at_the_cutoff_too(depth):
    # p9 is best; eight passages tie. Stored out of order: position must not decide.
    ids = ["p5", "p3", "p8", "p1", "p9", "p4", "p7", "p2", "p6"]
    bm25 = index({i: "cat cat" if i == "p9" else "cat dog" for i in ids} | {"x": "other words"})
    table = bm25.search(["q"], ["cat"], depth)
    expected = ["p9", "p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8"]
    assert table["pid"].to_pylist() == expected[:depth]


def test_score_is_bm25_by_hand():
    """One term in one of three passages of two words each: idf = ln(1 + 2.5 / 1.5), tf = 1,
    length = average, so tf weight = 1 / (1 + 1.2)."""
    bm25 = index({"a": "quick fox", "b": "lazy dog", "c": "green hill"})
    score = bm25.search(["q"], ["fox"], 5)["score"].to_pylist()
    assert score == pytest.approx([0.980829 / 2.2], abs=1e-5)


def own_candidates(items, log, wanted=("q1", "q2"), depth=10):
    known = {"q1": "x", "q2": "y", "q3": "left out by a cap"}
    passages = {"a": 0, "b": 1, "c": 2}
    return source_candidates(items, "candidates/dev", log, known, list(wanted), passages, depth)


def test_source_candidates_are_ordered_ranked_and_checked(tmp_path):
    items = [
        ("q2", "c", 1, 0.5),
        ("q1", "c", 1, 2.0),
        ("q1", "b", 2, 1.0),
        ("q1", "a", 3, 1.0),  # ties with b: the id decides, whatever the rank says
        ("q9", "a", 1, 1.0),
        ("q1", "z", 1, 1.0),
        ("q3", "a", 1, 1.0),  # known, but not wanted: passed over
        ("q1", "c", 3, 9.0),  # again: the first stays
        Reject("run.txt", 9, "no score", "q1 Q0"),
    ]
    with RejectLog(tmp_path / "rejected.jsonl", 1.0) as log:
        table = own_candidates(items, log)
    assert table.to_pydict() == {
        "qid": ["q1", "q1", "q1", "q2"],
        "pid": ["c", "a", "b", "c"],
        "rank": [1, 2, 3, 1],
        "score": [2.0, 1.0, 1.0, 0.5],
    }
    assert log.counts()["candidates/dev"] == {
        "read": 9,
        "rejected": 4,
        "reasons": {
            "no score": 1,
            "query and passage named twice (the first stays)": 1,
            "unknown passage id": 1,
            "unknown query id": 1,
        },
    }
    assert candidates_by_query(table) == {"q1": ["c", "a", "b"], "q2": ["c"]}


def test_source_candidates_are_cut_at_depth(tmp_path):
    items = [("q1", pid, rank, -rank) for rank, pid in enumerate("abc", 1)]
    with RejectLog(tmp_path / "rejected.jsonl", 1.0) as log:
        assert own_candidates(items, log, depth=2)["pid"].to_pylist() == ["a", "b"]
        empty = own_candidates([], log)
    assert empty.num_rows == 0 and empty.schema == CANDIDATES
    assert candidates_by_query(empty) == {}
