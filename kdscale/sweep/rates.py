"""How long trials take, from what was measured: seconds a training pair, shape by shape."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from kdscale.config import Config, Shape
from kdscale.errors import KdscaleError
from kdscale.experiment.run import Outcome
from kdscale.store import Store
from kdscale.store.artifact import canonical_json
from kdscale.sweep.space import SECTION
from kdscale.sweep.spec import Sweep

HOUR_S = 3600.0


class Rates:
    """Measured trainings. What was not measured has no rate: nothing is guessed."""

    def __init__(self) -> None:
        self._seen: dict[bytes, list[tuple[int, float]]] = {}

    def add(self, shape: Shape | dict[str, Any], pairs: int | None, seconds: float | None) -> None:
        if pairs and seconds:
            self._seen.setdefault(_key(shape), []).append((pairs, seconds))

    def seconds(self, shape: Shape, pairs: int) -> float | None:
        """Of a training on so many pairs; by the measured one that is nearest in size, since a
        short one is mostly its start."""
        seen = self._seen.get(_key(shape))
        if not seen:
            return None
        near, took = min(seen, key=lambda s: abs(s[0] - pairs))
        return took * pairs / near


def rates_of_store(store: Store, tokens: str | None) -> Rates:
    """Of the students of a store that were trained on the tokens of this digest."""
    rates = Rates()
    for student in store.list("students"):
        read = student.manifest["inputs"].get("tokens", {}).get("digest")
        shape = student.manifest["config"].get("shape")
        if read == tokens and isinstance(shape, dict):
            rates.add(shape, student.facts.get("pairs_seen"), student.facts.get("seconds"))
    return rates


def shared_seconds(outcome: Outcome, config: Config, store: Store) -> float | None:
    """Of a shared step, by the newest of its kind in the store; None: none was measured.

    A language model is compared with those of its shape, step by step of the training.
    """
    if outcome.artifact is not None:
        return 0.0
    step = outcome.step
    for artifact in store.list(step.kind):
        told, facts = artifact.manifest["config"], artifact.facts
        seconds = facts.get("seconds")
        if artifact.manifest["stage"] != step.stage or not seconds:
            continue
        if step.id.kind != "lm":
            return seconds
        steps, train = facts.get("steps"), config.lm.train
        if told.get("shape") == asdict(step.settings.shape) and steps and train.max_steps:
            return seconds * train.max_steps / steps
    return None


def expected_seconds(
    rates: Rates, configs: dict[str, Config], sizes: dict[str, int]
) -> dict[str, float | None]:
    """Of each trial; None where its shape was not measured."""
    return {id_: rates.seconds(c.students[0], sizes[id_]) for id_, c in configs.items()}


def check_hours(sweep: Sweep, seconds: dict[str, float | None]) -> None:
    """Raise KdscaleError where not even the shortest trial fits into the hours. What is not
    measured yet may fit."""
    hours = sweep.section.limits.hours
    known = [s for s in seconds.values() if s is not None]
    if hours is not None and len(known) == len(seconds) and min(known) > hours * HOUR_S:
        raise KdscaleError(
            f"{SECTION}.limits.hours: {hours:g} is too small for one trial, the shortest of which "
            f"takes about {min(known):.0f} s by what was measured in this store; raise it"
        )


def _key(shape: Shape | dict[str, Any]) -> bytes:
    """A shape without its name: what it is called does not matter."""
    told = shape if isinstance(shape, dict) else asdict(shape)
    return canonical_json({k: v for k, v in told.items() if k != "name"})
