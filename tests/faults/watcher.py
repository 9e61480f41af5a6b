"""What is seen of a run from outside: when it gets on, and whether it shows a credential."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import boto3
import psutil

from kdscale.store.artifact import MANIFEST
from kdscale.store.s3.client import split_uri

LOOK_EVERY_S = 0.5
IN_FLIGHT_S = 1.0  # what is seen so soon after a kill was on its way before


def secrets() -> list[bytes]:
    return [os.environ[n].encode() for n in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]


class Watcher:
    """While its body runs: when a piece or an artifact was first seen in the store at `uri`.

    endpoint: the way that nobody breaks. wrong: processes that show a credential.
    """

    def __init__(self, uri: str, endpoint: str):
        self._bucket, self._prefix = split_uri(uri)
        self._client = boto3.client("s3", endpoint_url=endpoint)
        self._seen: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.wrong: list[str] = []

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def recoveries(self, kills: list[tuple[str, float]]) -> dict[str, list[float]]:
        """Seconds from each kill (what, time.monotonic()) to what the store shows next."""
        found = defaultdict(list)
        for victim, at in kills:
            later = [seen - at for seen in self._seen.values() if seen > at + IN_FLIGHT_S]
            found[victim].append(round(min(later), 1))
        return dict(found)

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=f"{self._prefix}/"
            )
            for entry in (o for page in pages for o in page.get("Contents", [])):
                if entry["Key"].endswith(f"/{MANIFEST}"):
                    self._seen.setdefault(entry["Key"], time.monotonic())
            self._look_at_processes()

    def _look_at_processes(self) -> None:
        for process in psutil.process_iter(["cmdline"]):
            shown = " ".join(process.info["cmdline"] or []).encode(errors="replace")
            if any(secret in shown for secret in secrets()):
                self.wrong.append(f"process {process.pid} shows a credential")


def leaks(paths: Iterable[Path], uri: str) -> list[str]:
    """The files among `paths`, and the objects at `uri`, that a credential is in."""
    found = []
    for path in paths:
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            found += [f"{path} has a credential"] * any(secret in data for secret in secrets())
    bucket, prefix = split_uri(uri)
    client = boto3.client("s3")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    for key in (o["Key"] for page in pages for o in page.get("Contents", [])):
        data = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        found += [f"{key} has a credential"] * any(secret in data for secret in secrets())
    return found
