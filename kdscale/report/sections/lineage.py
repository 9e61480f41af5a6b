"""The artifacts of an experiment as a tree, each in it once, below the last thing it needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

from kdscale.experiment.context import StepId
from kdscale.store import Artifact


@dataclass
class Node:
    """One artifact: how it came to be, and what was made from it alone.

    made_from: the roles of its inputs; anchor: its HTML id
    """

    role: StepId
    artifact: Artifact
    made_from: list[StepId]
    anchor: str
    children: list[Node] = field(default_factory=list)

    @property
    def config_yaml(self) -> str:
        return to_yaml(self.artifact.manifest["config"])

    @property
    def facts_yaml(self) -> str:
        return to_yaml({k: v for k, v in self.artifact.facts.items() if k != "seconds"})


def build_tree(inputs: dict[StepId, Artifact]) -> list[Node]:
    """The roots, in the order of `inputs`.

    A node hangs below its deepest input. One that joins several equally deep ones (an
    evaluation of many students) has no such place and is a root: its inputs are named in it.
    """
    role_of: dict[str, StepId] = {}
    for role, artifact in inputs.items():
        role_of.setdefault(artifact.name, role)  # teachers with one tokenizer share their tokens
    nodes = {
        role: Node(role, a, _made_from(a, role_of), f"artifact-{i}")
        for i, (role, a) in enumerate(inputs.items())
        if role_of[a.name] == role
    }
    depths: dict[StepId, int] = {}

    def depth(role: StepId) -> int:
        if role not in depths:
            depths[role] = 1 + max((depth(r) for r in nodes[role].made_from), default=-1)
        return depths[role]

    roots = []
    for node in nodes.values():
        deepest = max((depth(r) for r in node.made_from), default=-1)
        parents = [r for r in node.made_from if depth(r) == deepest]
        if len(parents) == 1:
            nodes[parents[0]].children.append(node)
        else:
            roots.append(node)
    return roots


def to_yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100).rstrip()


def _made_from(artifact: Artifact, role_of: dict[str, StepId]) -> list[StepId]:
    """The roles of an artifact's inputs, as far as they are among those of the report."""
    names = [entry["name"] for entry in artifact.manifest["inputs"].values()]
    return [role_of[name] for name in names if name in role_of]
