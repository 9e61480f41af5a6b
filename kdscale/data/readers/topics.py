"""The topics of TREC: numbers, and a query from one or more of their fields.

Fields are as many as there were tracks: <title>, <desc>, <narr>; <query>, <question>; <disease> and
<gene>; or none at all, the topic being its text. Their closing tags may be missing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kdscale.data.readers.base import Reject
from kdscale.data.readers.sgml import TAG, elements, unescape, without_comments
from kdscale.errors import KdscaleError

NO_NUMBER = "topic without a number"
NO_TEXT = "topic without a text"
TITLE = ("title",)

_TEXT, _ALL = "", "*"  # what stands outside of any field; every field together
_SYNONYMS = {"description": "desc", "narrative": "narr", "number": "num"}
_NUMBERS = ("num", "identifier", "qid", "id")
# Where a field that is asked for is missing: what else says what is looked for, best first.
_INSTEAD = ("title", "query", "question", "desc", "summary", "note", _TEXT, _ALL)
_FIELDS = {*_NUMBERS, *_INSTEAD, *_SYNONYMS, "narr", "subtopic"}
# The labels with which the topics of TREC begin their fields.
_LABELS = {
    "num": "number", "title": "topic", "desc": "description", "narr": "narrative",
    "smry": "summary", "dom": "domain", "con": "concept(s)", "fac": "factor(s)",
    "def": "definition(s)",
}  # fmt: skip
_INLINE = {
    "a", "b", "big", "code", "em", "font", "i", "mark", "s", "small", "span", "strong", "sub",
    "sup", "tt", "u",
}  # fmt: skip
_MARKUP = {*_INLINE, "br", "div", "li", "ol", "p", "ul"}
_NUMBER_ATTRIBUTE = re.compile(r"\b(?:number|num|id)\s*=\s*[\"']?([^\s\"'>]+)", re.IGNORECASE)


def read_sgml_topics(
    path: Path,
    wanted: Sequence[str] = TITLE,
    say: Callable[[str], None] = lambda remark: None,
) -> Iterator[tuple[str, str] | Reject]:
    """(number, text) of every <top> or <topic>: of the fields `wanted` those that it has; where it
    has none of them, what there is instead, of which `say` is told once the file is read.

    Raises KdscaleError where no topic has any of the fields, unless only a title was wanted.
    """
    wanted = [_plain(name) for name in wanted]
    asked = " or ".join(f"<{name}>" for name in wanted)
    instead: Counter[str] = Counter()
    there: dict[str, None] = {}
    topics = 0
    try:
        for element in elements(path, "top|topic", must_close=False):
            if isinstance(element, Reject):
                yield element
                continue
            fields = topic_fields(element.text)
            there.update(dict.fromkeys(name for name, _ in fields if name))
            number = next((text for name, text in fields if name in _NUMBERS), "")
            attribute = _NUMBER_ATTRIBUTE.search(element.attributes)
            number = number or (attribute[1] if attribute else "")
            text, name = _query(fields, wanted)
            if not number or not text:
                reason = NO_TEXT if number else NO_NUMBER
                yield Reject.of(path, element.line, reason, element.text)
                continue
            topics += 1
            instead.update([name] if name is not None else [])
            yield number, text
        if topics and instead.total() == topics and wanted != list(TITLE):
            known = ", ".join(name for name in there if name not in _NUMBERS) or "none"
            raise KdscaleError(
                f"source.topic_fields: no topic of {path} has a {asked}; their fields are: {known}"
            )
    finally:  # also where no more is read than was looked for
        if instead:
            counts = ", ".join(f"{_words(name)} ({count})" for name, count in instead.items())
            say(
                f"{path.name}: {instead.total()} of {topics} topics have no {asked}; their query "
                f"is {counts}"
            )


def _query(fields: list[tuple[str, str]], wanted: Sequence[str]) -> tuple[str, str | None]:
    """The text of the fields wanted, or of another field, and of which then ("" if none)."""
    text = " ".join(filter(None, (_of(fields, name) for name in wanted)))
    if text:
        return text, None
    name = next((name for name in _INSTEAD if _of(fields, name)), None)
    if name is None:
        return "", None
    # A <query> is a title by another name.
    renamed = name == "query" and list(wanted) == list(TITLE)
    return _of(fields, name), None if renamed else name


def topic_fields(body: str) -> list[tuple[str, str]]:
    """(name, text) of each field of a topic, in order; the name is "" outside of any.

    A field starts at an opening tag and ends at its closing tag or where the next field starts.
    What is no field: the markup of HTML, and in a field that is closed any tag that is not known to
    be one.
    """
    body = without_comments(body)
    last = {m[2].lower(): m.start() for m in TAG.finditer(body) if m[1]}  # of its closing tags
    pieces: list[tuple[str, list[str]]] = [(_TEXT, [])]
    tag_of_field, start = "", 0
    for match in TAG.finditer(body):
        pieces[-1][1].append(body[start : match.start()])
        start, closing, tag = match.end(), match[1], match[2].lower()
        inside = _plain(tag_of_field) in _FIELDS and last.get(tag_of_field, 0) > match.start()
        if closing and tag == tag_of_field:
            tag_of_field = ""
            pieces.append((_TEXT, []))
        elif closing or tag in _MARKUP or (inside and _plain(tag) not in _FIELDS):
            pieces[-1][1].append("" if tag in _INLINE else " ")
        else:
            tag_of_field = tag
            pieces.append((_plain(tag), []))
    pieces[-1][1].append(body[start:])
    found = [(name, _unlabelled(name, "".join(parts))) for name, parts in pieces]
    return [(name, text) for name, text in found if text]


def _of(fields: list[tuple[str, str]], name: str) -> str:
    """A field's text, the first where it has several; "" where it has none."""
    if name == _ALL:
        return " ".join(text for name, text in fields if name not in _NUMBERS)
    if name == _TEXT:
        return " ".join(text for name, text in fields if name == _TEXT)
    return next((text for of, text in fields if of == name), "")


def _plain(name: str) -> str:
    return _SYNONYMS.get(name.lower(), name.lower())


def _unlabelled(name: str, text: str) -> str:
    text = " ".join(unescape(text).split())
    label = _LABELS.get(name)
    return re.sub(rf"^{re.escape(label)}:\s*", "", text, flags=re.IGNORECASE) if label else text


def _words(name: str) -> str:
    return {_TEXT: "their text", _ALL: "all that they have"}.get(name, f"their <{name}>")
