"""The one exception that means "the user can mend this"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

LONGEST = 2_000  # characters of a message: a file's content may be quoted in it


class KdscaleError(Exception):
    """A mistake in what the user gave us, or a fault of their machine.

    The message is one line: what is wrong, where, and what to do. The command line prints it
    and exits with 1; it never shows a traceback for it. What a message quotes is made harmless
    here: a line break or a terminal's control sequence in it is shown as its escape, and the
    middle of a very long message is left out.
    """

    def __init__(self, message: str):
        super().__init__(_one_line(message))


def _one_line(text: str) -> str:
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about a word that is none of the known ones."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; there are: {', '.join(known)}" if known else ""


def by_proxy(url: str) -> str:
    """The end of a message about a URL that could not be reached: the proxy that the environment
    puts in between (never its credentials), and how to go without; "" where there is none."""
    parts, proxies = urlsplit(url), getproxies()
    kind = parts.scheme if parts.scheme in proxies else "all"
    if kind not in proxies or not parts.hostname or proxy_bypass(parts.hostname):
        return ""
    proxy = proxies[kind].rpartition("@")[2].rpartition("//")[2].rstrip("/")
    return (
        f"; {parts.hostname} was asked through the proxy {proxy} ({kind.upper()}_PROXY): if it "
        "can be reached without, add it to NO_PROXY"
    )
