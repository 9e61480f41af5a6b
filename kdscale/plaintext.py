"""Text for a terminal, or a file, whose encoding lacks some of our characters."""

from __future__ import annotations

import codecs
from typing import Any

# What a stream does by itself with what it cannot encode, and the name of what it does instead.
BY_ERRORS = {"strict": "kdscale.plain", "surrogateescape": "kdscale.plainescape"}
# One character for one, so that tables stay in line.
PLAIN = str.maketrans("Δ≈─━×·–—−…→±≥≤²“”●■▲◆", 'd~--x.---.>+><2""****')


def plain_where_needed(stream: Any) -> None:
    """Have a text stream write what it cannot encode as the nearest plain character, or as "?",
    where it would raise UnicodeEncodeError: after hours of work, for the sign of a table.

    Of the bytes of a file's name that are no text (surrogateescape, the way of the C locale) each
    is written as it is where the stream did so, and else as "?".
    """
    name = BY_ERRORS.get(getattr(stream, "errors", ""))
    if name and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors=name)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end].translate(PLAIN)
    return "".join(c if c.isascii() else "?" for c in lacking), error.end


def _plain_or_escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeEncodeError:
        return _plain(error)


codecs.register_error("kdscale.plain", _plain)
codecs.register_error("kdscale.plainescape", _plain_or_escaped)
