"""Others' ways of the two training stages, for benchmarks/training.py: each runs so many steps and
returns its seconds.

Students, items, their order and the optimizer's settings are those of our loop; the rest is each
one's own.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.nn import functional as F

from kdscale.data.dataset import Dataset
from kdscale.losses.ranking import margin_mse


class Groups:
    """The groups that our loop reads, in its order, as texts with the teacher's scores.

    rows: a (texts of the query and of G passages, [G] scores) a group
    """

    def __init__(self, source: Any, order: Any, steps: int, texts: Any, scores: np.ndarray):
        self.rows = []
        for step in range(steps):
            epoch, items = order.batch(step)
            for item in items:
                rows = source.rows(int(item), epoch)
                self.rows.append((texts(rows), scores[rows].tolist()))
        self.batch_size = order.batch_size
        self.steps = steps

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[list[str], list[float]]:
        return self.rows[index]

    def columns(self) -> dict[str, list]:
        size = len(self.rows[0][1])
        names = ["query", "positive", *(f"negative_{i}" for i in range(1, size))]
        columns = {n: [texts[i] for texts, _ in self.rows] for i, n in enumerate(names)}
        return {**columns, "label": [scores for _, scores in self.rows]}


def texts_of(dataset: Dataset, pairs: pa.Table) -> Any:
    """rows -> the query's text and the passages'."""
    qids, pids = pairs["qid"].to_pylist(), pairs["pid"].to_pylist()
    queries = dataset.query_texts("train", set(qids))
    passages = dataset.passage_texts(set(pids))
    return lambda rows: [queries[qids[rows[0]]], *(passages[pids[row]] for row in rows)]


def arguments(steps: int, batch_size: int, lr: float, folder: str) -> dict[str, Any]:
    """Of the trainers of Hugging Face and sentence-transformers."""
    return {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": batch_size,
        "learning_rate": lr,
        "warmup_steps": max(1, round(0.1 * steps)),
        "adam_beta2": 0.98,
        "adam_epsilon": 1e-6,
        "weight_decay": 0.01,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "logging_strategy": "no",
    }


def sentence_transformers(
    folder: Path,
    groups: Groups,
    max_length: int,
    lr: float,
    device: str = "cpu",
    bf16: bool = False,
    seed: int = 0,
    save_to: Path | None = None,
) -> float:
    """CrossEncoderTrainer with MarginMSE on the scores that are there already."""
    from datasets import Dataset
    from sentence_transformers.cross_encoder import (
        CrossEncoder,
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
    )
    from sentence_transformers.cross_encoder.losses import MarginMSELoss
    from torch.utils.data import BatchSampler, SequentialSampler
    from transformers import PrinterCallback

    class InOrder(CrossEncoderTrainer):
        def get_batch_sampler(
            self, dataset: Any, batch_size: int, drop_last: bool, **_: Any
        ) -> Any:
            return BatchSampler(SequentialSampler(dataset), batch_size, drop_last)

    model = CrossEncoder(str(folder), num_labels=1, max_length=max_length, device=device)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = InOrder(
            model=model,
            args=CrossEncoderTrainingArguments(
                **arguments(groups.steps, groups.batch_size, lr, scratch), bf16=bf16, seed=seed
            ),
            train_dataset=Dataset.from_dict(groups.columns()),
            loss=MarginMSELoss(model),
        )
        trainer.remove_callback(PrinterCallback)
        seconds = _timed(trainer.train)
    if save_to is not None:
        model.save_pretrained(str(save_to))
    return seconds


def hugging_face(
    model: nn.Module, tokenizer: Any, groups: Groups, max_length: int, lr: float,
    bf16: bool = False,
) -> float:  # fmt: skip
    """Trainer: the batch's pairs are tokenised by the collator and padded to the longest."""
    from transformers import Trainer, TrainingArguments

    def collate(rows: list) -> dict[str, Any]:
        queries = [texts[0] for texts, _ in rows for _ in texts[1:]]
        passages = [text for texts, _ in rows for text in texts[1:]]
        batch = tokenizer(
            queries, passages, truncation=True, max_length=max_length, padding=True,
            return_tensors="pt",
        )  # fmt: skip
        return {**batch, "labels": torch.tensor([scores for _, scores in rows])}

    class Distilling(Trainer):
        def compute_loss(self, model: Any, inputs: Any, **_: Any) -> torch.Tensor:
            teacher = inputs.pop("labels")
            return group_loss(model(**inputs).logits.view(teacher.shape), teacher)

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(groups)

    return _train(Distilling, TrainingArguments, model, groups, collate, groups, lr, bf16)


def tinybert_ranker(
    student: nn.Module, teacher: nn.Module, tokenizer: Any, groups: Groups, max_length: int,
    lr: float,
) -> float:  # fmt: skip
    """TinyBERT's task distillation: features made before, all padded to the longest allowed, and
    the teacher read in every step."""
    student, features = copy.deepcopy(student).train(), []
    for texts, _ in groups.rows:
        features.append(
            tokenizer(
                texts[:1] * (len(texts) - 1), texts[1:], truncation=True, max_length=max_length,
                padding="max_length", return_tensors="pt",
            )
        )  # fmt: skip
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, foreach=False)

    def run() -> None:
        for step in range(groups.steps):
            rows = features[step * groups.batch_size : (step + 1) * groups.batch_size]
            batch = {k: torch.cat([row[k] for row in rows]) for k in rows[0]}
            with torch.no_grad():
                target = teacher(**batch).logits
            _update(F.mse_loss(student(**batch).logits, target), student, optimizer)

    return _timed(run)


def tinybert_lm(
    student: nn.Module, teacher: nn.Module, layer_map: list[int], blocks: torch.Tensor,
    batch_size: int, steps: int, lr: float,
) -> float:  # fmt: skip
    """TinyBERT's general distillation: both models give their hidden states and attentions, and
    each layer is compared with its own. blocks: [N, T] ids, no padding."""
    student = copy.deepcopy(student).train()
    for model in (student, teacher):
        model.set_attn_implementation("eager")  # the other gives no attentions
    fit = nn.Linear(student.config.hidden_size, teacher.config.hidden_size)
    optimizer = torch.optim.AdamW([*student.parameters(), *fit.parameters()], lr=lr, foreach=False)
    wanted = {"output_hidden_states": True, "output_attentions": True}

    def run() -> None:
        for step in range(steps):
            ids = blocks[step * batch_size : (step + 1) * batch_size]
            with torch.no_grad():
                theirs = teacher(input_ids=ids, **wanted)
            ours = student(input_ids=ids, **wanted)
            at = [0, *layer_map]
            loss = sum(
                F.mse_loss(fit(ours.hidden_states[i]), theirs.hidden_states[n])
                for i, n in enumerate(at)
            )
            for i, n in enumerate(layer_map):
                a, b = ours.attentions[i], theirs.attentions[n - 1]
                if a.shape[1] != b.shape[1]:  # of another number of heads: their mean
                    a, b = a.mean(1), b.mean(1)
                loss = loss + F.mse_loss(a, b)
            _update(loss, student, optimizer)

    seconds = _timed(run)
    teacher.set_attn_implementation("sdpa")
    return seconds


def hugging_face_lm(
    module: Callable[[], nn.Module], weights: dict[str, float], blocks: torch.Tensor,
    batch_size: int, steps: int, lr: float, bf16: bool = False,
) -> float:  # fmt: skip
    """Trainer over our own module and losses: what its loop adds."""
    from transformers import Trainer, TrainingArguments

    class Distilling(Trainer):
        def compute_loss(self, model: Any, inputs: Any, **_: Any) -> torch.Tensor:
            terms = model(inputs)
            return sum(weight * terms[name].mean() for name, weight in weights.items())

    def collate(rows: list) -> dict[str, Any]:
        ids = torch.stack(rows)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    class Sized:
        def __len__(self) -> int:
            return len(blocks)

        def __getitem__(self, index: int) -> torch.Tensor:
            return blocks[index]

    groups = type("Shape", (), {"steps": steps, "batch_size": batch_size})
    return _train(Distilling, TrainingArguments, module(), Sized(), collate, groups, lr, bf16)


def group_loss(scores: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """MarginMSE of groups without padding, the relevant passage first. [B, G] each."""
    labels = torch.zeros_like(scores)
    labels[:, 0] = 1
    mask = torch.ones_like(scores, dtype=torch.bool)
    return margin_mse(scores, teacher, labels, mask).mean()


def _train(
    trainer: Any, settings: Any, model: nn.Module, data: Any, collate: Any, shape: Any, lr: float,
    bf16: bool,
) -> float:  # fmt: skip
    from transformers import PrinterCallback

    with tempfile.TemporaryDirectory() as scratch:
        args = settings(
            **arguments(shape.steps, shape.batch_size, lr, scratch),
            bf16=bf16,
            remove_unused_columns=False,
        )
        made = trainer(
            model=copy.deepcopy(model).train(), args=args, train_dataset=data,
            data_collator=collate,
        )  # fmt: skip
        made.remove_callback(PrinterCallback)
        return _timed(made.train)


def _update(loss: torch.Tensor, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def _timed(run: Any) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
