"""The tiny test sets, and what the tests of the readers do with them."""

import gzip
import shutil
from pathlib import Path

from kdscale.data.readers import Reject

FILES = Path(__file__).parents[1] / "data_files"


def copy_of(name: str, folder: Path) -> Path:
    """A test set that a test may damage."""
    return Path(shutil.copytree(FILES / name, folder / name))


def compress(path: Path) -> Path:
    """Replace a file by its .gz."""
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return packed


def append(path: Path, *lines: bytes) -> None:
    with path.open("ab") as handle:
        handle.writelines(line + b"\n" for line in lines)


def rejects(items) -> list[tuple[str, int, str]]:
    """(file name, line, reason) of what was refused."""
    return [(Path(i.file).name, i.line, i.reason) for i in items if isinstance(i, Reject)]


def accepted(items) -> list[tuple]:
    return [item for item in items if not isinstance(item, Reject)]


def everything(reader) -> dict:
    """All that a reader gives, for comparing two readers."""
    return {
        "passages": list(reader.passages()),
        "queries": {s: list(reader.queries(s)) for s in reader.splits()},
        "qrels": {s: list(reader.qrels(s)) for s in reader.splits()},
        "candidates": {s: list(reader.candidates(s) or []) for s in reader.splits()},
        "negatives": list(reader.negatives() or []),
    }
