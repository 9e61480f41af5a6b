"""Students: smaller encoders of the teacher's architecture, and how they begin.

Their embedding tables may be narrower than the layers behind them: a linear map widens them. In a
small student the tables are most of the bytes: of MiniLM's vocabulary at width 192 they are 87 %.
ELECTRA (arXiv 2003.10555) is BERT with such tables, so that is what a student with them is built
as, and transformers and sentence-transformers load it as any other model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F
from transformers import ElectraConfig, ElectraModel, PreTrainedModel

from kdscale.config import Shape
from kdscale.errors import KdscaleError
from kdscale.models.capture import encoder_layers
from kdscale.models.pretrained import set_dropout
from kdscale.models.project import (
    TABLES,
    check_like_bert,
    principal_basis,
    project_embeddings,
    project_layers,
    sample_rows,
    zero_sum_rotation,
)
from kdscale.models.shapes import check_layer_map, check_shape, check_teacher, is_factorised

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
    theirs: Any = teacher.embeddings
    ours: Any = student.embeddings
    widening: Any = student.embeddings_project
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
    widening.weight.copy_(fit[:-1].T)
    widening.bias.copy_(fit[-1])


def _centred(rows: torch.Tensor) -> torch.Tensor:
    return rows - rows.mean(-1, keepdim=True)


def build_student(
    shape: Shape,
    teacher: PreTrainedModel,
    init: Literal["random", "layers", "svd"],
    seed: int,
    blocks: torch.Tensor | None = None,
    layer_map: Sequence[int] | None = None,
    dropout: float = 0.0,
) -> PreTrainedModel:
    """An encoder of the given shape, with the teacher's architecture, vocabulary, positions, and
    pooler if the teacher has one; of a BERT teacher and with embeddings of their own width, an
    ELECTRA encoder. In training mode, fp32, SDPA attention where the family has it.

    init "random": N(0, initializer_range) from `seed`. "layers": the teacher's embeddings and
    chosen layers, for a student of the teacher's width. "svd": the same at any smaller width,
    projected (`kdscale.models.project`). Embeddings narrower than the teacher's are factorised
    (`kdscale.models.students`). That, and "svd", needs `blocks`, [N, T] token ids of real text.
    layer_map: student layer i comes from teacher layer layer_map[i] (1-based); None: spread evenly.
    Raises KdscaleError for a shape that cannot be, or cannot begin so.
    """
    check_shape(shape)
    check_teacher(shape, teacher.config.model_type)
    numbers = map_layers(layer_map, shape.layers, teacher.config.num_hidden_layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = _new_encoder(shape, teacher, numbers)
    if blocks is None and (init == "svd" or (init == "layers" and is_factorised(shape))):
        raise ValueError("this student's beginning needs blocks of text")
    if init == "layers":
        _copy_layers(student, teacher, numbers)
        _copy_embeddings(student, teacher, blocks)
    elif init == "svd":
        assert blocks is not None
        check_like_bert(teacher)
        basis = principal_basis(teacher, shape.hidden, blocks)
        if is_factorised(shape):
            factorise_embeddings(student, teacher, basis, blocks)
        else:
            project_embeddings(student, teacher, basis)
        project_layers(student, teacher, numbers, basis)
    set_dropout(student, dropout)
    return student.float().train()


def map_layers(
    layer_map: Sequence[int] | None, student_layers: int, teacher_layers: int
) -> list[int]:
    """The teacher layer (1-based) for each student layer: as given, or spread evenly.

    Raises KdscaleError for a map that does not fit.
    """
    if layer_map is None:
        return spread_layers(student_layers, teacher_layers)
    check_layer_map(layer_map, student_layers, teacher_layers)
    return list(layer_map)


def spread_layers(student_layers: int, teacher_layers: int) -> list[int]:
    """The teacher layer (1-based) for each student layer: evenly spread, ending with the last."""
    return [-(-i * teacher_layers // student_layers) for i in range(1, student_layers + 1)]


def _new_encoder(shape: Shape, teacher: PreTrainedModel, numbers: Sequence[int]) -> PreTrainedModel:
    cls: type[PreTrainedModel]
    config: Any  # of a family of its own
    if is_factorised(shape) and teacher.config.model_type == "bert":
        cls, config = electra_of(teacher)
    else:
        cls, config = type(teacher), type(teacher.config).from_dict(teacher.config.to_dict())
    config.num_hidden_layers = shape.layers
    config.hidden_size = shape.hidden
    config.num_attention_heads = shape.heads
    setattr(config, _intermediate_name(config), shape.intermediate)
    if hasattr(config, "embedding_size"):  # ELECTRA's embeddings can have a width of their own
        config.embedding_size = shape.embedding or shape.hidden
    if hasattr(config, "pooler_hidden_size"):  # DeBERTa's pooler has a width of its own
        config.pooler_hidden_size = shape.hidden
    if getattr(config, "layer_types", None):  # ModernBERT: some layers see a window only
        config.layer_types = [teacher.config.layer_types[n - 1] for n in numbers]
        if shape.hidden // shape.heads % 2:
            raise KdscaleError(
                f"student {shape.name}: a {config.model_type} rotates its heads in pairs of "
                f"dimensions, and {shape.hidden // shape.heads} is odd; set another hidden or heads"
            )
    options = {}
    if cls is type(teacher) and hasattr(teacher, "pooler"):
        # None where the teacher was built without one; ELECTRA has one only in a ranker's head.
        options["add_pooling_layer"] = teacher.pooler is not None
    return cls._from_config(config, **options)


def _copy_layers(
    student: PreTrainedModel, teacher: PreTrainedModel, numbers: Sequence[int]
) -> None:
    ours, theirs = student.config, teacher.config
    for name in ("hidden_size", "num_attention_heads", _intermediate_name(theirs)):
        if getattr(ours, name) != getattr(theirs, name):
            raise KdscaleError(
                f"lm.init layers: the student's {name} is {getattr(ours, name)}, the teacher's "
                f"{getattr(theirs, name)}; give the student the teacher's, or set lm.init to svd"
            )
    if hasattr(student, "final_norm") and numbers[0] != 1:  # ModernBERT
        raise KdscaleError(
            "lm.init layers: a ModernBERT's first layer alone begins without a norm, so it "
            f"cannot come from layer {numbers[0]}; let lm.layer_map begin with 1, or set "
            "lm.init to random"
        )
    sources, layers = encoder_layers(teacher), encoder_layers(student)
    for layer, number in zip(layers, numbers, strict=True):
        layer.load_state_dict(sources[number - 1].state_dict())
    # What all layers share: the pooler, a last norm, the tables of relative positions.
    (stack,) = [name for name, module in student.named_modules() if module is layers]
    of_its_own = (f"{stack}.", "embeddings.", "embeddings_project.")
    shared = {k: v for k, v in teacher.state_dict().items() if not k.startswith(of_its_own)}
    wanted = student.state_dict().keys()
    student.load_state_dict({k: v for k, v in shared.items() if k in wanted}, strict=False)


def _copy_embeddings(
    student: PreTrainedModel, teacher: PreTrainedModel, blocks: torch.Tensor | None
) -> None:
    """The teacher's embeddings for a student whose states are as wide as the teacher's."""
    tables: list[Any] = [model.get_input_embeddings() for model in (student, teacher)]
    ours, theirs = (table.embedding_dim for table in tables)
    if ours == theirs:
        _copy_part(student, teacher, "embeddings")
        if hasattr(teacher, "embeddings_project"):
            _copy_part(student, teacher, "embeddings_project")
    elif theirs == teacher.config.hidden_size:
        assert blocks is not None  # the student is factorised
        factorise_embeddings(student, teacher, torch.eye(theirs), blocks)
    else:
        raise KdscaleError(
            f"lm.init layers: the student's embeddings are {ours} wide, the teacher's {theirs}; "
            f"give the student embedding {theirs}, or set lm.init to random"
        )


def _copy_part(student: nn.Module, teacher: nn.Module, name: str) -> None:
    student.get_submodule(name).load_state_dict(teacher.get_submodule(name).state_dict())


def _intermediate_name(config: Any) -> str:
    return "hidden_dim" if config.model_type == "distilbert" else "intermediate_size"
