"""A store with a student, its dataset and its teacher's scores: what an export begins with."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
from small_world import MAX_LENGTH, SmallWorld
from tiny_models import bert_encoder, random_text
from torch import nn
from transformers import BertTokenizer

from kdscale.data.schema import PAIRS, SCORES
from kdscale.data.shards import write_shards
from kdscale.models.encode import PairEncoder
from kdscale.models.ranker import build_ranker, save_ranker
from kdscale.store import Artifact

NEGATIVES = 3
UNUSED = 20


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
        self.dataset = self.commit("datasets", "with-pairs", self._write_with_pairs)
        inputs = {"dataset": _input(self.dataset)}
        self.teacher = self.commit("teachers", "wide", self._write_teacher, inputs=inputs)
        from_teacher = {**inputs, "teacher": _input(self.teacher)}
        self.scores = self.commit("scores", "s", self._write_scores, inputs=from_teacher)
        self.student = self.commit(
            "students",
            "small",
            self._write_student,
            inputs={**inputs, "scores": _input(self.scores)},
        )

    def _write_with_pairs(self, out: Path) -> None:
        self._write_dataset(out)
        rng, rows = random.Random(8), []
        for qid, judged in self.qrels["train"].items():
            others = [pid for pid in self.passages if pid not in judged]
            rows += [(qid, pid, 1, 0) for pid in judged]
            rows += [(qid, pid, 0, i + 1) for i, pid in enumerate(rng.sample(others, NEGATIVES))]
        columns = [list(c) for c in zip(*rows, strict=True)]
        table = pa.table([np.arange(len(rows)), *columns], schema=PAIRS)
        write_shards(out / "pairs", table, PAIRS, shards=1)
        self.pairs = table

    def _write_scores(self, out: Path) -> None:
        scores = np.random.default_rng(9).normal(size=self.pairs.num_rows).astype(np.float32)
        columns = [*self.pairs.select(["pair_id", "qid", "pid"]).columns, pa.array(scores)]
        write_shards(out, pa.table(columns, schema=SCORES), SCORES, shards=1)

    def _write_teacher(self, out: Path) -> None:
        body = bert_encoder(hidden=48, layers=4)
        save_ranker(build_ranker(body, seed=6, dropout=0.0), self.encoder, out)

    def _write_student(self, out: Path) -> None:
        """Its vocabulary has tokens that no text of the dataset has."""
        vocab = {**self.encoder.tokenizer.get_vocab()}
        vocab |= {f"elsewhere{i}": len(vocab) + i for i in range(UNUSED)}
        body = bert_encoder()
        body.set_input_embeddings(nn.Embedding(len(vocab), body.config.hidden_size, 0))
        body.config.vocab_size = len(vocab)
        model = build_ranker(body, seed=5, dropout=0.0)
        save_ranker(model, PairEncoder(BertTokenizer(vocab=vocab), MAX_LENGTH), out)


def _input(artifact: Artifact) -> dict[str, str]:
    return {"name": artifact.name, "digest": artifact.digest}
