"""How many cases each fuzz test runs, what runs one, and how valid files are damaged."""

from __future__ import annotations

import gzip
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kdscale.errors import KdscaleError

# The one place for it: a test fails that runs another number.
CASES = {
    "beir": 1_200,
    "msmarco": 1_200,
    "trec": 1_400,
    "runs and qrels": 1_200,
    "docstrings": 500,
    "parquet": 300,
    "manifest": 1_600,
    "files of an artifact": 400,
    "config": 1_300,
    "sweep": 300,
    "overrides": 600,
}
ran: dict[str, Counter[bool]] = {}  # target -> how many cases worked, and were refused


class Sandbox:
    """Runs cases, and looks whether one left anything outside of its own folder, `target`.

    The working, home and temporary folders are beside it, so that a path relative to any shows.
    """

    def __init__(self, root: Path):
        self.root = root
        self.target = root / "target"
        for name in ("target", "home", "work", "tmp", "beside"):
            (root / name).mkdir()
        self.secret = root / "beside" / "file"
        self.secret.write_text("secret\n")
        self.outside = self.listing()

    def fuzz(self, target: str, *inputs: st.SearchStrategy, case: Callable[..., Any]) -> None:
        """Run `case` on so many inputs as CASES says. It may work, or raise KdscaleError."""
        outcomes = ran[target] = Counter()

        @settings(
            max_examples=CASES[target],
            derandomize=True,  # the same cases in every run of the same tests
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.tuples(*inputs))
        def run(drawn: tuple[Any, ...]) -> None:
            outcomes[self.works(case, drawn)] += 1

        run()
        assert outcomes.total() == CASES[target]
        # Inputs that all fail at the first check, or that all pass, would test little.
        assert min(outcomes[True], outcomes[False]) >= CASES[target] // 20, outcomes

    def works(self, case: Callable[..., Any], drawn: tuple[Any, ...]) -> bool:
        try:
            case(*drawn)
            worked = True
        except KdscaleError as error:
            assert str(error) and str(error).isprintable(), repr(str(error))
            worked = False
        assert self.listing() == self.outside
        return worked

    def listing(self) -> list[tuple]:
        """(path, size, time of change) of all that is outside of the target."""
        found = []
        for folder, folders, files in os.walk(self.root):
            folders[:] = sorted(f for f in folders if Path(folder, f) != self.target)
            found += [(folder, name) for name in folders]
            for name in sorted(files):
                stat = os.lstat(os.path.join(folder, name))
                found.append((folder, name, stat.st_size, stat.st_mtime_ns))
        return found

    def refill(self, files: dict[str, bytes]) -> Path:
        """An own folder of one case: `target`, with these files and nothing else."""
        shutil.rmtree(self.target)
        for name, content in files.items():
            path = self.target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return self.target


NUMBERS = [
    b"NaN", b"-inf", b"-1", b"0", b"1e999", b"1e-999", b"0x10", b"1_000", "\u0661".encode(),
    b"0.5", b"2147483648", b"-2147483649", b"9" * 30, b"-" + b"9" * 20, b"9" * 5_000, b"true",
]  # fmt: skip
# What stands in no valid file, or has a meaning to one of the parsers.
NASTY = [
    *NUMBERS, b"", b"\0", b"\xff", b"\xed\xa0\x80", b"\xc3", b"\x1b[2J", b"\x1c", b"\x85", b"\r",
    b"\n", b"\r\n\r\n", b"\t", b"\t\t\t", b" ", "\ufeff".encode(), "\u2028".encode(),
    "\u00a0".encode(), b"x" * 70_000, b"null", b'"', b"'", b"\\", b"\\ud800", b"[" * 3_000,
    b'{"a":' * 3_000, b'{"_id": 3, "text": []}', b"../../beside/file", b"<", b">", b"<!--",
    b"-->", b"<!--" * 500, b"&#" + b"9" * 5_000 + b";", b"&#xD800;", b"<DOC>", b"</DOC>",
    b"<DOCNO>", b"<TEXT>", b"<top>", b"</top>", b"<num>", b"<title>", b"<topic number=>", b"Q0",
]  # fmt: skip
EDITS = (
    *("number",) * 3, *("field",) * 6, "insert", "insert", "overwrite", "flip", "cut", "drop",
    "double", "swap", "repeat",
)  # fmt: skip
NUMBER = re.compile(rb"\b\d+\b")
FIELD = re.compile(rb"[^\s\"<>:,{}]+")  # the words of a line, whatever its format
edits = st.lists(
    st.tuples(
        st.sampled_from(EDITS), st.integers(0, 2**16), st.integers(0, 2**16), st.sampled_from(NASTY)
    ),
    max_size=5,
)


def damage(content: bytes, changes: Sequence[tuple[str, int, int, bytes]]) -> bytes:
    """A valid file, edited; places count round and round."""
    for edit, a, b, nasty in changes:
        lines = content.splitlines(keepends=True) or [b""]
        line, other, place = a % len(lines), b % len(lines), a % (len(content) + 1)
        if edit in ("field", "number"):
            words = list((FIELD if edit == "field" else NUMBER).finditer(content))
            start, end = words[a % len(words)].span() if words else (0, 0)
            word = nasty if edit == "field" else NUMBERS[b % len(NUMBERS)]
            content = content[:start] + word + content[end:]
        elif edit == "insert":
            content = content[:place] + nasty + content[place:]
        elif edit == "overwrite":
            content = content[:place] + nasty + content[place + b % 9 + 1 :]
        elif edit == "flip":
            flipped = bytes(c ^ 1 << b % 8 for c in content[place : place + 1])
            content = content[:place] + flipped + content[place + 1 :]
        elif edit == "cut":
            content = content[:place]
        elif edit == "repeat":
            content = content[:place] + nasty[:20] * (b % 200) + content[place:]
        elif edit == "drop":
            content = b"".join(lines[:line] + lines[line + 1 :])
        elif edit == "double":
            content = b"".join([*lines[: line + 1], *lines[line:]])
        else:
            lines[line], lines[other] = lines[other], lines[line]
            content = b"".join(lines)
    return content


# What stands in the place of a file that a case damages.
KINDS = (
    *("plain",) * 24, "gz", "gz", "gz cut", "gz flipped", "gz bomb", "named gz", "empty", "folder",
    "link out", "link to nothing", "link to itself", "missing", "fifo",
)  # fmt: skip


def put(path: Path, content: bytes, kind: str, place: int, secret: Path) -> Path:
    """Put a damaged file at `path` (or its .gz); the path where it is."""
    path.unlink(missing_ok=True)
    packed = path.with_name(f"{path.name}.gz")
    if kind == "gz bomb":
        content = content + b"\0" * 2**20
    if kind.startswith("gz"):
        data = gzip.compress(content, 1)
        at = place % len(data)
        if kind == "gz cut":
            data = data[:at]
        elif kind == "gz flipped":
            data = data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]
        packed.write_bytes(data)
        return packed
    if kind == "named gz":
        packed.write_bytes(content)
        return packed
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind.startswith("link"):
        path.symlink_to({"link out": secret, "link to nothing": "none"}.get(kind, path))
    elif kind != "missing":
        path.write_bytes(b"" if kind == "empty" else content)
    return path


@st.composite
def damaged_files(draw: st.DrawFn, names: Sequence[str]) -> dict[str, tuple]:
    """One or two files by name, each with how it is damaged."""
    chosen = draw(st.lists(st.sampled_from(list(names)), min_size=1, max_size=2, unique=True))
    how = st.tuples(edits, st.sampled_from(KINDS), st.integers(0, 2**16))
    return {name: draw(how) for name in chosen}


def places(value: Any, here: tuple = ()) -> Iterator[tuple]:
    """The way (keys and indices) to a JSON value and to every value inside of it."""
    yield here
    inner = value.items() if isinstance(value, dict) else ()
    for key, below in enumerate(value) if isinstance(value, list) else inner:
        yield from places(below, (*here, key))
