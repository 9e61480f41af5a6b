import io
import os
import random
import signal
import threading
import time

import numpy as np
import pytest
from rich.console import Console

from kdscale.data.runs import read_run
from kdscale.errors import KdscaleError
from kdscale.evaluation.rerank import rerank
from kdscale.models.encode import PairEncoder
from kdscale.models.ranker import build_ranker, save_ranker
from kdscale.progress import Reporter
from tests.worlds.tiny_models import bert_encoder, bert_tokenizer, random_text


class Files:
    """A ranker, and a run over queries and passages, of which it names only some."""

    def __init__(self, root, queries=7, depth=6):
        rng = random.Random(5)
        self.root = root
        self.model, self.run, self.output = root / "my ranker", root / "bm25.trec", root / "o.trec"
        model = build_ranker(bert_encoder(), seed=1, dropout=0.0)
        save_ranker(model, PairEncoder(bert_tokenizer(), 20), self.model)
        self.queries = {f"q{i}": random_text(rng, rng.randint(1, 5)) for i in range(queries + 3)}
        self.passages = {f"p{i}": random_text(rng, rng.randint(1, 30)) for i in range(60)}
        chosen = list(self.passages)[:40]
        self.ranked = {f"q{i}": rng.sample(chosen, depth) for i in range(queries)}
        self.write("queries.tsv", self.queries)
        self.write("passages.tsv", self.passages)
        self.write_run(
            f"{qid} Q0 {pid} {rank} {100 - rank} bm25"
            for qid, pids in self.ranked.items()
            for rank, pid in enumerate(pids, 1)
        )

    def write(self, name, texts):
        lines = [f"{key}\t{text}\n" for key, text in texts.items()]
        (self.root / name).write_text("".join(lines))

    def write_run(self, lines):
        self.run.write_text("".join(f"{line}\n" for line in lines))

    def rerank(self, **changes):
        self.shown = io.StringIO()
        arguments = {
            "queries": self.root / "queries.tsv",
            "passages": self.root / "passages.tsv",
            "run": self.run,
            "output": self.output,
            "depth": None,
            "batch_tokens": 256,
            "reporter": Reporter(Console(file=self.shown, width=500)),
            **changes,
        }
        return rerank(str(arguments.pop("model", self.model)), **arguments)

    def leftovers(self):
        return sorted(p.name for p in self.root.iterdir() if "o.trec" in p.name)


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def test_scores_are_those_of_sentence_transformers(files):
    cross_encoder = pytest.importorskip("sentence_transformers").CrossEncoder
    assert files.rerank() == 42
    found = dict(read_run(files.output))
    assert list(found) == list(files.ranked)
    model = cross_encoder(str(files.model), device="cpu")
    for qid, ranking in found.items():
        assert sorted(pid for pid, _ in ranking) == sorted(files.ranked[qid])
        pairs = [(files.queries[qid], files.passages[pid]) for pid, _ in ranking]
        np.testing.assert_allclose(model.predict(pairs), [s for _, s in ranking], atol=1e-4)
        assert [s for _, s in ranking] == sorted((s for _, s in ranking), reverse=True)


def test_the_file_is_a_trec_run(files):
    files.rerank()
    first = files.output.read_text().splitlines()[0].split()
    assert (first[0], first[1], first[3], first[5]) == ("q0", "Q0", "1", "my-ranker")
    assert files.leftovers() == ["o.trec"]


def test_depth_keeps_the_best_of_the_run(files):
    assert files.rerank(depth=2) == 14
    found = dict(read_run(files.output))
    for qid, ranking in found.items():
        assert {pid for pid, _ in ranking} == set(files.ranked[qid][:2])


@pytest.mark.parametrize(
    ("line", "columns"),
    [
        ("{qid}\t{pid}\t{rank}\t-{rank}", "qid pid rank score"),
        ("{qid}\t{pid}\t{rank}", "qid pid rank"),
    ],
)
def test_runs_of_other_tools_are_read_and_what_they_are_is_said(files, line, columns):
    files.rerank(depth=2)
    expected = files.output.read_bytes()
    lines = [
        line.format(qid=qid, pid=pid, rank=rank)
        for qid, pids in files.ranked.items()
        for rank, pid in enumerate(pids, 1)
    ]
    files.write_run(lines)
    files.rerank(depth=2)
    assert files.output.read_bytes() == expected
    assert f"read as {columns}" in files.shown.getvalue()


def test_a_set_of_candidates_is_reranked_whole_and_never_cut(files):
    files.rerank()
    expected = files.output.read_bytes()
    files.write_run([f"{qid}\t{pid}" for qid, pids in files.ranked.items() for pid in pids])
    files.rerank()
    assert files.output.read_bytes() == expected
    with pytest.raises(KdscaleError, match=r"nothing in it ranks the 6 .*; leave --depth out"):
        files.rerank(depth=2)


def test_passages_beyond_the_depth_need_no_text(files):
    needed = {pid for pids in files.ranked.values() for pid in pids[:2]}
    files.write("passages.tsv", {p: t for p, t in files.passages.items() if p in needed})
    assert files.rerank(depth=2) == 14


def test_queries_are_found_by_their_number(files):
    files.rerank()
    before = files.output.read_text()
    topics = "".join(
        f"<topic number='{qid[1:]:0>3}'>{text}</topic>\n" for qid, text in files.queries.items()
    )
    (files.root / "topics.xml").write_text(f"<topics>\n{topics}</topics>\n")
    assert files.rerank(queries=files.root / "topics.xml") == 42
    assert files.output.read_text() == before  # with the run's own ids
    shown = " ".join(files.shown.getvalue().split())
    assert "7 query ids of bm25.trec are those of topics.xml by their number (q0 is 000)" in shown
    assert "10 of 10 topics have no <title>; their query is their text (10)" in shown


def test_an_unknown_passage_is_named_with_its_line(files):
    lines = files.run.read_text().splitlines()
    lines[9] = "q1 Q0 nowhere 4 96 bm25"
    files.write_run(lines)
    message = r"bm25.trec, line 10: passage 'nowhere' is not in .*passages.tsv \(1 such\)"
    with pytest.raises(KdscaleError, match=message):
        files.rerank()
    assert files.leftovers() == []


def test_an_unknown_query_is_named_with_its_line(files):
    del files.queries["q2"]
    files.write("queries.tsv", files.queries)
    with pytest.raises(KdscaleError, match=r"line 13: query 'q2' is not in .*queries.tsv"):
        files.rerank()


def test_a_malformed_line_of_the_run(files):
    files.write_run([*files.run.read_text().splitlines()[:3], "q0 p1 7"])
    with pytest.raises(KdscaleError, match=r"bm25.trec, line 4: not 6 columns"):
        files.rerank()


def test_a_malformed_passage_is_passed_over_and_said(files):
    text = (files.root / "passages.tsv").read_text()
    (files.root / "passages.tsv").write_text("no tab here\n" + text)
    assert files.rerank() == 42
    assert "passages.tsv: 1 lines passed over (first: line 1" in files.shown.getvalue()


def test_mistakes_are_told_before_any_work(files, tmp_path):
    for changes, message in [
        ({"run": tmp_path / "none"}, "run: no file"),
        ({"output": tmp_path}, "no file in a folder"),
        ({"output": tmp_path / "no" / "o.trec"}, "no file in a folder"),
        ({"output": tmp_path / "o.trec.gz"}, "leave out .gz"),
        ({"output": files.run}, "is the run itself"),
        ({"depth": 0}, "--depth: 1 or more, not 0"),
        ({"queries": tmp_path / "none"}, "queries: .* does not exist"),
        ({"passages": tmp_path / "none"}, "passages: .* does not exist"),
        ({"model": tmp_path / "none"}, "does not exist"),
    ]:
        with pytest.raises(KdscaleError, match=message):
            files.rerank(**changes)
    files.run.write_text("")
    with pytest.raises(KdscaleError, match="has no lines"):
        files.rerank()
    assert files.leftovers() == []


def test_ctrl_c_leaves_the_old_file_and_no_half_one(tmp_path):
    files = Files(tmp_path, queries=4_000)
    files.output.write_text("old")
    seen = []

    def interrupt():
        for _ in range(20_000):
            seen.extend(name for name in files.leftovers() if name.endswith(".part"))
            if seen:
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.001)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        files.rerank()
    thread.join()
    assert seen and files.leftovers() == ["o.trec"]
    assert files.output.read_text() == "old"
