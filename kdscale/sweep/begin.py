"""Whether a sweep may start or be gone on with: what was begun, and whether it is still that."""

from __future__ import annotations

import json
import os
import platform
from typing import Any

import psutil

from kdscale.errors import KdscaleError
from kdscale.progress import Reporter
from kdscale.store import Store
from kdscale.sweep.record import KIND, Record
from kdscale.sweep.spec import Sweep


def begin(
    sweep: Sweep, record: Record, identity: dict[str, Any], resume: bool, reporter: Reporter
) -> dict[str, Any]:
    """What was written when the sweep began. Raises KdscaleError where --resume is missing or
    wrong, or another process is at it."""
    begun = record.begun()
    others = unfinished_others(record.store, sweep.base.name, record.key)
    if begun is None and resume:
        if not others:
            raise KdscaleError(
                f"--resume: no sweep {sweep.base.name} of this file was begun in "
                f"{record.store.uri}; run it without --resume"
            )
        # The one that this file most likely was.
        told, was = min(
            ((changes(other.begun()["identity"], identity), other) for other in others),
            key=lambda found: len(found[0]),
        )
        more = f", and {len(told) - 3} more" if len(told) > 3 else ""
        raise KdscaleError(
            f"--resume: the sweep file has changed since {was.key} was begun: "
            f"{'; '.join(told[:3])}{more}; put that back to go on, or run without --resume for a "
            "new sweep (students and language models that it shares are not made again)"
        )
    # Until something was measured there is nothing that a new start could lose.
    if begun is not None and not resume and record.base() is not None:
        raise KdscaleError(
            f"{record.uri} was begun and has not ended; add --resume to go on with it"
        )
    if begun is None:
        for other in others:
            reporter.info(f"unfinished, of an earlier version of this file: {other.uri}")
        record.begin(identity)
        return record.begun()
    if is_alive((record.state() or {}).get("process")):
        raise KdscaleError(
            f"process {record.state()['process']['pid']} is running this sweep; wait for it, or "
            "stop it first"
        )
    return begun


def unfinished_others(store: Store, label: str, key: str) -> list[Record]:
    """Unfinished sweeps of the same name: of the same file, as it was before a change."""
    length = len(label) + 13  # a dash and twelve digits
    keys = [k for k in store.unfinished(KIND) if k.startswith(f"{label}-") and len(k) == length]
    others = [Record(store, k) for k in keys if k != key]
    return [record for record in others if record.begun() is not None]


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two identities, in words, setting by setting."""
    old, new = _flat(before), _flat(now)
    told = []
    for key in dict.fromkeys([*old, *new]):
        if old.get(key) != new.get(key):
            was, is_ = (json.dumps(v[key]) if key in v else "not set" for v in (old, new))
            told.append(f"{key} was {was}, is {is_}")
    return told


def process() -> dict[str, Any]:
    """What tells this process from all others, now and later."""
    own = psutil.Process()
    return {"host": platform.node(), "pid": own.pid, "began": own.create_time()}


def is_alive(told: Any) -> bool:
    """Whether a process told by `process` is at work on this machine."""
    if not isinstance(told, dict) or told.get("host") != platform.node():
        return False
    try:
        other = psutil.Process(told.get("pid"))
        return other.pid != os.getpid() and abs(other.create_time() - told.get("began")) < 1
    except (psutil.Error, TypeError, ValueError):
        return False


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {key: value}
    below = [_flat(v, f"{key}.{k}" if key else str(k)) for k, v in value.items()]
    return {k: v for part in below for k, v in part.items()}
