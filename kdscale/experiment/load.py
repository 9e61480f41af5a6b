"""YAML and `--set a.b=c` to a checked `Config`: every mistake is one line that names its place.

YAML is read as data: plain values only, and never more work than the text is long.
"""

from __future__ import annotations

import contextlib
import dataclasses
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from kdscale import config as schema
from kdscale.bounds import check_number
from kdscale.config import Config, Shape
from kdscale.errors import KdscaleError, nearest
from kdscale.experiment.checks import check_config
from kdscale.models.shapes import check_shape
from kdscale.paths import user_path

MAX_BYTES = 2**20
MAX_SIZE = 100_000  # values and characters, what an alias stands for counted wherever it stands
MAX_DEPTH = 50


def read_yaml(path: Path) -> Any:
    """The one document of a file. Raises KdscaleError, naming the line where there is one."""
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise KdscaleError(f"{path} is larger than 1 MiB, which no config is; check the path")
        text = data.decode()
    except FileNotFoundError:
        raise KdscaleError(f"no config file {path}; give the path of a YAML file") from None
    except (OSError, ValueError) as error:
        raise KdscaleError(f"cannot read {path} ({error}); give a UTF-8 YAML file") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text. Raises KdscaleError that begins with `where`."""
    try:
        return _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise KdscaleError(f"{where}{line}: {problem}; mend the YAML") from None


class _Loader(yaml.SafeLoader):
    """Aliases that multiply (ten of ten of ten ...) are counted before anything is built, and
    nesting is counted as it is read, so that a small text can take neither memory nor time."""

    def __init__(self, text: str):
        super().__init__(text)
        self._depth = 0
        self._size = 0
        self._sizes: dict[int, int] = {}  # of the node with that id, aliases followed

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._sizes:
                raise _Refused("an alias inside of what it stands for", mark)
            self._size += self._sizes[id(node)]
        else:
            before = self._size
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise _Refused(f"nested deeper than {MAX_DEPTH}", mark)
            node = super().compose_node(parent, index)
            self._depth -= 1
            assert node is not None  # there was an event for it
            self._size += 1 + len(node.value) * isinstance(node, yaml.ScalarNode)
            self._sizes[id(node)] = self._size - before
        if self._size > MAX_SIZE:
            raise _Refused("more than a config can hold, with every alias written out", mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            # What PyYAML has to say of 2001-13-01, !!bool x, !!timestamp x or 5,000 digits.
            kind = node.tag.rpartition(":")[2]
            raise _Refused(f"{str(node.value)[:40]!r} is no {kind}", node.start_mark) from None

    def construct_whole_number(self, node: yaml.ScalarNode) -> int:
        value = self.construct_yaml_int(node)
        if not -(2**63) <= value < 2**63:
            raise _Refused("a number that 64 bits cannot hold", node.start_mark)
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole_number)


class _Refused(yaml.MarkedYAMLError):
    def __init__(self, problem: str, mark: yaml.Mark):
        super().__init__(problem=problem, problem_mark=mark)


SOURCES = {get_args(typing.get_type_hints(c)["type"])[0]: c for c in get_args(schema.Source)}


def load_config(path: Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply overrides, resolve student names, check. Raises KdscaleError."""
    data = read_settings(path, overrides)
    if "sweep" in data:
        raise KdscaleError(f"{path} is a sweep, many experiments in one; use kdscale sweep {path}")
    return make_config(data, path)


def read_settings(path: Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """The settings of a YAML file as it has them, with the overrides. Raises KdscaleError."""
    data = read_yaml(path)
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise KdscaleError(f"{path} holds a {type(data).__name__}, not a mapping of settings")
    for override in overrides or []:
        _apply_override(data, override)
    return data


def make_config(data: dict[str, Any], path: Path) -> Config:
    """The checked config of such settings; names of students are looked up beside `path`."""
    config = build(Config, _inline_students(data, path), "")
    check_config(config)
    return config


def to_dict(config: Any) -> dict[str, Any]:
    return dataclasses.asdict(config)


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, equals, raw = override.partition("=")
    if not equals or not key:
        raise KdscaleError(f"--set {override}: write it as a.b=value")
    node = data
    *parents, last = key.split(".")
    for part in parents:
        below = node.get(part, {})
        if not isinstance(below, dict):
            raise KdscaleError(f"--set {override}: {part} is not a group of settings")
        # A copy, since a YAML alias makes several places one object: only this one is set.
        node[part] = dict(below)
        node = node[part]
    node[last] = parse_yaml(raw, f"--set {key}")


def _inline_students(data: dict[str, Any], path: Path) -> dict[str, Any]:
    """Replace a student's name by the shape in `students/NAME.yaml` beside the config file."""
    students = data.get("students")
    if not isinstance(students, list):
        return data
    resolved = []
    for entry in students:
        if isinstance(entry, str):
            file = user_path(str(path.parent / "students" / f"{entry}.yaml"), "students")
            if not file.is_file() and Path(entry).suffix in (".yaml", ".yml"):
                file = user_path(str(path.parent / entry), "students")
            if not file.is_file():
                known = sorted(p.stem for p in (path.parent / "students").glob("*.yaml"))
                raise KdscaleError(
                    f"students: no shape {entry!r} (looked for {file}){nearest(entry, known)}"
                )
            entry = read_yaml(file)
            if isinstance(entry, dict):
                entry.setdefault("name", file.stem)
        resolved.append(entry)
    return {**data, "students": resolved}


def build(cls: type, data: Any, where: str) -> Any:
    """A dataclass from a mapping; `where` is the dotted path, for messages."""
    if not isinstance(data, dict):
        raise KdscaleError(f"{where or 'config'}: a group of settings, not {_show(data)}")
    hints = typing.get_type_hints(cls, include_extras=True)
    known = [f.name for f in dataclasses.fields(cls)]
    values = {}
    for key, value in data.items():
        dotted = f"{where}.{key}" if where else str(key)
        if key not in known:
            raise KdscaleError(f"unknown key {dotted}{nearest(str(key), known)}")
        values[key] = coerce(hints[key], value, dotted)
    if cls is Shape:
        for f in known:
            if f not in values and f != "embedding":
                raise KdscaleError(f"{where}: a student shape needs {f}")
        check_shape(Shape(**values))
    return cls(**values)


def coerce(hint: Any, value: Any, where: str) -> Any:
    """A value of the type, with the bounds that stand in it. Raises KdscaleError naming `where`."""
    origin, args = get_origin(hint), get_args(hint)
    if hint == schema.Source:
        return _source(value, where)
    if origin is Annotated:
        value = coerce(hint.__origin__, value, where)
        check_number(hint, value, where)
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        kinds = [a for a in args if a is not type(None)]
        mapping = next((a for a in kinds if get_origin(a) is dict), kinds[0])
        return coerce(mapping if isinstance(value, dict) else kinds[0], value, where)
    if origin is Literal:
        if value not in args:
            raise KdscaleError(
                f"{where}: one of {', '.join(map(str, args))}, not {_show(value)}"
                f"{nearest(str(value), [str(a) for a in args])}"
            )
        return value
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build(hint, value, where)
    if origin is list:
        if not isinstance(value, list):
            raise KdscaleError(f"{where}: a list, not {_show(value)}")
        return [coerce(args[0], v, f"{where}[{i}]") for i, v in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise KdscaleError(f"{where}: a mapping, not {_show(value)}")
        return {str(k): coerce(args[1], v, f"{where}.{k}") for k, v in value.items()}
    return _scalar(hint, value, where)


def _scalar(hint: type, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)  # YAML reads 5e-5 (no dot) as text
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if type(value) is not hint:
        raise KdscaleError(f"{where}: expected {hint.__name__}, not {_show(value)}")
    if isinstance(value, str) and (
        "\0" in value or value.encode(errors="ignore").decode() != value
    ):
        raise KdscaleError(f"{where}: {_show(value)} has a NUL or half a surrogate pair")
    return value


def _source(value: Any, where: str) -> Any:
    if not isinstance(value, dict) or "type" not in value:
        raise KdscaleError(f"{where}: a mapping with the key type ({', '.join(SOURCES)})")
    if not isinstance(value["type"], str) or value["type"] not in SOURCES:
        raise KdscaleError(
            f"{where}.type: no source {_show(value['type'])}"
            f"{nearest(str(value['type']), list(SOURCES))}"
        )
    return build(SOURCES[value["type"]], value, where)


def _show(value: Any) -> str:
    text = repr(value)
    kind = type(value).__name__
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({kind})"
