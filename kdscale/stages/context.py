"""What a stage is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdscale.config import Config
from kdscale.progress import Reporter
from kdscale.store import Artifact, Workspace


@dataclass
class StageContext:
    """One run of one stage: it reads `inputs`, writes below `out`, and returns its facts.

    `out` is staged: the pipeline commits it when the stage returns and removes it when it raises.
    `workspace` outlives a failed run, for what can be resumed.
    """

    config: Config
    inputs: dict[str, Artifact]
    out: Path
    workspace: Workspace
    reporter: Reporter
    params: dict[str, Any] = field(default_factory=dict)  # what tells steps of one stage apart


Stage = Callable[[StageContext], dict[str, Any]]
