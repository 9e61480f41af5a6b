"""Embedding tables narrower than the layers behind them, which a linear map widens.

In a small student the tables are most of the bytes: of MiniLM's vocabulary at width 192 they are
87 %. ELECTRA (arXiv 2003.10555) is BERT with such tables, so that is what a student with
them is built as, and transformers and sentence-transformers load it as any other model.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F
from transformers import ElectraConfig, ElectraModel, PreTrainedModel

from kdscale.models.project import TABLES, sample_rows, zero_sum_rotation

# What a BERT and an ELECTRA configuration both have, and students take over.
_SHARED = (
    "vocab_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
)


def electra_of(teacher: PreTrainedModel) -> tuple[type[PreTrainedModel], ElectraConfig]:
    """The class and the configuration of ELECTRA that read what a BERT teacher reads."""
    return ElectraModel, ElectraConfig(**{name: getattr(teacher.config, name) for name in _SHARED})


@torch.no_grad()
def factorise_embeddings(
    student: PreTrainedModel, teacher: PreTrainedModel, basis: torch.Tensor, blocks: torch.Tensor
) -> None:
    """Fill the student's tables, E wide, and the map behind them from a teacher's, H wide.

    basis: [H, h], orthonormal columns: what enters the student's first layer is to be basis^T
    times what enters the teacher's. blocks: [N, T] token ids of real text.

    With u the sum of a token's three vectors and n(.) the normalisation to zero mean and unit
    variance, BERT's first layer gets gain * n(u) + bias, and ELECTRA's, which normalises before
    it maps, A n(v) + c. Here v = P u, where P keeps lengths within E - 1 directions (the last
    one is left out because n removes it, as in `principal_basis`). Of a u that lies in them,
    n(v) is P n(u) but for a constant, so there are A and c with which both are equal. Any other
    u is longer than its v, by a factor of its own that no A can undo; of all A and c those are
    taken that come closest on the text, by least squares.

    The directions are those that go with the first of a truncated singular value decomposition
    of basis^T (gain * n(u)) over the text: a token counts as often as it is used, a dimension by
    its gain. Of MiniLM's embeddings at width 64 this leaves 0.59 of their spread on other text; a
    decomposition of the bare table, where most rows are of rare tokens, 0.73, and tables drawn at
    random 1.09.
    """
    theirs, ours = teacher.embeddings, student.embeddings
    ids = sample_rows(blocks).to(teacher.device)
    total = theirs.word_embeddings(ids) + theirs.token_type_embeddings.weight[0]
    total = (total + theirs.position_embeddings.weight[: ids.shape[1]]).flatten(0, 1)
    norm, total = theirs.LayerNorm, total.double()
    basis = basis.double()
    normed = F.layer_norm(total, total.shape[1:], eps=norm.eps)  # [tokens, H]
    gained = normed * norm.weight.double() @ basis  # [tokens, h]
    target = gained + norm.bias.double() @ basis

    narrow = student.config.embedding_size
    first = torch.linalg.eigh(gained.T @ gained).eigenvectors.flip(1)[:, : narrow - 1]
    directions, _ = torch.linalg.qr(normed.T @ (gained @ first))  # [H, E - 1]
    project = directions @ zero_sum_rotation(narrow)  # [H, E]
    for name in TABLES:
        table = _centred(getattr(theirs, name).weight.double()) @ project
        getattr(ours, name).weight.copy_(table)
    ours.LayerNorm.weight.fill_(1)
    ours.LayerNorm.bias.fill_(0)

    seen = F.layer_norm(_centred(total) @ project, (narrow,), eps=ours.LayerNorm.eps)
    seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
    # gelsd: the columns of `seen` add up to zero, so that its rank is one short.
    fit = torch.linalg.lstsq(seen.cpu(), target.cpu(), driver="gelsd").solution  # [E + 1, h]
    student.embeddings_project.weight.copy_(fit[:-1].T)
    student.embeddings_project.bias.copy_(fit[-1])


def _centred(rows: torch.Tensor) -> torch.Tensor:
    return rows - rows.mean(-1, keepdim=True)
