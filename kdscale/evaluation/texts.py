"""Queries and passages from whatever file a user has: the format follows from the content."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads

from kdscale.data.lines import (
    EMPTY_ID,
    NO_TEXT,
    Texts,
    TextsReader,
    read_by_first_char,
    read_json_texts,
    read_tsv_texts,
)
from kdscale.data.readers.base import Reject
from kdscale.data.readers.sgml import read_sgml_documents, read_sgml_topics
from kdscale.errors import KdscaleError

ID_COLUMNS = ("pid", "qid", "_id", "id", "docno")


def read_passages(path: Path) -> Texts:
    """Parquet (a file, or a folder of files), JSON lines, TREC SGML, or `id TAB text`.

    All but Parquet plain or .gz. Raises KdscaleError for a file that is absent or unreadable.
    """
    return _read(path, "passages", read_sgml_documents)


def read_queries(path: Path) -> Texts:
    """Parquet, JSON lines, TREC topics, or `id TAB text`; as `read_passages`."""
    return _read(path, "queries", read_sgml_topics)


def _read(path: Path, what: str, read_markup: TextsReader) -> Texts:
    if not path.exists():
        raise KdscaleError(f"{what}: {path} does not exist; check the path")
    if path.is_dir() or path.suffix == ".parquet":
        return _read_parquet(path, what)
    return read_by_first_char(path, {"{": read_json_texts, "<": read_markup}, read_tsv_texts)


def _read_parquet(path: Path, what: str) -> Texts:
    try:
        table = pads.dataset(path, format="parquet")
        types = {field.name: field.type for field in table.schema}
        column = next((name for name in ID_COLUMNS if name in types), None)
        # Only plain types: a value of one that a library gave Arrow may be code to run.
        if (
            column is None
            or not (_is_string(types[column]) or pa.types.is_integer(types[column]))
            or not _is_string(types.get("text"))
        ):
            found = ", ".join(f"{name} ({kind})" for name, kind in types.items())
            raise KdscaleError(
                f'{what}: {path} has the columns {found or "(none)"}; it needs "text" (string) '
                f"and one of {', '.join(ID_COLUMNS)} (string or integer)"
            )
        row = 0
        for batch in table.to_batches(columns=[column, "text"]):
            for identifier, text in zip(*(c.to_pylist() for c in batch.columns), strict=True):
                row += 1
                if identifier is None or not str(identifier).strip():
                    yield Reject.of(path, row, EMPTY_ID, str(text))
                elif text is None:
                    yield Reject.of(path, row, NO_TEXT, str(identifier))
                else:
                    yield str(identifier), text
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise KdscaleError(f"{what}: cannot read {path} as Parquet ({reason})") from None


def _is_string(kind: pa.DataType | None) -> bool:
    if kind is not None and pa.types.is_dictionary(kind):
        kind = kind.value_type
    return kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind))
