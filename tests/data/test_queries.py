import pytest

from kdscale.data.queries import check_splits, choose_queries, divide_queries, usable_queries
from kdscale.errors import KdscaleError

QIDS = [f"q{i}" for i in range(1000)]


def test_a_smaller_cap_chooses_a_subset_in_the_same_order():
    large, small = choose_queries(QIDS, 300, seed=1), choose_queries(QIDS, 40, seed=1)
    assert len(large) == 300 and len(small) == 40
    assert set(small) < set(large)
    assert large == [q for q in QIDS if q in set(large)]
    assert choose_queries(QIDS, 40, seed=2) != small
    assert choose_queries(QIDS, None, seed=1) == choose_queries(QIDS, 5000, seed=1) == QIDS


def test_division_follows_the_fractions_and_the_qid_alone():
    fractions = {"train": 0.7, "dev": 0.1, "test": 0.1}
    divided = divide_queries(QIDS, fractions)
    assert list(divided) == ["train", "dev", "test"]
    for split, fraction in fractions.items():
        assert abs(len(divided[split]) / len(QIDS) - fraction) < 0.04
    together = [q for qids in divided.values() for q in qids]
    assert len(together) == len(set(together)) < len(QIDS)  # a tenth is left out
    fewer = divide_queries(QIDS[::3], fractions)
    assert all(set(fewer[split]) <= set(divided[split]) for split in fractions)
    everything = divide_queries(QIDS, {"train": 0.9, "test": 0.1})
    assert sum(map(len, everything.values())) == len(QIDS)


def test_train_needs_relevance_and_evaluation_needs_judgments():
    judgments = {"a": {"p": 1}, "b": {"p": 0}, "c": {"p": 0, "r": 2}}
    qids = ["a", "b", "c", "d"]
    kept, counts = usable_queries("train", qids, judgments, min_grade=1)
    assert kept == ["a", "c"]
    assert counts == {"read": 4, "without_judgment": 1, "without_relevant": 1, "dropped": 2}
    kept, counts = usable_queries("test", qids, judgments, min_grade=1)
    assert kept == ["a", "b", "c"] and counts["dropped"] == 1
    assert usable_queries("train", qids, judgments, min_grade=2)[0] == ["c"]


def test_a_split_without_usable_queries_is_an_error():
    with pytest.raises(KdscaleError, match=r"split train: none of its 1 queries has a relevant"):
        usable_queries("train", ["a"], {"a": {"p": 0}}, min_grade=1)
    with pytest.raises(KdscaleError, match=r"split dev: none of its 1 queries has a judgment"):
        usable_queries("dev", ["a"], {}, min_grade=1)


@pytest.mark.parametrize(
    ("source", "fractions", "capped", "message"),
    [
        (["all"], {}, [], "set prepare.split"),
        (["train", "dev"], {"train": 1.0}, [], "leave prepare.split empty"),
        (["all"], {"train": 0.9, "test": 0.2}, [], "sum to at most 1"),
        (["all"], {"train": 0.9, "test": 0.0}, [], "above 0"),
        (["train", "../dev"], {}, [], "split name '../dev'"),
        (["train", "dev"], {}, ["tset"], "names the split 'tset'"),
    ],
)
def test_splits_that_do_not_fit_the_source(source, fractions, capped, message):
    with pytest.raises(KdscaleError, match=message):
        check_splits(source, fractions, capped)


def test_splits_that_fit():
    check_splits(["all"], {"train": 0.8, "dev": 0.1, "test": 0.1}, ["train"])
    check_splits(["train", "dl-19"], {}, ["dl-19"])
