"""`kdscale artifacts`: what a store holds, how large and old it is, and what it was made from."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kdscale.store.artifact import KINDS, Artifact
from kdscale.store.protocol import Store

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
