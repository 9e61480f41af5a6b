"""Without Ray: the first stage takes where its calls run."""

import io
import json
import random
import shutil
from contextlib import closing
from types import SimpleNamespace

import pyarrow as pa
import pytest
from rich.console import Console

from kdscale.config import BeirSource, Cluster, MsMarcoSource, Prepare
from kdscale.data.candidates import candidates_by_query
from kdscale.data.clean import RejectLog
from kdscale.data.parallel import InProcess
from kdscale.data.pids import PassageIds
from kdscale.data.readers import open_reader
from kdscale.data.same_text import text_key
from kdscale.data.schema import PASSAGES
from kdscale.data.shards import write_shards
from kdscale.data.splits import read_query_sets
from kdscale.errors import KdscaleError
from kdscale.evaluation.measures import parse_measures, per_query
from kdscale.experiment.context import DATASET, StageContext
from kdscale.experiment.settings import DatasetSettings
from kdscale.progress import Reporter
from kdscale.stages import first_stage
from kdscale.store import LocalWorkspace
from tests.worlds.world import make_beir


@pytest.fixture(scope="module")
def beir(tmp_path_factory):
    return make_beir(tmp_path_factory.mktemp("world") / "beir")


def find(folder, source, **prepare):
    """split -> Found, and .shown: what the user is told."""
    settings = Prepare(**{"depth": {}, "default_depth": 10, **prepare})
    out = folder / "dataset"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    shown = io.StringIO()
    ctx = StageContext(
        DATASET,
        DatasetSettings(source, settings.of_dataset, seed=1),
        {},
        out,
        LocalWorkspace(folder / "work"),
        Reporter(Console(file=shown, width=500)),
        Cluster(),
    )
    reader = open_reader(source)
    with (
        RejectLog(out / "rejected.jsonl", settings.max_reject_fraction) as log,
        closing(PassageIds(out)) as pids,
    ):
        passages = list(reader.passages())
        for pid, text in passages:
            pids.add(pid, text_key(text))
        columns = [list(c) for c in zip(*passages, strict=True)]
        write_shards(out / "passages", pa.table(columns, schema=PASSAGES), PASSAGES, 2)
        sets = read_query_sets(reader, settings, 1, log, pids, ctx.workspace)
        found = first_stage.candidates(ctx, InProcess(), reader, log, sets, pids, out)
        splits = {f.split.name: f for f in found}
    return SimpleNamespace(shown=shown.getvalue(), **splits)


def msmarco(beir, folder, lines):
    """The test queries of the world as MS MARCO files with these lines as candidates."""
    rows = {}
    for name in ("corpus", "queries"):
        texts = [json.loads(x) for x in (beir / f"{name}.jsonl").read_text().splitlines()]
        rows[name] = {row["_id"]: row["text"] for row in texts}
        text = "".join(f"{key}\t{value}\n" for key, value in rows[name].items())
        (folder / f"{name}.tsv").write_text(text)
    (folder / "candidates").write_text("".join(f"{line(rows)}\n" for line in lines))
    shutil.copy(beir / "qrels" / "test.tsv", folder / "qrels.tsv")
    return MsMarcoSource(
        collection=str(folder / "corpus.tsv"),
        queries={"test": str(folder / "queries.tsv")},
        qrels={"test": str(folder / "qrels.tsv")},
        candidates={"test": str(folder / "candidates")},
    )


def ndcg(found):
    measures = parse_measures(["nDCG@10"])
    values = per_query(measures, found.split.judgments, candidates_by_query(found.table))
    return values["nDCG@10"].mean()


FORMATS = {
    "top1000": lambda q, p, rows: f"{q}\t{p}\t{rows['queries'][q]}\t{rows['corpus'][p]}",
    "pairs": lambda q, p, rows: f"{q}\t{p}",
    "scores of 0": lambda q, p, rows: f"{q} Q0 {p} 0 0.0 x",
}


@pytest.mark.parametrize("line", FORMATS.values(), ids=FORMATS)
def test_candidates_without_scores_are_ranked_by_bm25_and_then_cut(beir, tmp_path, line):
    """BM25's best 40 in random order, as MS MARCO publishes its top1000, cut at 10: the ranking,
    its scores and its nDCG@10 are those of BM25 itself."""
    source = BeirSource(path=str(beir), splits={"test": "test"})
    own = find(tmp_path / "own", source, default_depth=40).test
    pairs = list(zip(own.table["qid"].to_pylist(), own.table["pid"].to_pylist(), strict=True))
    random.Random(3).shuffle(pairs)
    lines = [lambda rows, q=q, p=p: line(q, p, rows) for q, p in pairs]
    given = find(tmp_path / "given", msmarco(beir, tmp_path, lines))
    cut = own.table.filter(pa.compute.less_equal(own.table["rank"], 10))
    assert given.test.table.equals(cut)
    assert ndcg(given.test) == ndcg(own) > 0.5
    assert given.test.facts["ranked_by_bm25"] == 20 and own.facts["ranked_by_bm25"] == 0
    assert "nothing ranks the candidates of 20 test queries: BM25" in given.shown
    assert "from the source, read as: qid" in given.shown


def test_a_candidate_without_a_word_of_the_query_stands_last(beir, tmp_path):
    passages = {"p1": "key", "p0": "sky", "p2": "sea"}
    queries = {"q1": "the key"}
    folder = write_beir(tmp_path / "beir", passages, queries, {"q1": "p1"})
    lines = [lambda rows, p=p: f"q1\t{p}" for p in ("p2", "p0", "p1")]
    found = find(tmp_path, msmarco(folder, tmp_path, lines)).test
    assert found.table["pid"].to_pylist() == ["p1", "p0", "p2"]
    assert found.table["score"].to_pylist()[1:] == [0, 0]


def write_beir(folder, passages, queries, relevant):
    (folder / "qrels").mkdir(parents=True)
    for name, rows in (("corpus", passages), ("queries", queries)):
        lines = [json.dumps({"_id": key, "text": text}) for key, text in rows.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    lines = [f"{qid}\t{pid}\t1\n" for qid, pid in relevant.items()]
    (folder / "qrels" / "test.tsv").write_text("".join(lines))
    return folder


QUESTIONS = {
    "7": "how do I sleep better at night",
    "8": "how can I sleep well at night",
    "9": "which dog barks at night",
    "10": "is a cat awake at night",
}


def test_a_query_that_is_a_passage_does_not_find_itself(tmp_path):
    """As in Quora and ArguAna: the ids and texts of the queries are those of passages."""
    queries = {"7": QUESTIONS["7"], "9": "a question of its own with the number of a night"}
    folder = write_beir(tmp_path / "beir", QUESTIONS, queries, {"7": "8", "9": "9"})
    source = BeirSource(path=str(folder), splits={"test": "test"})
    dropped = find(tmp_path, source, default_depth=2)
    assert candidates_by_query(dropped.test.table)["7"] == ["8", "10"]
    assert "9" in candidates_by_query(dropped.test.table)["9"]
    assert dropped.test.own == {"7"} and dropped.test.facts["query_as_passage"] == 1
    assert "1 test queries are passages too" in dropped.shown
    kept = find(tmp_path, source, default_depth=2, query_as_passage="keep").test
    assert candidates_by_query(kept.table)["7"] == ["7", "8"] and kept.own == set()


def test_queries_without_a_candidate_are_counted_and_most_of_a_split_stop(tmp_path):
    words = ["apple", "berry", "cherry", "date"]
    passages = {f"p{i}": f"a {word}" for i, word in enumerate(words)}
    relevant = {f"q{i}": f"p{i}" for i in range(4)}
    queries = {f"q{i}": word for i, word in enumerate(words)}
    two = write_beir(tmp_path / "two", passages, {**queries, "q0": "яблоко", "q1": "x"}, relevant)
    found = find(tmp_path, BeirSource(path=str(two), splits={"test": "test"}))
    assert found.test.facts["without"] == 2
    assert "warning: 2 of 4 test queries have no candidate: BM25 finds no word" in found.shown
    three = {**queries, "q0": "яблоко", "q1": "x", "q2": "y"}
    folder = write_beir(tmp_path / "three", passages, three, relevant)
    with pytest.raises(KdscaleError, match=r"^test: 3 of 4 queries have no candidate: BM25 finds"):
        find(tmp_path, BeirSource(path=str(folder), splits={"test": "test"}))
    source = msmarco(two, tmp_path, [lambda rows: "q3 Q0 p3 1 1.5 x"])
    with pytest.raises(KdscaleError, match=r"3 of 4 queries .*: the file of candidates has none"):
        find(tmp_path, source)


@pytest.mark.parametrize(
    ("passages", "query"),
    [
        ({"p1": "猫是一种动物", "p2": "全文检索引擎"}, "什么是检索"),
        ({"p1": "แมวเป็นสัตว์", "p2": "อาการปวดหัวข้างเดียว"}, "ปวดหัว"),
    ],
)
def test_languages_without_spaces_find_candidates(tmp_path, passages, query):
    folder = write_beir(tmp_path / "beir", passages, {"q1": query}, {"q1": "p2"})
    found = find(tmp_path, BeirSource(path=str(folder), splits={"test": "test"})).test
    assert candidates_by_query(found.table) == {"q1": ["p2"]} and found.facts["without"] == 0
