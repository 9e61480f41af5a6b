"""The settings of each stage: one frozen record, without torch.

A record is three things at once: all that its stage knows of the configuration, a part of the
stage's cache key (`kdscale.experiment.cache_key`), and, for a training, the job that a worker gets.
A field whose type is marked NO_RESULT changes no result and is in no key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from kdscale.bounds import NO_RESULT
from kdscale.config import (
    DatasetOptions,
    Evaluate,
    ModelRef,
    Shape,
    Source,
    Strategy,
    TokenOptions,
    Train,
    Watch,
)


@dataclass(frozen=True)
class InputFile:
    """A file that a setting names; in a key it is its content. setting: for messages."""

    path: str
    setting: str


@dataclass(frozen=True)
class TokenizerRef:
    """The tokenizer of a model; in a key it is its content."""

    model: ModelRef


@dataclass(frozen=True)
class DatasetSettings:
    """From a source to a dataset. A source is in a key with the content of its files."""

    source: Source
    prepare: DatasetOptions
    seed: int


@dataclass(frozen=True)
class TokenSettings:
    """From a dataset to token ids as one teacher reads them."""

    tokenizer: TokenizerRef
    prepare: TokenOptions
    extra_text: list[InputFile]
    seed: int


@dataclass(frozen=True)
class RandomStudent:
    """A student's random start: of this shape, of the family and vocabulary of a model."""

    shape: Shape
    like: ModelRef


@dataclass(frozen=True)
class Intermediate:
    """A ranker's states against those of its teacher, which reads every pair beside it."""

    losses: dict[str, float]
    layer_map: list[int] | None
    relation_heads: int


@dataclass(frozen=True)
class RankerSettings:
    """A ranker trained on query groups: the teacher, or a student.

    start: None where it starts from an input, a language model or another ranker. losses: on
    scores and labels, by weight. strategy and shape: None for the teacher.
    """

    start: ModelRef | RandomStudent | None
    losses: dict[str, float]
    group_size: int
    max_queries: int | None
    train: Train
    seed: int
    easy_negatives: bool
    temperature: float = 1.0
    intermediate: Intermediate | None = None
    validate: Watch | None = None
    strategy: Strategy | None = None
    shape: Shape | None = None

    @property
    def weights(self) -> dict[str, float]:
        """Of all losses."""
        return {**self.losses, **(self.intermediate.losses if self.intermediate else {})}


@dataclass(frozen=True)
class LmSettings:
    """A student language model, distilled from the teacher's encoder.

    head_steps: None where no loss needs the teacher's head
    """

    model: ModelRef
    shape: Shape
    init: Literal["random", "layers", "svd"]
    layer_map: list[int] | None
    losses: dict[str, float]
    relation_heads: int
    head_steps: int | None
    train: Train
    seed: int

    @property
    def weights(self) -> dict[str, float]:
        """Of all losses."""
        return self.losses


@dataclass(frozen=True)
class ScoreSettings:
    """The teacher's logit for every training pair."""

    precision: Literal["fp32", "bf16"]
    batch_tokens: Annotated[int | None, NO_RESULT]
    shards: int


@dataclass(frozen=True)
class EnsembleSettings:
    """The scores of several teachers, joined."""

    shards: int


@dataclass(frozen=True)
class TransferSplit:
    """What of a transfer collection is evaluated."""

    split: str
    depth: int


@dataclass(frozen=True)
class EvaluateSettings:
    """Rankings, measures, tests and latency. min_grade: of a relevant passage."""

    evaluate: Evaluate
    min_grade: int
    transfers: dict[str, TransferSplit]


@dataclass(frozen=True)
class ReportSettings:
    """The page. config and resources: the experiment's settings as the page shows them."""

    title: str
    name: str
    examples: int
    trials: InputFile | None
    evaluate: Evaluate
    min_grade: int
    transfers: dict[str, TransferSplit]
    students: list[Shape]
    config: dict[str, Any]
    resources: Annotated[dict[str, Any], NO_RESULT]


@dataclass(frozen=True)
class UpdateDatasetSettings:
    """New queries for a student, beside replayed ones of those that it was trained on.

    replay: the share of old queries in the mix; holdout: the share of new ones that are not
    learned from. max_queries and trained_seed: of the student's own training, by which its queries
    are found again.
    """

    queries: InputFile
    qrels: InputFile
    candidates: InputFile | None
    replay: float
    holdout: float
    max_queries: int | None
    trained_seed: int
    prepare: DatasetOptions
    evaluate_depth: int
    seed: int


@dataclass(frozen=True)
class Acceptance:
    """What an update has to show on dev queries, new and old."""

    measure: str
    depth: int
    margin: float
    alpha: float


@dataclass(frozen=True)
class UpdateStudentSettings:
    """A student's further training, and how it is judged."""

    ranker: RankerSettings
    accept: Acceptance
