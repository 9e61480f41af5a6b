"""Queries and passages from whatever file a user has: the format follows from the content."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads

from kdscale.data.lines import EMPTY_ID, NO_TEXT, read_json_texts, read_lines, read_tsv_texts
from kdscale.data.readers.base import Reject
from kdscale.data.readers.sgml import read_sgml_documents, read_sgml_topics
from kdscale.errors import KdscaleError

Texts = Iterator[tuple[str, str] | Reject]  # (id, text)

ID_COLUMNS = ("pid", "qid", "_id", "id", "docno")


def read_passages(path: Path) -> Texts:
    """Parquet (a file, or a folder of files), JSON lines, TREC SGML, or `id TAB text`.

    All but Parquet plain or .gz. Raises KdscaleError for a file that is absent or unreadable.
    """
    return _read(path, "passages", read_sgml_documents)


def read_queries(path: Path) -> Texts:
    """Parquet, JSON lines, TREC topics, or `id TAB text`; as `read_passages`."""
    return _read(path, "queries", read_sgml_topics)


def _read(path: Path, what: str, read_markup: Callable[[Path], Texts]) -> Texts:
    if not path.exists():
        raise KdscaleError(f"{what}: {path} does not exist; check the path")
    if path.is_dir() or path.suffix == ".parquet":
        return _read_parquet(path, what)
    first = next((item[1] for item in read_lines(path) if not isinstance(item, Reject)), "")
    readers = {"{": read_json_texts, "<": read_markup}
    return readers.get(first.lstrip()[:1], read_tsv_texts)(path)


def _read_parquet(path: Path, what: str) -> Texts:
    try:
        table = pads.dataset(path, format="parquet")
        names = table.schema.names
        column = next((name for name in ID_COLUMNS if name in names), None)
        if column is None or "text" not in names:
            raise KdscaleError(
                f"{what}: {path} has the columns {', '.join(names) or '(none)'}; it needs "
                f'"text" and one of {", ".join(ID_COLUMNS)}'
            )
        row = 0
        for batch in table.to_batches(columns=[column, "text"]):
            for identifier, text in zip(*(c.to_pylist() for c in batch.columns), strict=True):
                row += 1
                if identifier is None or not str(identifier).strip():
                    yield Reject.of(path, row, EMPTY_ID, str(text))
                elif not isinstance(text, str):
                    yield Reject.of(path, row, NO_TEXT, str(text))
                else:
                    yield str(identifier), text
    except (pa.ArrowInvalid, OSError) as error:
        raise KdscaleError(
            f"{what}: cannot read {path} as Parquet ({str(error).splitlines()[0]})"
        ) from None
