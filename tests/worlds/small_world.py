"""Small stores, made without Ray: what evaluation, export and validation begin with.

Rankers are real, tiny and random. Texts are drawn from a seed.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from torch import nn
from transformers import BertTokenizer

from kdscale.config import BeirSource, Cluster, Config, Evaluate
from kdscale.data.bm25 import Bm25
from kdscale.data.candidates import candidates_by_query
from kdscale.data.pairs import PairSampler, pair_table
from kdscale.data.parallel import InProcess
from kdscale.data.readers import open_reader
from kdscale.data.schema import PASSAGES, SCORES
from kdscale.data.shards import write_shards
from kdscale.experiment.context import DATASET, EVALUATION, TOKENS, StageContext
from kdscale.experiment.steps import evaluate_settings
from kdscale.models.encode import PairEncoder
from kdscale.models.pretrained import load_tokenizer
from kdscale.progress import Reporter
from kdscale.store import LocalStore, LocalWorkspace
from tests.worlds.artifacts import commit, ranker, table, write_dataset, write_tokens
from tests.worlds.ids import step_id
from tests.worlds.tiny_models import bert_encoder, bert_tokenizer, random_text
from tests.worlds.world import make_beir, make_encoder

MAX_LENGTH = 24
DEPTH = 8
ROLES = {
    "teacher": {"layers": 2, "hidden": 32, "intermediate": 64},
    "student:ranker_distill:tiny": {"layers": 1, "hidden": 16, "intermediate": 32},
    "student:lm_distill_finetune:tiny": {"layers": 1, "hidden": 16, "intermediate": 32},
}
NEGATIVES = 3
UNUSED = 20


class SmallWorld:
    """A dataset, its tokens, a teacher and two students in a store below `root`, and passages,
    queries[split], qrels[split], candidates[split] as they were drawn."""

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
            DATASET: commit(self.store, "datasets", "d", self.write_dataset),
            TOKENS: commit(self.store, "tokens", "t", self.write_tokens),
        }
        for seed, (role, shape) in enumerate(ROLES.items()):
            kind = "teachers" if role == "teacher" else "students"
            write = ranker(self.encoder, bert_encoder(**shape, seed=seed), seed)
            self.inputs[step_id(role)] = commit(self.store, kind, role.replace(":", "-"), write)

    def context(self, out: Path, **evaluate) -> StageContext:
        """What the evaluate stage is given; `evaluate` overrides its settings."""
        config = Config(evaluate=Evaluate(**{"latency_queries": 3, "depth": DEPTH, **evaluate}))
        out.mkdir(parents=True, exist_ok=True)
        settings, work = evaluate_settings(config), LocalWorkspace(out / "work")
        return StageContext(EVALUATION, settings, self.inputs, out, work, Reporter(), Cluster())

    def write_dataset(self, out: Path, pairs: pa.Table | None = None) -> None:
        write_dataset(out, self.passages, self.queries, self.qrels, self.candidates, pairs)

    def write_tokens(self, out: Path) -> None:
        write_tokens(out, self.encoder, self.passages, self.queries)


class ExportWorld(SmallWorld):
    """SmallWorld with training pairs, a teacher and its scores; `student` is an artifact made from
    them."""

    def __init__(self, root: Path):
        super().__init__(root)
        rng = random.Random(7)
        train = {f"train-q{i}": random_text(rng, rng.randint(1, 6)) for i in range(20)}
        self.queries["train"] = train
        self.qrels["train"] = {qid: {rng.choice(sorted(self.passages)): 1} for qid in train}
        self.candidates["train"] = {qid: rng.sample(sorted(self.passages), 4) for qid in train}
        pairs = self._pairs()
        normal = np.random.default_rng(9).normal(size=pairs.num_rows).astype(np.float32)
        columns = [*pairs.select(["pair_id", "qid", "pid"]).columns, pa.array(normal)]
        scores = pa.table(columns, schema=SCORES)

        def add(kind, key, write, **inputs):
            return commit(self.store, kind, key, write, inputs=inputs)

        data = add("datasets", "with-pairs", lambda out: self.write_dataset(out, pairs))
        wide = ranker(self.encoder, bert_encoder(hidden=48, layers=4), 6)
        self.dataset, self.teacher = data, add("teachers", "wide", wide, dataset=data)
        made_from = {"dataset": data, "teacher": self.teacher}
        scored = add("scores", "s", lambda out: write_shards(out, scores, SCORES, 1), **made_from)
        self.student = add("students", "small", self._student(), dataset=data, scores=scored)

    def _pairs(self) -> pa.Table:
        rng, groups = random.Random(8), []
        for qid, judged in self.qrels["train"].items():
            others = [pid for pid in self.passages if pid not in judged]
            drawn = enumerate(rng.sample(others, NEGATIVES), 1)
            groups.append((qid, [*((p, 1, 0) for p in judged), *((p, 0, i) for i, p in drawn)]))
        return pair_table(groups)

    def _student(self):
        """Its vocabulary has tokens that no text of the dataset has."""
        vocab = {**self.encoder.tokenizer.get_vocab()}
        vocab |= {f"elsewhere{i}": len(vocab) + i for i in range(UNUSED)}
        body = bert_encoder()
        body.set_input_embeddings(nn.Embedding(len(vocab), body.config.hidden_size, 0))
        body.config.vocab_size = len(vocab)
        return ranker(PairEncoder(BertTokenizer(vocab=vocab), MAX_LENGTH), body, 5)


class WatchWorld:
    """A dataset and its tokens that a ranker can learn: the texts are those of `make_beir`,
    candidates and pairs are made as `prepare` makes them. encoder: the folder of a BERT encoder."""

    def __init__(self, root: Path):
        self.encoder = make_encoder(root / "encoder")
        reader = open_reader(BeirSource(path=str(make_beir(root / "beir"))))
        passages = dict(reader.passages())
        queries = {split: dict(reader.queries(split)) for split in ("train", "dev")}
        qrels = {split: {q: {p: g} for q, p, g in reader.qrels(split)} for split in queries}
        found = {split: _search(passages, of) for split, of in queries.items()}
        sampler = PairSampler(list(passages), seed=13, negatives=4)
        pairs = pair_table(
            (qid, sampler.sample(qid, of, found["train"][qid]))
            for qid, of in qrels["train"].items()
        )
        encoder = PairEncoder(load_tokenizer(str(self.encoder)), 32)

        def add(kind, write, *given):
            return commit(LocalStore(root / "store"), kind, "made", lambda out: write(out, *given))

        self.dataset = add("datasets", write_dataset, passages, queries, qrels, found, pairs)
        self.tokens = add("tokens", write_tokens, encoder, passages, queries)


def _search(passages: dict[str, str], queries: dict[str, str]) -> dict[str, list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        index = Bm25(queries.values(), 1.2, 0.75, Path(folder), InProcess())
        index.index([table(PASSAGES, passages.items())])
        return candidates_by_query(index.search(list(queries), list(queries.values()), 10))
