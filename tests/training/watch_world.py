"""A dataset and its tokens in a local store, small and learnable, made without Ray.

The texts are those of `world.make_beir`; candidates and pairs are made as `prepare` makes them.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pyarrow as pa
from world import make_beir, make_encoder

from kdscale.config import BeirSource
from kdscale.data.bm25 import Bm25
from kdscale.data.calls import InProcess
from kdscale.data.candidates import candidates_by_query
from kdscale.data.pairs import PairSampler, pair_table
from kdscale.data.readers import open_reader
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
from kdscale.models.encode import PairEncoder
from kdscale.models.pretrained import load_tokenizer
from kdscale.store import LocalStore
from kdscale.store.artifact import build_manifest, list_files

SPLITS = ["train", "dev"]


class WatchWorld:
    """dataset, tokens: artifacts; encoder: the folder of a BERT encoder."""

    def __init__(self, root: Path):
        self.encoder = make_encoder(root / "encoder")
        self._reader = open_reader(BeirSource(path=str(make_beir(root / "beir"))))
        self._passages = dict(self._reader.passages())
        self._store = LocalStore(root / "store")
        self.dataset = self._commit("datasets", self._write_dataset)
        self.tokens = self._commit("tokens", self._write_tokens)

    def _commit(self, kind, write):
        with self._store.staging(kind, "made") as out:
            write(out)
            manifest = build_manifest(
                kind=kind,
                stage="test",
                config={},
                inputs={},
                files=list_files(out),
                facts={},
                created="2026-01-01T00:00:00+00:00",
                version="0",
            )
            self._store.commit(out, kind, "made", manifest)
        return self._store.find(kind, "made")

    def _write_dataset(self, out: Path) -> None:
        passages = pa.table([list(self._passages), list(self._passages.values())], schema=PASSAGES)
        sampler = PairSampler(list(self._passages), seed=13, negatives=4)
        for split in SPLITS:
            queries = dict(self._reader.queries(split))
            with tempfile.TemporaryDirectory() as folder:
                index = Bm25(queries.values(), 1.2, 0.75, Path(folder), InProcess())
                index.index([passages])
                found = index.search(list(queries), list(queries.values()), 10)
            judged = list(self._reader.qrels(split))
            for name, schema, table in (
                ("queries", QUERIES, [list(queries), list(queries.values())]),
                ("qrels", QRELS, [list(column) for column in zip(*judged, strict=True)]),
                ("candidates", CANDIDATES, found.columns),
            ):
                write_table(out / name / f"{split}.parquet", pa.table(table, schema=schema), schema)
            if split == "train":
                of_query = candidates_by_query(found)
                pairs = pair_table(
                    (q, sampler.sample(q, {p: g}, of_query[q])) for q, p, g in judged
                )
                write_shards(out / "pairs", pairs, PAIRS, 2)
        (out / "stats.json").write_text(json.dumps({"splits": SPLITS}))

    def _write_tokens(self, out: Path) -> None:
        encoder = PairEncoder(load_tokenizer(str(self.encoder)), 32)
        encoder.save(out / "tokenizer")

        def table(texts, schema):
            ids = pa.array(encoder.tokenise(list(texts.values())), pa.list_(pa.int32()))
            return pa.table([list(texts), ids], schema=schema)

        write_shards(out / "passages", table(self._passages, PASSAGE_TOKENS), PASSAGE_TOKENS, 1)
        for split in SPLITS:
            queries = table(dict(self._reader.queries(split)), QUERY_TOKENS)
            write_table(out / "queries" / f"{split}.parquet", queries, QUERY_TOKENS)
        info = {"splits": SPLITS, "max_length": 32, "block_length": 8}
        (out / "tokens.json").write_text(json.dumps(info))
