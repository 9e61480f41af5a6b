"""The files that a source names: checked when it is opened, identified by their content."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kdscale.errors import KdscaleError
from kdscale.paths import user_path
from kdscale.store.artifact import sha256_file


def check_file(path: str, key: str) -> Path:
    """The path of a file that the config names under `key`. Raises KdscaleError."""
    if not path:
        raise KdscaleError(f"{key} is empty; set it to the path of a file")
    found = user_path(path, key)
    if not found.is_file():
        what = "is a folder" if found.is_dir() else "does not exist"
        raise KdscaleError(f"{key}: {path} {what}; give a file (plain, gzip, bzip2 or xz)")
    return found


def check_files(paths: Mapping[str, str], key: str) -> dict[str, Path]:
    """split -> path. Raises KdscaleError for a missing file."""
    return {split: check_file(path, f"{key}.{split}") for split, path in paths.items()}


def check_splits(
    queries: tuple[str, Mapping[str, str]],
    qrels: tuple[str, Mapping[str, str]],
    candidates: tuple[str, Mapping[str, str]],
    judged_elsewhere: set[str] = frozenset(),
) -> None:
    """Raise KdscaleError where a split has no qrels, or files but no queries.

    Each argument is (config key, split -> path); `judged_elsewhere`: splits that need no qrels.
    """
    queries_key, query_splits = queries
    if not query_splits:
        raise KdscaleError(f"{queries_key} is empty; map a split (train, dev, ...) to a file")
    for key, mapping in (qrels, candidates):
        for split in mapping:
            if split not in query_splits:
                raise KdscaleError(
                    f"{key}.{split}: {queries_key} has no split {split!r} (it has "
                    f"{', '.join(query_splits)}); give its queries or remove it"
                )
    for split in query_splits:
        if split not in qrels[1] and split not in judged_elsewhere:
            raise KdscaleError(
                f"{queries_key}.{split}: {qrels[0]} has no split {split!r}; give its qrels"
            )


def digests(paths: Mapping[str, Path]) -> dict[str, str]:
    """split -> SHA-256 of its file."""
    return {split: sha256_file(path) for split, path in paths.items()}
