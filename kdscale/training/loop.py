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
from kdscale.data.batches import BatchOrder, count_micro, rank_share, split_micro
from kdscale.store import Workspace
from kdscale.training import checkpoint
from kdscale.training.engines import Engine
from kdscale.training.metrics import MetricsLog, batch_digest, read_rows
from kdscale.training.watch import Watcher


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

    def collate(self, items: np.ndarray, epoch: int) -> dict[str, Any]: ...


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
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Train `module` (batch -> {term: [B] value an item}); the loss is the weighted sum.

    Goes on from the newest sound checkpoint of the workspace; at the end its own are published.
    log: where rank 0 keeps its metrics.jsonl; a watcher's files are beside it. Returns steps,
    seconds and tokens/s, of the training without what a watcher took, and the watcher's facts.
    """
    order = BatchOrder(source.lengths, train.batch_size, seed)
    steps = total_steps(train, order.steps_per_epoch)
    start = checkpoint.resume(workspace, module, engine, log, hooks.say)
    saver = checkpoint.Saver(workspace)
    writer = MetricsLog(log) if engine.rank == 0 else None
    if start and engine.rank == 0:
        hooks.say(f"going on from the checkpoint of step {start} of {steps}")
    module.train()
    # Of the processes that this one goes on from.
    seconds_before = read_rows(log)[-1]["elapsed_s"] if start and engine.rank == 0 else 0.0
    if watcher is not None:
        watcher.begin(log.parent, order)
        if not start:
            watcher.look(module, engine, 0, 0.0)
    done = start
    began = logged_at = time.monotonic()
    tokens = tokens_since = 0
    waited = 0.0
    vector = torch.tensor(list(weights.values()), device=engine.device)
    sums = torch.zeros_like(vector)
    batches: list[str] = []  # digests of those since the last row
    for step, micros, digest, waited_s in _prefetched(order, source, train, engine, start, steps):
        # Random numbers are a function of the step, so that a resumed run draws the same ones.
        torch.manual_seed(_step_seed(seed, step, engine.rank))
        waited += waited_s
        for index, (batch, share, count) in enumerate(micros):
            terms = engine.forward(_to_device(batch, engine.device))
            scale = share * engine.world / order.batch_size
            means = torch.stack([terms[name].float().mean() for name in weights]) * scale
            engine.backward((means * vector).sum(), last=index == len(micros) - 1)
            sums += means.detach()
            tokens_since += count
        norm = engine.step(learning_rate(train, step, steps))
        batches.append(digest)
        done = step + 1
        last = done == steps
        if watcher is not None and watcher.due(done, steps):
            elapsed = seconds_before + time.monotonic() - began
            looked_s = watcher.look(module, engine, done, elapsed)
            began, logged_at = began + looked_s, logged_at + looked_s
            if watcher.stopped and not last:
                last = True
                if engine.rank == 0:
                    hooks.say(f"stopped at step {done} of {steps}: {watcher.why()}")
        due = not last and bool(train.checkpoint_every) and done % train.checkpoint_every == 0
        noticed = not last and not due and hooks.notice(engine)
        due = due or noticed
        # A checkpoint closes the row, so that no half-filled one has to travel with it.
        if done % train.log_every == 0 or last or due:
            means = (engine.mean(sums / len(batches))).tolist()
            now = time.monotonic()
            tokens += tokens_since * engine.world
            if writer is not None:
                named = dict(zip(weights, means, strict=True))
                row = {
                    "step": done,
                    "steps": steps,
                    "epoch": done / order.steps_per_epoch,
                    "lr": learning_rate(train, step, steps),
                    "loss": sum(weights[name] * value for name, value in named.items()),
                    "terms": named,
                    "grad_norm": float(norm),
                    "tokens_per_s": tokens_since * engine.world / max(1e-9, now - logged_at),
                    "data_wait_s": waited,
                    "elapsed_s": seconds_before + now - began,
                    "time": time.time(),
                    "batches": batches,
                }
                writer.write(row)
                hooks.log(row if watcher is None else {**row, **watcher.seen})
            if not np.isfinite(means).all():
                raise FloatingPointError(f"the loss is not a number at step {done}")
            sums.zero_()
            batches = []
            tokens_since = 0
            waited, logged_at = 0.0, now
        if due:
            saver.save(done, module, engine, log)
        if noticed:
            saver.wait()
        if last:
            break
    saver.wait()
    if writer is not None:
        writer.close()
    seconds = time.monotonic() - began
    facts = {
        "steps": done,
        "resumed_at": start,
        "items_seen": done * order.batch_size,
        "seconds": seconds,
        "tokens_per_s": tokens / max(seconds, 1e-9),
    }
    if watcher is not None and engine.rank == 0:
        facts.update(watcher.finish(module), stopped_early=done < steps)
    return facts


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])


def _prefetched(
    order: BatchOrder,
    source: ItemSource,
    train: Train,
    engine: Engine,
    start: int,
    steps: int,
) -> Iterator[tuple[int, list[tuple[dict[str, Any], int, int]], str, float]]:
    """(step, [(batch, items of ours in it, tokens)], the digest of all ranks' items, seconds
    waited), made one step ahead."""

    def make(step: int) -> tuple[list[tuple[dict[str, Any], int, int]], str]:
        epoch, items = order.batch(step)
        parts = count_micro(items, source.lengths, train.micro_tokens, engine.world)
        share = rank_share(items, engine.rank, engine.world)
        made = []
        for micro in split_micro(share, source.lengths, train.micro_tokens, parts):
            # Every rank takes part in every micro-batch: an idle one repeats an item, unweighted.
            used = micro if len(micro) else items[:1]
            batch = source.collate(used, epoch)
            made.append((batch, len(micro), int(source.lengths[micro].sum())))
        return made, batch_digest(items)

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(make, start) if start < steps else None
        for step in range(start, steps):
            waiting = time.monotonic()
            micros, digest = ahead.result()
            waited = time.monotonic() - waiting
            if step + 1 < steps:
                ahead = pool.submit(make, step + 1)
            yield step, micros, digest, waited


def _to_device(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: _to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list):
        return [_to_device(value, device) for value in batch]
    return batch
