"""Validation of a student while it trains: dev and training queries ranked every so many steps.

Both kinds of query have candidates of the first stage to one depth, so that the gap of train and
dev is what the student remembers, not that one list is easier than the other.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from kdscale.config import Watch
from kdscale.data.candidates import candidates_by_query
from kdscale.data.dataset import Dataset, PairTokens
from kdscale.data.queries import DEV, TRAIN, choose_queries
from kdscale.data.runs import ranked
from kdscale.evaluation.measures import parse_measures, per_query
from kdscale.models.ranker import Scorer
from kdscale.training.batches import BatchOrder, rank_share
from kdscale.training.checkpoint import BEST, write_weights
from kdscale.training.engines import Engine
from kdscale.training.groups import GroupSource
from kdscale.training.metrics import WATCH, read_rows

SAMPLE_SEED = 0  # not the run's: runs of several seeds look at the same queries


class Sample:
    """Some judged queries of a split with their candidates, to be ranked again and again.

    pairs: [P] (token ids of the query, of the candidate), query by query
    """

    def __init__(
        self, dataset: Dataset, tokens: PairTokens, split: str, qids: list[str], depth: int
    ):
        self._qrels: dict[str, dict[str, int]] = {qid: {} for qid in qids}
        judgments = dataset.qrels(split, set(qids)).to_pydict().values()
        for qid, pid, grade in zip(*judgments, strict=True):
            self._qrels[qid][pid] = grade
        table = dataset.candidates(split, set(qids))
        self._candidates = candidates_by_query(table.filter(pc.less_equal(table["rank"], depth)))
        passages = tokens.passage_ids(pid for pids in self._candidates.values() for pid in pids)
        self.pairs = [
            (tokens.query_ids(split, qid), passages[pid])
            for qid, pids in self._candidates.items()
            for pid in pids
        ]

    def mean(self, measures: dict[str, Any], scores: np.ndarray) -> float:
        """Of the one measure, over all queries; one without candidates has 0. scores: [P]"""
        run, start = {}, 0
        for qid, pids in self._candidates.items():
            own = scores[start : start + len(pids)].tolist()
            run[qid] = [pid for pid, _ in ranked(zip(pids, own, strict=True))]
            start += len(pids)
        (values,) = per_query(measures, self._qrels, run).values()
        return float(values.mean())


class Validator:
    """Validates the ranker of a `RankerTraining`, logs the measures, and says when to stop.

    All that it decides by is in its log, `watch.jsonl`, which travels with the checkpoints: a
    resumed run decides as one that was never stopped. Validation draws no random numbers and
    changes no weight.

    stopped: dev has not risen for `patience` validations
    """

    def __init__(
        self,
        watch: Watch,
        ranker: PreTrainedModel,
        source: GroupSource,
        dataset: Dataset,
        tokens: PairTokens,
        precision: Literal["fp32", "bf16"],
    ):
        self._watch = watch
        self._measures = parse_measures([watch.measure], "ranker.watch.measure")
        self._ranker, self._encoder, self._precision = ranker, tokens.encoder(), precision
        self._pairs_per_item = source.pairs_per_item
        qids = dataset.queries(DEV)["qid"].to_pylist()
        dev = choose_queries(qids, watch.queries, SAMPLE_SEED)
        train = choose_queries(source.qids, watch.train_queries, SAMPLE_SEED)
        self._samples = [
            Sample(dataset, tokens, split, qids, watch.depth)
            for split, qids in ((DEV, dev), (TRAIN, train))
        ]
        self.stopped = False
        self._rows: list[dict[str, Any]] = []  # rank 0 only

    def begin(
        self, folder: Path, order: BatchOrder, module: nn.Module, engine: Engine, done: int
    ) -> None:
        """Validate what a training starts from, or take up what a checkpoint brought along.

        folder: where rank 0 keeps the log and the best weights; done: steps before this process
        """
        self._folder, self._order = folder, order
        log = folder / WATCH
        # Rows of another measure can be there: one may change it where it decides nothing.
        rows = read_rows(log) if log.is_file() else []
        self._rows = [row for row in rows if row["measure"] == self._watch.measure]
        if not done:
            self.validate(module, engine, 0, 0.0)

    def due(self, step: int, steps: int) -> bool:
        return step % self._watch.every == 0 or step == steps

    @property
    def seen(self) -> dict[str, Any]:
        """The measure on dev of the last validation, and the steps before it; rank 0 only."""
        last = self._rows[-1]
        return {"dev": last["dev"], "dev_step": last["step"]}

    def why(self) -> str:
        """Why it says to stop; rank 0 only."""
        best = self._rows[self._best()]
        return (
            f"{best['measure']} on dev has not risen above the {best['dev']:.3f} "
            f"of step {best['step']}"
        )

    def validate(self, module: nn.Module, engine: Engine, step: int, elapsed_s: float) -> float:
        """Rank the queries after `step` steps; returns the seconds that it took.

        Every rank calls it and scores its share. elapsed_s: of training, without validation.
        """
        began = time.monotonic()
        # Anew each time, since it puts the ranker into evaluation mode.
        scorer = Scorer(
            self._ranker, self._encoder, device=engine.device, precision=self._precision
        )
        scores = [_score(scorer, sample, engine) for sample in self._samples]
        module.train()
        if not all(np.isfinite(of_sample).all() for of_sample in scores):
            raise FloatingPointError(f"a score of the ranker is not a number at step {step}")
        stop = False
        if engine.rank == 0:
            dev, train = (
                sample.mean(self._measures, of_sample)
                for sample, of_sample in zip(self._samples, scores, strict=True)
            )
            best = all(dev > row["dev"] for row in self._rows)
            if best and self._watch.keep_best:
                write_weights(module, self._folder / BEST)
            queries = step * self._order.batch_size
            row = {
                "step": step,
                "epoch": step / self._order.steps_per_epoch,
                "queries_seen": queries,
                "pairs_seen": queries * self._pairs_per_item,
                "elapsed_s": elapsed_s,
                "measure": self._watch.measure,
                "dev": dev,
                "train": train,
                "best": best,
                "watch_s": time.monotonic() - began,
                "time": time.time(),
            }
            self._rows.append(row)
            with (self._folder / WATCH).open("a", encoding="utf-8") as log:
                log.write(json.dumps(row) + "\n")
            since = len(self._rows) - 1 - self._best()
            stop = 0 < self._watch.patience <= since
        self.stopped = bool(engine.agree(int(stop)))
        return time.monotonic() - began

    def finish(self, module: nn.Module) -> dict[str, Any]:
        """On rank 0, after the last step: put the best weights in place, if they are to be kept.

        Returns facts of the run.
        """
        if self._watch.keep_best:
            module.load_state_dict(load_file(self._folder / BEST))
        return {
            "best_step": self._rows[self._best()]["step"],
            "watched_s": sum(row["watch_s"] for row in self._rows),
        }

    def _best(self) -> int:
        """The place of the best row: the last that was better than all before it."""
        return max(i for i, row in enumerate(self._rows) if row["best"])


def _score(scorer: Scorer, sample: Sample, engine: Engine) -> np.ndarray:
    """[P] float32 logits of all pairs, on every rank."""
    own = rank_share(np.arange(len(sample.pairs)), engine.rank, engine.world)
    scores = torch.zeros(len(sample.pairs), dtype=torch.float64, device=engine.device)
    mine = scorer.score([sample.pairs[i] for i in own])
    scores[own] = torch.from_numpy(mine).to(scores)
    # Of each pair one rank has the score and the others zero. The mean over ranks times their
    # number is that score again, in float64 near enough for float32 to be exact.
    return (engine.mean(scores) * engine.world).float().cpu().numpy()
