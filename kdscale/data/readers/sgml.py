"""The SGML of TREC: its elements, and its documents, as loose as the collections are.

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

TAG = re.compile(r"<(/?)([A-Za-z][\w.:-]*)((?:\s[^<>]*)?)>")
_DECLARATION = re.compile(r"<[!?][^>]*>")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_ABSURD = re.compile(r"&#[0-9]{1000,};?")  # more digits than Python would take for a number
_TITLES = {"title", "headline", "head", "hl", "ti", "ttl"}
_NOT_TEXT = {"docno", "dochdr", "script", "style"}
_OF_DOCUMENT = {"text", *_TITLES, *_NOT_TEXT}


@dataclass
class Element:
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
    for element in elements(path, "doc", must_close=True):
        if isinstance(element, Reject):
            yield element
            continue
        fields = _fields(element)
        number = next((" ".join(text.split()) for name, text in fields if name == "docno"), None)
        if not number:
            reason = NO_DOCNO if number is None else EMPTY_ID
            yield Reject.of(path, element.line, reason, element.text)
            continue
        if any(name == "text" for name, _ in fields):
            kept = [text for name, text in fields if name == "text" or name in _TITLES]
        else:
            kept = [text for name, text in fields if name not in _NOT_TEXT]
        yield number, unescape(" ".join(text.strip() for text in kept if text.strip()))


def unescape(text: str) -> str:
    """The text with its character references resolved; one that is no character is U+FFFD."""
    return html.unescape(_ABSURD.sub("\ufffd", text))


def elements(path: Path, names: str, must_close: bool) -> Iterator[Element | Reject]:
    """Every outermost element of these names, and a Reject for what is not in one."""
    boundary = re.compile(rf"<(/?)(?:{names})((?:\s[^<>]*)?)>", re.IGNORECASE)
    element: Element | None = None
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
            element = None if match[1] else Element(number, match[2])
        yield from _take(path, number, element, line[start:] + "\n")
    if element is not None:
        yield _finish(path, element, not must_close)


def _take(path: Path, number: int, element: Element | None, text: str) -> Iterator[Reject]:
    """Text goes to the open element; where none is open, only tags may stand."""
    if element is not None:
        element.add(text)
    elif TAG.sub("", _without(_DECLARATION, ">", text)).strip():
        yield Reject.of(path, number, OUTSIDE, text)


def _finish(path: Path, element: Element, is_whole: bool) -> Element | Reject:
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


def without_comments(text: str) -> str:
    return _without(_COMMENT, "-->", text)


def _fields(element: Element) -> list[tuple[str, str]]:
    """(field name, text) of each piece of a document's text; the name is "" outside of any field.

    A field starts at an opening tag of a known name, others being markup in it, and ends at its
    closing tag or where the next field starts. <TEXT> ends only at </TEXT>.
    """
    body = without_comments(element.text)
    fields: list[tuple[str, str]] = []
    name, start = "", 0
    for match in TAG.finditer(body):
        fields.append((name, body[start : match.start()]))
        start, closing, tag = match.end(), match[1], match[2].lower()
        if closing:
            name = "" if tag == name else name
        elif name != "text" and tag in _OF_DOCUMENT:
            name = tag
    fields.append((name, body[start:]))
    return fields
