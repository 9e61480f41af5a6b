import json
import re
import shutil
import subprocess
from collections import Counter

import numpy as np
import pytest

from kdscale.config import MsMarcoSource
from kdscale.data.dataset import Dataset, Tokens
from kdscale.data.schema import CANDIDATES, PAIRS, PASSAGES
from kdscale.data.shards import read_shards
from kdscale.errors import KdscaleError
from kdscale.experiment.context import DATASET
from kdscale.experiment.load import load_config
from kdscale.experiment.run import run_steps
from kdscale.progress import Reporter
from kdscale.stages import prepare
from kdscale.stages import tokens as tokens_stage
from kdscale.store import open_store
from kdscale.store.artifact import list_files
from tests.worlds.stage_world import run_stage, small_config, write_jsonl
from tests.worlds.world import make_beir, make_encoder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def beir(tmp_path_factory):
    return make_beir(tmp_path_factory.mktemp("world") / "beir")


def passages_of(dataset):
    return read_shards(dataset.path / "passages", PASSAGES)


@pytest.fixture(scope="module")
def prepared(ray_cluster, encoder, beir, tmp_path_factory):
    """(config, dataset folder, tokens folder) of the clean world."""
    root = tmp_path_factory.mktemp("prepared")
    config = small_config(encoder, beir)
    run_stage(prepare.run, config, root / "dataset")
    run_stage(tokens_stage.run, config, root / "tokens", dataset=root / "dataset")
    return config, root / "dataset", root / "tokens"


def test_dataset_tables(prepared, beir):
    dataset = Dataset(prepared[1])
    assert dataset.splits() == ["train", "dev", "test"]
    corpus = [json.loads(x) for x in (beir / "corpus.jsonl").read_text().splitlines()]
    passages = passages_of(dataset)
    assert passages["pid"].to_pylist() == [r["_id"] for r in corpus]
    assert passages["text"].to_pylist() == [r["text"] for r in corpus]
    assert [dataset.queries(s).num_rows for s in dataset.splits()] == [60, 10, 20]
    for split in dataset.splits():
        found = dataset.candidates(split)
        assert found.schema == CANDIDATES
        counts = Counter(found["qid"].to_pylist())
        assert max(counts.values()) == 10
        for qid in counts:
            mine = found.filter([q == qid for q in found["qid"].to_pylist()]).to_pylist()
            assert [r["rank"] for r in mine] == list(range(1, len(mine) + 1))
            assert mine == sorted(mine, key=lambda r: (-r["score"], r["pid"]))


def test_pairs_are_one_positive_and_its_hard_negatives(prepared):
    dataset = Dataset(prepared[1])
    pairs = dataset.pairs()
    assert pairs.schema == PAIRS
    assert pairs["pair_id"].to_pylist() == list(range(300))
    relevant = {r["qid"]: r["pid"] for r in dataset.qrels("train").to_pylist()}
    ranks = {(r["qid"], r["pid"]): r["rank"] for r in dataset.candidates("train").to_pylist()}
    groups = {}
    for row in pairs.to_pylist():
        groups.setdefault(row["qid"], []).append(row)
        assert row["rank"] == ranks.get((row["qid"], row["pid"]), 0)
        assert (row["grade"] == 1) == (relevant[row["qid"]] == row["pid"])
    assert list(groups) == dataset.queries("train")["qid"].to_pylist()
    assert all([r["grade"] for r in g] == [1, 0, 0, 0, 0] for g in groups.values())


def test_the_relevant_passage_is_not_forced_into_candidates(ray_cluster, encoder, beir, tmp_path):
    config = small_config(encoder, beir, default_depth=1, depth={})
    run_stage(prepare.run, config, tmp_path / "dataset")
    dataset = Dataset(tmp_path / "dataset")
    relevant = {r["qid"]: r["pid"] for r in dataset.qrels("test").to_pylist()}
    found = [r["pid"] == relevant[r["qid"]] for r in dataset.candidates("test").to_pylist()]
    assert len(found) == 20 and not all(found)


def test_the_same_input_gives_the_same_bytes(prepared, tmp_path):
    config, dataset, tokens = prepared
    run_stage(prepare.run, config, tmp_path / "dataset")
    run_stage(tokens_stage.run, config, tmp_path / "tokens", dataset=tmp_path / "dataset")
    assert list_files(tmp_path / "dataset") == list_files(dataset)
    assert list_files(tmp_path / "tokens") == list_files(tokens)


def spoil(beir, folder):
    """A copy of a BEIR folder with each fault that a user's files have."""
    shutil.copytree(beir, folder)
    with (folder / "corpus.jsonl").open("ab") as handle:
        handle.write(b'{"_id": "p000", "text": "another text of the first id"}\n')
        handle.write(b'{"_id": "empty", "text": " \\u200b "}\n')
        handle.write(b'{"_id": "bytes", "text": "caf\xe9"}\n')
        handle.write(b'{"_id": "lone", "text": "a \\ud800 b"}\n')
        handle.write(b"{not json\n")
        handle.write(b'{"_id": "long", "text": "' + b"word1 " * 400 + b'"}\n')
    with (folder / "queries.jsonl").open("a") as handle:
        handle.write('{"_id": "q000", "text": "asked twice"}\n')
        handle.write('{"_id": "lost", "text": "judged, but nothing is relevant"}\n')
    with (folder / "qrels" / "train.tsv").open("a") as handle:
        handle.write("q001\tnowhere\t1\nnobody\tp001\t1\nq000\tp000\t1\nlost\tp003\t0\nq1 p1\n")
    with (folder / "qrels" / "dev.tsv").open("a") as handle:
        handle.write("lost\tp003\t0\n")
    return folder


def test_bad_lines_are_refused_with_their_reason(ray_cluster, encoder, beir, tmp_path):
    config = small_config(
        encoder, spoil(beir, tmp_path / "bad"), max_reject_fraction=0.2, max_chars=1000
    )
    facts = run_stage(prepare.run, config, tmp_path / "dataset")
    dataset = Dataset(tmp_path / "dataset")
    assert facts["passages"] == 161 and facts["passages_cut"] == 1
    texts = {r["pid"]: r["text"] for r in passages_of(dataset).to_pylist()}
    assert "another" not in texts["p000"] and 990 < len(texts["long"]) <= 1000
    lines = [
        json.loads(x) for x in (tmp_path / "dataset" / "rejected.jsonl").read_text().splitlines()
    ]
    reasons = {(x["file"].split("/")[-1], x["line"]): x["reason"] for x in lines}
    assert reasons[("corpus.jsonl", 163)] == reasons[("corpus.jsonl", 164)] == "not UTF-8"
    assert reasons[("passages", 161)].startswith("duplicate id")
    assert reasons[("passages", 162)] == "empty text"
    assert ("corpus.jsonl", 165) in reasons
    train = Counter(facts["lines"]["qrels/train"]["reasons"])
    assert train["unknown passage id"] == train["unknown query id"] == 1
    assert train.total() == 4  # and the pair named twice, and the malformed line
    assert facts["lines"]["queries/train"]["rejected"] == 1  # asked twice
    # judged without a relevant passage: no use for training, a fact for evaluation
    assert facts["queries"]["train"]["without_relevant"] == 1
    assert "lost" not in dataset.queries("train")["qid"].to_pylist()
    assert "lost" in dataset.queries("dev")["qid"].to_pylist()


def test_too_many_bad_lines_stop_the_stage(ray_cluster, encoder, beir, tmp_path):
    config = small_config(encoder, spoil(beir, tmp_path / "bad"))  # 5 of 166 is above 1 %
    with pytest.raises(KdscaleError) as error:
        run_stage(prepare.run, config, tmp_path / "dataset")
    kept = tmp_path / "dataset-work" / "rejected" / "rejected.jsonl"
    assert "5 of 166 lines of passages" in str(error.value) and "(2): not UTF-8" in str(error.value)
    assert str(kept) in str(error.value) and len(kept.read_text().splitlines()) == 5


def test_an_empty_source(ray_cluster, encoder, beir, tmp_path):
    folder = shutil.copytree(beir, tmp_path / "empty")
    (folder / "corpus.jsonl").write_text("")
    with pytest.raises(KdscaleError, match="no passages"):
        run_stage(prepare.run, small_config(encoder, folder), tmp_path / "dataset")


def msmarco(beir, folder):
    """The world as MS MARCO files, its queries undivided."""
    folder.mkdir()

    def texts(name):
        rows = [json.loads(x) for x in (beir / f"{name}.jsonl").read_text().splitlines()]
        (folder / f"{name}.tsv").write_text("".join(f"{r['_id']}\t{r['text']}\n" for r in rows))
        return [r["_id"] for r in rows]

    pids, qids = texts("corpus"), texts("queries")
    (folder / "qrels.txt").write_text("".join(f"{q} 0 p{q[1:]} 1\n" for q in qids))
    run = [f"{q} Q0 {p} {i + 1} {-i} x\n" for q in qids for i, p in enumerate(pids[20:60])]
    (folder / "run.txt").write_text("".join(run) + "nobody Q0 p001 1 1.0 x\nq001 Q0 no 9 0 x\n")
    (folder / "triples.tsv").write_text("".join(f"{q}\tp{q[1:]}\tp159\n" for q in qids))
    return folder


def test_an_undivided_source_with_its_own_candidates(ray_cluster, encoder, beir, tmp_path):
    files = msmarco(beir, tmp_path / "files")
    source = MsMarcoSource(
        collection=str(files / "corpus.tsv"),
        queries={"all": str(files / "queries.tsv")},
        qrels={"all": str(files / "qrels.txt")},
        candidates={"all": str(files / "run.txt")},
    )
    fractions = {"train": 0.6, "test": 0.4}
    config = small_config(
        encoder, source, split=fractions, max_queries={"train": 20}, depth={"train": 30, "test": 5}
    )
    facts = run_stage(prepare.run, config, tmp_path / "dataset")
    dataset = Dataset(tmp_path / "dataset")
    assert dataset.splits() == ["train", "test"]
    assert facts["queries"]["train"]["kept"] == 20
    read = {s: facts["queries"][s]["read"] for s in fractions}
    assert sum(read.values()) == 90 and read["train"] > read["test"]
    candidates = {s: dataset.candidates(s) for s in fractions}
    assert candidates["train"].num_rows == 600
    assert candidates["test"]["pid"].to_pylist()[:5] == [f"p0{n}" for n in range(20, 25)]
    assert set(candidates["test"]["rank"].to_pylist()) == {1, 2, 3, 4, 5}
    # read once, though two splits come of it
    assert facts["lines"]["candidates/all"] == {
        "read": 3602,
        "rejected": 2,
        "reasons": {"unknown passage id": 1, "unknown query id": 1},
    }
    with pytest.raises(KdscaleError, match=r"set prepare\.split"):
        run_stage(prepare.run, small_config(encoder, source), tmp_path / "other")


def test_a_page_crawled_twice_is_no_negative_of_its_query(ray_cluster, encoder, beir, tmp_path):
    folder = shutil.copytree(beir, tmp_path / "twice")
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    twins = [{**row, "_id": f"x{row['_id']}", "text": f"  {row['text']}."} for row in rows]
    write_jsonl(folder / "corpus.jsonl", [*rows, *twins])
    config = small_config(encoder, folder, easy_negatives=20)
    facts = run_stage(prepare.run, config, tmp_path / "dataset")
    dataset = Dataset(tmp_path / "dataset")
    assert facts["passages"] == 320 and facts["passages_repeated"] == 160
    relevant = {r["qid"]: r["pid"] for r in dataset.qrels("train").to_pylist()}
    found = {(r["qid"], r["pid"]) for r in dataset.candidates("train").to_pylist()}
    assert sum((qid, f"x{pid}") in found for qid, pid in relevant.items()) > 30  # they are found
    assert facts["candidates_equal"]["train"]["unjudged"] > 30
    assert facts["candidates_equal"]["test"]["repeated"] > 60
    pairs = dataset.pairs().to_pylist()
    assert len(pairs) == 60 * 25
    assert not [r for r in pairs if r["pid"] == f"x{relevant[r['qid']]}"]


def test_the_negatives_of_triples_are_used_first(ray_cluster, encoder, beir, tmp_path):
    files = msmarco(beir, tmp_path / "files")
    source = MsMarcoSource(
        collection=str(files / "corpus.tsv"),
        queries={"train": str(files / "queries.tsv")},
        triples=str(files / "triples.tsv"),
    )
    run_stage(prepare.run, small_config(encoder, source), tmp_path / "dataset")
    pairs = Dataset(tmp_path / "dataset").pairs().to_pylist()
    assert len(pairs) == 90 * 5
    assert all(row["pid"] == "p159" for row in pairs[1::5])
    assert all(row["grade"] == 1 and row["pid"] == "p" + row["qid"][1:] for row in pairs[::5])


def test_a_query_that_is_a_passage_is_no_negative_of_itself(ray_cluster, encoder, beir, tmp_path):
    """Each query also a passage under its id, as in Quora; the source names it as a negative."""
    files = msmarco(beir, tmp_path / "files")
    queries = (files / "queries.tsv").read_text()
    with (files / "corpus.tsv").open("a") as corpus:
        corpus.write(queries)
    (files / "triples.tsv").write_text(
        "".join(f"{q}\tp{q[1:]}\t{q}\n" for q in re.findall(r"^(\S+)\t", queries, re.M))
    )
    source = MsMarcoSource(
        collection=str(files / "corpus.tsv"),
        queries={"train": str(files / "queries.tsv")},
        triples=str(files / "triples.tsv"),
    )
    for what, own in (("drop", 0), ("keep", 90)):
        config = small_config(
            encoder, source, easy_negatives=2, query_as_passage=what, depth={"train": 10}
        )
        facts = run_stage(prepare.run, config, tmp_path / what)
        assert facts["candidates"]["train"]["query_as_passage"] == 90 - own
        dataset = Dataset(tmp_path / what)
        pairs, found = dataset.pairs().to_pylist(), dataset.candidates("train").to_pylist()
        assert len(pairs) == 90 * 7 and len(found) == 900
        assert sum(row["qid"] == row["pid"] for row in pairs) == own
        assert sum(row["qid"] == row["pid"] and row["rank"] == 1 for row in found) == own


def test_tokens_are_those_of_the_tokenizer(prepared):
    dataset, tokens = Dataset(prepared[1]), Tokens(prepared[2])
    encoder = tokens.encoder()
    assert encoder.max_length == 32
    rows = passages_of(dataset).to_pylist()
    ids = tokens.passage_ids(row["pid"] for row in rows)
    for row in rows:
        assert (ids[row["pid"]] == encoder.tokenise([row["text"]])[0]).all()
    for split in dataset.splits():
        for row in dataset.queries(split).to_pylist():
            ids = tokens.query_ids(split, row["qid"])
            assert (ids == encoder.tokenise([row["text"]])[0]).all()


def test_blocks_hold_every_passage_whole(prepared):
    dataset, tokens = Dataset(prepared[1]), Tokens(prepared[2])
    encoder, blocks = tokens.encoder(), tokens.blocks()
    assert blocks.shape[1] == 16 and blocks.dtype == np.int32
    assert (blocks[:, 0] == encoder.cls_id).all() and (blocks[:, -1] == encoder.sep_id).all()
    stream = " ".join(map(str, blocks[:, 1:-1].reshape(-1)))
    passages = tokens.passage_ids(passages_of(dataset)["pid"].to_pylist())
    missing = 0
    for ids in passages.values():
        text = " ".join(map(str, ids))
        missing += f"{text} {encoder.sep_id}" not in stream
    assert missing <= 2  # those in the tail that fills no block
    assert tokens.info["blocks"] == len(blocks)
    assert tokens.info["text_tokens"] == sum(map(len, passages.values()))


def test_what_the_pairs_lose_is_counted_and_told(prepared, tmp_path, capsys):
    """In all of 13 tokens of text: most pairs lose some, and no query of three."""
    config, dataset, _ = prepared
    short = small_config(config.teacher.model, config.source, max_length=16)
    facts = run_stage(tokens_stage.run, short, tmp_path / "short", dataset=dataset)
    tokens, encoder = Tokens(tmp_path / "short"), Tokens(tmp_path / "short").encoder()
    pairs = Dataset(dataset).pairs().to_pylist()
    texts = tokens.passage_ids(pair["pid"] for pair in pairs)
    longer = sum(len(texts[pair["pid"]]) + 3 > encoder.budget for pair in pairs)
    assert facts["pairs"]["train"]["pairs"] == 300 and longer > 100
    assert facts["pairs"]["train"]["cut"]["pairs"] == longer
    assert facts["pairs"]["train"]["cut"]["queries"] == 0
    assert facts["pairs"]["test"]["pairs"] == Dataset(dataset).candidates("test").num_rows
    told = " ".join(capsys.readouterr().out.split())
    assert "of the training pairs are longer than prepare.max_length (16 tokens)" in told


def test_extra_text_and_the_budget(prepared, tmp_path):
    config, dataset, tokens = prepared
    extra = tmp_path / "extra.jsonl"
    write_jsonl(extra, [{"text": "word1 word2 " * 1000}, {"text": "key1"}])
    more = small_config(config.teacher.model, config.source, extra_text=[str(extra)])
    facts = run_stage(tokens_stage.run, more, tmp_path / "more", dataset=dataset)
    assert facts["text_tokens"] == Tokens(tokens).info["text_tokens"] + 2001  # not cut
    less = small_config(config.teacher.model, config.source, max_block_tokens=330)
    run_stage(tokens_stage.run, less, tmp_path / "less", dataset=dataset)
    blocks = Tokens(tmp_path / "less").blocks()
    assert len(blocks) == 20 and (blocks == Tokens(tokens).blocks()[:20]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": 65}, r"prepare\.max_length is 65, .* at most 64"),
        ({"block_length": 65}, r"prepare\.block_length is 65; .* at most 64"),
        ({"block_length": 4}, r"at least 8"),
        ({"extra_text": ["no/such.jsonl"]}, r"prepare\.extra_text: no/such\.jsonl does not exist"),
    ],
)
def test_lengths_and_files_that_do_not_suit(prepared, tmp_path, change, message):
    config, dataset, _ = prepared
    changed = small_config(config.teacher.model, config.source, **change)
    with pytest.raises(KdscaleError, match=message):
        run_stage(tokens_stage.run, changed, tmp_path / "tokens", dataset=dataset)


def test_a_full_disk_is_told_in_one_line(ray_cluster, encoder, beir, tmp_path):
    """A file system of 16 KiB, with the store on it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        path = tmp_path / "config.yaml"
        path.write_text(
            f"storage: {{uri: {disk}/store}}\nsource: {{type: beir, path: {beir}}}\n"
            f"teacher: {{model: {encoder}}}\n"
        )
        config = load_config(path, [])
        store = open_store(config.storage.uri)
        with pytest.raises(KdscaleError, match=f"no space left below {disk}"):
            run_steps(config, store, [DATASET], Reporter())
        assert store.list("datasets") == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
