"""Where a student comes from: what it was made of, and the data by which its export is judged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdscale.config import STRATEGIES, Shape, Train
from kdscale.errors import KdscaleError, nearest
from kdscale.experiment.settings import Intermediate, RankerSettings
from kdscale.models.pretrained import check_model_dir
from kdscale.paths import user_path
from kdscale.store import Artifact, Store, find_named, open_store, split_artifact
from kdscale.store.artifact import MANIFEST, parse_manifest

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

    def settings(self, train: Train) -> RankerSettings:
        """What the student was trained with, but for `train`.

        Raises KdscaleError where the manifest does not tell."""
        told = self.first.manifest["config"]
        try:
            intermediate = told["intermediate"]
            return RankerSettings(
                start=None,
                losses=told["losses"],
                group_size=told["group_size"],
                max_queries=told["max_queries"],
                train=train,
                seed=told["seed"],
                easy_negatives=told["easy_negatives"],
                temperature=told["temperature"],
                intermediate=Intermediate(**intermediate) if intermediate else None,
                strategy=STRATEGIES[told["strategy"]],
                shape=Shape(**told["shape"]),
            )
        except (KeyError, TypeError):
            raise KdscaleError(
                f"{self.first.uri} does not say how it was trained; give a student that kdscale "
                "distill-ranker of this version has made"
            ) from None


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
    found = _find_input(entry, store)
    if found is None:
        raise KdscaleError(
            f"{artifact.name} was made from {entry['name'] if entry else 'no ' + role}, which "
            f"{store.uri} does not have; pull it there, or run the experiment again"
        )
    return found


DATASETS, SCORES = "datasets", "scores"


@dataclass(frozen=True)
class Student:
    """name: as it was given; manifest and store: None where it is no artifact, or not in a
    store."""

    name: str
    path: Path
    manifest: dict[str, Any] | None
    store: Store | None


def find_ranker(uri: str) -> Student:
    """A ranker's folder, one below a store, or s3://.../students/KEY.

    Raises KdscaleError where there is no model.
    """
    if "://" in uri:
        artifact, store = find_named(uri)
        return Student(uri, artifact.path, artifact.manifest, store)
    directory = user_path(uri, "student")
    check_model_dir(directory)
    path = directory / MANIFEST
    if not path.is_file():
        return Student(uri, directory, None, None)
    manifest = parse_manifest(path.read_bytes(), str(path))
    store, kind, key = split_artifact(uri)
    found = store.find(kind, key) if kind == manifest["kind"] else None
    if found is None:
        return Student(uri, directory, manifest, None)
    return Student(uri, found.path, manifest, store)


def find_dataset(student: Student, data: str | None) -> tuple[Artifact, Store]:
    """What the student was trained on, or what `data` names: STORE/datasets/KEY, or a store.

    Raises KdscaleError where it is not to be found, or cannot be told from others.
    """
    made_from = student.manifest["inputs"].get("dataset") if student.manifest else None
    if data is None:
        if student.store is None or made_from is None:
            raise KdscaleError(
                f"{student.name} is not in a store that has its dataset; give --data STORE or "
                "--data STORE/datasets/KEY"
            )
        store = student.store
    else:
        named = data.rstrip("/").split("/")
        if len(named) > 2 and named[-2] == DATASETS:
            return find_named(data)
        store = open_store(data)
        store.preflight(writing=False)
    artifact = _find_input(made_from, store)
    if artifact is not None:
        return artifact, store
    there = store.list(DATASETS)
    if data is not None and len(there) == 1:
        return there[0], store
    names = ", ".join(a.name for a in there) or "none"
    raise KdscaleError(
        f"{store.uri} lacks the dataset of {student.name}; it has {names}; give --data "
        "STORE/datasets/KEY"
    )


def find_scores(student: Student, dataset: Artifact, store: Store) -> Artifact:
    """A teacher's scores of the dataset's pairs: those that the student learned from, or the
    newest. Raises KdscaleError where there are none."""
    made_from = student.manifest["inputs"] if student.manifest else {}
    if made_from.get("dataset", {}).get("digest") == dataset.digest:
        own = _find_input(made_from.get("scores"), store)
        if own is not None:
            return own
    for artifact in store.list(SCORES):
        if artifact.manifest["inputs"].get("dataset", {}).get("digest") == dataset.digest:
            return artifact
    raise KdscaleError(
        f"{store.uri} has no teacher's scores of {dataset.name}, which --prune and --teacher "
        "need; give --data of a store that has, or run kdscale score"
    )


def find_teacher(student: Student, dataset: Artifact, store: Store) -> Artifact:
    """The ranker that a student learned from. Raises KdscaleError where it is not there, or is
    more than one."""
    inputs = student.manifest["inputs"] if student.manifest else {}
    if "teacher" not in inputs:
        inputs = find_scores(student, dataset, store).manifest["inputs"]
    made_from = inputs.get("teacher")
    teacher = _find_input(made_from, store)
    if teacher is not None:
        return teacher
    named = made_from["name"] if made_from else "one teacher alone"
    raise KdscaleError(
        f"{student.name} cannot be compared with its teacher: {store.uri} lacks {named}; leave out "
        "--teacher, or give --data of a store that has it"
    )


def _find_input(made_from: dict[str, str] | None, store: Store) -> Artifact | None:
    """What a manifest names among its inputs, if it does, and the store has that and no other."""
    if made_from is None:
        return None
    kind, _, key = made_from["name"].partition("/")
    artifact = store.find(kind, key)
    return artifact if artifact is not None and artifact.digest == made_from["digest"] else None
