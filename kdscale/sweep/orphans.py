"""Places of workers that a stopped trial has left: Ray holds them for as long as the sweep lives.

Tune stops a trial by ending its process, and what that process started ends with it, one after the
other. Where Ray Train's controller goes last, it takes the end of its workers for a failure and
asks for a new place, of which its cleaner is told only once workers are in it. No trial could
start for want of those CPUs, and the sweep would wait for ever.
"""

from __future__ import annotations

import time
from typing import Any

AFTER_S = 60.0  # workers need seconds to start: a place without any for so long is nobody's


class Orphans:
    """Frees such places when it is asked to look, by Ray's State API."""

    def __init__(self, after_s: float = AFTER_S):
        self._after_s = after_s
        self._empty_since: dict[str, float] = {}

    def look(self) -> list[str]:
        """Free the places of this job with CPUs or GPUs in which no actor has lived for as long;
        their ids. Where the State API does not answer, the next look is as good."""
        from ray.util.state.exception import RayStateApiException

        try:
            empty = _empty_places()
        except (RayStateApiException, OSError):
            return []
        now = time.monotonic()
        self._empty_since = {place: self._empty_since.get(place, now) for place in empty}
        gone = [p for p, since in self._empty_since.items() if now - since >= self._after_s]
        for place in gone:
            _free(place)
            del self._empty_since[place]
        return gone


def _empty_places() -> list[str]:
    """Hexadecimal ids. Tune's own places may wait for a trial: where Ray Train has the workers they
    hold neither CPU nor GPU."""
    import ray
    from ray.util.state import list_actors, list_placement_groups

    context = ray.get_runtime_context()
    job = context.get_job_id()
    # The address: else it asks the newest Ray of this machine. The places first: an actor that
    # comes in between is then seen.
    asked = {"address": context.gcs_address, "detail": True, "limit": 10_000}
    places = list_placement_groups(filters=[("state", "=", "CREATED")], **asked)
    actors = list_actors(filters=[("state", "!=", "DEAD")], **asked)
    lived_in = {actor.placement_group_id for actor in actors}
    return [
        place.placement_group_id
        for place in places
        if place.creator_job_id == job
        and place.placement_group_id not in lived_in
        and any(_computes(bundle) for bundle in place.bundles)
    ]


def _computes(bundle: dict[str, Any]) -> bool:
    return bool({"CPU", "GPU"} & bundle["unit_resources"].keys())


def _free(place: str) -> None:
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(place))))
