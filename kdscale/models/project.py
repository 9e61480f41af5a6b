"""A narrow encoder that starts out as an approximation of a wide one.

The wide model's states on real text lie near a subspace: for MiniLM half of the 384 directions
hold nine tenths of them, while the singular vectors of the embedding table do no better than
directions drawn at random. `principal_basis` finds that subspace, V. The narrow model's stream of
states is V^T times the wide one's, so every matrix that reads the stream is multiplied by V from
the right and every matrix that writes to it by V^T from the left. Heads and neurons are no part of
the stream: they are chosen, not mixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from kdscale.errors import KdscaleError
from kdscale.models.capture import Capture, Layer, encoder_layers, qkv_linears

TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings")
SAMPLE_TOKENS = 8_192  # of text, for the basis: many times the directions to be found


@torch.no_grad()
def principal_basis(teacher: PreTrainedModel, width: int, blocks: torch.Tensor) -> torch.Tensor:
    """V [H, width]: narrow states s stand for wide ones V s, and V^T y is the narrow form of y.

    blocks: [N, T] token ids of real text, the first SAMPLE_TOKENS of which are read. V V^T
    projects on the width - 1 strongest directions of the states of all layers; the last one is
    left out because layer normalisation removes it: V maps the narrow all-ones direction to zero.
    At the teacher's own width V is the identity. Raises KdscaleError for a larger width.
    """
    full = teacher.config.hidden_size
    if width > full:
        raise KdscaleError(
            f"lm.init svd: the student's hidden size {width} is above the teacher's {full}; "
            "use a narrower student, or init random"
        )
    if width == full:
        return torch.eye(full)
    moments = torch.zeros(full, full, dtype=torch.float64)
    for part in sample_rows(blocks).split(16):
        with Capture(teacher, hidden=True, embedding=True) as capture:
            teacher(input_ids=part.to(teacher.device))
        assert capture.embedding is not None  # it was asked for
        for states in (capture.embedding, *capture.hidden):
            states = states.flatten(0, 1).double().cpu()
            states = states - states.mean(1, keepdim=True)
            moments += states.T @ states
    strongest = torch.linalg.eigh(moments).eigenvectors.flip(1)[:, : width - 1]
    return (strongest @ zero_sum_rotation(width)).float()


def sample_rows(blocks: torch.Tensor) -> torch.Tensor:
    """[n, T] of the blocks [N, T]: the first SAMPLE_TOKENS of their text."""
    return blocks[: max(1, SAMPLE_TOKENS // blocks.shape[1])].long()


@torch.no_grad()
def project_embeddings(
    student: PreTrainedModel, teacher: PreTrainedModel, basis: torch.Tensor
) -> None:
    """Fill the tables of `student`, as wide as its states, with what `basis` keeps of the
    teacher's."""
    ours: Any = student.embeddings
    theirs: Any = teacher.embeddings
    for name in filter(partial(hasattr, theirs), TABLES):  # DistilBERT has no token types
        getattr(ours, name).weight.copy_(getattr(theirs, name).weight @ basis)
    _project_norm(ours.LayerNorm, theirs.LayerNorm, basis)


@torch.no_grad()
def project_layers(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    layer_map: Sequence[int],
    basis: torch.Tensor,
) -> None:
    """Fill the layers of `student` with what `basis` keeps of those of `teacher`; layer_map as in
    `build_student`.

    What has no counterpart in the teacher (more heads, wider heads, more neurons than it has,
    and the pooler) keeps the values it has.
    """
    sources = encoder_layers(teacher)
    heads = student.config.num_attention_heads, teacher.config.num_attention_heads
    for layer, number in zip(encoder_layers(student), layer_map, strict=True):
        source = sources[number - 1]
        ours, theirs = _parts(layer), _parts(source)
        _project_attention(layer, source, basis, *heads)
        _project_norm(ours.norm, theirs.norm, basis)
        _project_ffn(ours, theirs, basis)
        _project_norm(ours.last_norm, theirs.last_norm, basis)


def check_like_bert(teacher: PreTrainedModel) -> None:
    """Raise KdscaleError for a teacher that cannot be projected: other layers than BERT's or
    DistilBERT's, or positions that are relative."""
    table = teacher.get_input_embeddings()
    attention = getattr(encoder_layers(teacher)[0], "attention", None)
    attention = getattr(attention, "self", attention)
    like_bert = hasattr(attention, "query") or hasattr(attention, "q_lin")
    if not like_bert or table.embedding_dim != teacher.config.hidden_size:
        raise KdscaleError(
            f"lm.init svd: {type(teacher).__name__} does not have BERT's layers, or its embeddings "
            "are not as wide as its layers; set lm.init to layers or random"
        )


class _Parts(NamedTuple):
    """What of a layer comes after its queries, keys and values."""

    out: nn.Linear
    norm: nn.LayerNorm
    reads: nn.Linear
    writes: nn.Linear
    last_norm: nn.LayerNorm


def _parts(layer: Layer) -> _Parts:
    attention = layer.attention
    if hasattr(layer, "sa_layer_norm"):  # DistilBERT
        ffn, norms = layer.ffn, (layer.sa_layer_norm, layer.output_layer_norm)
        return _Parts(attention.out_lin, norms[0], ffn.lin1, ffn.lin2, norms[1])
    output = attention.output
    reads, writes = layer.intermediate.dense, layer.output.dense
    return _Parts(output.dense, output.LayerNorm, reads, writes, layer.output.LayerNorm)


def _project_norm(ours: nn.LayerNorm, theirs: nn.LayerNorm, basis: torch.Tensor) -> None:
    """A gain of each wide direction cannot be kept; each narrow one gets the mean of those that
    it is made of. The root makes up for the narrow vector being normalised to sqrt(width)."""
    shares = basis**2 / (basis**2).sum(0)
    gain = math.sqrt(basis.shape[0] / basis.shape[1])
    ours.weight.copy_(theirs.weight @ shares * gain)
    ours.bias.copy_(theirs.bias @ basis)


def _project_attention(
    ours: Layer, theirs: Layer, basis: torch.Tensor, our_heads: int, their_heads: int
) -> None:
    """The strongest heads, each by the directions of its queries and keys, and of its values,
    that hold most: with heads as wide as the teacher's nothing of a head is lost."""
    width, out = basis.shape[1] // our_heads, _parts(ours).out
    q, k, v = (_heads_of(linear, their_heads, basis) for linear in qkv_linears(theirs))
    their_out = _parts(theirs).out
    writes = (basis.T @ their_out.weight).unflatten(1, (their_heads, -1)).transpose(0, 1)
    strength = v[:, :, :-1].norm(dim=(1, 2)) * writes.norm(dim=(1, 2))
    out.bias.copy_(their_out.bias @ basis)
    for j, h in enumerate(_strongest_first(strength)[:our_heads]):
        score_turn = _directions(torch.cat([q[h], k[h]], dim=1), width)
        value_turn = _directions(v[h], width)
        # Scores are divided by the root of the head's width, which may be another one here.
        score_turn = score_turn * (width / score_turn.shape[0]) ** 0.25
        rows = slice(j * width, j * width + value_turn.shape[1])
        turned = (score_turn.T @ q[h], score_turn.T @ k[h], value_turn.T @ v[h])
        for linear, head in zip(qkv_linears(ours), turned, strict=True):
            linear.weight[rows], linear.bias[rows] = head[:, :-1], head[:, -1]
        out.weight[:, rows] = writes[h] @ value_turn


def _project_ffn(ours: _Parts, theirs: _Parts, basis: torch.Tensor) -> None:
    """The neurons with the largest product of the norms of what they read and write."""
    reads, writes = theirs.reads, theirs.writes
    strength = reads.weight.norm(dim=1) * writes.weight.norm(dim=0)
    best = _strongest_first(strength)[: ours.reads.out_features]
    ours.reads.weight[: len(best)] = reads.weight[best] @ basis
    ours.reads.bias[: len(best)] = reads.bias[best]
    ours.writes.weight[:, : len(best)] = basis.T @ writes.weight[:, best]
    ours.writes.bias.copy_(writes.bias @ basis)


def _heads_of(linear: nn.Linear, heads: int, basis: torch.Tensor) -> torch.Tensor:
    """A projection to queries, keys or values as read from the narrow stream, with its bias as
    the last column: [heads, head width, narrow width + 1]."""
    rows = torch.cat([linear.weight @ basis, linear.bias.unsqueeze(1)], dim=1)
    return rows.unflatten(0, (heads, -1))


def _directions(rows: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` orthonormal directions (columns) in the space of `rows` that hold most of it;
    all of them where count is larger."""
    return torch.linalg.svd(rows, full_matrices=False).U[:, :count]


def _strongest_first(strength: torch.Tensor) -> torch.Tensor:
    return strength.argsort(descending=True, stable=True)


def zero_sum_rotation(width: int) -> torch.Tensor:
    """[width - 1, width] float64, orthonormal rows that each sum to zero: the cosines of the
    discrete cosine transform but the constant one."""
    frequency = torch.arange(1, width, dtype=torch.float64).unsqueeze(1)
    place = torch.arange(width, dtype=torch.float64) + 0.5
    return torch.cos(math.pi / width * frequency * place) * math.sqrt(2 / width)
