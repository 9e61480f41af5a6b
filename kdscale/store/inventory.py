"""`kdscale artifacts`: what a store holds, how large and old it is, what it was made from. `kdscale
gc`: remove what nothing refers to, and what killed writers have left.

A store is made for its students, evaluations, reports and sweeps, and for what is named with
--keep. These and everything that they were made from stay. Any other artifact is an orphan. It is
removed, unless it is young or work in the store is: a run makes its students last, and until then
nothing refers to what it has made or found.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kdscale.errors import KdscaleError
from kdscale.store.artifact import KINDS, Artifact
from kdscale.store.protocol import Holding, Store

if TYPE_CHECKING:
    from rich.table import Table


def all_artifacts(store: Store) -> list[Artifact]:
    """Every artifact, by kind in the order of a run, newest first. Only manifests are read."""
    return [artifact for kind in KINDS for artifact in store.list(kind)]


def input_names(artifact: Artifact) -> list[str]:
    """The "kind/key" of what it was made from, each once."""
    return list(dict.fromkeys(entry["name"] for entry in artifact.manifest["inputs"].values()))


def ancestors(name: str, by_name: dict[str, Artifact]) -> set[str]:
    """Everything that an artifact was made from, and that from; as far as it is there."""
    found: set[str] = set()
    todo = [name]
    while todo:
        artifact = by_name.get(todo.pop())
        fresh = set(input_names(artifact)) - found if artifact else set()
        found |= fresh
        todo += fresh
    return found


def artifacts_json(artifacts: list[Artifact]) -> str:
    return json.dumps([_row(artifact) for artifact in artifacts], indent=1, ensure_ascii=False)


def _row(artifact: Artifact) -> dict[str, Any]:
    return {
        "kind": artifact.kind,
        "name": artifact.key,
        "uri": artifact.uri,
        "bytes": artifact.bytes,
        "created": artifact.manifest["created"],
        "digest": artifact.digest,
        "inputs": artifact.manifest["inputs"],
    }


def artifacts_table(artifacts: list[Artifact], now: datetime | None = None) -> Table:
    """A row an artifact.

    Of the lineage each row shows the last step: an input that another input was made from is
    left out. One that is not among the artifacts is marked.
    """
    from rich.filesize import decimal
    from rich.table import Table

    by_name = {artifact.name: artifact for artifact in artifacts}
    now = now or datetime.now(UTC)
    table = Table(box=None)
    for header in ("kind", "name", "size", "age", "made from"):
        right = header in ("size", "age")
        table.add_column(header, justify="right" if right else "left", no_wrap=True)
    for artifact in artifacts:
        inputs = input_names(artifact)
        farther = set().union(*(ancestors(name, by_name) for name in inputs))
        nearest = [name for name in inputs if name not in farther]
        table.add_row(
            artifact.kind,
            artifact.key,
            decimal(artifact.bytes),
            _age(artifact.manifest["created"], now),
            "\n".join(name if name in by_name else f"{name} (gone)" for name in nearest),
        )
    return table


def _age(created: str, now: datetime) -> str:
    try:
        seconds = (now - datetime.fromisoformat(created)).total_seconds()
    except (ValueError, TypeError):  # no time, or one without a zone
        return "?"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


ROOTS = ("students", "evaluations", "reports", "sweeps")
UNFINISHED_SWEEPS = ".work/sweeps/"  # small, and the results of their trials are nowhere else
DAY_S = 24 * 3600


@dataclass(frozen=True)
class Plan:
    """What gc found: holdings with the reason why each goes, or why it stays for now."""

    remove: list[tuple[Holding, str]]
    spared: list[tuple[Holding, str]]


def make_plan(store: Store, keep: list[str], now: float | None = None) -> Plan:
    """keep: "kind/key" names that stay with what they were made from. now: seconds since 1970.

    Raises KdscaleError for a name that is not there, and for a manifest that cannot be read:
    what it refers to would be taken for an orphan.
    """
    now = time.time() if now is None else now
    holdings = store.holdings()
    by_name = {artifact.name: artifact for artifact in all_artifacts(store)}
    for name in keep:
        if name not in by_name:
            raise KdscaleError(
                f"--keep {name}: there is no such artifact in {store.uri}; give KIND/KEY, as "
                "kdscale artifacts shows them"
            )
    roots = {name for name, a in by_name.items() if a.kind in ROOTS} | set(keep)
    needed = roots.union(*(ancestors(name, by_name) for name in roots))
    at_work = next((h for h in holdings if h.sort != "artifact" and now - h.modified < DAY_S), None)
    remove, spared = [], []
    for holding in holdings:
        young = now - holding.modified < DAY_S
        if holding.sort == "half":
            if not young:
                remove.append((holding, "half written, older than a day"))
        elif holding.sort == "work":
            if holding.name.startswith(UNFINISHED_SWEEPS):
                spared.append((holding, "a sweep that has not ended"))
            elif not young:
                remove.append((holding, "work that nobody has resumed for a day"))
        elif holding.name in by_name and holding.name not in needed:
            if young:
                spared.append((holding, "nothing refers to it, but it is younger than a day"))
            elif at_work:
                spared.append((holding, f"nothing refers to it, but {at_work.name} is at work"))
            else:
                remove.append((holding, "nothing refers to it"))
    return Plan(remove, spared)
