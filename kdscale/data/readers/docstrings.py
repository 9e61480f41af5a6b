"""Docstrings of installed packages: the summary asks, the rest of the docstring answers.

A passage begins with the name it documents, in words ("Series.kurt_over" reads "series kurt
over:"), as a page of documentation does under its heading: without it thousands of passages that
begin "Parameters" could not be told apart by any reader. No package is imported: their files are
found by the import system and parsed.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import importlib.util
import os
import platform
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from kdscale.config import DocstringsSource
from kdscale.data.readers.base import Reject
from kdscale.errors import KdscaleError
from kdscale.store.artifact import sha256_json

QUERY_WORDS = range(4, 31)
MIN_PASSAGE_WORDS = 20
SKIPPED_FOLDERS = {"tests", "test", "__pycache__", "_vendor"}
UNREADABLE = "cannot be read"
NOT_PYTHON = "not Python that this interpreter can parse"

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_PARAGRAPH = re.compile(r"\n\s*\n")
_QUOTED = re.compile(rb"^[ \t]+[rRuU]?(\"\"\"|''')(.*?)\1", re.MULTILINE | re.DOTALL)
_WORD_BREAK = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[._]+")
_BLANK_LINE = re.compile(rb"\S[ \t]*\r?\n[ \t]*\r?\n")


@dataclass(frozen=True)
class _Pair:
    id: str  # of the query and of its passage: "package.module:qualified.name"
    module: str
    query: str
    passage: str


class DocstringsReader:
    """A module's docstrings stay in one split, so that none of its code leaks into another."""

    def __init__(self, source: DocstringsSource):
        if not source.packages:
            raise KdscaleError("source.packages is empty; list packages that are installed")
        dev, test = source.dev_percent, source.test_percent
        if min(dev, test) < 0 or dev + test >= 100:
            raise KdscaleError(
                f"source.dev_percent {dev} and source.test_percent {test} leave nothing for "
                "train; their sum must be below 100"
            )
        self._dev, self._test = dev, test
        self._units: list[dict[str, Any]] = []
        self._versions: dict[str, str] = {}
        distributions = packages_distributions()
        for package in dict.fromkeys(source.packages):
            self._units += find_files(package)
            names = distributions.get(package, [])
            self._versions[package] = version(names[0]) if names else platform.python_version()
        self._pairs: list[_Pair] = []
        self._rejects: list[Reject] = []
        self._fed = False

    def fingerprint(self) -> dict[str, Any]:
        """Versions, and the size of every file, since a checkout changes without a version."""
        sizes = [(unit["module"], os.path.getsize(unit["path"])) for unit in self._units]
        return {
            "packages": self._versions,
            "files": sha256_json(sizes),
            "python": ".".join(platform.python_version_tuple()[:2]),  # decides what is parsed
        }

    def units(self) -> list[dict[str, Any]]:
        """{"path", "module"} of every file."""
        return self._units

    @staticmethod
    def parse(unit: dict[str, Any]) -> list[dict[str, Any]]:
        """The docstrings of one file: see `parse_file`."""
        return parse_file(unit["path"], unit["module"])

    def feed(self, rows: Iterable[dict[str, Any]]) -> None:
        """Keep one of equal passages and of equal queries: the first, by order of packages and
        files as the config and the modules' names give it."""
        place = {unit["module"]: i for i, unit in enumerate(self._units)}
        paths = {unit["module"]: unit["path"] for unit in self._units}
        passages: set[str] = set()
        queries: set[str] = set()
        self._pairs, self._rejects, self._fed = [], [], True
        for row in sorted(rows, key=lambda row: (place[row["module"]], row["line"], row["name"])):
            if row["reason"]:
                self._rejects.append(
                    Reject.of(paths[row["module"]], row["line"], row["reason"], row["module"])
                )
                continue
            query, passage, module = row["query"], row["passage"], row["module"]
            if passage in passages or query.casefold() in queries:
                continue
            passages.add(passage)
            queries.add(query.casefold())
            text = f"{spoken_name(row['name'])}: {passage}"
            self._pairs.append(_Pair(f"{module}:{row['name']}", module, query, text))

    def passages(self) -> Iterator[tuple[str, str] | Reject]:
        self._parse_if_not_fed()
        yield from self._rejects
        for pair in self._pairs:
            yield pair.id, pair.passage

    def splits(self) -> list[str]:
        percents = {"train": 1, "dev": self._dev, "test": self._test}
        return [split for split, percent in percents.items() if percent]

    def queries(self, split: str) -> Iterator[tuple[str, str] | Reject]:
        for pair in self._of(split):
            yield pair.id, pair.query

    def qrels(self, split: str) -> Iterator[tuple[str, str, int] | Reject]:
        for pair in self._of(split):
            yield pair.id, pair.id, 1

    def candidates(self, split: str) -> None:
        return None

    def negatives(self) -> None:
        return None

    def _of(self, split: str) -> Iterator[_Pair]:
        self._parse_if_not_fed()
        return (pair for pair in self._pairs if self._split_of(pair.module) == split)

    def _split_of(self, module: str) -> str:
        """By a hash of the module's name: no other module and no order has a say in it."""
        # The name of a file need not be UTF-8; its passages are then refused, not the hash.
        name = module.encode(errors="surrogateescape")
        percent = int(hashlib.sha256(name).hexdigest(), 16) % 100
        if percent < self._dev:
            return "dev"
        return "test" if percent < self._dev + self._test else "train"

    def _parse_if_not_fed(self) -> None:
        if not self._fed:
            self.feed(row for unit in self._units for row in self.parse(unit))


def find_files(package: str) -> list[dict[str, Any]]:
    """{"path", "module"} of a package's Python files, without its tests and vendored code.

    Raises KdscaleError where it is not installed, or not written in Python.
    """
    if not package.isidentifier():
        raise KdscaleError(
            f"source.packages: {package!r} is not the import name of a package (no dots); "
            "write it as in `import numpy`"
        )
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise KdscaleError(
            f"source.packages: {package} is not installed; install it or remove it from the list"
        )
    units = []
    for folder in spec.submodule_search_locations or []:
        units += _files_below(Path(folder), package)
    if not units and spec.origin and spec.origin.endswith(".py"):
        units = [{"path": spec.origin, "module": package}]
    if not units:
        raise KdscaleError(
            f"source.packages: {package} has no Python files to read; remove it from the list"
        )
    return units


def _files_below(root: Path, package: str) -> list[dict[str, Any]]:
    units = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - SKIPPED_FOLDERS)
        for name in sorted(files):
            path = Path(folder, name)
            if path.suffix == ".py" and path.is_file():
                parts = [package, *path.relative_to(root).with_suffix("").parts]
                if parts[-1] == "__init__":
                    parts.pop()
                units.append({"path": str(path), "module": ".".join(parts)})
    return units


def parse_file(path: str, module: str) -> list[dict[str, Any]]:
    """The usable docstrings of the functions and classes of a file, as rows of
    {"module", "name", "line", "query", "passage", "reason"}.

    A docstring is usable when its first paragraph has 4 to 30 words and the rest at least 20.
    A file that cannot be parsed gives one row, whose `reason` is not "". Pure and picklable.
    """
    try:
        with open(path, "rb") as handle:
            source = handle.read()
    except OSError:
        return [_row(module, "", 0, reason=UNREADABLE)]
    if not _may_have_pairs(source):
        return []
    try:
        body = _parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [_row(module, "", 0, reason=NOT_PYTHON)]
    rows = []
    taken: dict[str, int] = {}
    for name, node in _definitions(body):
        paragraphs = _PARAGRAPH.split(ast.get_docstring(node) or "", maxsplit=1)
        query, passage = (" ".join(p.split()) for p in (*paragraphs, "")[:2])
        if _words(query) in QUERY_WORDS and _words(passage) >= MIN_PASSAGE_WORDS:
            taken[name] = taken.get(name, 0) + 1
            if taken[name] > 1:  # a second definition of the name, in another branch
                name = f"{name}#{taken[name]}"
            rows.append(_row(module, name, node.lineno, query, passage))
    return rows


def spoken_name(name: str) -> str:
    """The last two parts of a qualified name in words: "Axes.get_xlim" -> "axes get xlim".

    What marks a second definition of a name ("solve#2") is no part of it.
    """
    name = name.partition("#")[0]
    return " ".join(_WORD_BREAK.sub(" ", ".".join(name.split(".")[-2:])).lower().split())


def _may_have_pairs(source: bytes) -> bool:
    """Whether an indented triple-quoted string has a blank line: most of the time is parsing."""
    return any(_BLANK_LINE.search(match[2]) for match in _QUOTED.finditer(source))


def _parse(source: bytes) -> ast.Module:
    # A syntax tree is a hundred thousand objects without a cycle: collecting in between costs
    # a fifth of the time.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in other people's strings
            return ast.parse(source)
    finally:
        if was_enabled:
            gc.enable()


def _definitions(body: list[ast.stmt]) -> Iterator[tuple[str, Any]]:
    """(qualified name, node) of every function and class, also those in branches and bodies, in
    the order of the file. No recursion: an `elif` stands in the branch of the one before it."""
    todo = [("", node) for node in reversed(body)]
    while todo:
        prefix, node = todo.pop()
        blocks: tuple[str, ...] = ("body", "orelse", "handlers", "finalbody", "cases")
        if isinstance(node, _DEFINITIONS):
            yield f"{prefix}{node.name}", node
            prefix, blocks = f"{prefix}{node.name}.", ("body",)
        inner = [child for block in blocks for child in getattr(node, block, [])]
        todo += [(prefix, child) for child in reversed(inner)]


def _words(text: str) -> int:
    return len(text.split())


def _row(
    module: str, name: str, line: int, query: str = "", passage: str = "", reason: str = ""
) -> dict[str, Any]:
    return {
        "module": module,
        "name": name,
        "line": line,
        "query": query,
        "passage": passage,
        "reason": reason,
    }
