"""`kdscale gc`: remove what nothing refers to, and what killed writers have left.

What a user made a store for are its students, evaluations, reports and sweeps, and what is named
with --keep; these and everything that they were made from stay. Any other artifact is an orphan. It
goes, unless it is young, or work in the store is: a run makes its students last, and until then
nothing refers to what it has made or found.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from kdscale.errors import KdscaleError
from kdscale.store.inventory import all_artifacts, ancestors
from kdscale.store.protocol import Holding, Store

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
                remove.append((holding, "work that nobody has gone on with for a day"))
        elif holding.name in by_name and holding.name not in needed:
            if young:
                spared.append((holding, "nothing refers to it, but it is younger than a day"))
            elif at_work:
                spared.append((holding, f"nothing refers to it, but {at_work.name} is at work"))
            else:
                remove.append((holding, "nothing refers to it"))
    return Plan(remove, spared)
