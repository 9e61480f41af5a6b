"""Queries and passages from whatever file a user has: the format follows from the content."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads

from kdscale.data.lines import EMPTY_ID, Texts, TextsReader, read_by_first_char, read_tsv_texts
from kdscale.data.readers.base import Reject
from kdscale.data.readers.sgml import read_sgml_documents
from kdscale.data.readers.topics import read_sgml_topics
from kdscale.data.records import (
    ID_NAMES,
    NO_TEXT,
    QUERY_ID_NAMES,
    QUERY_TEXT_NAMES,
    TEXT_NAMES,
    TITLE,
    first_name,
    join_title,
    read_json_passages,
    read_json_queries,
)
from kdscale.errors import KdscaleError

Names = tuple[tuple[str, ...], tuple[str, ...]]  # of the id and of the text


def read_passages(path: Path) -> Texts:
    """Parquet (a file, or a folder of files), JSON lines, TREC SGML, or `id TAB text`.

    All but Parquet may be packed (`kdscale.data.lines`). Raises KdscaleError for a file that is
    absent or unreadable.
    """
    names = (ID_NAMES, TEXT_NAMES)
    return _read(path, "passages", names, read_json_passages, read_sgml_documents)


def read_queries(path: Path, say: Callable[[str], None] = lambda remark: None) -> Texts:
    """Parquet, JSON lines, TREC topics, or `id TAB text`; as `read_passages`.

    say: is told what was taken for the query of topics without a title
    """
    names = (QUERY_ID_NAMES, QUERY_TEXT_NAMES)
    return _read(path, "queries", names, read_json_queries, partial(read_sgml_topics, say=say))


def _read(
    path: Path, what: str, names: Names, read_json: TextsReader, read_markup: TextsReader
) -> Texts:
    if not path.exists():
        raise KdscaleError(f"{what}: {path} does not exist; check the path")
    if path.is_dir() or path.suffix == ".parquet":
        return _read_parquet(path, what, names)
    return read_by_first_char(path, {"{": read_json, "<": read_markup}, read_tsv_texts)


def _read_parquet(path: Path, what: str, names: Names) -> Texts:
    try:
        table = pads.dataset(path, format="parquet")
        types = {field.name: field.type for field in table.schema}
        # Only plain types: a value of one that a library gave Arrow may be code to run.
        plain = [n for n, kind in types.items() if _is_string(kind)]
        ids = [n for n, kind in types.items() if n in plain or pa.types.is_integer(kind)]
        column, text = first_name(ids, names[0]), first_name(plain, names[1])
        if column is None or text is None:
            found = ", ".join(f"{name} ({kind})" for name, kind in types.items())
            raise KdscaleError(
                f"{what}: {path} has the columns {found or '(none)'}; it needs a text (string: "
                f"one of {', '.join(names[1])}) and an id (string or integer: one of "
                f"{', '.join(names[0])})"
            )
        title = TITLE if TITLE in plain and text != TITLE else None
        wanted = [column, text] + ([title] if title else [])
        row = 0
        for batch in table.to_batches(columns=wanted):
            columns = [c.to_pylist() for c in batch.columns]
            titles = columns[2] if title else [None] * len(batch)
            for identifier, body, above in zip(*columns[:2], titles, strict=True):
                row += 1
                if identifier is None or not str(identifier).strip():
                    yield Reject.of(path, row, EMPTY_ID, str(body))
                elif body is None:
                    yield Reject.of(path, row, NO_TEXT, str(identifier))
                else:
                    yield str(identifier), join_title(above, body)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise KdscaleError(f"{what}: cannot read {path} as Parquet ({reason})") from None


def _is_string(kind: pa.DataType | None) -> bool:
    if kind is not None and pa.types.is_dictionary(kind):
        kind = kind.value_type
    return kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind))
