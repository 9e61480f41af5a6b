from kdscale.data.candidates import candidates_by_query, source_candidates
from kdscale.data.clean import RejectLog
from kdscale.data.readers.base import Reject
from kdscale.data.schema import CANDIDATES


def own_candidates(items, log, wanted=("q1", "q2"), depth=10):
    known = {"q1": "x", "q2": "y", "q3": "left out by a cap"}
    passages = {"a", "b", "c"}
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
