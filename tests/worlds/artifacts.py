"""The one way in which tests write artifacts by hand and commit them to a store."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pyarrow as pa

from kdscale.data.schema import (
    CANDIDATES,
    PAIRS,
    PASSAGE_TOKENS,
    PASSAGES,
    QRELS,
    QUERIES,
    QUERY_TOKENS,
)
from kdscale.data.shards import write_shards, write_table
from kdscale.store import Artifact, Store
from kdscale.store.artifact import build_manifest, list_files

MIB = 2**20
Write = Callable[[Path], object]


def manifest_of(directory: Path, **changes: object) -> dict:
    values = {
        "kind": "students",
        "stage": "make",
        "config": {"a": 1},
        "inputs": {},
        "files": list_files(directory),
        "facts": {"seconds": 1.5},
        "created": "2026-01-01T00:00:00+00:00",
        "version": "0",
    }
    return build_manifest(**{**values, **changes})


def put(
    store: Store,
    kind: str,
    key: str,
    write: Write,
    inputs: Mapping[str, Artifact | str] | None = None,
    **manifest: object,
) -> bool:
    """Commit what `write` writes into a folder; whether this was the first of its name.

    inputs: by role, artifacts or the names of such as need not be there.
    """
    made_from = {
        role: {"name": i, "digest": "d"}
        if isinstance(i, str)
        else {"name": i.name, "digest": i.digest}
        for role, i in (inputs or {}).items()
    }
    manifest |= {"kind": kind, "inputs": made_from}
    with store.staging(kind, key) as out:
        write(out)
        return store.commit(out, kind, key, manifest_of(out, **manifest))


def commit(store: Store, kind: str, key: str, write: Write, **manifest: object) -> Artifact:
    """`put`, and the artifact that is there."""
    put(store, kind, key, write, **manifest)
    return store.find(kind, key)


def nothing(out: Path) -> None:
    """Write no file: for artifacts of which only the manifest is read."""


def write_files(directory: Path, sizes: dict[str, int]) -> Path:
    """Files of random bytes, by relative path."""
    for path, size in sizes.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(os.urandom(size))
    return directory


def put_texts(store: Store, name: str, text: str = "hello", inputs: Iterable[str] = ()) -> bool:
    """An artifact "kind/key" with two small files, made from the named ones."""

    def write(out: Path) -> None:
        (out / "sub").mkdir()
        (out / "sub" / "a.txt").write_text(text)
        (out / "b.txt").write_text(text * 2)

    made_from = {f"input {i}": name for i, name in enumerate(inputs)}
    return put(store, *name.split("/"), write, inputs=made_from)


def texts(directory: Path) -> list[str]:
    """What `put_texts` wrote."""
    return [(directory / path).read_text() for path in ("sub/a.txt", "b.txt")]


def table(schema: pa.Schema, rows: Iterable[tuple]) -> pa.Table:
    columns = [list(column) for column in zip(*rows, strict=True)]
    return pa.table(columns or [[] for _ in schema], schema=schema)


def write_dataset(
    out: Path,
    passages: dict[str, str],
    queries: dict[str, dict[str, str]],
    qrels: dict[str, dict[str, dict[str, int]]],
    candidates: dict[str, dict[str, list[str]]] | None = None,
    pairs: pa.Table | None = None,
) -> None:
    """passages: text by pid. By split: the text of a qid, the grades of its pids, its candidates,
    best first. pairs: PAIRS."""
    write_shards(out / "passages", table(PASSAGES, passages.items()), PASSAGES, 3)
    for split, of in queries.items():
        write_table(out / f"queries/{split}.parquet", table(QUERIES, of.items()), QUERIES)
    for split, of in qrels.items():
        rows = [(qid, pid, grade) for qid, judged in of.items() for pid, grade in judged.items()]
        write_table(out / f"qrels/{split}.parquet", table(QRELS, rows), QRELS)
    for split, of in (candidates or {}).items():
        rows = [(q, p, rank, 20 - rank / 4) for q, ps in of.items() for rank, p in enumerate(ps, 1)]
        write_table(out / f"candidates/{split}.parquet", table(CANDIDATES, rows), CANDIDATES)
    if pairs is not None:
        write_shards(out / "pairs", pairs, PAIRS, 2)
    (out / "stats.json").write_text(json.dumps({"splits": list(queries)}))


def write_tokens(
    out: Path, encoder, passages: dict[str, str], queries: dict[str, dict[str, str]]
) -> None:
    """As `write_dataset` has the texts; encoder: a PairEncoder."""

    def tokens(schema: pa.Schema, of: dict[str, str]) -> pa.Table:
        return table(schema, zip(of, encoder.tokenise(list(of.values())), strict=True))

    encoder.save(out / "tokenizer")
    write_shards(out / "passages", tokens(PASSAGE_TOKENS, passages), PASSAGE_TOKENS, 2)
    for split, of in queries.items():
        write_table(out / f"queries/{split}.parquet", tokens(QUERY_TOKENS, of), QUERY_TOKENS)
    info = {"splits": list(queries), "max_length": encoder.max_length, "block_length": 8}
    (out / "tokens.json").write_text(json.dumps(info))


def ranker(encoder, body, seed: int = 0) -> Write:
    """What writes a ranker of this body: a teacher's or a student's artifact."""
    from kdscale.models.ranker import build_ranker, save_ranker  # torch, which stores do not need

    return lambda out: save_ranker(build_ranker(body, seed=seed, dropout=0.0), encoder, out)
