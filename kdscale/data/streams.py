"""Files that can be read or written only once: standard input and output, pipes, devices."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
