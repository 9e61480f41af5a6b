"""Lines of text files, plain or packed, one at a time, with their numbers; and files that can be
read or written only once: standard input and output, pipes, devices.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from kdscale.data.readers.base import SHOWN_CHARS, Reject
from kdscale.errors import KdscaleError

T = TypeVar("T")
Texts = Iterator[tuple[str, str] | Reject]  # (id, text)
TextsReader = Callable[[Path], Texts]

# Bytes: far above any passage, and a gzip bomb without a line break stops here.
MAX_LINE = 16 * 2**20
TOO_LONG = "longer than 16 MiB"
NOT_UTF8 = "not UTF-8"
EMPTY_ID = "empty id"

_BOM = b"\xef\xbb\xbf"
_JSON_ARRAY = re.compile(r"\s*\[\s*(\{|$)")


# What a file is shows in its first bytes: names tell less, since downloads lose or keep a suffix.
_PACKED: dict[bytes, Callable[..., Any]] = {
    rb"\x1f\x8b": gzip.open,
    rb"BZh[1-9]1AY": bz2.open,
    rb"\xfd7zXZ\x00": lzma.open,
}
SUFFIXES = (".gz", ".bz2", ".xz")  # that such files usually have
_INSIDE = "and give a file that was in it"
_REFUSED = {
    rb"\x28\xb5\x2f\xfd": "is packed by Zstandard; unpack it (zstd -d)",
    rb"\x1f\x9d": "is packed by compress; unpack it (gzip -d)",
    rb"PK\x03\x04": f"is a zip archive; unpack it (unzip) {_INSIDE}",
    rb"7z\xbc\xaf": f"is a 7z archive; unpack it {_INSIDE}",
    rb"[^\n]{257}(?<=\x00)ustar": f"is a tar archive; unpack it (tar -xf) {_INSIDE}",
    rb"PAR1[\x00-\x08\x0b-\x1f]": "is Parquet, which is not read here; write it as lines of text",
}
_SHOWS = 512  # bytes in which it does


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """A file's content, unpacked where it is packed by gzip, bzip2 or xz, whatever its name says.

    Raises KdscaleError for an archive and for what is packed in another way.
    """
    with path.open("rb") as raw:
        start = raw.peek(_SHOWS)
        unpack = next((way for magic, way in _PACKED.items() if re.match(magic, start)), None)
        with unpack(raw) if unpack else raw as handle:
            start = handle.peek(_SHOWS)
            for magic, why in _REFUSED.items():
                if re.match(magic, start, re.DOTALL):
                    raise KdscaleError(f"{path} {why}")
            yield handle


def read_lines(path: Path) -> Iterator[tuple[int, str] | Reject]:
    """(number from 1, line without its end) of every line that is not blank.

    A line that is not UTF-8, or longer than MAX_LINE bytes, is a Reject: whatever a file holds,
    no more than that is in memory. Raises KdscaleError for a file that cannot be read.
    """
    try:
        with open_bytes(path) as handle:
            for number, raw in enumerate(iter(partial(handle.readline, MAX_LINE + 1), b""), 1):
                if number == 1:
                    raw = raw.removeprefix(_BOM)
                if len(raw) > MAX_LINE:
                    shown, rest = raw[:SHOWN_CHARS], raw
                    while rest and not rest.endswith(b"\n"):
                        rest = handle.readline(MAX_LINE)
                    yield Reject.of(path, number, TOO_LONG, shown.decode(errors="replace"))
                    continue
                try:
                    line = raw.decode().rstrip("\r\n")
                except UnicodeDecodeError:
                    start = raw[:SHOWN_CHARS].decode(errors="backslashreplace")
                    yield Reject.of(path, number, NOT_UTF8, start.rstrip("\r\n"))
                    continue
                if line and not line.isspace():
                    yield number, line
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise _damaged(path, error) from None
    except OSError as error:
        if error.errno is None:  # of gzip and bz2, not of the system
            raise _damaged(path, error) from None
        raise KdscaleError(f"cannot read {path} ({error.strerror or error})") from None


def _damaged(path: Path, error: Exception) -> KdscaleError:
    return KdscaleError(f"{path} is damaged ({error}); fetch it again")


def parse_lines(path: Path, parse: Callable[[str], T | str | None]) -> Iterator[T | Reject]:
    """`parse(line)` of every line that `read_lines` gives.

    parse: gives the line's content, or (a str) the reason why it is refused, or None to pass it
    over
    """
    for item in read_lines(path):
        if isinstance(item, Reject):
            yield item
            continue
        number, line = item
        found = parse(line)
        if isinstance(found, str):
            yield Reject.of(path, number, found, line)
        elif found is not None:
            yield found


def read_by_first_char(
    path: Path, readers: Mapping[str, TextsReader], otherwise: TextsReader
) -> Texts:
    """The texts of a file whose format shows in the first character that is no white space.

    Raises KdscaleError for a JSON array, whose lines are no texts.
    """
    first = next((item[1] for item in read_lines(path) if not isinstance(item, Reject)), "")
    if _JSON_ARRAY.match(first):
        raise KdscaleError(
            f"{path} is one JSON array; write it as JSON lines, one object a line (jq -c '.[]')"
        )
    return readers.get(first.lstrip()[:1], otherwise)(path)


def read_tsv_texts(path: Path) -> Texts:
    """(id, text) of lines `id TAB text`."""
    return parse_lines(path, _columns)


def is_utf8(text: str) -> bool:
    """False for a lone surrogate, which JSON can spell and no file can hold."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _columns(line: str) -> tuple[str, str] | str:
    identifier, tab, text = line.partition("\t")
    if not tab:
        return "not two columns (id TAB text)"
    return (identifier.strip(), text) if identifier.strip() else EMPTY_ID


STANDARD = Path("-")


@contextmanager
def readable_again(path: Path) -> Iterator[Path]:
    """The path of a file that can be read any number of times: a copy, while the context lasts, of
    a pipe or of standard input (`-`); else `path` itself."""
    if path != STANDARD and (path.is_file() or path.is_dir() or not path.exists()):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / (path.name if path != STANDARD else "standard input")
        with copy.open("wb") as into:
            if path == STANDARD:
                shutil.copyfileobj(sys.stdin.buffer, into)
            else:
                with path.open("rb") as pipe:
                    shutil.copyfileobj(pipe, into)
        yield copy


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Where to write what is to be at `path`: a file beside it, which takes its place at the end,
    so that no reader sees half of it.

    A pipe or a device (`/dev/null`) is written to as it is: a file in its place would be the end of
    it. Standard output (`-`) gets the whole at the end. Of a link the file that it names is
    replaced.
    """
    if path in (STANDARD, Path("/dev/stdout")):
        with tempfile.TemporaryFile() as whole:
            yield Path(f"/dev/fd/{whole.fileno()}")
            whole.seek(0)
            shutil.copyfileobj(whole, sys.stdout.buffer)
            sys.stdout.flush()
        return
    if path.exists() and not path.is_file():
        yield path
        return
    path = path.resolve()
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
