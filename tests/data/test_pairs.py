import numpy as np

from kdscale.data.pairs import PairSampler, pair_table
from kdscale.data.schema import EASY, PAIRS

PIDS = [f"p{i:03d}" for i in range(400)]
CANDIDATES = PIDS[10:40]


def sample(qid="q", judgments=None, candidates=CANDIDATES, given=(), never=(), seed=5, **options):
    options = {"negatives": 7, **options}
    return PairSampler(PIDS, seed, **options).sample(
        qid, {"p012": 1} if judgments is None else judgments, candidates, given, never
    )


def test_one_positive_and_hard_negatives_with_their_ranks():
    rows = sample()
    assert rows[0] == ("p012", 1, 3)
    negatives = [pid for pid, grade, _ in rows[1:] if grade == 0]
    assert len(set(negatives)) == 7 and "p012" not in negatives
    assert all(CANDIDATES[rank - 1] == pid for pid, _, rank in rows)


def test_the_draw_depends_on_seed_and_query_alone():
    assert sample() == sample()
    assert sample(seed=6) != sample()
    assert sample(qid="r") != sample()


def test_skip_top_keeps_the_first_candidates_out():
    for qid in "abcdefgh":
        ranks = [rank for _, grade, rank in sample(qid=qid, skip_top=20) if grade == 0]
        assert min(ranks) > 20
    few = sample(candidates=PIDS[10:15], skip_top=5)  # nothing is left: random ones, not these
    assert not {pid for pid, grade, _ in few if grade == 0} & set(PIDS[10:15])
    assert len(few) == 8


def test_every_relevant_passage_is_kept_out_of_the_negatives():
    judgments = {pid: 1 for pid in CANDIDATES[:25]} | {CANDIDATES[25]: 0}
    rows = sample(judgments=judgments, max_positives=2, negatives=5)
    assert [pid for pid, grade, _ in rows if grade] == CANDIDATES[:2]
    # exactly the five candidates that are not relevant, the one judged 0 among them
    assert {pid for pid, grade, _ in rows if not grade} == set(CANDIDATES[25:])


def test_what_is_never_a_negative_is_drawn_in_no_way():
    """Neither from the source's own, nor from candidates, nor at random."""
    never = {*PIDS[:10], CANDIDATES[5], *PIDS[300:]}
    for qid in "abcdefgh":
        rows = sample(
            qid, candidates=CANDIDATES[:7], given=[PIDS[0], PIDS[50]], never=never, easy=200
        )
        negatives = {pid for pid, grade, _ in rows if not grade}
        assert PIDS[50] in negatives and not never & negatives
        assert len(negatives) == 207


def test_best_grade_first_and_min_grade():
    judgments = {"p001": 1, "p399": 3, "p002": 2}
    rows = sample(judgments=judgments, max_positives=2, min_grade=2)
    assert [(pid, grade) for pid, grade, _ in rows[:2]] == [("p399", 3), ("p002", 2)]
    assert rows[0][2] == 0  # relevant, but no candidate: no rank


def test_too_few_candidates_are_topped_up_at_random():
    rows = sample(candidates=PIDS[10:14])
    negatives = [(pid, rank) for pid, grade, rank in rows if grade == 0]
    assert len({pid for pid, _ in negatives}) == 7
    assert sorted(rank for _, rank in negatives) == [0, 0, 0, 0, 1, 2, 4]
    assert sample(candidates=()) == sample(candidates=())


def test_a_tiny_collection_gives_what_it_has():
    sampler = PairSampler(["a", "b", "c"], seed=1, negatives=7)
    rows = sampler.sample("q", {"b": 1}, ["b", "c"])
    assert rows[0] == ("b", 1, 1)
    assert sorted(rows[1:]) == [("a", 0, 0), ("c", 0, 2)]


def test_the_sources_negatives_come_first():
    rows = sample(given=["p300", "p012", "p301", "p300"])
    assert [pid for pid, grade, _ in rows[1:3]] == ["p300", "p301"]  # p012 is relevant
    assert len(rows) == 8 and len({pid for pid, _, _ in rows}) == 8
    only = sample(given=PIDS[300:320], negatives=4)
    assert [pid for pid, _, _ in only[1:]] == PIDS[300:304]


def test_easy_negatives_come_last_from_all_passages_and_change_no_other_draw():
    rows = sample(easy=6)
    assert rows[:8] == sample()
    easy = [pid for pid, grade, rank in rows[8:] if (grade, rank) == (0, EASY)]
    assert len(set(easy)) == 6 and not set(easy) & set(CANDIDATES)
    others = {pid for qid in "abcdefgh" for pid, _, rank in sample(qid=qid, easy=6) if rank == EASY}
    assert len(others) > 30


def test_easy_negatives_are_never_relevant():
    judgments = {pid: 1 for pid in PIDS[50:]}
    easy = [pid for pid, _, rank in sample(judgments=judgments, easy=5) if rank == EASY]
    assert len(easy) == 5 and not set(easy) & judgments.keys()


def test_what_is_relevant_by_its_text_is_no_negative_of_any_kind():
    also = {*CANDIDATES[:20], *PIDS[40:]} - {"p012"}
    rows = sample(given=["p300", "p002"], easy=5, never=also)
    assert rows[:2] == [("p012", 1, 3), ("p002", 0, 0)]
    assert len(rows) == 13 and not {pid for pid, grade, _ in rows if not grade} & also
    # Nor is it a relevant one: nothing judges it.
    assert [pid for pid, grade, _ in sample(never=also, max_positives=9) if grade] == ["p012"]


def test_negatives_are_drawn_evenly():
    counts = np.zeros(len(CANDIDATES))
    for i in range(2000):
        for _, grade, rank in sample(qid=f"q{i}", judgments={"p000": 1}):
            counts[rank - 1] += grade == 0
    expected = 2000 * 7 / len(CANDIDATES)
    assert np.abs(counts / expected - 1).max() < 0.2


def test_pair_ids_are_consecutive():
    table = pair_table([("q1", [("a", 1, 0), ("b", 0, 2)]), ("q2", []), ("q3", [("a", 2, 1)])])
    assert table.schema == PAIRS
    assert table.to_pydict() == {
        "pair_id": [0, 1, 2],
        "qid": ["q1", "q1", "q3"],
        "pid": ["a", "b", "a"],
        "grade": [1, 0, 2],
        "rank": [0, 2, 1],
    }
    assert pair_table([]).schema == PAIRS
