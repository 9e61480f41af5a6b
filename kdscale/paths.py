"""Paths: as users write them, and who may read what lies there."""

from __future__ import annotations

import uuid
from pathlib import Path

from kdscale.errors import KdscaleError


def user_path(text: str, key: str) -> Path:
    """The path that a setting names, `~` resolved; there need be nothing at it.

    Raises KdscaleError naming `key` for what no file can be called: the home of a user that does
    not exist, a NUL, a name that is too long, a folder that may not be looked into.
    """
    try:
        if "\0" in text:
            raise ValueError("it has a NUL")
        path = Path(text).expanduser()
        path.exists()  # asks the file system, which refuses what it cannot hold
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise KdscaleError(f"{key}: cannot use the path {text!r} ({reason}); mend it") from None
    return path


def allow_by_umask(folder: Path) -> None:
    """Give a folder and all below it the permissions that a plain `mkdir` and `open` would give.

    safetensors writes files, and tempfile makes folders, that only their owner may read, whatever
    the umask says. What is allowed already stays allowed.
    """
    probe = folder / f".mode-{uuid.uuid4().hex[:8]}"
    probe.mkdir()
    file = probe / "file"
    file.touch()
    for_folders, for_files = probe.stat().st_mode, file.stat().st_mode
    file.unlink()
    probe.rmdir()
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink():
            continue
        mode = path.stat().st_mode
        wanted = mode | (for_folders if path.is_dir() else for_files) & 0o777
        if mode != wanted:
            path.chmod(wanted)
