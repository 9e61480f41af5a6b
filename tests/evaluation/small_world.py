"""Artifacts for the tests of evaluation: a dataset, its tokens, a teacher and two students.

Rankers are real, tiny and random. Texts are drawn from a seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from tiny_models import bert_encoder, bert_tokenizer, random_text

from kdscale.config import Config, Evaluate
from kdscale.data.schema import (
    CANDIDATES,
    PASSAGE_TOKENS,
    PASSAGES,
    QRELS,
    QUERIES,
    QUERY_TOKENS,
)
from kdscale.data.shards import write_shards, write_table
from kdscale.models.encode import PairEncoder
from kdscale.models.ranker import build_ranker, save_ranker
from kdscale.progress import Reporter
from kdscale.stages.context import StageContext
from kdscale.store import Artifact, LocalStore, LocalWorkspace
from kdscale.store.artifact import build_manifest, list_files

MAX_LENGTH = 24
DEPTH = 8
ROLES = {
    "teacher": {"layers": 2, "hidden": 32, "intermediate": 64},
    "student:ranker_distill:tiny": {"layers": 1, "hidden": 16, "intermediate": 32},
    "student:lm_distill_finetune:tiny": {"layers": 1, "hidden": 16, "intermediate": 32},
}


class SmallWorld:
    """passages, queries[split], qrels[split], candidates[split] as they were drawn, and the
    artifacts made of them, in a store below `root`."""

    def __init__(self, root: Path):
        self.store = LocalStore(root / "store")
        rng = random.Random(0)
        self.passages = {f"p{i:02d}": random_text(rng, rng.randint(3, 30)) for i in range(40)}
        self.queries, self.qrels, self.candidates = {}, {}, {}
        for split, count in (("dev", 3), ("test", 12)):
            qids = [f"{split}-q{i}" for i in range(count)]
            self.queries[split] = {qid: random_text(rng, rng.randint(1, 6)) for qid in qids}
            self.candidates[split] = {qid: rng.sample(sorted(self.passages), DEPTH) for qid in qids}
            self.qrels[split] = {
                qid: {pids[rng.randrange(DEPTH)]: 1, rng.choice(sorted(self.passages)): 2}
                for qid, pids in self.candidates[split].items()
            }
        # One query of which nothing was found, and one with fewer candidates than the others.
        self.candidates["test"]["test-q3"] = []
        self.candidates["test"]["test-q5"] = self.candidates["test"]["test-q5"][:3]
        self.encoder = PairEncoder(bert_tokenizer(), MAX_LENGTH)
        self.inputs = {
            "dataset": self.commit("datasets", "d", self._write_dataset),
            "tokens": self.commit("tokens", "t", self._write_tokens),
        }
        for seed, (role, shape) in enumerate(ROLES.items()):
            kind = "teachers" if role == "teacher" else "students"

            def write(out: Path, seed: int = seed, shape: dict = shape) -> None:
                model = build_ranker(bert_encoder(**shape, seed=seed), seed=seed, dropout=0.0)
                save_ranker(model, self.encoder, out)

            self.inputs[role] = self.commit(kind, role.replace(":", "-"), write)

    def commit(self, kind: str, key: str, write: Callable[[Path], object], **manifest) -> Artifact:
        """Write an artifact and commit it; `manifest`: config, facts, created, inputs."""
        with self.store.staging(kind, key) as out:
            write(out)
            given = {
                "config": {},
                "facts": {},
                "inputs": {},
                "created": "2024-01-01T00:00:00+00:00",
                **manifest,
            }
            self.store.commit(
                out,
                kind,
                key,
                build_manifest(kind=kind, stage=kind, files=list_files(out), version="0", **given),
            )
        return self.store.find(kind, key)

    def context(self, out: Path, **evaluate) -> StageContext:
        """What the evaluate stage is given; `evaluate` overrides its settings."""
        settings = {"latency_queries": 3, "depth": DEPTH, **evaluate}
        out.mkdir(parents=True, exist_ok=True)
        config = Config(evaluate=Evaluate(**settings))
        return StageContext(config, self.inputs, out, LocalWorkspace(out / "work"), Reporter())

    def _write_dataset(self, out: Path) -> None:
        table = pa.table([list(self.passages), list(self.passages.values())], schema=PASSAGES)
        write_shards(out / "passages", table, PASSAGES, shards=3)
        for split, queries in self.queries.items():
            table = pa.table([list(queries), list(queries.values())], schema=QUERIES)
            write_table(out / "queries" / f"{split}.parquet", table, QUERIES)
            rows = [(q, p, g) for q, of in self.qrels[split].items() for p, g in of.items()]
            table = pa.table([list(c) for c in zip(*rows, strict=True)], schema=QRELS)
            write_table(out / "qrels" / f"{split}.parquet", table, QRELS)
            rows = [
                (qid, pid, rank, 20.0 - rank / 4)
                for qid, pids in self.candidates[split].items()
                for rank, pid in enumerate(pids, 1)
            ]
            table = pa.table([list(c) for c in zip(*rows, strict=True)], schema=CANDIDATES)
            write_table(out / "candidates" / f"{split}.parquet", table, CANDIDATES)
        (out / "stats.json").write_text(json.dumps({"splits": list(self.queries)}))

    def _write_tokens(self, out: Path) -> None:
        self.encoder.save(out / "tokenizer")
        ids = self.encoder.tokenise(list(self.passages.values()))
        table = pa.table(
            [list(self.passages), pa.array(ids, pa.list_(pa.int32()))], schema=PASSAGE_TOKENS
        )
        write_shards(out / "passages", table, PASSAGE_TOKENS, shards=2)
        for split, queries in self.queries.items():
            ids = self.encoder.tokenise(list(queries.values()))
            table = pa.table(
                [list(queries), pa.array(ids, pa.list_(pa.int32()))], schema=QUERY_TOKENS
            )
            write_table(out / "queries" / f"{split}.parquet", table, QUERY_TOKENS)
        info = {"splits": list(self.queries), "max_length": MAX_LENGTH, "block_length": 8}
        (out / "tokens.json").write_text(json.dumps(info))
