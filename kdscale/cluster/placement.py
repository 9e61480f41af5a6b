"""Whether a plan of equal workers fits the nodes of a cluster: numbers only, without Ray.

A worker is placed whole on one node: two nodes of 2 CPUs have no room for one of 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

# What Ray's own tasks (reading a table, the train controller) need beside actors and workers.
HEADROOM_CPUS = 0.2
# Ray counts resources in units of 1/10,000: in whole units nothing is lost to rounding.
UNITS = 10_000


@dataclass(frozen=True)
class Node:
    """A node's resources, all of them (not only what is free), and its Ray labels."""

    cpus: float
    gpus: float = 0.0
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """`count` workers of so many CPUs and GPUs each, on nodes that have all of `labels`."""

    count: int
    cpus: float
    gpus: float = 0.0
    labels: dict[str, str] = field(default_factory=dict)


def capacity(node: Node, plan: Plan, taken_cpus: float = 0.0) -> int:
    """How many of the plan's workers one node holds, where `taken_cpus` of it are in use."""
    if any(node.labels.get(key) != value for key, value in plan.labels.items()):
        return 0
    rooms = [plan.count]
    for have, need in ((node.cpus - taken_cpus, plan.cpus), (node.gpus, plan.gpus)):
        if need:
            rooms.append(max(0, round(have * UNITS) // round(need * UNITS)))
    return min(rooms)


def fits(plan: Plan, nodes: Sequence[Node]) -> bool:
    """Whether all workers have a place, and Ray's own tasks still have one on some node."""
    room = [capacity(node, plan) for node in nodes]
    return any(
        sum(room) - room[i] + capacity(node, plan, HEADROOM_CPUS) >= plan.count
        for i, node in enumerate(nodes)
        if node.cpus >= HEADROOM_CPUS
    )


def even_share(plan: Plan, nodes: Sequence[Node]) -> float:
    """CPUs of one worker, in tenths, when the plan's workers share the nodes evenly.

    At least a tenth: where even that does not fit, `fits` says so.
    """
    tenths = int(max((node.cpus for node in nodes), default=0.0) * 10)
    while tenths > 1:
        if fits(Plan(plan.count, tenths / 10, plan.gpus, plan.labels), nodes):
            return tenths / 10
        tenths -= 1
    return 0.1


def describe(nodes: Sequence[Node], labels: Iterable[str] = ()) -> str:
    """The nodes in words, equal ones together: "2 nodes of 4 CPUs and 1 GPU, 1 node of 2 CPUs".

    labels: the label names whose values matter; a node has more, such as its own id.
    """
    kinds: dict[str, int] = {}
    for node in sorted(nodes, key=lambda n: (-n.gpus, -n.cpus)):
        text = f"{node.cpus:g} CPU{'' if node.cpus == 1 else 's'}"
        if node.gpus:
            text += f" and {node.gpus:g} GPU{'' if node.gpus == 1 else 's'}"
        text += "".join(f" with {k}={node.labels[k]}" for k in labels if k in node.labels)
        kinds[text] = kinds.get(text, 0) + 1
    if not kinds:
        return "no nodes"
    return ", ".join(f"{n} node{'' if n == 1 else 's'} of {text}" for text, n in kinds.items())
