"""The models of a config as numbers: what a forward of them computes and moves, and holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdscale.config import Config, Shape, Teacher

# Published shapes (layers, hidden, heads, intermediate, vocabulary): a plan needs no download.
PUBLISHED = {
    "bert-base-uncased": (12, 768, 12, 3072, 30_522),
    "bert-large-uncased": (24, 1024, 16, 4096, 30_522),
    "distilbert-base-uncased": (6, 768, 12, 3072, 30_522),
    "roberta-base": (12, 768, 12, 3072, 50_265),
    "electra-base-discriminator": (12, 768, 12, 3072, 30_522),
    "MiniLM-L6-H384-uncased": (6, 384, 12, 1536, 30_522),
    "MiniLM-L12-H384-uncased": (12, 384, 12, 1536, 30_522),
    "ModernBERT-base": (22, 768, 12, 1152, 50_368),
}
POSITIONS = 512


@dataclass(frozen=True)
class Model:
    """An encoder. `source`: where its shape was found, in words."""

    name: str
    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocabulary: int
    embedding: int
    source: str = "the config"

    def flops(self, length: int) -> float:
        """Of the matrix products of one forward of `length` tokens, as
        `kdscale.evaluation.latency.forward_flops` counts them (its pooler and head left out)."""
        h, i = self.hidden, self.intermediate
        widening = 2 * length * self.embedding * h if self.embedding != h else 0
        return self.layers * (8 * length * h**2 + 4 * length * h * i + 4 * length**2 * h) + widening

    def elements(self, length: int) -> float:
        """Values that the forward writes beside matrix products: norms, activation, softmax."""
        a_layer = 8 * self.hidden + 2 * self.intermediate + 2 * self.heads * length
        return length * (3 * self.hidden + self.layers * a_layer)

    @property
    def table_parameters(self) -> int:
        return (self.vocabulary + POSITIONS) * self.embedding

    @property
    def parameters(self) -> int:
        h, i = self.hidden, self.intermediate
        a_layer = 4 * h * h + 2 * h * i + 9 * h + i
        pooler = h * h + 2 * h
        widening = self.embedding * h if self.embedding != h else 0
        return self.table_parameters + self.layers * a_layer + pooler + widening


def teacher_model(teacher: Teacher) -> Model:
    """From the model's own configuration; of a well-known hub id as published, without the hub.
    Raises KdscaleError where it cannot be read."""
    from kdscale.models.pretrained import read_config, resolve_model

    name = teacher.model.rsplit("/", 1)[-1]
    path = resolve_model(teacher.model, teacher.revision)
    if not Path(path).is_dir() and name in PUBLISHED:
        layers, hidden, heads, intermediate, vocabulary = PUBLISHED[name]
        return Model(
            name, layers, hidden, heads, intermediate, vocabulary, hidden, "the published shape"
        )
    config = read_config(path, teacher.revision)
    return Model(
        name,
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        _intermediate(config),
        config.vocab_size,
        getattr(config, "embedding_size", config.hidden_size),
        "the model's config.json",
    )


def _intermediate(config: Any) -> int:
    return getattr(config, "intermediate_size", None) or config.hidden_dim  # DistilBERT's name


def student_model(shape: Shape, teacher: Model) -> Model:
    """With the teacher's vocabulary."""
    return Model(
        shape.name,
        shape.layers,
        shape.hidden,
        shape.heads,
        shape.intermediate,
        teacher.vocabulary,
        shape.embedding or shape.hidden,
    )


def models_of(config: Config) -> tuple[list[Model], dict[str, Model]]:
    """The teachers, and the students by name."""
    teachers = [teacher_model(teacher) for teacher in config.teachers]
    return teachers, {s.name: student_model(s, teachers[0]) for s in config.students}
