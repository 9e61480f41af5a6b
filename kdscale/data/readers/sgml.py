"""The SGML of TREC: documents and topics, as loose as the collections are.

Closing tags of fields may be missing, names may be in any case, several elements may stand on one
line, and the text of a document may follow its number without a tag.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kdscale.data.lines import EMPTY_ID, NOT_UTF8, read_lines
from kdscale.data.readers.base import Reject

NOT_CLOSED = "element is not closed"
OUTSIDE = "text outside of any element"
NO_DOCNO = "document without <DOCNO>"
NO_NUMBER = "topic without a number"
NO_TITLE = "topic without a title"

_TAG = re.compile(r"<(/?)([A-Za-z][\w.:-]*)((?:\s[^<>]*)?)>")
_DECLARATION = re.compile(r"<[!?][^>]*>")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_NUMBER_ATTRIBUTE = re.compile(r"\b(?:number|num|id)\s*=\s*[\"']?([^\s\"'>]+)", re.IGNORECASE)
_TITLES = {"title", "headline", "head", "hl", "ti", "ttl"}
_NOT_TEXT = {"docno", "dochdr", "script", "style"}
_OF_DOCUMENT = {"text", *_TITLES, *_NOT_TEXT}


@dataclass
class _Element:
    line: int
    attributes: str
    pieces: list[str] = field(default_factory=list)
    bad_line: int = 0  # the last one that is not UTF-8


def read_sgml_documents(path: Path) -> Iterator[tuple[str, str] | Reject]:
    """(id, text) of every <DOC>.

    The text is that of <TEXT> and of a title before it; where a document has no <TEXT>, all but
    its number, its web header, its scripts and its styles.
    """
    for element in _elements(path, "doc", must_close=True):
        if isinstance(element, Reject):
            yield element
            continue
        fields = _fields(element, _OF_DOCUMENT)
        number = next((" ".join(text.split()) for name, text in fields if name == "docno"), None)
        if not number:
            reason = NO_DOCNO if number is None else EMPTY_ID
            yield Reject.of(path, element.line, reason, "".join(element.pieces))
            continue
        if any(name == "text" for name, _ in fields):
            kept = [text for name, text in fields if name == "text" or name in _TITLES]
        else:
            kept = [text for name, text in fields if name not in _NOT_TEXT]
        yield number, html.unescape(" ".join(text.strip() for text in kept if text.strip()))


def read_sgml_topics(path: Path) -> Iterator[tuple[str, str] | Reject]:
    """(id, text) of every <top> or <topic>: its title, or its <query> where it has none."""
    for element in _elements(path, "top|topic", must_close=False):
        if isinstance(element, Reject):
            yield element
            continue
        first: dict[str, str] = {}
        for name, text in _fields(element):
            if text.strip() and name not in first:
                first[name] = " ".join(text.split())
        number = first.get("num", first.get("number", ""))
        number = re.sub(r"^number:\s*", "", number, flags=re.IGNORECASE)
        attribute = _NUMBER_ATTRIBUTE.search(element.attributes)
        title = first.get("title", first.get("query", ""))
        title = re.sub(r"^topic:\s*", "", title, flags=re.IGNORECASE)
        if number or attribute:
            found = (number or attribute[1], html.unescape(title)) if title else NO_TITLE
        else:
            found = NO_NUMBER
        if isinstance(found, str):
            yield Reject.of(path, element.line, found, "".join(element.pieces))
        else:
            yield found


def _elements(path: Path, names: str, must_close: bool) -> Iterator[_Element | Reject]:
    """Every outermost element of these names, and a Reject for what is not in one."""
    boundary = re.compile(rf"<(/?)(?:{names})((?:\s[^<>]*)?)>", re.IGNORECASE)
    element: _Element | None = None
    for item in read_lines(path):
        if isinstance(item, Reject):
            if element is None:
                yield item
            else:
                element.bad_line = item.line
                element.pieces.append(item.text + "\n")
            continue
        number, line = item
        start = 0
        for match in boundary.finditer(line):
            before, start = line[start : match.start()], match.end()
            yield from _take(path, number, element, before)
            if element is not None:
                yield _finish(path, element, bool(match[1]) or not must_close)
            element = None if match[1] else _Element(number, match[2])
        yield from _take(path, number, element, line[start:] + "\n")
    if element is not None:
        yield _finish(path, element, not must_close)


def _take(path: Path, number: int, element: _Element | None, text: str) -> Iterator[Reject]:
    """Text goes to the open element; where none is open, only tags may stand."""
    if element is not None:
        element.pieces.append(text)
    elif _TAG.sub("", _DECLARATION.sub("", text)).strip():
        yield Reject.of(path, number, OUTSIDE, text)


def _finish(path: Path, element: _Element, is_whole: bool) -> _Element | Reject:
    text = "".join(element.pieces)
    if element.bad_line:
        return Reject.of(path, element.bad_line, NOT_UTF8, text)
    return element if is_whole else Reject.of(path, element.line, NOT_CLOSED, text)


def _fields(element: _Element, known: set[str] | None = None) -> list[tuple[str, str]]:
    """(field name, text) of each piece of text; the name is "" outside of any field.

    A field starts at an opening tag (of a known name, others being markup in it; None: any name)
    and ends at its closing tag or where the next field starts. <TEXT> ends only at </TEXT>.
    """
    body = _COMMENT.sub(" ", "".join(element.pieces))
    fields: list[tuple[str, str]] = []
    name, start = "", 0
    for match in _TAG.finditer(body):
        fields.append((name, body[start : match.start()]))
        start, closing, tag = match.end(), match[1], match[2].lower()
        if closing:
            name = "" if tag == name else name
        elif name != "text" and (known is None or tag in known):
            name = tag
    fields.append((name, body[start:]))
    return fields
