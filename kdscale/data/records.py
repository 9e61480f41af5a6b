"""Ids and texts in JSON lines and in tables: by which names people keep them.

The names are those of BEIR (`_id`), Anserini (`id`, `contents`), MS MARCO v2 (`pid` and `passage`,
`docid` and `segment` or `body`), Tevatron (`docid`, `query_id`, `query`) and TREC (`docno`, `qid`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from kdscale.data.lines import EMPTY_ID, NOT_UTF8, Texts, is_utf8, parse_lines

# In the order in which they are looked for. A passage of MS MARCO v2 has a "pid" of its own and the
# "docid" of the document that it is from.
ID_NAMES = ("_id", "id", "pid", "docid", "doc_id", "docno", "qid", "query_id")
TEXT_NAMES = ("text", "contents", "passage", "segment", "body", "query")
TITLE = "title"

# A file of queries may name what else belongs to them: a relevant passage, say. A topic may have
# nothing but a title.
_QUERY_FIRST = ("qid", "query_id", "query")
QUERY_ID_NAMES = tuple(sorted(ID_NAMES, key=lambda name: name not in _QUERY_FIRST))
QUERY_TEXT_NAMES = (*sorted(TEXT_NAMES, key=lambda name: name not in _QUERY_FIRST), TITLE)

NOT_JSON = "not a JSON object"
NO_ID = f"no id (one of {', '.join(ID_NAMES)}: a string or a whole number)"
NO_TEXT = f"no text (one of {', '.join(TEXT_NAMES)}: a string; so is the title, if there is one)"


def read_json_passages(path: Path) -> Texts:
    """(id, text) of JSON lines; a "title" that is not empty is put before the text."""
    return parse_lines(path, lambda line: _id_and_text(line, ID_NAMES, TEXT_NAMES))


def read_json_queries(path: Path) -> Texts:
    """(id, text) of JSON lines, as `read_json_passages`."""
    return parse_lines(path, lambda line: _id_and_text(line, QUERY_ID_NAMES, QUERY_TEXT_NAMES))


def text_of_line(line: str) -> str | None:
    """The text of a JSON line that needs no id; None where it has none."""
    record = _record(line)
    text = None if record is None else _value(record, first_name(_given(record), TEXT_NAMES))
    return text if isinstance(text, str) else None


def first_name(there: Collection[str], names: Iterable[str]) -> str | None:
    """The first of the names that is there."""
    return next((name for name in names if name in there), None)


def join_title(title: str | None, text: str) -> str:
    return f"{title} {text}" if title and title.strip() else text


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _given(record: Mapping[str, Any]) -> list[str]:
    return [name for name, value in record.items() if value is not None]


def _value(record: Mapping[str, Any], name: str | None) -> Any:
    return None if name is None else record[name]


def _id_and_text(
    line: str, id_names: Iterable[str], text_names: Iterable[str]
) -> tuple[str, str] | str:
    """(id, text), or the reason why there is none."""
    record = _record(line)
    if record is None:
        return NOT_JSON
    given = _given(record)
    name = first_name(given, text_names)
    identifier, text = _value(record, first_name(given, id_names)), _value(record, name)
    title = (record.get(TITLE) or "") if name != TITLE else ""
    if isinstance(identifier, bool) or not isinstance(identifier, str | int):
        return NO_ID
    if not str(identifier).strip():
        return EMPTY_ID
    if not isinstance(text, str) or not isinstance(title, str):
        return NO_TEXT
    if not (is_utf8(str(identifier)) and is_utf8(title) and is_utf8(text)):
        return NOT_UTF8
    return str(identifier).strip(), join_title(title, text)
