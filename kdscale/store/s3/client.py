"""One bucket of an S3 service: requests, retries, and errors that say what to set.

Endpoint, region and credentials come from where every AWS tool takes them: AWS_ENDPOINT_URL,
AWS_DEFAULT_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, a role of the machine.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from kdscale.errors import KdscaleError
from kdscale.store.s3.errors import ERRORS, MISSING_CODES, code_of, explain
from kdscale.store.s3.retry import PATIENT, Patience, persist, refuse_cut_answers

CONCURRENCY = 10  # requests at a time, over all files of a transfer
_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_IP_ADDRESS = re.compile(r"\d+(\.\d+){3}")
# Beginnings and ends that S3 keeps for itself; under a name with such an end there may be a bucket
# of another kind, or an access point, but none of that name can be made.
_BEGINNINGS = ("xn--", "sthree-", "amzn-s3-demo-")
_ENDS = ("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3")


@dataclass(frozen=True)
class Object:
    """One object. `key` is relative to the prefix of its bucket; times are the service's."""

    key: str
    bytes: int
    modified: datetime


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and prefix of s3://bucket/prefix. Raises KdscaleError; quotes no part with an @."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    if "@" in uri:
        raise KdscaleError(
            "storage.uri: s3://bucket/prefix takes no credentials; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY instead"
        )
    parts = [part for part in prefix.split("/") if part]
    if not bucket or ".." in parts or "." in parts:
        raise KdscaleError(f"storage.uri {uri!r}: give s3://bucket/prefix")
    check_bucket(bucket, f"storage.uri {uri!r}")
    return bucket, "/".join(parts)


def check_bucket(name: str, where: str, new: bool = False) -> None:
    """Raise KdscaleError unless a bucket can have this name, by the rules for general purpose
    buckets of the Amazon S3 User Guide.

    where: the setting, for the message; new: the bucket is to be made.
    """
    fault = None
    if not 3 <= len(name) <= 63:
        fault = f"has {len(name)} characters, not 3 to 63"
    elif not _BUCKET_NAME.fullmatch(name):
        fault = "is not made of small letters, digits, - and ., with a letter or digit at both ends"
    elif ".." in name or _IP_ADDRESS.fullmatch(name):
        fault = "has two dots in a row" if ".." in name else "is an IP address"
    elif name.startswith(_BEGINNINGS):
        fault = f"begins with one of {', '.join(_BEGINNINGS)}"
    elif new and name.endswith(_ENDS):
        fault = f"ends with one of {', '.join(_ENDS)}"
    if fault:
        raise KdscaleError(f"{where}: S3 takes no bucket {name!r}, which {fault}; name another")


def _request(method: Callable) -> Callable:
    """Repeat what may pass, and raise KdscaleError for what does not."""

    @functools.wraps(method)
    def requested(self: Bucket, *args: Any, **kwargs: Any) -> Any:
        try:
            return persist(functools.partial(method, self, *args, **kwargs), self.patience)
        except ERRORS as error:
            raise explain(error, self.name, self.endpoint) from None

    return requested


class Bucket:
    """What lies below a prefix of a bucket. Keys are relative to the prefix.

    Threads may share one. Every method raises KdscaleError where the service cannot be reached,
    refuses, or goes on failing.
    """

    def __init__(self, uri: str, patience: Patience = PATIENT):
        self.name, self.prefix = split_uri(uri)
        self.uri = f"s3://{self.name}/{self.prefix}".rstrip("/")
        self.patience = patience
        self._opened: Any = None
        self._opening = threading.Lock()

    @property
    def endpoint(self) -> str | None:
        """None until there is a client."""
        return self._opened.meta.endpoint_url if self._opened else None

    @property
    def client(self) -> Any:
        """Made on first use, so that a store can be opened, and pickled, without one."""
        with self._opening:
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    def _open(self) -> Any:
        config = Config(
            connect_timeout=self.patience.connect_s,
            read_timeout=self.patience.read_s,
            retries={"mode": "standard", "total_max_attempts": self.patience.tries},
            max_pool_connections=2 * CONCURRENCY,
        )
        try:
            client = boto3.session.Session().client("s3", config=config)
        except ERRORS as error:
            raise explain(error, self.name, None) from None
        except ValueError:  # botocore's only word on an endpoint that is no URL
            raise KdscaleError(
                f"bucket {self.name}: AWS_ENDPOINT_URL is no URL; set it to http(s)://host:port"
            ) from None
        client.meta.events.register("needs-retry.s3", refuse_cut_answers)
        return client

    @_request
    def get(self, key: str) -> bytes | None:
        """The object's bytes, all in memory; None where there is none."""
        try:
            return self.client.get_object(Bucket=self.name, Key=self.full(key))["Body"].read()
        except ClientError as error:
            if code_of(error) in MISSING_CODES:
                return None
            raise

    @_request
    def put_new(self, key: str, data: bytes) -> bool:
        """Write an object unless there is one. False: there was one.

        After a lost answer the second try meets the first: False does not say whose it is.
        """
        try:
            self.client.put_object(
                Bucket=self.name,
                Key=self.full(key),
                Body=data,
                IfNoneMatch="*",
                ChecksumAlgorithm="SHA256",
            )
        except ClientError as error:
            if code_of(error) == "PreconditionFailed":
                return False
            raise
        return True

    @_request
    def sha256_of(self, key: str) -> str | None:
        """The digest that `Transfers.upload` stored with the object; None where there is none."""
        try:
            head = self.client.head_object(Bucket=self.name, Key=self.full(key))
        except ClientError as error:
            if code_of(error) in MISSING_CODES:
                return None
            raise
        return head["Metadata"].get("sha256")

    @_request
    def objects(self, below: str) -> list[Object]:
        """Every object whose key begins with `below`, by key."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.name, Prefix=self.full(below)
        )
        found = [
            Object(self._relative(o["Key"]), o["Size"], o["LastModified"])
            for page in pages
            for o in page.get("Contents", [])
        ]
        # Services differ in the order in which they list "/", "-" and ".".
        return sorted(found, key=lambda o: o.key)

    @_request
    def folders(self, below: str) -> list[str]:
        """The names between `below`, which ends with a slash, and the next slash, sorted."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.name, Prefix=self.full(below), Delimiter="/"
        )
        return sorted(
            self._relative(p["Prefix"]).removeprefix(below).rstrip("/")
            for page in pages
            for p in page.get("CommonPrefixes", [])
        )

    @_request
    def delete(self, keys: list[str]) -> None:
        """Remove objects; it is no error when one is not there."""
        for start in range(0, len(keys), 1000):
            batch = [{"Key": self.full(key)} for key in keys[start : start + 1000]]
            answer = self.client.delete_objects(
                Bucket=self.name, Delete={"Objects": batch, "Quiet": True}
            )
            for failed in answer.get("Errors", []):
                raise KdscaleError(
                    f"bucket {self.name}: cannot delete {failed.get('Key')} "
                    f"({failed.get('Code')}); allow DeleteObject, and run again"
                )

    @_request
    def unfinished_uploads(self, below: str = "") -> list[tuple[str, str, datetime]]:
        """Multi-part uploads begun of keys that begin with `below`: key, upload id, when begun."""
        pages = self.client.get_paginator("list_multipart_uploads").paginate(
            Bucket=self.name, Prefix=self.full(below)
        )
        return [
            (self._relative(u["Key"]), u["UploadId"], u["Initiated"])
            for page in pages
            for u in page.get("Uploads", [])
        ]

    @_request
    def unfinished_parts(self, key: str, upload: str) -> list[dict[str, Any]]:
        """Of such an upload: PartNumber, Size and ETag; none where it has been completed or
        aborted meanwhile."""
        pages = self.client.get_paginator("list_parts").paginate(
            Bucket=self.name, Key=self.full(key), UploadId=upload
        )
        try:
            return [part for page in pages for part in page.get("Parts", [])]
        except ClientError as error:
            if code_of(error) == "NoSuchUpload":
                return []
            raise

    @_request
    def abort_upload(self, key: str, upload: str) -> None:
        self.client.abort_multipart_upload(Bucket=self.name, Key=self.full(key), UploadId=upload)

    def __reduce__(self) -> tuple:
        return Bucket, (self.uri, self.patience)

    def full(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _relative(self, full: str) -> str:
        return full.removeprefix(f"{self.prefix}/") if self.prefix else full
