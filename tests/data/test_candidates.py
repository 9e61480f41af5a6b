from itertools import permutations

import numpy as np
import pyarrow as pa
import pytest

from kdscale.data.bm25 import Bm25
from kdscale.data.candidates import (
    candidates_by_query,
    own_passages,
    source_candidates,
    without_own,
)
from kdscale.data.clean import RejectLog, cut_text
from kdscale.data.parallel import InProcess
from kdscale.data.readers.base import Reject
from kdscale.data.schema import CANDIDATES, PASSAGES


def brought(items, log, wanted=("q1", "q2"), own=()):
    known = {"q1": "x", "q2": "y", "q3": "left out by a cap", "a": "z"}
    passages = {"a", "b", "c"}
    return source_candidates(items, "candidates/dev", log, known, list(wanted), passages, own)


def own_candidates(items, log, depth=10):
    return brought(items, log).table(depth)


@pytest.fixture
def log(tmp_path):
    with RejectLog(tmp_path / "rejected.jsonl", 1.0) as log:
        yield log


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


@pytest.mark.parametrize(
    "items",
    [
        [("q1", "c", None, None), ("q1", "a", None, None)],  # top1000: two texts beside the ids
        [("q1", "c", None, 0.0), ("q1", "a", None, 0.0)],  # MS MARCO's scores in ir_datasets
        [("q1", "c", 0, 1.0), ("q1", "a", 0, 1.0)],  # a run whose writer had no ranks
        [("q1", "c", 9, None), ("q1", "a", 3, None)],  # counts, not places of two lines
        [("q1", "c", 1, None), ("q1", "a", 1, None)],
    ],
)
def test_passages_that_nothing_ranks_are_a_set(log, items):
    found = brought([*items, ("q2", "b", 1, 2.0)], log)
    assert found.unranked() == ["q1"]
    ranked = found.ranked(lambda numbers, query, passage: np.array([7.0, 8.0])[passage])
    assert candidates_by_query(ranked.table(1)) == {"q1": ["a"], "q2": ["b"]}
    assert ranked.table(9)["score"].to_pylist() == [8.0, 7.0, 2.0]


@pytest.mark.parametrize(
    ("ranks", "score"),
    [([1, 2, 3], None), ([0, 1, 2], None), ([1, 2, 3], 0.5), ([3, 4, 5], None)],
)
def test_ranks_rank_where_scores_do_not(log, ranks, score):
    """The third case is a run whose scores are all equal. The last has lost its first two lines, to
    passages that the collection lacks."""
    items = [("q1", pid, rank, score) for pid, rank in zip("cab", ranks, strict=True)]
    items += [("q1", pid, rank, score) for pid, rank in (("x", 1), ("y", 2)) if ranks[0] == 3]
    for order in permutations(items):
        assert candidates_by_query(own_candidates(order, log)) == {"q1": ["c", "a", "b"]}


def test_scores_rank_before_ranks_do(log):
    items = [("q1", "a", 1, 0.5), ("q1", "b", 2, 0.7), ("q1", "c", 3, 0.7)]
    assert candidates_by_query(own_candidates(items, log)) == {"q1": ["b", "c", "a"]}


def test_a_query_is_no_candidate_of_itself(log):
    items = [("a", pid, rank, -rank) for rank, pid in enumerate("abc", 1)]
    found = brought([*items, ("q1", "a", 1, 1.0)], log, wanted=("q1", "a"), own={"a"})
    assert candidates_by_query(found.table(2)) == {"q1": ["a"], "a": ["b", "c"]}
    assert log.counts()["candidates/dev"]["rejected"] == 0


TEXTS = {
    "q1": "Being vegetarian helps the environment",
    "q2": "a title the same text of a query, after a title",
    "q3": "another text than that of the query",
    "q4": "All that one has to know about asthma",
    "q5": "judged relevant to itself",
    "p1": "what is judged elsewhere",
}
QUERIES = {
    "q1": "being Vegetarian helps the environment",
    "q2": "the same text of a query, after a title",
    "q3": "numbered like a passage",
    "q4": "about asthma",
    "q5": "judged relevant to itself",
    "q6": "what is judged elsewhere",
}


def test_a_query_that_is_a_passage_is_known_by_id_and_text():
    table = pa.table([list(TEXTS), list(TEXTS.values())], schema=PASSAGES)
    judged = {"q1": {"q1": 0, "p1": 1}, "q5": {"q5": 1}}
    tables = [table.slice(0, 2), table.slice(2)]
    found = own_passages(QUERIES, judged, 1, set(TEXTS), lambda: tables, 1_000)
    assert found == {"q1", "q2"}


@pytest.mark.parametrize("title", ["", "a title "])
@pytest.mark.parametrize("max_chars", [40, 43, 44, 60])
def test_a_query_that_is_a_passage_is_known_where_both_are_cut(title, max_chars):
    text = "what is said of asthma runs on and on, and is longer than what is kept of it"
    same, other = cut_text(title + text, max_chars)[0], cut_text(title + text[5:], max_chars)[0]
    table = pa.table([["q1", "q2"], [same, other]], schema=PASSAGES)
    queries = dict.fromkeys(["q1", "q2"], cut_text(text, max_chars)[0])
    found = own_passages(queries, {}, 1, set(queries), lambda: [table], max_chars)
    assert found == {"q1"}


def test_passages_are_not_read_where_no_id_is_of_both_kinds():
    assert own_passages({"q6": "x"}, {}, 1, set(TEXTS), lambda: pytest.fail("read"), 99) == set()


def test_depth_is_reached_without_the_query_itself(tmp_path):
    queries = {"p1": "red apple", "p3": "blue sky"}
    passages = {**queries, "p2": "red apple pie", "p4": "red sky", "p5": "sky"}
    index = Bm25(queries.values(), 1.2, 0.75, tmp_path, InProcess())
    index.index([pa.table([list(passages), list(passages.values())], schema=PASSAGES)])
    found = index.search(list(queries), list(queries.values()), 3)
    assert candidates_by_query(found)["p1"][0] == "p1"
    table = without_own(found, {"p1"}, 2)
    assert candidates_by_query(table) == {"p1": ["p2", "p4"], "p3": ["p3", "p5"]}
    assert table["rank"].to_pylist() == [1, 2, 1, 2] and table.schema == CANDIDATES
