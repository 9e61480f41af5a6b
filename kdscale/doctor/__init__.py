"""What a look finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from kdscale.errors import KdscaleError

Severity = Literal["warning", "problem"]


@dataclass(frozen=True)
class Check:
    """One finding. `fix` says what to do, and is empty where nothing is to be done."""

    name: str
    status: Literal["ok", "warning", "problem"]
    detail: str
    fix: str = ""


def attempt(name: str, fix: str, look: Callable[[], str], severity: Severity = "problem") -> Check:
    """The finding of a look that raises KdscaleError where something is wrong."""
    try:
        return Check(name, "ok", look())
    except KdscaleError as error:
        return Check(name, severity, str(error), fix)


def first_line(error: BaseException) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
