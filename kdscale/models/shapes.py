"""Which student shapes can be built. Imports no torch: the configuration checks shapes with it."""

from __future__ import annotations

from collections.abc import Sequence

from kdscale.bounds import check_number
from kdscale.config import Shape, ShapeSize
from kdscale.errors import KdscaleError


def check_shape(shape: Shape) -> None:
    """Raise KdscaleError when no transformer encoder of this shape can be built."""
    for name in ("layers", "hidden", "heads", "intermediate"):
        check_number(ShapeSize, getattr(shape, name), f"student {shape.name}: {name}")
    if shape.hidden % shape.heads:
        divisors = [h for h in range(1, shape.hidden + 1) if shape.hidden % h == 0]
        near = min(divisors, key=lambda h: (abs(h - shape.heads), h))
        raise KdscaleError(
            f"student {shape.name}: {shape.heads} heads do not divide hidden size "
            f"{shape.hidden}; set heads to {near}, say"
        )
    # One number alone says nothing once it is normalised.
    if shape.embedding != 0 and not 2 <= shape.embedding <= shape.hidden:
        raise KdscaleError(
            f"student {shape.name}: embedding is {shape.embedding}; set it to 0 (as wide as "
            f"hidden), or from 2 to the hidden size {shape.hidden}"
        )


def is_factorised(shape: Shape) -> bool:
    """Whether the embedding tables have a width of their own."""
    return shape.embedding not in (0, shape.hidden)


def check_teacher(shape: Shape, model_type: str) -> None:
    """Raise KdscaleError when a teacher of this kind cannot have a student of this shape.

    ELECTRA is BERT with narrow tables and a linear map behind them; of RoBERTa (which counts
    positions otherwise) and DistilBERT transformers has no such sibling.
    """
    if is_factorised(shape) and model_type not in ("bert", "electra"):
        raise KdscaleError(
            f"student {shape.name}: embedding {shape.embedding} needs a BERT or ELECTRA teacher, "
            f"not a {model_type}; leave `embedding` out, or set another teacher.model"
        )


def check_layer_map(numbers: Sequence[int], layers: int, teacher_layers: int | None = None) -> None:
    """Raise KdscaleError unless there is a teacher layer (1-based) for each of `layers` layers.

    teacher_layers: how many there are; None where the teacher is not read yet.
    """
    highest = max(numbers, default=0)
    if len(numbers) != layers or min(numbers) < 1 or highest > (teacher_layers or highest):
        raise KdscaleError(
            f"lm.layer_map: {list(numbers)} does not name one teacher layer, from 1 to "
            f"{teacher_layers or 'the last'}, for each of the student's {layers} layers; leave it "
            "out to spread them evenly"
        )
