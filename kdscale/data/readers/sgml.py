"""The SGML of TREC: documents and topics, as loose as the collections are.

Closing tags of fields may be missing, names may be in any case, several elements may stand on one
line, and the text of a document may follow its number without a tag.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kdscale.data.lines import EMPTY_ID, MAX_LINE, TOO_LONG, read_lines
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
_ABSURD = re.compile(r"&#[0-9]{1000,};?")  # more digits than Python would take for a number
_TITLES = {"title", "headline", "head", "hl", "ti", "ttl"}
_NOT_TEXT = {"docno", "dochdr", "script", "style"}
_OF_DOCUMENT = {"text", *_TITLES, *_NOT_TEXT}


@dataclass
class _Element:
    line: int
    attributes: str
    body: io.StringIO = field(default_factory=io.StringIO)
    fault: str = ""
    fault_line: int = 0

    @property
    def text(self) -> str:
        return self.body.getvalue()

    def add(self, text: str) -> None:
        """Keep a piece of text, unless the element gets longer than a line may be."""
        if self.body.tell() + len(text) <= MAX_LINE:
            self.body.write(text)
        else:
            self.fault, self.fault_line = TOO_LONG, self.line


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
            yield Reject.of(path, element.line, reason, element.text)
            continue
        if any(name == "text" for name, _ in fields):
            kept = [text for name, text in fields if name == "text" or name in _TITLES]
        else:
            kept = [text for name, text in fields if name not in _NOT_TEXT]
        yield number, _unescape(" ".join(text.strip() for text in kept if text.strip()))


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
            found = (number or attribute[1], _unescape(title)) if title else NO_TITLE
        else:
            found = NO_NUMBER
        if isinstance(found, str):
            yield Reject.of(path, element.line, found, element.text)
        else:
            yield found


def _unescape(text: str) -> str:
    """The text with its character references resolved; one that is no character is U+FFFD."""
    return html.unescape(_ABSURD.sub("\ufffd", text))


def _elements(path: Path, names: str, must_close: bool) -> Iterator[_Element | Reject]:
    """Every outermost element of these names, and a Reject for what is not in one."""
    boundary = re.compile(rf"<(/?)(?:{names})((?:\s[^<>]*)?)>", re.IGNORECASE)
    element: _Element | None = None
    for item in read_lines(path):
        if isinstance(item, Reject):
            if element is None:
                yield item
            else:
                element.fault, element.fault_line = item.reason, item.line
                element.add(item.text + "\n")
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
        element.add(text)
    elif _TAG.sub("", _without(_DECLARATION, ">", text)).strip():
        yield Reject.of(path, number, OUTSIDE, text)


def _finish(path: Path, element: _Element, is_whole: bool) -> _Element | Reject:
    if element.fault:
        return Reject.of(path, element.fault_line, element.fault, element.text)
    return element if is_whole else Reject.of(path, element.line, NOT_CLOSED, element.text)


def _without(pattern: re.Pattern[str], end: str, text: str) -> str:
    """The text, a space for each match of a pattern that ends with `end`.

    Behind the last `end` nothing is looked for: each opening there would search to the end of
    the text in vain, and a text of nothing else would take hours.
    """
    stop = text.rfind(end) + len(end) if end in text else 0
    return pattern.sub(" ", text[:stop]) + text[stop:]


def _fields(element: _Element, known: set[str] | None = None) -> list[tuple[str, str]]:
    """(field name, text) of each piece of text; the name is "" outside of any field.

    A field starts at an opening tag (of a known name, others being markup in it; None: any name)
    and ends at its closing tag or where the next field starts. <TEXT> ends only at </TEXT>.
    """
    body = _without(_COMMENT, "-->", element.text)
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
