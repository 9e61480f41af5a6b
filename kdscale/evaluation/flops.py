"""What a ranker costs, counted: floating-point operations, parameters, bytes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel


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
