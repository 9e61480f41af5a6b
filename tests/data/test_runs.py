import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdscale.data.runfiles import run_lines
from kdscale.data.runs import (
    QRELS_COLUMNS,
    distinct_scores,
    qrels_lines,
    read_qrels,
    read_rankings,
    read_run,
    write_run,
)
from kdscale.errors import KdscaleError
from tests.worlds.reader_files import FILES, accepted, rejects


def write(path, text):
    path.write_text(text)
    return path


def test_a_run_is_read_query_by_query_by_score_then_pid(tmp_path):
    path = write(
        tmp_path / "r",
        "q2 Q0 b 1 1.0 t\nq2 Q0 a 2 1.0 t\nq2 Q0 c 3 7 t\nq1\tQ0\tx\t0\t-1e-3\tt\n",
    )
    assert list(read_run(path)) == [
        ("q2", [("c", 7.0), ("a", 1.0), ("b", 1.0)]),
        ("q1", [("x", -0.001)]),
    ]


@pytest.mark.parametrize(
    ("lines", "ranking", "is_ranked"),
    [
        ("q b 1 0.5|q a 2 0.7", [("a", 0.7), ("b", 0.5)], True),
        ("q b 2|q a 1", [("a", 1.0), ("b", 0.5)], True),
        ("q b 0.5|q a 0.7", [("a", 0.7), ("b", 0.5)], True),
        ("q Q0 b 1 3 t|q Q0 a 2 3 t", [("b", 3.0), ("a", 3.0)], True),  # ranks tell, scores do not
        ("q Q0 b 0 3 t|q Q0 a 0 3 t", [("a", 3.0), ("b", 3.0)], False),
        ("q b|q a", [("a", 0.0), ("b", 0.0)], False),
        ("q\tb\tfoo\tbar|q\ta\tfoo\tbar", [("a", 0.0), ("b", 0.0)], False),
    ],
)
def test_runs_are_read_whatever_their_format(tmp_path, lines, ranking, is_ranked):
    path = write(tmp_path / "r", lines.replace("|", "\n"))
    assert list(read_rankings(path)) == [("q", ranking, is_ranked)]
    assert list(read_run(path)) == [("q", ranking)]


def test_reading_a_run_does_not_wait_for_its_end(tmp_path):
    path = write(tmp_path / "r", "q1 Q0 a 1 1 t\nq2 Q0 a 1 1 t\nthis is not a run\n")
    run = read_run(path)
    assert next(run) == ("q1", [("a", 1.0)])
    with pytest.raises(KdscaleError):
        next(run)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1 Q0 b 2 0.5", r"r, line 2: not 6 columns"),
        ("q1 Q0 b two 0.5 t", r"r, line 2: rank or score is not a number"),
        ("q1 Q0 b 2 high t", r"r, line 2: rank or score is not a number"),
        ("q1 Q0 b 2 nan t", r"r, line 2: score is not finite"),
        (f"q1 Q0 b {2**31} 1 t", r"r, line 2: rank is too large"),
        (f"q1 Q0 b {'9' * 5000} 1 t", r"r, line 2: rank or score is not a number"),
        ("q1 Q0 a 2 0.5 t", r"r: query q1 ranks a twice"),
        ("q2 Q0 a 1 1 t\nq1 Q0 b 2 0.5 t", r"r: the lines of query q1 do not stand together"),
    ],
)
def test_a_malformed_run_is_named_by_file_and_line(tmp_path, line, message):
    path = write(tmp_path / "r", f"q1 Q0 a 1 1 t\n{line}\n")
    with pytest.raises(KdscaleError, match=message):
        list(read_run(path))


def test_run_lines_keep_the_order_of_the_file():
    assert list(run_lines(FILES / "trec" / "run.txt")) == [
        ("1", "T-6", 1, 3.5),
        ("1", "T-1", 2, 2.5),
        ("2", "T-2", 1, 0.1),
    ]


def test_a_written_run_has_the_columns_of_trec(tmp_path):
    path = tmp_path / "r"
    write_run(path, [("q1", [("b", 0.25), ("c", 2), ("a", np.float32(0.5))])], "my--tag")
    assert path.read_text() == (
        "q1 Q0 c 1 2.0 my--tag\nq1 Q0 a 2 0.5 my--tag\nq1 Q0 b 3 0.25 my--tag\n"
    )


def test_of_equal_scores_the_later_is_written_as_the_next_lower_32_bit_number(tmp_path):
    path = tmp_path / "r"
    write_run(path, [("q1", [("b", 0.5), ("a", 0.5), ("c", 0.5)])], "t")
    below = np.nextafter(np.float32(0.5), np.float32(0))
    lower = np.nextafter(below, np.float32(0))
    expected = [("a", 0.5), ("b", float(below)), ("c", float(lower))]
    assert list(read_run(path)) == [("q1", expected)]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([], []),
        ([2.0, 0.5, -1.5], [2.0, 0.5, -1.5]),
        # The second is pushed below the third, which gives way too.
        ([1.0, 1.0, 1 - 2**-24], [1.0, 1 - 2**-24, 1 - 2**-23]),
        # Below zero comes the first number that no program takes for zero.
        ([0.0, -0.0, -1e-45], [0.0, -(2.0**-126), -(2.0**-126) * (1 + 2**-23)]),
        ([1e300, 1e299], [(2 - 2**-23) * 2.0**127, (2 - 2**-22) * 2.0**127]),
        ([-1e299, -1e300], [-(2 - 2**-22) * 2.0**127, -(2 - 2**-23) * 2.0**127]),
    ],
)
def test_scores_strictly_decrease_in_32_bits(scores, expected):
    assert distinct_scores(scores) == expected


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(FINITE | st.sampled_from([0.0, -0.0, 1.0, 1e-40, 3.4e38, -3.5e38]), max_size=20))
def test_any_scores_can_be_told_apart_in_32_bits(scores):
    scores.sort(reverse=True)
    written = np.array(distinct_scores(scores))
    assert np.array_equal(written, written.astype(np.float32)) and np.isfinite(written).all()
    assert (np.diff(written) < 0).all()
    sound = np.clip(scores, -3.4e38, 3.4e38)  # what has no number of its own in 32 bits is moved
    room = np.abs(sound) * 2.0**-23 * 21 + 2.0**-125
    assert (np.abs(written - sound) <= room + 3e36 * (np.abs(scores) > 3.4e38)).all()


@given(st.dictionaries(st.text("abc012", min_size=1), FINITE, min_size=1))
def test_a_run_survives_writing_and_reading(tmp_path_factory, scores):
    path = tmp_path_factory.mktemp("run") / "r"
    write_run(path, [("q", scores.items())], "t")
    [(qid, ranking)] = read_run(path)
    assert qid == "q"
    by_score = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    assert [pid for pid, _ in ranking] == [pid for pid, _ in by_score]


@pytest.mark.parametrize(
    ("qid", "pid", "score", "tag", "message"),
    [
        ("q 1", "a", 1.0, "t", "query id 'q 1' cannot stand in a TREC run"),
        ("q", "", 1.0, "t", "passage id '' cannot stand"),
        ("q", "a", 1.0, "two words", "tag 'two words' cannot stand"),
        ("q", "a", float("nan"), "t", "score nan"),
        ("q", "a", float("-inf"), "t", "score -inf"),
    ],
)
def test_what_a_run_cannot_hold_is_refused(tmp_path, qid, pid, score, tag, message):
    with pytest.raises(KdscaleError, match=message):
        write_run(tmp_path / "r", [(qid, [(pid, score)])], tag)


@pytest.mark.parametrize(
    "text",
    [
        "q1 0 d1 1\nq1 0 d2 0\n",
        "q1\t0\td1\t1\nq1\t0\td2\t0\n",
        "q1\td1\t1\nq1\td2\t0\n",
        "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\n",
        "query-id\tQ0\tcorpus-id\tRelevance\r\nq1\t0\td1\t1\r\nq1\t0\td2\t0\r\n",
        "q1 0 d1 1.0\nq1 0 d2 0.0\n",
        "query-id\tcorpus-id\tscore\nq1\td1\t1.0\nq1\td2\t0e0\n",
    ],
)
def test_qrels_in_their_dialects(tmp_path, text):
    assert read_qrels(write(tmp_path / "q", text)) == {"q1": {"d1": 1, "d2": 0}}


def test_malformed_qrels(tmp_path):
    path = write(
        tmp_path / "q",
        "q1 0 d1 1\nq1 d1 1\nq1 0 7\nq1 0 d1 high\nq1 0 d1 0.5\n\t0\td1\t1\n"
        "query-id\t0\tcorpus-id\tscore\nq1 0 d2 -1\nq1 0 d3 -2147483648\n"
        "q1 0 d4 nan\nq1 0 d4 inf\n",
    )
    assert rejects(qrels_lines(path)) == [
        ("q", 2, QRELS_COLUMNS),
        ("q", 3, QRELS_COLUMNS),  # the grade is missing: 7 is no grade of passage 0
        ("q", 4, "grade is not a whole number"),
        ("q", 5, "grade is not a whole number"),
        ("q", 6, "empty id"),
        ("q", 7, "grade is not a whole number"),  # only the first line can be a header
        ("q", 9, "grade is too large"),  # for the tables that it goes into
        ("q", 10, "grade is not a whole number"),
        ("q", 11, "grade is not a whole number"),
    ]
    assert accepted(qrels_lines(path)) == [("q1", "d1", 1), ("q1", "d2", -1)]
    with pytest.raises(KdscaleError, match=r"q, line 2: .*'q1 d1 1'; mend that line"):
        read_qrels(path)
