import uuid

import boto3
import pytest

from kdscale.store import LocalStore, open_store


class RawBucket:
    """The objects below a store's prefix, as the service has them, past all of kdscale."""

    def __init__(self, bucket, prefix):
        self.client = boto3.client("s3")
        self.bucket, self.prefix = bucket, prefix

    def names(self, below=""):
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=f"{self.prefix}/{below}"
        )
        return sorted(
            o["Key"].removeprefix(f"{self.prefix}/") for p in pages for o in p.get("Contents", [])
        )

    def find(self, ending):
        return next(key for key in self.names() if key.endswith(ending))

    def get(self, key):
        full = f"{self.prefix}/{key}"
        return self.client.get_object(Bucket=self.bucket, Key=full)["Body"].read()

    def put(self, key, data):
        self.client.put_object(Bucket=self.bucket, Key=f"{self.prefix}/{key}", Body=data)

    def delete(self, key):
        self.client.delete_object(Bucket=self.bucket, Key=f"{self.prefix}/{key}")


@pytest.fixture
def raw(s3_server):
    """A prefix of its own for each test."""
    return RawBucket(s3_server.bucket, f"test-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def s3_uri(raw):
    return f"s3://{raw.bucket}/{raw.prefix}"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A node of its own: an empty cache for what the test opens."""
    monkeypatch.setenv("KDSCALE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path, cache):
    """Each kind of store, empty, on a node of its own."""
    if request.param == "local":
        return LocalStore(tmp_path / "store")
    return open_store(request.getfixturevalue("s3_uri"))
