"""Text for a terminal, or a file, whose encoding lacks some of our characters."""

from __future__ import annotations

import codecs
from typing import Any

NAME = "kdscale.plain"
# One character for one, so that tables stay in line.
PLAIN = str.maketrans("Δ≈─━×·–—−…→±≥≤²“”●■▲◆", 'd~--x.---.>+><2""****')


def plain_where_needed(stream: Any) -> None:
    """Have a text stream write what it cannot encode as the nearest plain character, or as "?",
    where it would raise UnicodeEncodeError: after hours of work, for the sign of a table."""
    if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors=NAME)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end].translate(PLAIN)
    return "".join(c if c.isascii() else "?" for c in lacking), error.end


codecs.register_error(NAME, _plain)
