"""A stage's settings as its cache key sees them: plain values, without what changes no result.

What a record names outside of itself (files, models) is in the key as its content.
"""

from __future__ import annotations

import dataclasses
import typing
from functools import cache, singledispatch
from pathlib import Path
from typing import Any, get_args

from kdscale.bounds import NO_RESULT
from kdscale.config import (
    BeirSource,
    DocstringsSource,
    IrDatasetsSource,
    ModelRef,
    MsMarcoSource,
    Strategy,
    TrecSource,
    Watch,
)
from kdscale.errors import KdscaleError
from kdscale.experiment.settings import InputFile, TokenizerRef
from kdscale.paths import user_path
from kdscale.store.artifact import sha256_file


@singledispatch
def cache_key(value: Any) -> Any:
    """JSON values. Raises KdscaleError for a file that is not there."""
    if isinstance(value, dict):
        return {name: cache_key(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [cache_key(inner) for inner in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: cache_key(getattr(value, name)) for name in _counted(type(value))}
    return value


@cache_key.register
def _(strategy: Strategy) -> str:
    return strategy.name


@cache_key.register
def _(watch: Watch) -> Any:
    # Looking changes nothing, unless something is decided by it.
    if not (watch.patience or watch.keep_best):
        return None
    return {name: getattr(watch, name) for name in _counted(Watch)}


@cache_key.register
def _(file: InputFile) -> str:
    return sha256_file(check_file(file))


@cache_key.register
def _(model: ModelRef) -> Any:
    from kdscale.models.pretrained import fingerprint_model

    return fingerprint_model(model.name, model.revision)


@cache_key.register
def _(tokenizer: TokenizerRef) -> Any:
    from kdscale.models.pretrained import fingerprint_tokenizer

    return fingerprint_tokenizer(tokenizer.model.name, tokenizer.model.revision)


def _source(source: Any) -> Any:
    from kdscale.data.readers import open_reader

    return {**dataclasses.asdict(source), "content": open_reader(source).fingerprint()}


for _cls in (DocstringsSource, BeirSource, MsMarcoSource, TrecSource, IrDatasetsSource):
    cache_key.register(_cls, _source)


def check_file(file: InputFile) -> Path:
    """Its path. Raises KdscaleError where it is not there."""
    path = user_path(file.path, file.setting)
    if not path.is_file():
        raise KdscaleError(f"{file.setting}: no file {file.path}; check the path")
    return path


@cache
def _counted(record: type) -> list[str]:
    """The fields of a record that its result depends on."""
    hints = typing.get_type_hints(record, include_extras=True)
    return [f.name for f in dataclasses.fields(record) if NO_RESULT not in _said(hints[f.name])]


def _said(hint: Any) -> tuple[Any, ...]:
    return get_args(hint)[1:] if typing.get_origin(hint) is typing.Annotated else ()
