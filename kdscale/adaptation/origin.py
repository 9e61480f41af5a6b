"""Where a student comes from: what an update of it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kdscale.errors import KdscaleError, nearest
from kdscale.store import Artifact, Store, split_artifact

STUDENTS = "students"


@dataclass(frozen=True)
class Origin:
    """student: to be updated; first: the student that it was, before any update; dataset, tokens,
    scores, teacher: what that one was made from. scores and teacher are None for one that learned
    from labels."""

    student: Artifact
    first: Artifact
    dataset: Artifact
    tokens: Artifact
    scores: Artifact | None
    teacher: Artifact | None

    @property
    def settings(self) -> dict[str, Any]:
        """What the student was trained with: "student" (its shape), "strategy", "ranker", "seed".

        Raises KdscaleError where the manifest does not tell."""
        config = self.first.manifest["config"]
        if not {"student", "strategy", "ranker", "seed"} <= config.keys():
            raise KdscaleError(
                f"{self.first.uri} does not say how it was trained; give a student that kdscale "
                "distill-ranker has made"
            )
        return config


def find_student(store: Store, name: str) -> Artifact:
    """name: a student's key, students/KEY, or STORE/students/KEY of this store.

    Raises KdscaleError where the store has no such student.
    """
    head, _, key = name.rstrip("/").rpartition("/")
    if head not in ("", STUDENTS):
        other, kind, key = split_artifact(name)
        if (other.uri, kind) != (store.uri, STUDENTS):
            raise KdscaleError(
                f"{name} is no student of {store.uri}, the store of the config; give KEY or "
                "students/KEY as kdscale artifacts shows them, or another --config"
            )
    student = store.find(STUDENTS, key)
    if student is None:
        known = nearest(key, [artifact.key for artifact in store.list(STUDENTS)])
        raise KdscaleError(f"{store.uri} has no student {key}{known}")
    return student


def origin_of(store: Store, student: Artifact) -> Origin:
    """Raises KdscaleError where something that it was made from is gone, and for a student of
    several teachers."""
    first = student
    while "student" in first.manifest["inputs"]:
        first = _input(store, first, "student")
    scores = _input(store, first, "scores") if "scores" in first.manifest["inputs"] else None
    if scores is not None and scores.manifest["stage"] == "ensemble":
        raise KdscaleError(
            f"{student.name} learned from several teachers, and adapt scores with one alone; train "
            "it again with the new queries in the source"
        )
    return Origin(
        student,
        first,
        _input(store, first, "dataset"),
        _input(store, first, "tokens"),
        scores,
        _input(store, scores, "teacher") if scores else None,
    )


def _input(store: Store, artifact: Artifact, role: str) -> Artifact:
    entry = artifact.manifest["inputs"].get(role)
    found = entry and store.find(*entry["name"].split("/", 1))
    if not found or found.digest != entry["digest"]:
        raise KdscaleError(
            f"{artifact.name} was made from {entry['name'] if entry else 'no ' + role}, which "
            f"{store.uri} does not have; pull it there, or run the experiment again"
        )
    return found
