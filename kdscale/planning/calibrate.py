"""What this machine does a second, measured.

Two encoders are run, one as large as a teacher and one as small as a student: from their times
follow the rates of matrix products and of the values written beside them.
"""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import torch
from transformers import BertConfig, BertModel

from kdscale.cluster.machine import limit_threads, memory
from kdscale.cluster.session import ray_session
from kdscale.config import Cluster, Lm, Shape, Train
from kdscale.planning.rates import ASSUMED, Compute, Rates
from kdscale.planning.shapes import Model, student_model
from kdscale.progress import Reporter

LARGE = Model("large", 6, 384, 12, 1536, 30_522, 384)
SMALL = student_model(Shape("small", 2, 192, 6, 768), LARGE)
LENGTH = 64  # tokens of a pair
# As many as the stages run at a time: what does not fit the caches is slower.
SCORED, TRAINED = 128, 32
REPEATS = 3
BUSY_PERCENT = 20
SHORTEST, TEXT_COPIES = 60, 2  # characters of a paragraph; how often each is taken
QUERIES, QUERY_WORDS = 200, 8


def calibrate(reporter: Reporter, ray: bool = True) -> Rates:
    """ray: measure the start of its workers too, which takes most of the time."""
    busy = psutil.cpu_percent(interval=1.0)
    if busy > BUSY_PERCENT:
        reporter.warn(
            f"the CPUs are {busy:.0f} % busy with something else: measure an idle machine"
        )
    torch.manual_seed(0)
    limit_threads()
    threads = torch.get_num_threads()
    models = {model: _bert(model) for model in (LARGE, SMALL)}
    with reporter.task("forward passes and training steps", 4) as task:
        forward, training = {}, {}
        for model, bert in models.items():
            forward[model] = _best(partial(_forward, bert))
            task.advance()
            training[model] = _best(partial(_train, bert))
            task.advance()
    large, small = (SCORED / forward[model] for model in (LARGE, SMALL))
    reporter.info(
        f"  matrix products {_peak():,.0f} GFLOP/s; forward passes of pairs of {LENGTH} tokens: "
        f"{large:,.0f}/s of 6 x 384, {small:,.0f}/s of 2 x 192"
    )
    rates = replace(
        ASSUMED,
        name="cpu",
        measured=True,
        forward=_solve(forward, SCORED),
        training=_solve(training, TRAINED),
        parameters=_update(models[SMALL]),
        lm=_language_model(models, forward, training, reporter),
        memory=float(memory()[0]),
        cores=threads,
        one_thread=_one_thread(models[SMALL], forward[SMALL], threads),
        **_text_rates(reporter),
    )
    if not ray:
        return rates
    ray_s, actor_s, training_s = _starts(reporter)
    return replace(rates, ray_start=ray_s, actor_start=actor_s, training_start=training_s)


def _bert(model: Model) -> BertModel:
    config = BertConfig(
        vocab_size=model.vocabulary, hidden_size=model.hidden, num_hidden_layers=model.layers,
        num_attention_heads=model.heads, intermediate_size=model.intermediate,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertModel._from_config(config, attn_implementation="sdpa")


def _inputs(pairs: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(1_000, 30_000, (pairs, LENGTH))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.inference_mode()
def _forward(bert: BertModel) -> None:
    bert.eval()(**_inputs(SCORED))


def _train(bert: BertModel) -> None:
    bert.train()(**_inputs(TRAINED)).last_hidden_state[:, 0].square().mean().backward()
    bert.zero_grad(set_to_none=True)


def _best(work: Callable[[], Any]) -> float:
    """Seconds of the fastest of some runs, after one that does not count: whatever else the
    machine does can only make them slower."""
    work()
    return min(_timed(work)[0] for _ in range(REPEATS))


def _solve(seconds: dict[Model, float], pairs: int) -> Compute:
    """The two rates from the two times of so many pairs; where the times say that values cost
    nothing (a machine that was disturbed), all goes to the matrix products."""
    work = [[pairs * m.flops(LENGTH), pairs * m.elements(LENGTH)] for m in seconds]
    a, b = np.linalg.solve(np.array(work), np.array(list(seconds.values())))
    if a <= 0 or b <= 0:
        return Compute(work[0][0] / seconds[LARGE], float("1e15"))
    return Compute(1 / a, 1 / b)


def _peak() -> float:
    """GFLOP/s of one large matrix product."""
    a, b = torch.randn(1_024, 1_024), torch.randn(1_024, 1_024)
    return 2 * 1_024**3 / _best(lambda: a @ b) / 1e9


def _update(bert: BertModel) -> float:
    """Parameters a second of the optimizer, clipping included."""
    from kdscale.training.engines import clip, make_optimizer

    optimizer = make_optimizer(bert, Train())
    for parameter in bert.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def step() -> None:
        clip(optimizer, 1.0)
        optimizer.step()

    seconds = _best(step)
    bert.zero_grad(set_to_none=True)
    return sum(p.numel() for p in bert.parameters()) / seconds


def _language_model(
    models: dict[Model, BertModel],
    forward: dict[Model, float],
    training: dict[Model, float],
    reporter: Reporter,
) -> float:
    """A step of the language model's distillation over the passes that it is made of."""
    from kdscale.training.blocks import BlockBatch
    from kdscale.training.intermediate import IntermediateLosses
    from kdscale.training.modules import LmTraining

    teacher, student = models[LARGE].eval(), models[SMALL].train()
    losses = Lm().losses
    intermediate = IntermediateLosses(SMALL.hidden, teacher, [3, 6], losses, LARGE.heads, 0)
    module = LmTraining(student, intermediate)

    def step() -> None:
        terms = module(BlockBatch(**_inputs(TRAINED)))
        sum(terms[name].mean() for name in losses).backward()
        module.zero_grad(set_to_none=True)

    with reporter.task("a step of language-model distillation"):
        made_of = forward[LARGE] * TRAINED / SCORED + training[SMALL]
        return _best(step) / made_of


def _one_thread(bert: BertModel, all_threads_s: float, threads: int) -> float:
    torch.set_num_threads(1)
    try:
        return all_threads_s / _best(lambda: _forward(bert))
    finally:
        torch.set_num_threads(threads)


def _text_rates(reporter: Reporter) -> dict[str, float]:
    """Of one core, on paragraphs of docstrings: cleaning, tokenising, a BM25 index, a search."""
    from kdscale.data.bm25 import Bm25
    from kdscale.data.clean import clean_table
    from kdscale.data.parallel import InProcess
    from kdscale.data.tokenise import tokenise_table

    texts = _paragraphs()
    chars = sum(map(len, texts))
    table = pa.table({"pid": [f"p{i}" for i in range(len(texts))], "text": texts})
    queries = [" ".join(text.split()[:QUERY_WORDS]) for text in texts[:QUERIES]]
    with reporter.task("cleaning, tokenising, BM25", 4) as task:
        clean_s, _ = _timed(lambda: clean_table(table, 10_000))
        task.advance()
        with tempfile.TemporaryDirectory() as folder, _environment(TOKENIZERS_PARALLELISM="false"):
            path = _word_pieces(texts, Path(folder))
            tokenise_table(table.slice(0, 1), path)  # reads the file
            tokenise_s, _ = _timed(lambda: tokenise_table(table, path))
        task.advance()
        with tempfile.TemporaryDirectory() as folder:
            index = Bm25(queries, 1.2, 0.75, Path(folder), InProcess())
            index_s, _ = _timed(lambda: index.index([table]))
            task.advance()
            qids = [str(i) for i in range(QUERIES)]
            search_s, _ = _timed(lambda: index.search(qids, queries, 50))
            task.advance()
    return {
        "clean_chars": chars / clean_s,
        "tokenise_chars": chars / tokenise_s,
        "index_chars": chars / index_s,
        "search_passages": QUERIES * len(texts) / search_s,
    }


def _paragraphs() -> list[str]:
    """English text that every installation has."""
    found: dict[str, None] = {}
    for module in (np, torch, torch.nn, torch.nn.functional):
        for name in dir(module):
            doc = getattr(getattr(module, name), "__doc__", None)
            if isinstance(doc, str):
                found.update(dict.fromkeys(" ".join(p.split()) for p in doc.split("\n\n")))
    return [text for text in found if len(text) >= SHORTEST] * TEXT_COPIES


def _word_pieces(texts: list[str], folder: Path) -> str:
    """A tokenizer in BERT's manner, whose pieces are the words and the letters of the texts."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = Counter(word for text in texts for word in text.lower().split())
    letters = sorted({letter for word in words for letter in word})
    pieces = ["[UNK]", *letters, *(f"##{letter}" for letter in letters)]
    pieces += [word for word, count in words.items() if count > TEXT_COPIES]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder / "tokenizer.json")


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _starts(reporter: Reporter) -> tuple[float, float, float]:
    """Seconds until Ray, an actor that scores, and a worker that trains are ready."""
    ray_s, _ = _timed(lambda: _start_ray(reporter))
    with ray_session(Cluster()) as ray:
        reporter.info("  starting an actor and a training worker")
        actor_s, _ = _timed(lambda: ray.get(ray.remote(num_cpus=0.5)(_import_scoring).remote()))
        training_s, _ = _timed(lambda: _start_training(ray))
    return ray_s, actor_s, training_s


def _start_ray(reporter: Reporter) -> None:
    with ray_session(Cluster(), reporter):
        pass


def _import_scoring() -> None:
    import kdscale.models.ranker
    import kdscale.stages.score  # noqa: F401


def _start_training(ray: Any) -> None:
    import ray.train
    from ray.train.torch import TorchTrainer

    with tempfile.TemporaryDirectory(prefix="kdscale-ray-") as scratch:
        TorchTrainer(
            _begin_training,
            scaling_config=ray.train.ScalingConfig(
                num_workers=1, resources_per_worker={"CPU": 0.5}
            ),
            run_config=ray.train.RunConfig(
                name=f"kdscale-{uuid.uuid4().hex[:12]}", storage_path=scratch
            ),
        ).fit()


def _begin_training() -> None:
    from ray.train.torch import get_device

    import kdscale.training.tasks  # noqa: F401
    from kdscale.training.engines import DeepSpeedEngine

    DeepSpeedEngine(torch.nn.Linear(8, 8), Train(), get_device())
