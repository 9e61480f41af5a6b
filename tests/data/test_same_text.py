from contextlib import closing

import pyarrow as pa
import pytest

from kdscale.data.pairs import PairSampler
from kdscale.data.pids import PassageIds
from kdscale.data.same_text import RelevantByText, count_equal_candidates, text_key
from kdscale.data.schema import CANDIDATES


@pytest.fixture
def collection(tmp_path):
    """Twenty pages, each crawled twice; the second time with other typography."""
    with closing(PassageIds(tmp_path)) as pids:
        for i in range(20):
            pids.add(f"a{i}", text_key(f"It is page {i}, and it's here."))
            pids.add(f"b{i}", text_key(f"it is page {i} and it\u2019s  here"))
        yield pids


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("It's \u201cfine\u201d \u2014 really!", "its fine really"),
        ("\uff21\uff22\u3000\uff11", "ab 1"),  # wide letters
        ("STRASSE", "stra\u00dfe"),
        ("e-mail", "email"),
    ],
)
def test_case_punctuation_spaces_and_widths_do_not_count(one, other):
    assert text_key(one) == text_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("hepatitis B", "hepatitis C"),
        ("C++", "C"),
        ("a < b", "a > b"),
        ("\u0915\u093f", "\u0915\u093e"),  # one consonant, two vowel signs
        ("caf\u00e9", "cafe"),
        ("?!", "!!"),
        ("", "."),
    ],
)
def test_letters_digits_and_signs_count(one, other):
    assert text_key(one) != text_key(other)


def test_no_passage_with_the_text_of_a_relevant_one_is_a_negative(collection):
    texts = {f"q{i}": f"question {i}" for i in range(20)}
    judgments = {f"q{i}": {f"a{i}": 1} for i in range(20)}
    relevant = RelevantByText(texts, judgments, 1, collection)
    sampler = PairSampler(collection, seed=1, negatives=7, easy=25)
    for i in range(20):
        candidates = [f"b{i}", f"a{i}", "a0", "b1", "a2"]
        rows = sampler.sample(
            f"q{i}", judgments[f"q{i}"], candidates, [f"b{i}"], relevant.of(f"q{i}")
        )
        assert rows[0][:2] == (f"a{i}", 1)
        negatives = [pid for pid, grade, _ in rows if not grade]
        assert len(negatives) == 32 and not {f"a{i}", f"b{i}"} & set(negatives)


def test_what_answers_the_same_question_is_no_negative(collection):
    texts = {"q1": "Why is it so?", "q2": "why is it so", "q3": "Why is it not so?"}
    judgments = {"q1": {"a1": 2, "a5": 1}, "q2": {"a2": 2}, "q3": {"a3": 2}}
    relevant = RelevantByText(texts, judgments, 2, collection)
    assert relevant.of("q1") == relevant.of("q2") == {"a1", "b1", "a2", "b2"}
    assert relevant.of("q3") == {"a3", "b3"}


def test_equal_candidates_are_counted(collection):
    def table(rows):
        ranked = [(qid, pid, 1, 1.0) for qid, pid in rows]
        return pa.Table.from_pylist(
            [dict(zip(CANDIDATES.names, row, strict=True)) for row in ranked], CANDIDATES
        )

    rows = [("q1", "a1"), ("q1", "b1"), ("q1", "a2"), ("q2", "b1"), ("q2", "a2"), ("q2", "b2")]
    judgments = {"q1": {"a1": 1, "a2": 0}, "q2": {"a1": 1, "a2": 1, "b2": 0, "a7": 1}}
    found = count_equal_candidates(table(rows), judgments, 1, collection)
    assert found == {"repeated": 2, "unjudged": 2}  # repeated: b1, b2; unjudged: b1 of both
    none = count_equal_candidates(table([]), judgments, 1, collection)
    assert none == {"repeated": 0, "unjudged": 0}
