"""A store that is away for a while, or whose connections break: a forwarder before the real one."""

import contextlib
import os
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest

from kdscale.errors import KdscaleError
from kdscale.store import open_store
from kdscale.store.fetch import fetch_files
from kdscale.store.s3.client import Bucket
from kdscale.store.s3.retry import Patience
from tests.worlds.artifacts import MIB, manifest_of, write_files


class Forwarder:
    """A TCP port before the server. cuts: after how many bytes to cut the next connections."""

    def __init__(self, endpoint, port):
        self.target = urlsplit(endpoint).hostname, urlsplit(endpoint).port
        self.upward, self.downward, self.made = [], [], 0
        self.listening = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                client, _ = self.listening.accept()
            except OSError:
                return
            server = socket.create_connection(self.target)
            for a, b, cuts in ((client, server, self.upward), (server, client, self.downward)):
                left = cuts.pop(0) if cuts else None
                threading.Thread(target=self._copy, args=(a, b, left), daemon=True).start()

    def _copy(self, source, sink, left):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if left is not None:
                    data = data[:left]
                    left -= len(data)
                sink.sendall(data)
                if left == 0:
                    self.made += 1
                    break
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def port(monkeypatch, s3_server, cache):
    """One that nothing listens on, and that the store is told to use."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        number = probe.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{number}")
    return number


@pytest.fixture
def forwarder(port, s3_server):
    forwarder = Forwarder(s3_server.endpoint, port)
    yield forwarder
    forwarder.listening.close()


@pytest.mark.slow
def test_a_store_that_is_away_for_a_while_is_waited_for(raw, s3_uri, s3_server, port):
    """Longer than botocore waits by itself, which is a fraction of a second."""
    raw.put("a", b"x")
    opened = []
    timer = threading.Timer(5, lambda: opened.append(Forwarder(s3_server.endpoint, port)))
    timer.start()
    began = time.monotonic()
    assert Bucket(s3_uri).get("a") == b"x"
    assert time.monotonic() - began >= 4.9
    timer.join()
    opened[0].listening.close()


def test_a_store_that_stays_away_is_given_up(s3_uri, port):
    bucket = Bucket(s3_uri, Patience(connect_s=1, read_s=1, tries=2, outage_s=3, least=2))
    began = time.monotonic()
    with pytest.raises(KdscaleError, match=r"cannot be reached .* set AWS_ENDPOINT_URL"):
        bucket.get("a")
    assert 3 <= time.monotonic() - began < 20


@pytest.mark.slow
def test_answers_that_are_cut_short(raw, s3_uri, forwarder):
    """At once, in the headers, in the body."""
    data = os.urandom(200_000)
    raw.put("a", data)
    for cut in (*range(0, 700, 31), 1_000, 100_000):
        forwarder.downward.append(cut)
        assert Bucket(s3_uri).get("a") == data
        assert not forwarder.downward


@pytest.mark.slow
def test_a_listing_that_is_cut_short_is_not_an_empty_one(raw, s3_uri, forwarder):
    """gc would take what it does not see for removed."""
    for i in range(20):
        raw.put(f"students/k{i}/manifest.json", b"x")
    for cut in range(0, 500, 23):
        forwarder.downward.append(cut)
        assert len(Bucket(s3_uri).objects("")) == 20
        assert not forwarder.downward


@pytest.mark.slow
def test_a_commit_and_a_fetch_over_connections_that_are_cut(raw, s3_uri, forwarder, tmp_path):
    files = write_files(tmp_path / "x", {"large": 48 * MIB, "small": 1_000})
    store = open_store(s3_uri)
    forwarder.upward += [None, 300, 3 * MIB, 10 * MIB, 100_000]
    assert store.add(files, "students", "k", manifest_of(files), lambda count: None)
    assert forwarder.made >= 2
    forwarder.upward.clear()
    forwarder.downward += [None, 500, 2 * MIB, 300, 9 * MIB, 70_000, 400]
    forwarder.made, counted = 0, []
    store = open_store(s3_uri)
    artifact = store.find("students", "k")
    with store.fetching(artifact) as fetch:
        fetch_files(artifact.manifest["files"], tmp_path / "y", fetch, "y", counted.append)
    assert forwarder.made >= 2
    assert sum(counted) == artifact.bytes
    assert (tmp_path / "y" / "large").read_bytes() == (files / "large").read_bytes()
