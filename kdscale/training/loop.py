"""The training loop of every stage: teacher fine-tuning, LM distillation, ranker distillation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from kdscale.config import Train
from kdscale.store import Workspace
from kdscale.training import checkpoint
from kdscale.training.batches import Batch, BatchOrder, count_micro, rank_share, split_micro
from kdscale.training.engines import Engine
from kdscale.training.metrics import MetricsLog, batch_digest, read_rows
from kdscale.training.validate import Validator


def _no_notice(engine: Engine) -> bool:
    return False


@dataclass(frozen=True)
class Hooks:
    """Whom the loop tells, and asks, while it runs."""

    log: Callable[[dict[str, Any]], None]  # a row of the log; rank 0 only
    say: Callable[[str], None]  # a line for the user; rank 0 only
    notice: Callable[[Engine], bool] = _no_notice
    # asked after every step on every rank: is a checkpoint wanted at once? All get one answer.


class ItemSource(Protocol):
    """Items to train on: `lengths` [N] padded tokens an item, and how to make a batch of them."""

    lengths: np.ndarray

    def collate(self, items: np.ndarray, epoch: int) -> Batch: ...


def total_steps(train: Train, steps_per_epoch: int) -> int:
    if train.max_steps is not None:
        return train.max_steps
    return max(1, round(train.epochs * steps_per_epoch))


def learning_rate(train: Train, step: int, steps: int) -> float:
    """Linear warm-up to `lr`, then linear decay to zero; step counts from 0."""
    warmup = max(1, round(train.warmup * steps))
    if step < warmup:
        return train.lr * (step + 1) / warmup
    return train.lr * max(0.0, (steps - step) / max(1, steps - warmup))


def train_loop(
    *,
    module: nn.Module,
    engine: Engine,
    source: ItemSource,
    train: Train,
    weights: dict[str, float],
    seed: int,
    workspace: Workspace,
    log: Path,
    hooks: Hooks,
    validator: Validator | None = None,
) -> dict[str, Any]:
    """Train `module` (batch -> {term: [B] value an item}); the loss is the weighted sum.

    Resumes from the newest sound checkpoint of the workspace; its own are published at the end.
    log: where rank 0 keeps its metrics.jsonl; a validator's files are beside it. Returns steps,
    seconds and tokens/s, of the training without validation, and the validator's facts.
    """
    order = BatchOrder(source.lengths, train.batch_size, seed)
    steps = total_steps(train, order.steps_per_epoch)
    start = checkpoint.resume(workspace, module, engine, log, hooks.say)
    saver = checkpoint.Saver(workspace)
    first = engine.rank == 0
    if start and first:
        hooks.say(f"resumed from the checkpoint of step {start} of {steps}")
    module.train()
    if validator is not None:
        validator.begin(log.parent, order, module, engine, start)
    window = Window(engine, order, weights, steps, log, hooks, resumed=start > 0)
    done = start
    for batch in _prefetched(order, source, train, engine, start, steps):
        # Random numbers are a function of the step, so that a resumed run draws the same ones.
        torch.manual_seed(_step_seed(seed, batch.step, engine.rank))
        train_step(engine, batch, order.batch_size, window)
        rate = learning_rate(train, batch.step, steps)
        norm = engine.step(rate)
        done = batch.step + 1
        last = done == steps
        if validator is not None and validator.due(done, steps):
            window.pause(validator.validate(module, engine, done, window.elapsed()))
            if validator.stopped and not last and first:
                hooks.say(f"stopped at step {done} of {steps}: {validator.why()}")
            last = last or validator.stopped
        due = not last and train.checkpoint_every > 0 and done % train.checkpoint_every == 0
        noticed = not last and not due and hooks.notice(engine)
        # A checkpoint closes the row, so that no half-filled one has to travel with it.
        if done % train.log_every == 0 or last or due or noticed:
            window.close(done, rate, norm, validator)
        if due or noticed:
            saver.save(done, module, engine, log)
        if noticed:
            saver.wait()
        if last:
            break
    saver.wait()
    items = done * order.batch_size
    facts = {"steps": done, "resumed_at": start, "items_seen": items, **window.finish()}
    if validator is not None and first:
        facts.update(validator.finish(module), stopped_early=done < steps)
    return facts


def train_step(engine: Engine, batch: StepBatch, batch_size: int, window: Window) -> None:
    """Gradients of one step; the losses are added to the window.

    batch_size: items of the step, over all ranks
    """
    for index, micro in enumerate(batch.micros):
        terms = engine.forward(micro.batch.to(engine.device))
        scale = micro.items * engine.world / batch_size
        means = torch.stack([terms[name].float().mean() for name in window.names]) * scale
        engine.backward((means * window.weights).sum(), last=index == len(batch.micros) - 1)
        window.sums += means.detach()
    window.add(batch)


class Window:
    """What happened since the last row of the log, and the clock of the training, which stands
    still during validation.

    names, weights: of the loss terms, weights [terms]; sums: [terms] of their values
    """

    def __init__(
        self,
        engine: Engine,
        order: BatchOrder,
        weights: dict[str, float],
        steps: int,
        log: Path,
        hooks: Hooks,
        resumed: bool,
    ):
        self.names, self._by_name = list(weights), weights
        self.weights = torch.tensor(list(weights.values()), device=engine.device)
        self.sums = torch.zeros_like(self.weights)
        self._engine, self._order, self._steps, self._hooks = engine, order, steps, hooks
        self._writer = MetricsLog(log) if engine.rank == 0 else None
        # Of the processes of this run that were stopped.
        self._before = read_rows(log)[-1]["elapsed_s"] if resumed and engine.rank == 0 else 0.0
        self._began = self._closed = time.monotonic()
        self._all_tokens = 0
        self._clear()

    def _clear(self) -> None:
        self.sums.zero_()
        self._digests: list[str] = []
        self._tokens, self._waited = 0, 0.0

    def add(self, batch: StepBatch) -> None:
        """A step that was made."""
        self._digests.append(batch.digest)
        self._tokens += sum(micro.tokens for micro in batch.micros)
        self._waited += batch.waited_s

    def elapsed(self) -> float:
        """Seconds of training, those of the processes before this one too; rank 0 only."""
        return self._before + time.monotonic() - self._began

    def pause(self, seconds: float) -> None:
        """Seconds that were not of the training."""
        self._began += seconds
        self._closed += seconds

    def close(
        self, done: int, rate: float, norm: float | torch.Tensor, validator: Validator | None
    ) -> None:
        """Write a row (rank 0) and begin the next. Every rank calls it.

        Raises FloatingPointError where a loss is not a number.
        """
        means = self._engine.mean(self.sums / len(self._digests)).tolist()
        now = time.monotonic()
        tokens = self._tokens * self._engine.world
        self._all_tokens += tokens
        if self._writer is not None:
            terms = dict(zip(self.names, means, strict=True))
            row = {
                "step": done,
                "steps": self._steps,
                "epoch": done / self._order.steps_per_epoch,
                "lr": rate,
                "loss": sum(self._by_name[name] * value for name, value in terms.items()),
                "terms": terms,
                "grad_norm": float(norm),
                "tokens_per_s": tokens / max(1e-9, now - self._closed),
                "data_wait_s": self._waited,
                "elapsed_s": self._before + now - self._began,
                "time": time.time(),
                "batches": self._digests,
            }
            self._writer.write(row)
            self._hooks.log(row if validator is None else {**row, **validator.seen})
        if not np.isfinite(means).all():
            raise FloatingPointError(f"the loss is not a number at step {done}")
        self._clear()
        self._closed = now

    def finish(self) -> dict[str, float]:
        """Seconds and tokens a second of this process."""
        if self._writer is not None:
            self._writer.close()
        seconds = time.monotonic() - self._began
        return {"seconds": seconds, "tokens_per_s": self._all_tokens / max(seconds, 1e-9)}


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])


@dataclass(frozen=True)
class Micro:
    """What one forward pass of one rank takes: items: ours in it; tokens: of those, padded."""

    batch: Batch
    items: int
    tokens: int


@dataclass(frozen=True)
class StepBatch:
    """All that one rank reads in a step. digest: of the items of all ranks; waited_s: until it was
    there."""

    step: int
    micros: list[Micro]
    digest: str
    waited_s: float


def _prefetched(
    order: BatchOrder, source: ItemSource, train: Train, engine: Engine, start: int, steps: int
) -> Iterator[StepBatch]:
    """The batches of the steps from `start` on, made one step ahead."""

    def make(step: int) -> tuple[list[Micro], str]:
        epoch, items = order.batch(step)
        parts = count_micro(items, source.lengths, train.micro_tokens, engine.world)
        share = rank_share(items, engine.rank, engine.world)
        made = []
        for micro in split_micro(share, source.lengths, train.micro_tokens, parts):
            # Every rank takes part in every micro-batch: an idle one repeats an item, unweighted.
            used = micro if len(micro) else items[:1]
            batch = source.collate(used, epoch)
            made.append(Micro(batch, len(micro), int(source.lengths[micro].sum())))
        return made, batch_digest(items)

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(make, start) if start < steps else None
        for step in range(start, steps):
            assert ahead is not None
            waiting = time.monotonic()
            micros, digest = ahead.result()
            waited = time.monotonic() - waiting
            if step + 1 < steps:
                ahead = pool.submit(make, step + 1)
            yield StepBatch(step, micros, digest, waited)
