"""Files to and from a bucket: in parallel parts, many files over one pool of connections."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from boto3.s3.transfer import ProgressCallbackInvoker, TransferConfig, create_transfer_manager
from s3transfer.futures import TransferFuture

from kdscale.store.fetch import Advance
from kdscale.store.s3 import CONCURRENCY, Bucket
from kdscale.store.s3errors import ERRORS, explain
from kdscale.store.s3retry import persist

PART_BYTES = 16 * 2**20


class Transfers:
    """A context in which files are moved; leaving it by an exception stops what is under way.

    Threads may share one. Raises KdscaleError as `Bucket` does.
    """

    def __init__(self, bucket: Bucket):
        self._bucket = bucket
        self._manager: Any = None

    def __enter__(self) -> Transfers:
        config = TransferConfig(
            multipart_threshold=2 * PART_BYTES,
            multipart_chunksize=PART_BYTES,
            max_concurrency=CONCURRENCY,
            preferred_transfer_client="classic",
        )
        self._manager = create_transfer_manager(self._bucket.client, config)
        return self

    def __exit__(self, *error: Any) -> None:
        self._manager.__exit__(*error)

    def upload(self, path: Path, key: str, sha256: str, advance: Advance) -> None:
        """The service checks what arrives (CRC-32); the digest is kept with the object."""

        def submit(watch: Advance) -> TransferFuture:
            return self._manager.upload(
                str(path),
                self._bucket.name,
                self._bucket.full(key),
                extra_args={"ChecksumAlgorithm": "CRC32", "Metadata": {"sha256": sha256}},
                subscribers=[ProgressCallbackInvoker(watch)],
            )

        self._persist(submit, advance)

    def download(self, key: str, path: Path, advance: Advance) -> None:
        def submit(watch: Advance) -> TransferFuture:
            return self._manager.download(
                self._bucket.name,
                self._bucket.full(key),
                str(path),
                subscribers=[ProgressCallbackInvoker(watch)],
            )

        self._persist(submit, advance)

    def _persist(self, submit: Callable[[Advance], TransferFuture], advance: Advance) -> None:
        def attempt() -> None:
            moved = 0
            counting = threading.Lock()

            def watch(count: int) -> None:
                nonlocal moved
                with counting:
                    moved += count
                advance(count)

            try:
                submit(watch).result()
            except Exception:
                advance(-moved)
                raise

        try:
            persist(attempt, self._bucket.patience)
        except ERRORS as error:
            raise explain(error, self._bucket.name, self._bucket.endpoint) from None
