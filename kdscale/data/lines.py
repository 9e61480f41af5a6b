"""Lines of text files, plain or .gz, one at a time, with their numbers."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from kdscale.data.readers.base import Reject
from kdscale.errors import KdscaleError

NOT_UTF8 = "not UTF-8"
EMPTY_ID = "empty id"
NOT_JSON = "not a JSON object"
NO_ID = "no id"
NO_TEXT = "no text"

_BOM = b"\xef\xbb\xbf"


def open_bytes(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def read_lines(path: Path) -> Iterator[tuple[int, str] | Reject]:
    """(number from 1, line without its end) of every line that is not blank.

    A line that is not UTF-8 is a Reject. Raises KdscaleError for a file that cannot be read.
    """
    try:
        with open_bytes(path) as handle:
            for number, raw in enumerate(handle, 1):
                if number == 1:
                    raw = raw.removeprefix(_BOM)
                try:
                    line = raw.decode().rstrip("\r\n")
                except UnicodeDecodeError:
                    shown = raw.decode(errors="backslashreplace").rstrip("\r\n")
                    yield Reject.of(path, number, NOT_UTF8, shown)
                    continue
                if line and not line.isspace():
                    yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise KdscaleError(f"{path} is a damaged .gz file ({error}); fetch it again") from None
    except OSError as error:
        raise KdscaleError(f"cannot read {path} ({error.strerror or error})") from None


def read_tsv_texts(path: Path) -> Iterator[tuple[str, str] | Reject]:
    """(id, text) of lines `id TAB text`."""
    for item in read_lines(path):
        if isinstance(item, Reject):
            yield item
            continue
        number, line = item
        identifier, tab, text = line.partition("\t")
        if not tab:
            yield Reject.of(path, number, "not two columns (id TAB text)", line)
        elif not identifier.strip():
            yield Reject.of(path, number, EMPTY_ID, line)
        else:
            yield identifier.strip(), text


def read_json_texts(path: Path) -> Iterator[tuple[str, str] | Reject]:
    """(id, text) of JSON lines: id in "_id", "id" or "docno", text in "text" or "contents".

    A "title" that is not empty is put before the text.
    """
    for item in read_lines(path):
        if isinstance(item, Reject):
            yield item
            continue
        number, line = item
        found = _id_and_text(line)
        yield Reject.of(path, number, found, line) if isinstance(found, str) else found


def _id_and_text(line: str) -> tuple[str, str] | str:
    """(id, text), or the reason why there is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return NOT_JSON
    if not isinstance(record, dict):
        return NOT_JSON
    identifier = next((record[k] for k in ("_id", "id", "docno") if k in record), None)
    text = next((record[k] for k in ("text", "contents") if k in record), None)
    title = record.get("title") or ""
    if isinstance(identifier, bool) or not isinstance(identifier, str | int):
        return NO_ID
    if not str(identifier).strip():
        return EMPTY_ID
    if not isinstance(text, str) or not isinstance(title, str):
        return NO_TEXT
    return str(identifier).strip(), f"{title} {text}" if title.strip() else text
