"""What a stage is given, and what names the steps of an experiment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from kdscale.config import Cluster, Strategy
from kdscale.progress import Reporter
from kdscale.store import Artifact, Workspace

Kind = Literal[
    "dataset",
    "tokens",
    "teacher",
    "scores",
    "ensemble",
    "lm",
    "student",
    "evaluation",
    "report",
    "old",
    "known",
]


@dataclass(frozen=True)
class StepId:
    """Which step of an experiment, and so which of a stage's inputs.

    strategy and shape: of a student; shape: of a language model too. teacher: a number from 1,
    where there are several. collection: of a transfer; None: the experiment's own. The kinds "old"
    and "known" are of an update: the dataset and the scores that were there before it.
    """

    kind: Kind
    strategy: Strategy | None = None
    shape: str | None = None
    teacher: int = 1
    collection: str | None = None

    def __str__(self) -> str:
        """For people and manifests; nobody reads it back."""
        parts = [
            self.kind if self.collection is None else f"{self.kind}@{self.collection}",
            self.strategy.name if self.strategy else None,
            self.shape,
            str(self.teacher) if self.teacher > 1 else None,
        ]
        return ":".join(part for part in parts if part is not None)


DATASET, TOKENS, TEACHER = StepId("dataset"), StepId("tokens"), StepId("teacher")
SCORES, ENSEMBLE, LM, STUDENT = (
    StepId("scores"),
    StepId("ensemble"),
    StepId("lm"),
    StepId("student"),
)
EVALUATION, REPORT = StepId("evaluation"), StepId("report")
OLD, KNOWN = StepId("old"), StepId("known")

S = TypeVar("S")


@dataclass
class StageContext(Generic[S]):
    """One run of one stage: it reads `inputs`, writes below `out`, and returns its facts.

    id: which step it is, for what is shown; settings: the stage's record of
    `kdscale.experiment.settings`, all that it knows of the configuration; cluster: where it runs,
    which changes no result. `out` is staged: it is committed when the stage returns and removed
    when it raises. `workspace` outlives a failed run, for what can be resumed.
    """

    id: StepId
    settings: S
    inputs: dict[StepId, Artifact]
    out: Path
    workspace: Workspace
    reporter: Reporter
    cluster: Cluster


Stage = Callable[[StageContext[Any]], dict[str, Any]]
