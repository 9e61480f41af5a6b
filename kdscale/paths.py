"""Paths as users write them."""

from __future__ import annotations

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
