"""The proxy breaks what it says it breaks, and counts it: else surviving it would show nothing."""

import os

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.faults.proxy import FaultProxy

BODY = os.urandom(200_000)


def client(endpoint):
    config = Config(retries={"total_max_attempts": 1}, read_timeout=20)
    return boto3.client("s3", endpoint_url=endpoint, config=config)


@pytest.fixture
def direct(s3_server):
    return client(s3_server.endpoint)


def broken(s3_server, kind):
    return FaultProxy(s3_server.endpoint, rate=1.0, kinds=(kind,))


def exists(direct, bucket, key):
    return bool(direct.list_objects_v2(Bucket=bucket, Prefix=key).get("KeyCount"))


@pytest.mark.parametrize(
    ("kind", "arrives"),
    [("unavailable", False), ("reset", False), ("lost_answer", True), ("cut_upload", False)],
)
def test_a_put_is_broken(s3_server, direct, kind, arrives):
    key = f"proxy/{kind}"
    with broken(s3_server, kind) as proxy:
        with pytest.raises((BotoCoreError, ClientError)):
            client(proxy.endpoint).put_object(Bucket=s3_server.bucket, Key=key, Body=BODY)
        assert proxy.counts == {kind: 1}
    assert exists(direct, s3_server.bucket, key) == arrives


def test_a_download_is_cut(s3_server, direct):
    direct.put_object(Bucket=s3_server.bucket, Key="proxy/whole", Body=BODY)
    with broken(s3_server, "cut_download") as proxy:
        with pytest.raises((BotoCoreError, OSError)):
            answer = client(proxy.endpoint).get_object(Bucket=s3_server.bucket, Key="proxy/whole")
            answer["Body"].read()
        assert proxy.counts == {"cut_download": 1}


def test_a_store_that_is_away_comes_back(s3_server, direct):
    direct.put_object(Bucket=s3_server.bucket, Key="proxy/there", Body=BODY)
    with FaultProxy(s3_server.endpoint, rate=0.0) as proxy:
        through = client(proxy.endpoint)
        assert through.get_object(Bucket=s3_server.bucket, Key="proxy/there")["Body"].read() == BODY
        proxy.go_away(3600)
        with pytest.raises(BotoCoreError):
            through.get_object(Bucket=s3_server.bucket, Key="proxy/there")
        proxy.go_away(0)
        assert through.get_object(Bucket=s3_server.bucket, Key="proxy/there")["Body"].read() == BODY
        assert (proxy.counts, proxy.refused) == ({"away": 2}, 1)
