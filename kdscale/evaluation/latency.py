"""What a ranker costs: operations, parameters and bytes, counted; and how long a CPU needs for one
query's candidates, measured.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from kdscale.cluster.machine import cpus
from kdscale.models.encode import PairEncoder
from kdscale.models.packed import first_token_only
from kdscale.models.ranker import BATCH_TOKENS, plan_batches
from kdscale.progress import Task


@torch.inference_mode()
def forward_flops(model: PreTrainedModel, length: int) -> int:
    """Operations of the matrix products in a forward of one pair of `length` tokens: a
    multiplication and an addition count as two.

    Counted as they run. Of a BERT layer that is 8·L·h² for the projections, 4·L·h·i for the
    feed-forward part, and 4·L²·h for the attention itself (L tokens, hidden size h,
    intermediate size i).
    """
    ids = torch.zeros(1, length, dtype=torch.long, device=model.device)
    # The fused attention of the CPU is not among the operations that torch counts.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return counter.get_total_flops()


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """All parameters, and those of the embedding tables (which cost memory, but no time)."""
    tables = {
        id(weight): weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for weight in module.parameters()
    }
    return sum(p.numel() for p in model.parameters()), sum(tables.values())


def weight_bytes(directory: Path) -> int:
    """Bytes on disk of an exported model's weights."""
    return sum(p.stat().st_size for p in Path(directory).glob("*.safetensors"))


Ranker = Callable[..., Any]  # a torch ranker, or what takes the same tensors by the same names
Request = tuple[str, Sequence[str]]  # a query and the passages to rank, as texts


@dataclass(frozen=True)
class Timings:
    """Milliseconds, one value a query: from texts to the model's input tensors, and the model's
    forward passes over them."""

    tokenise_ms: np.ndarray
    forward_ms: np.ndarray

    @property
    def total_ms(self) -> np.ndarray:
        return self.tokenise_ms + self.forward_ms

    def summary(self) -> dict[str, dict[str, float]]:
        """Median and 95th percentile of each part."""
        return {
            part: {
                "median": round(float(np.median(values)), 3),
                "p95": round(float(np.percentile(values, 95)), 3),
            }
            for part, values in self.parts().items()
        }

    def parts(self) -> dict[str, np.ndarray]:
        return {
            "tokenise_ms": self.tokenise_ms,
            "forward_ms": self.forward_ms,
            "total_ms": self.total_ms,
        }


def speedup(slow: np.ndarray, fast: np.ndarray) -> float:
    """How many times faster: the ratio of the medians."""
    return round(float(np.median(slow) / np.median(fast)), 3)


def measure_latency(
    rankers: Mapping[str, tuple[Ranker, PairEncoder]],
    requests: Sequence[Request],
    threads: int,
    task: Task,
) -> dict[str, Timings]:
    """Time every ranker on every request, after one warm-up request each. A torch model is put on
    the CPU and run as `Scorer` does; an ONNX session keeps the threads that it was made with.

    The rankers take turns, request by request, and each request begins with another ranker: a
    machine that slows down for a while slows them all down, and ratios stay fair.
    """
    names = list(rankers)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    with cpu_threads(threads), torch.inference_mode(), ExitStack() as as_scored:
        for model, encoder in rankers.values():
            if isinstance(model, nn.Module):
                model.to("cpu").eval()
                as_scored.enter_context(first_token_only(model))
            _rerank(model, encoder, requests[0])
        for number, request in enumerate(requests):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                seconds[name].append(_rerank(*rankers[name], request))
                task.advance()
    return {name: Timings(*(1e3 * np.array(seconds[name]).T)) for name in names}


def _rerank(model: Ranker, encoder: PairEncoder, request: Request) -> tuple[float, float]:
    """Seconds to tokenise and to run the model, for one request."""
    query, passages = request
    began = time.perf_counter()
    pairs = encoder.tokenise_request(query, passages)
    lengths = np.array([encoder.length(len(q), len(p)) for q, p in pairs])
    batches = [
        encoder.collate([pairs[i] for i in batch])
        for batch in plan_batches(lengths, BATCH_TOKENS["cpu"])
    ]
    tokenised = time.perf_counter()
    for batch in batches:
        model(**batch)
    return tokenised - began, time.perf_counter() - tokenised


@contextmanager
def cpu_threads(threads: int) -> Iterator[None]:
    """Give torch so many threads and the tokenizer one, and put back what was there."""
    before, tokenizer = torch.get_num_threads(), os.environ.get("TOKENIZERS_PARALLELISM")
    torch.set_num_threads(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if tokenizer is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = tokenizer


def hardware() -> dict[str, Any]:
    """What the times were measured on."""
    return {
        "cpu": _cpu_name(),
        "cores": cpus(),
        "system": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "precision": "fp32",
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
