"""Every reader, on valid collections with one or two files damaged."""

import contextlib
import io
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from kdscale.config import BeirSource, DocstringsSource, MsMarcoSource, TrecSource
from kdscale.data.clean import RejectLog, fault_of
from kdscale.data.ingest import ingest_extra_text, ingest_judgments, ingest_queries
from kdscale.data.readers import Reject, open_reader
from kdscale.data.readers.docstrings import find_files
from kdscale.data.runs import read_qrels, read_run
from kdscale.data.schema import CANDIDATES, PASSAGES, QRELS, QUERIES
from kdscale.data.shards import read_table, read_where
from kdscale.data.texts import read_passages, read_queries
from kdscale.errors import KdscaleError
from kdscale.store import LocalStore
from tests.fuzz.fuzzing import damage, damaged_files, edits, put

pytestmark = pytest.mark.slow
DATA = Path(__file__).parents[1] / "data_files"


def files_of(name: str) -> dict[str, bytes]:
    folder = DATA / name
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: content for name, content in found.items() if "__pycache__" not in name}


def fill(sandbox, files: dict[str, bytes], damaged: dict[str, tuple]) -> dict[str, str]:
    """Write a collection with its damage; where each of its files is now."""
    target = sandbox.refill({k: v for k, v in files.items() if k not in damaged})
    where = {name: str(target / name) for name in files}
    for name, (changes, kind, place) in damaged.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = damage(files[name], changes)
        where[name] = str(put(path, content, kind, place, sandbox.secret))
    return where


def use(reader, target: Path) -> None:
    """Read all that a reader gives, and take it into tables as the stage `prepare` does."""
    reader.fingerprint()
    with RejectLog(target / "rejected.jsonl", 1.0) as log:
        passages = {}
        for _, (pid, text) in log.accepted("passages", reader.passages()):
            if fault_of(pid, text) is None:
                passages[pid] = text
        columns = [list(passages), list(passages.values())]
        pa.table(columns, schema=PASSAGES)
        for split in reader.splits():
            queries, _ = ingest_queries(reader.queries(split), split, log, max_chars=1_000)
            pa.table([list(queries), list(queries.values())], schema=QUERIES)
            qrels = reader.qrels(split)
            judged = ingest_judgments(qrels, split, log, queries, dict.fromkeys(passages, 0))
            rows = [(q, p, g) for q, grades in judged.items() for p, g in grades.items()]
            pa.Table.from_pylist([dict(zip(QRELS.names, r, strict=True)) for r in rows], QRELS)
            found = [c for c in reader.candidates(split) or () if not isinstance(c, Reject)]
            pa.Table.from_pylist(
                [dict(zip(CANDIDATES.names, r, strict=True)) for r in found], CANDIDATES
            )
        list(reader.negatives() or ())


def test_beir(sandbox):
    files = files_of("beir")

    def case(damaged):
        fill(sandbox, files, damaged)
        use(open_reader(BeirSource(path=str(sandbox.target))), sandbox.target)

    sandbox.fuzz("beir", damaged_files(list(files)), case=case)


def test_msmarco(sandbox):
    files = files_of("msmarco")

    def case(damaged, candidates):
        at = fill(sandbox, files, damaged)
        source = MsMarcoSource(
            collection=at["collection.tsv"],
            queries={"train": at["queries.train.tsv"], "dev": at["queries.dev.tsv"]},
            qrels={"dev": at["qrels.dev.tsv"]},
            candidates={"dev": at[candidates]},
            triples=at["triples.train.tsv"],
        )
        use(open_reader(source), sandbox.target)

    candidates = st.sampled_from(["run.dev.trec", "top1000.dev.tsv"])
    sandbox.fuzz("msmarco", damaged_files(list(files)), candidates, case=case)


def test_trec(sandbox):
    files = files_of("trec")
    topics = st.sampled_from([name for name in files if name.startswith("topics")])

    def case(damaged, topics):
        at = fill(sandbox, files, damaged)
        source = TrecSource(
            documents=[str(sandbox.target / "documents" / "*")],
            topics={"all": at[topics]},
            qrels={"all": at["qrels.txt"]},
            runs={"all": at["run.txt"]},
        )
        use(open_reader(source), sandbox.target)

    sandbox.fuzz("trec", damaged_files(list(files)), topics, case=case)


def test_runs_and_qrels(sandbox):
    """What `kdscale rank` and the evaluation read line by line, and extra text."""
    files = {
        "run": (DATA / "trec/run.txt").read_bytes(),
        "qrels": (DATA / "trec/qrels.txt").read_bytes(),
        "qrels of beir": (DATA / "beir/qrels/train.tsv").read_bytes(),
        "texts": (DATA / "beir/corpus.jsonl").read_bytes(),
        "table": (DATA / "msmarco/collection.tsv").read_bytes(),
    }
    readers = {
        "run": read_run,
        "qrels": read_qrels,
        "qrels of beir": read_qrels,
        "texts": read_passages,
        "table": read_queries,
    }

    def case(damaged):
        at = fill(sandbox, files, damaged)
        for name in damaged:
            if not Path(at[name]).is_fifo():  # reading one waits for its writer
                list(readers[name](Path(at[name])))
        with RejectLog(sandbox.target / "rejected.jsonl", 1.0) as log:
            keep = LocalStore(sandbox.target).workspace("tokens", "k")
            list(ingest_extra_text([at["texts"]], log, 1_000, keep))

    sandbox.fuzz("runs and qrels", damaged_files(list(files)), case=case)


def test_docstrings(sandbox, monkeypatch):
    """Python files of a package; the names of its files, and names of packages."""
    files = files_of("docstrings")
    new_names = ["__init__.py", "a b.py", "\udcff.py", "x\n.py", "caf\u00e9.py"]
    sandbox.refill({**files, **{f"tinypkg/{name}": b"" for name in new_names}})
    monkeypatch.syspath_prepend(sandbox.target)
    # Opened once: what distributions are installed takes longer to find out than all else.
    reader = open_reader(DocstringsSource(packages=["tinypkg"]))
    code = [
        b"elif x:\n    pass\n" * 300, b"(" * 300, b"if x:\n" * 90, b"f'{", b"# coding: x\n",
        b"# coding: utf-7\n", b'    """A b c d e.\n\n    ', b"lambda:" * 99, b"\\N{x}",
    ]  # fmt: skip

    def case(package, name, changes, pieces, new_name):
        find_files(package)
        target = sandbox.refill(files)
        content = damage(files[name], changes)
        for place, piece in pieces:
            content = content[: place % (len(content) + 1)] + piece + content[place % 99 :]
        (target / name).unlink()
        (target / "tinypkg" / new_name).write_bytes(content)
        reader.feed(row for unit in reader.units() for row in reader.parse(unit))
        with RejectLog(target / "rejected.jsonl", 1.0) as log:
            for _, (pid, text) in log.accepted("passages", reader.passages()):
                log.reject("passages", 1, fault_of(pid, text) or "none", text)
            for split in reader.splits():
                ingest_queries(reader.queries(split), split, log, max_chars=1_000)
        assert "tinypkg" not in sys.modules  # found, not imported

    hostile = ["tinypkg.birds", "", "../beside", "a\0b", "x" * 5_000, "__main__", "\udcff", "sys"]
    packages = st.sampled_from(["tinypkg"] * 24 + hostile)
    names = st.sampled_from([name for name in files if name.endswith(".py")])
    pieces = st.lists(st.tuples(st.integers(0, 999), st.sampled_from(code)), max_size=2)
    named = st.sampled_from(new_names)
    sandbox.fuzz("docstrings", packages, names, edits, pieces, named, case=case)


COLUMNS = {
    "strings": pa.array(["a", "b c", None]),
    "large": pa.array(["a", "", "\0"], pa.large_string()),
    "numbers": pa.array([1, None, -(2**63)]),
    "words": pa.array(["a", "a", None]).dictionary_encode(),
    "bytes": pa.array([b"\xff", b"", None]),
    "lists": pa.array([["a"], [], None]),
    "structs": pa.array([{"a": 1}, {}, None]),
    "nulls": pa.nulls(3),
    "floats": pa.array([1.5, float("nan"), None]),
    "times": pa.array([0, 2**62, None], pa.timestamp("ns")),
}


def test_parquet(sandbox):
    """Tables of any columns, their bytes damaged: by who reads them for users and for stages."""
    names = ("pid", "qid", "_id", "id", "docno", "x")

    def case(ids, texts, name, flips):
        buffer = io.BytesIO()
        pq.write_table(pa.table({name: COLUMNS[ids], "text": COLUMNS[texts]}), buffer)
        content = bytearray(buffer.getvalue())
        for place, value in flips:
            # Most of a table is its footer: offsets, sizes and types.
            content[-1 - place % min(len(content), 700)] = value
        path = sandbox.refill({"t.parquet": bytes(content)}) / "t.parquet"
        for read in (read_passages, read_queries):
            list(read(path))
        for read in (read_table, lambda *at: read_where(*at, "pid", ["a"])):
            with contextlib.suppress(KdscaleError):  # most tables are not ours
                read(path, PASSAGES)

    flips = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=2)
    mostly = st.sampled_from(["strings"] * 3 * len(COLUMNS) + list(COLUMNS))
    sandbox.fuzz("parquet", mostly, mostly, st.sampled_from(names), flips, case=case)
