"""YAML and `--set a.b=c` to a checked `Config`: every mistake is one line that names its place."""

from __future__ import annotations

import contextlib
import dataclasses
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from kdscale import config as schema
from kdscale.bounds import check_number
from kdscale.config import DEFAULT, Config, Shape, Watch
from kdscale.errors import KdscaleError, nearest
from kdscale.losscheck import check_losses
from kdscale.models.shapes import check_shape
from kdscale.paths import user_path
from kdscale.store.artifact import NAME
from kdscale.transfer import check_transfers, split_names
from kdscale.yamltext import parse_yaml, read_yaml

NAME_BYTES = 100
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


def check_config(config: Config) -> None:
    """What types cannot say. Raises KdscaleError naming the key."""
    _check_watch(config.ranker.watch)
    _check_names("name", [config.name])
    _check_names("students", [shape.name for shape in config.students])
    _check_names("prepare.split", list(config.prepare.split))
    for key in ("splits", "queries", "topics", "ids"):  # whichever the source's type has
        _check_names(f"source.{key}", list(getattr(config.source, key, ())))
    _check_names("transfer", list(config.transfer))
    for name, transfer in config.transfer.items():
        _check_names(f"transfer.{name}.split", [transfer.split])
    if config.cluster.wait_s and None in (
        config.cluster.cpus_per_worker,
        config.cluster.cpus_per_scorer,
    ):
        raise KdscaleError(
            "cluster.wait_s: set cluster.cpus_per_worker and cluster.cpus_per_scorer with it; a "
            "cluster that is yet to start has no CPUs to take a share of"
        )
    check_losses(config)
    _check_depths(config)
    _check_collections(config)
    check_transfers(config)
    if sum(config.prepare.split.values()) > 1 + 1e-9:
        raise KdscaleError("prepare.split: the fractions add up to more than 1")


def _check_names(key: str, names: list[str]) -> None:
    """Raise KdscaleError for a name that would lead out of a folder, or could not be a file
    everywhere: the names of experiments, students and splits become names of files."""
    seen: set[str] = set()
    for name in names:
        if not NAME.fullmatch(name) or len(name.encode()) > NAME_BYTES:
            raise KdscaleError(
                f"{key}: the name {name!r} becomes a file's; use letters a to z, digits and . _ -, "
                f"beginning with a letter or a digit, at most {NAME_BYTES} bytes"
            )
        if name.casefold() in seen:
            raise KdscaleError(
                f"{key}: two are named {name!r} (large and small letters are one to some file "
                "systems); give each its own name"
            )
        seen.add(name.casefold())


def _check_depths(config: Config) -> None:
    """Raise KdscaleError for a depth to look at that has no candidates of its own."""
    evaluate, prepare = config.evaluate, config.prepare
    deepest = max([evaluate.depth, *(transfer.depth for transfer in config.transfer.values())])
    for depth in evaluate.depths:
        if depth > deepest:
            raise KdscaleError(
                f"evaluate.depths: {depth} is not among the {deepest} candidates that are reranked "
                "(evaluate.depth, or that of a transfer); give depths from 1 to that"
            )
        for split in evaluate.splits:
            kept = prepare.depth.get(split, prepare.default_depth)
            if kept < depth <= evaluate.depth:
                raise KdscaleError(
                    f"evaluate.depths: {depth} candidates, but prepare.depth keeps {kept} of "
                    f"{split}; raise it"
                )


def _check_collections(config: Config) -> None:
    """Raise KdscaleError for a setting by collection that names one that there is not."""
    evaluate = config.evaluate
    known = [*evaluate.splits, *config.prepare.split, *split_names(config.source)]
    known = list(dict.fromkeys([DEFAULT, *known, "dev", *config.transfer]))
    for key, setting in (
        ("evaluate.measures", evaluate.measures),
        ("evaluate.primary", evaluate.primary),
    ):
        if not isinstance(setting, dict):
            continue
        for name in setting:
            if name not in known:
                raise KdscaleError(
                    f"{key}: no split and no transfer is named {name!r}, only "
                    f"{', '.join(known[1:])}{nearest(name, known)}"
                )
        if DEFAULT not in setting:
            raise KdscaleError(
                f"{key}: say under `{DEFAULT}` what is measured where the mapping names no other"
            )


def _check_watch(watch: Watch) -> None:
    for name in ("patience", "keep_best"):
        if getattr(watch, name) and not watch.every:
            raise KdscaleError(
                f"ranker.watch.{name} needs looks at dev; set ranker.watch.every to the steps "
                "from one to the next"
            )


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
    if dataclasses.is_dataclass(hint):
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
    if hint is str and ("\0" in value or value.encode(errors="ignore").decode() != value):
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
