import numpy as np
import pyarrow as pa
import pytest

from kdscale.data import bm25
from kdscale.data.bm25 import Bm25
from kdscale.data.parallel import InProcess, OnRay
from kdscale.data.schema import CANDIDATES, PASSAGES
from kdscale.data.words import words_of

K1, B = 1.2, 0.75


def search(folder, passages, queries, depth, calls=None, tables=1):
    """queries: a list of texts, or qid -> text."""
    if not isinstance(queries, dict):
        queries = {f"q{i}": text for i, text in enumerate(queries, 1)}
    table = pa.table([list(passages), list(passages.values())], schema=PASSAGES)
    size = max(1, -(-table.num_rows // tables))
    index = Bm25(queries.values(), K1, B, folder, calls or InProcess())
    index.index(table.slice(start, size) for start in range(0, table.num_rows, size))
    return index.search(list(queries), list(queries.values()), depth)


def test_better_match_first_and_only_matches(tmp_path):
    passages = {"p1": "green apple", "p2": "red apple pie apple", "p3": "blue sky", "p4": "the sea"}
    table = search(tmp_path, passages, ["apple pie", "the of", "unseen"], depth=10)
    assert table.schema == CANDIDATES
    assert table["qid"].to_pylist() == ["q1", "q1"]  # stop words and unseen words find nothing
    assert table["pid"].to_pylist() == ["p2", "p1"]
    assert table["rank"].to_pylist() == [1, 2]
    scores = table["score"].to_pylist()
    assert scores[0] > scores[1] > 0


@pytest.mark.parametrize("part", [1, 2, 4, 100])
@pytest.mark.parametrize("depth", [1, 2, 3, 5, 8])
def test_ties_go_by_id_at_the_cutoff_too(tmp_path, monkeypatch, depth, part):
    # p9 is best; eight passages tie. Stored out of order: position must not decide, nor the part.
    monkeypatch.setattr(bm25, "PART_ROWS", part)
    ids = ["p5", "p3", "p8", "p1", "p9", "p4", "p7", "p2", "p6"]
    passages = {i: "cat cat" if i == "p9" else "cat dog" for i in ids} | {"x": "other words"}
    table = search(tmp_path, passages, ["cat"], depth, tables=10)
    expected = ["p9", "p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8"]
    assert table["pid"].to_pylist() == expected[:depth]


def test_score_is_bm25_by_hand(tmp_path):
    """One term in one of three passages of two words each: idf = ln(1 + 2.5 / 1.5), tf = 1,
    length = average, so tf weight = 1 / (1 + 1.2)."""
    passages = {"a": "quick fox", "b": "lazy dog", "c": "green hill"}
    score = search(tmp_path, passages, ["fox"], 5)["score"].to_pylist()
    assert score == pytest.approx([0.980829 / 2.2], abs=1e-5)


def zipf_texts(rng, count, words):
    drawn = [rng.zipf(1.3, rng.integers(0, words)) % 300 for _ in range(count)]
    return [" ".join(f"w{i}" for i in text) for text in drawn]


def whole_index(passages, queries, depth):
    """What bm25s scores over the whole collection, best first."""
    library = pytest.importorskip("bm25s")
    index = library.BM25(k1=K1, b=B, method="lucene", backend="numpy")
    words = library.tokenize(
        list(passages.values()), stopwords="english", token_pattern=r"\w+", show_progress=False
    )
    index.index(words, show_progress=False)
    found = []
    for qid, query in zip(queries, words_of(queries.values()), strict=True):
        scores = index.get_scores_from_ids(index.get_tokens_ids(query))
        hits = sorted(zip(-scores, passages, strict=True))[:depth]
        hits = [(pid, -score) for score, pid in hits if score < 0]
        found += [(qid, pid, rank, float(s)) for rank, (pid, s) in enumerate(hits, 1)]
    return found


@pytest.fixture(scope="module")
def collection():
    rng = np.random.default_rng(0)
    texts = zipf_texts(rng, 700, 30)
    passages = {f"p{i}": text for i, text in zip(rng.permutation(700), texts, strict=True)}
    queries = {f"q{i}": text for i, text in enumerate(zipf_texts(rng, 150, 6))}
    return passages, {**queries, "again": "w1 w1 w2", "none": "of the", "new": "unheard"}


@pytest.mark.parametrize("part", [64, 300, 1000])
def test_parts_give_what_the_library_gives_for_the_whole(tmp_path, monkeypatch, collection, part):
    """To the last bit: every score is the same number."""
    monkeypatch.setattr(bm25, "PART_ROWS", part)
    passages, queries = collection
    table = search(tmp_path, passages, queries, 20, tables=30)
    found = [tuple(row.values()) for row in table.to_pylist()]
    assert found == whole_index(passages, queries, 20)
    assert len(found) > 2000 and len(list(tmp_path.iterdir())) == -(-700 // (-(-part // 24) * 24))


def test_large_texts_close_a_part_early(tmp_path, monkeypatch, collection):
    monkeypatch.setattr(bm25, "PART_CHARS", 5_000)
    passages, queries = collection
    table = search(tmp_path, passages, queries, 20, tables=30)
    assert len(list(tmp_path.iterdir())) > 5
    assert [tuple(r.values()) for r in table.to_pylist()] == whole_index(passages, queries, 20)


def test_rays_workers_find_the_same(ray_cluster, tmp_path, monkeypatch, collection):
    import ray

    monkeypatch.setattr(bm25, "PART_ROWS", 50)  # 14 parts
    passages, queries = collection
    table = search(tmp_path, passages, queries, 20, OnRay(ray), tables=30)
    assert [tuple(r.values()) for r in table.to_pylist()] == whole_index(passages, queries, 20)


def scores_of_pairs(folder, passages, queries, calls, tables=30):
    """Of 40 passages of each query, drawn at random: [pairs] scores, and what `search` gives."""
    table = pa.table([list(passages), list(passages.values())], schema=PASSAGES)
    size = -(-table.num_rows // tables)
    index = Bm25(queries.values(), K1, B, folder, calls)
    index.index(table.slice(start, size) for start in range(0, table.num_rows, size))
    found = index.search(list(queries), list(queries.values()), len(passages)).to_pylist()
    known = {(row["qid"], row["pid"]): row["score"] for row in found}
    rng, numbers = np.random.default_rng(1), {}
    query, passage, expected = [], [], []
    for place, qid in enumerate(queries):
        for pid in rng.permutation(list(passages))[: 40 * (place % 7 > 0)]:
            query.append(place)
            passage.append(numbers.setdefault(str(pid), len(numbers)))
            expected.append(known.get((qid, str(pid)), 0.0))
    columns = np.array(query), np.array(passage)
    return index.score(list(queries.values()), numbers, *columns).tolist(), expected


@pytest.mark.parametrize("part", [64, 300, 1000])
def test_given_pairs_have_the_scores_of_a_search(tmp_path, monkeypatch, collection, part):
    """To the last bit; 0 where the passage has no word of the query."""
    monkeypatch.setattr(bm25, "PART_ROWS", part)
    monkeypatch.setattr(bm25, "MIN_CHUNK", 5)
    scores, expected = scores_of_pairs(tmp_path, *collection, InProcess())
    assert scores == expected and 0 < expected.count(0.0) < len(expected) - 1000


def test_rays_workers_score_the_same(ray_cluster, tmp_path, monkeypatch, collection):
    import ray

    monkeypatch.setattr(bm25, "PART_ROWS", 50)  # 14 parts
    scores, expected = scores_of_pairs(tmp_path, *collection, OnRay(ray))
    assert scores == expected


def test_no_pair_has_no_score(tmp_path):
    index = Bm25(["cat"], K1, B, tmp_path, InProcess())
    index.index([pa.table([["p1"], ["cat"]], schema=PASSAGES)])
    empty = np.empty(0, np.int64)
    assert index.score([], {}, empty, empty).tolist() == []


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("hepatitis C", ["c", "b"]),
        ("检索猫", ["zh"]),
        ("ปวดหัว", ["th"]),
        ("हिन्दी", ["hi"]),
    ],
)
def test_what_a_word_is_finds_passages(tmp_path, query, found):
    passages = {
        "b": "Hepatitis B is caused by a virus",
        "c": "Hepatitis C is caused by another",
        "zh": "全文检索引擎",
        "th": "อาการปวดหัวข้างเดียว",
        "hi": "यह हिन्दी है",
        "hi2": "यह हद है",
    }
    assert search(tmp_path, passages, [query], 5)["pid"].to_pylist() == found


@pytest.mark.parametrize("passages", [{}, {"p1": "", "p2": "the"}])
def test_nothing_to_find(tmp_path, passages):
    table = search(tmp_path, passages, ["cat", "dog"], 5)
    assert table.num_rows == 0 and table.schema == CANDIDATES
