import pytest

from kdscale.data import runfiles
from kdscale.data.runfiles import run_lines
from tests.worlds.reader_files import accepted, rejects

FORMS = {
    "qid Q0 pid rank score tag": (
        "10 Q0 7 1 9.5 x\n10\tQ0\t8\t2\t4\tx\n",
        [("10", "7", 1, 9.5), ("10", "8", 2, 4.0)],
    ),
    "qid pid rank score": (
        "10\t7\t1\t9.5\n10\t8\t2\t4\n",
        [("10", "7", 1, 9.5), ("10", "8", 2, 4.0)],
    ),
    "qid pid rank": ("10\t7\t1\n10 8 2\n", [("10", "7", 1, None), ("10", "8", 2, None)]),
    "qid pid score": ("10\t7\t9.5\n10 8 4\n", [("10", "7", None, 9.5), ("10", "8", None, 4.0)]),
    "qid pid": ("10\t7\n10 8\n", [("10", "7", None, None), ("10", "8", None, None)]),
    "qid pid query passage, parted by tabs": (
        "10\t7\twhat is foo\tfoo is 5 of 7 bars\n10\t8\t1\t5 7 9\n",
        [("10", "7", None, None), ("10", "8", None, None)],
    ),
}


@pytest.mark.parametrize("columns", FORMS)
def test_a_format_is_known_by_what_its_columns_hold(tmp_path, columns):
    text, items = FORMS[columns]
    path = tmp_path / "candidates"
    path.write_text(text)
    assert run_lines(path).columns == columns
    assert list(run_lines(path)) == items


def test_two_texts_are_no_rank_and_score_and_the_other_way_round(tmp_path):
    """A query and a passage can be numbers, once; the other lines tell."""
    path = tmp_path / "candidates"
    path.write_text("10\t7\t3\t1969\n10\t8\twhat year\t1969\n10\t9\twhat year\tthe year\n")
    assert run_lines(path).columns == "qid pid query passage, parted by tabs"
    path.write_text("10\t7\twhat year\t1969\n10\t8\t1\t2.5\n10\t9\t2\t-1e-3\n")
    assert accepted(run_lines(path)) == [("10", "8", 1, 2.5), ("10", "9", 2, -0.001)]


@pytest.mark.parametrize("columns", FORMS)
@pytest.mark.parametrize("other", FORMS)
def test_lines_of_another_format_are_refused(tmp_path, columns, other):
    own, odd = FORMS[columns][0], FORMS[other][0].splitlines()[0]
    path = tmp_path / "candidates"
    others = [own.replace("10", str(qid)) for qid in range(11, 21)]
    path.write_text(f"{own}{odd}\n{''.join(others)}")
    # Whole numbers are scores too.
    fits = other == columns or (columns, other) == ("qid pid score", "qid pid rank")
    refused = rejects(run_lines(path))
    assert [line for _, line, _ in refused] == ([] if fits else [3])
    assert len(accepted(run_lines(path))) == 22 + fits


@pytest.mark.parametrize("line", ["q1 0 p{} 1", "q1\t0\tp{}\t1", "1\t0\t{}\t1", "1\tQ0\t{}\t2"])
def test_judgments_are_no_candidates(tmp_path, line):
    path = tmp_path / "qrels"
    path.write_text("".join(f"{line.format(i)}\n" for i in range(5)))
    reasons = [reason for _, _, reason in rejects(run_lines(path))]
    assert reasons == ["judgments (qid 0 pid grade), not a run"] * 5
    assert not accepted(run_lines(path))


def test_what_is_in_no_format_is_told_those_that_there_are(tmp_path):
    path = tmp_path / "candidates"
    path.write_text('{"qid": "q1", "pid": "p1", "score": 1, "rank": 2}\none\n')
    assert accepted(run_lines(path)) == []
    for _, _, reason in rejects(run_lines(path)):
        assert all(form.columns in reason for form in runfiles.KNOWN)
    path.write_text("")
    assert list(run_lines(path)) == []


def test_a_format_is_told_by_the_first_lines_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(runfiles, "SAMPLE", 2)
    path = tmp_path / "candidates"
    path.write_text("10 7 1\n10 8 2\n" + "10 Q0 9 3 1 x\n" * 5)
    assert run_lines(path).columns == "qid pid rank" and len(rejects(run_lines(path))) == 5
