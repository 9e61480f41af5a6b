"""Files to and from a bucket: large ones in parts, in parallel, resumed after a kill.

What is there of a stopped upload is asked of the service: the parts of the unfinished multi-part
upload, whose ETags are the MD5 of their bytes. What is there of a stopped download stands in a
record beside the file (`kdscale.store.fetch`). Neither is trusted with the content: whoever reads a
file checks its SHA-256.
"""

from __future__ import annotations

import threading
from base64 import b64encode
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from hashlib import md5
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

from botocore.exceptions import ClientError

from kdscale.errors import KdscaleError
from kdscale.store.fetch import Advance, record_of
from kdscale.store.s3.client import CONCURRENCY, Bucket
from kdscale.store.s3.errors import ERRORS, code_of, explain
from kdscale.store.s3.retry import persist
from kdscale.store.workspace import DamagedError

PART_BYTES = 16 * 2**20  # S3 takes 5 MiB to 5 GiB, and 10,000 parts
SINGLE_BYTES = 2 * PART_BYTES  # up to this a file is one request
_CHUNK_BYTES = 2**20
_MOST_PARTS = 10_000
_STARTS = 3  # of an upload that another process completes or aborts under our hands

T = TypeVar("T")
Span = tuple[int, int, int]  # a part's number, from 1, its first byte and its length


class Transfers:
    """A context in which files are moved; leaving it by an exception stops what is under way.

    Threads may share one. Raises KdscaleError as `Bucket` does.
    """

    def __init__(self, bucket: Bucket):
        self._bucket = bucket
        self._stopped = threading.Event()
        self._recording = threading.Lock()

    def __enter__(self) -> Transfers:
        self._pool = ThreadPoolExecutor(CONCURRENCY)
        return self

    def __exit__(self, *error: Any) -> None:
        failed = error[0] is not None
        if failed:
            self._stopped.set()
        self._pool.shutdown(wait=not failed, cancel_futures=failed)

    def upload(self, path: Path, key: str, sha256: str, advance: Advance) -> None:
        """The service checks what arrives (CRC-32); the digest is kept with the object."""
        size = path.stat().st_size
        if size > SINGLE_BYTES:
            self._upload_parts(path, key, sha256, spans(size), advance)
            return
        with path.open("rb") as body:

            def put() -> None:
                body.seek(0)
                self._ask("put_object", key, Body=body, **_kept_with(sha256))

            self._persist(put)
        advance(size)

    def download(self, key: str, path: Path, size: int, advance: Advance) -> bool:
        """Write an object of so many bytes. True: some of it is of an earlier, stopped call."""
        if size > SINGLE_BYTES:
            return self._download_parts(key, path, size, advance)
        self._persist(lambda: self._read(key, path, advance))
        return False

    def _upload_parts(
        self, path: Path, key: str, sha256: str, parts: list[Span], advance: Advance
    ) -> None:
        for _ in range(_STARTS):
            count = _Count(advance)
            try:
                self._finish(path, key, sha256, parts, count)
                return
            except _GoneError:
                # Completed, by another process or by our own request whose answer was lost; or
                # aborted by kdscale gc.
                if self._bucket.sha256_of(key) == sha256:
                    return
                count.take_back()
        raise KdscaleError(
            f"{self._bucket.uri}/{key}: its upload was ended by others {_STARTS} times; see that "
            "no kdscale gc, and no rule of the bucket, aborts uploads under way, and run again"
        )

    def _finish(
        self, path: Path, key: str, sha256: str, parts: list[Span], advance: Advance
    ) -> None:
        """Send what the unfinished upload lacks, and complete it. Raises _GoneError."""
        upload, sent = self._begun(key)
        if upload is None:
            upload = self._persist(
                lambda: self._ask("create_multipart_upload", key, **_kept_with(sha256))["UploadId"]
            )

        def bring(part: Span) -> dict[str, Any]:
            number, start, length = part
            body = _read_part(path, start, length)
            checksum, tag = _crc32(body), sent.get(number)
            if tag is None or tag.strip('"') != _md5(body):
                tag = self._persist(
                    lambda: self._ask(
                        "upload_part", key, UploadId=upload, PartNumber=number, Body=body,
                        ChecksumCRC32=checksum,
                    )["ETag"]
                )  # fmt: skip
            advance(length)
            return {"PartNumber": number, "ETag": tag, "ChecksumCRC32": checksum}

        finished = self._on_pool(bring, parts)
        self._persist(
            lambda: self._ask(
                "complete_multipart_upload",
                key,
                UploadId=upload,
                MultipartUpload={"Parts": finished},
            )
        )

    def _begun(self, key: str) -> tuple[str | None, dict[int, str]]:
        """The newest unfinished upload of a key, and its parts' ETags by number."""
        begun = [(when, u) for k, u, when in self._bucket.unfinished_uploads(key) if k == key]
        if not begun:
            return None, {}
        upload = max(begun)[1]
        parts = self._bucket.unfinished_parts(key, upload)
        return upload, {part["PartNumber"]: part["ETag"] for part in parts}

    def _download_parts(self, key: str, path: Path, size: int, advance: Advance) -> bool:
        record, head = record_of(path), f"{size} bytes in parts of {PART_BYTES}\n"
        done = _recorded(record, head) if path.is_file() and path.stat().st_size == size else set()
        if not done:
            record.unlink(missing_ok=True)  # before the file: a record is of a file that is there
            with path.open("wb") as file:
                file.truncate(size)
            record.write_text(head)

        def bring(part: Span) -> None:
            if part[0] in done:
                advance(part[2])
                return
            self._persist(lambda: self._read(key, path, advance, part, size))
            with self._recording, record.open("a") as lines:
                lines.write(f"{part[0]}\n")

        self._on_pool(bring, spans(size))
        return bool(done)

    def _read(
        self, key: str, path: Path, advance: Advance, part: Span | None = None, size: int = 0
    ) -> None:
        """Write the answer to one request: the whole object, or a part at its place."""
        wanted = {} if part is None else {"Range": f"bytes={part[1]}-{part[1] + part[2] - 1}"}
        count = _Count(advance)
        try:
            answer = self._ask("get_object", key, **wanted)
            if part is not None and answer["ContentRange"].rpartition("/")[2] != str(size):
                raise DamagedError(
                    f"{self._bucket.uri}/{key} is cut short, or another file: its manifest says "
                    f"{size} bytes; remove what it belongs to (kdscale artifacts shows it), and "
                    "run again"
                )
            with path.open("wb" if part is None else "r+b") as file:
                file.seek(0 if part is None else part[1])
                for chunk in answer["Body"].iter_chunks(_CHUNK_BYTES):
                    self._check()
                    file.write(chunk)
                    count(len(chunk))
        except BaseException:
            count.take_back()
            raise

    def _on_pool(self, work: Callable[[Span], T], parts: Iterable[Span]) -> list[T]:
        """`[work(p) for p in parts]`, as many at a time as all files together may have."""
        futures = [self._pool.submit(work, part) for part in parts]
        wait(futures, return_when=FIRST_EXCEPTION)
        failed = next((f for f in futures if f.done() and f.exception() is not None), None)
        if failed is not None:
            for future in futures:
                future.cancel()
            wait(futures)
            failed.result()
        return [future.result() for future in futures]

    def _ask(self, operation: str, key: str, **wanted: Any) -> dict[str, Any]:
        self._check()
        request = getattr(self._bucket.client, operation)
        try:
            return request(Bucket=self._bucket.name, Key=self._bucket.full(key), **wanted)
        except ClientError as error:
            if code_of(error) == "NoSuchUpload":
                raise _GoneError from None
            raise

    def _check(self) -> None:
        if self._stopped.is_set():
            raise CancelledError

    def _persist(self, call: Callable[[], T]) -> T:
        try:
            return persist(call, self._bucket.patience)
        except ERRORS as error:
            raise explain(error, *self._where()) from None

    def _where(self) -> tuple[str, str | None]:
        return self._bucket.name, self._bucket.endpoint


class _GoneError(Exception):
    """The multi-part upload is not there any more."""


class _Count:
    """Tells of bytes moved, by many threads, and can take that back."""

    def __init__(self, advance: Advance):
        self._advance, self._counted, self._counting = advance, 0, threading.Lock()

    def __call__(self, count: int) -> None:
        with self._counting:
            self._counted += count
        self._advance(count)

    def take_back(self) -> None:
        self._advance(-self._counted)


def spans(size: int) -> list[Span]:
    """The parts of a file; larger ones where there would be more than a service takes."""
    length = PART_BYTES
    while -(-size // length) > _MOST_PARTS:
        length *= 2
    return [
        (number, start, min(length, size - start))
        for number, start in enumerate(range(0, size, length), 1)
    ]


def _kept_with(sha256: str) -> dict[str, Any]:
    return {"ChecksumAlgorithm": "CRC32", "Metadata": {"sha256": sha256}}


def _read_part(path: Path, start: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(length)


def _md5(body: bytes) -> str:
    return md5(body, usedforsecurity=False).hexdigest()


def _crc32(body: bytes) -> str:
    return b64encode(crc32(body).to_bytes(4, "big")).decode()


def _recorded(record: Path, head: str) -> set[int]:
    """The finished parts; none where the record is of another file or division."""
    try:
        lines = record.read_text().splitlines(keepends=True)
    except (OSError, ValueError):
        return set()
    if lines[:1] != [head]:
        return set()
    # A line without its end was cut by the kill.
    return {int(line) for line in lines[1:] if line.endswith("\n") and line.strip().isdigit()}
