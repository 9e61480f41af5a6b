"""What is wrong with a store is said within 10 s, with what to set, and without a credential."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kdscale.cli import main
from kdscale.errors import KdscaleError
from kdscale.store import open_store
from tests.worlds.clusters import REPOSITORY

LIMIT_S = 10


@pytest.fixture
def settings(monkeypatch, s3_server, cache):
    """settings(NAME=value or None): the AWS_ settings of a test, beside those of the server."""

    def change(**values):
        for name, value in values.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)

    return change


def failure(uri, writing):
    began = time.monotonic()
    with pytest.raises(KdscaleError) as error:
        open_store(uri).preflight(writing)
    assert time.monotonic() - began < LIMIT_S
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("writing", [True, False])
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (
            {"AWS_SECRET_ACCESS_KEY": "wrong-secret"},
            "403 SignatureDoesNotMatch.*set AWS_",
        ),
        ({"AWS_ACCESS_KEY_ID": "wrong-key"}, "403 InvalidAccessKeyId.*AWS_SECRET_ACCESS_KEY"),
        ({"AWS_SECRET_ACCESS_KEY": None}, "no usable credentials.*set AWS_ACCESS_KEY_ID"),
        (
            {
                "AWS_ACCESS_KEY_ID": None,
                "AWS_SECRET_ACCESS_KEY": None,
                "AWS_EC2_METADATA_DISABLED": "true",
            },
            "no usable credentials.*AWS_PROFILE",
        ),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
            "127.0.0.1:1: cannot be reached.*AWS_",
        ),
        ({"AWS_ENDPOINT_URL": "http://u:wrong-secret@127.0.0.1:1"}, "http://127.0.0.1:1: cannot"),
        ({"AWS_ENDPOINT_URL": "127.0.0.1"}, r"AWS_ENDPOINT_URL is no URL; set it to http\(s\)"),
        ({"AWS_DEFAULT_REGION": "no region"}, "no usable region.*set AWS_DEFAULT_REGION"),
        ({"AWS_PROFILE": "nobody"}, "ProfileNotFound; correct AWS_PROFILE"),
    ],
)
def test_wrong_settings(settings, s3_uri, s3_server, wrong, told, writing):
    settings(**wrong)
    message = failure(s3_uri, writing)
    assert re.search(told, message), message
    for secret in [*s3_server.secrets, *filter(None, wrong.values())]:
        assert secret in ("true", "127.0.0.1", "http://127.0.0.1:1") or secret not in message


@pytest.mark.parametrize("writing", [True, False])
def test_a_proxy_that_is_in_the_way_is_named(settings, s3_uri, writing):
    settings(
        AWS_ENDPOINT_URL="http://store.invalid:9000", HTTP_PROXY="http://u:s3cret@127.0.0.1:9",
        http_proxy=None, NO_PROXY=None, no_proxy=None,
    )  # fmt: skip
    message = failure(s3_uri, writing)
    assert "store.invalid was asked through the proxy 127.0.0.1:9 (HTTP_PROXY)" in message
    assert "NO_PROXY" in message and "s3cret" not in message
    settings(NO_PROXY="store.invalid")
    assert "proxy" not in failure(s3_uri, writing)


def test_a_refusal_of_a_proxy_is_not_taken_for_the_stores(settings, s3_uri):
    class Refusing(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            self.send_error(403, "blocked by policy")

        do_PUT = do_DELETE = do_HEAD = do_GET

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings(
            AWS_ENDPOINT_URL="http://store.invalid:9000",
            HTTP_PROXY=f"http://127.0.0.1:{server.server_port}",
            http_proxy=None, NO_PROXY=None, no_proxy=None,
        )  # fmt: skip
        message = failure(s3_uri, True)
        server.shutdown()
    assert "403" in message and "was asked through the proxy 127.0.0.1:" in message


def test_a_bucket_that_is_not_there(s3_server, cache):
    assert "404 NoSuchBucket; create the bucket" in failure("s3://nobucket/x", True)
    assert "404 NoSuchBucket; create the bucket" in failure("s3://nobucket/x", False)


def test_no_region_is_fine_where_the_service_asks_for_none(settings, s3_uri, raw):
    settings(AWS_DEFAULT_REGION=None)
    open_store(s3_uri).preflight()
    assert raw.names() == []


def test_a_service_that_takes_connections_and_never_answers(settings, s3_uri):
    with socket.create_server(("127.0.0.1", 0)) as server:
        settings(AWS_ENDPOINT_URL=f"http://127.0.0.1:{server.getsockname()[1]}")
        message = failure(s3_uri, True)
    assert "AWS_ENDPOINT_URL" in message


class Overwriting(BaseHTTPRequestHandler):
    """A small object service that takes If-None-Match for granted, as some do."""

    protocol_version = "HTTP/1.1"
    objects: dict = {}  # noqa: RUF012

    def log_message(self, *args):
        pass

    def answer(self, data=b"", status=200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", '"x"')
        self.end_headers()
        self.wfile.write(data)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_PUT(self):
        self.objects[self.path.split("?")[0]] = self.body()
        self.answer()

    def do_POST(self):
        self.body()
        self.answer(b"<DeleteResult></DeleteResult>")

    def do_GET(self):
        if "list-type=2" not in self.path:
            self.answer(self.objects[self.path.split("?")[0]])
            return
        rows = "".join(
            f"<Contents><Key>{key.split('/', 2)[2]}</Key><Size>1</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in self.objects
        )
        self.answer(f"<ListBucketResult>{rows}</ListBucketResult>".encode())


def test_a_service_that_overwrites_in_spite_of_if_none_match_is_refused(settings, s3_uri):
    with ThreadingHTTPServer(("127.0.0.1", 0), Overwriting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings(AWS_ENDPOINT_URL=f"http://127.0.0.1:{server.server_port}")
        assert "overwrites in spite of If-None-Match" in failure(s3_uri, True)
        server.shutdown()


@pytest.mark.parametrize(
    "command",
    [
        ["artifacts", "{uri}"],
        ["gc", "{uri}"],
        ["results", "{uri}"],
        ["pull", "{uri}/students/k", "{dir}"],
        ["prepare", "{config}"],
        ["run", "{config}", "--dry-run"],
    ],
)
def test_a_command_says_it_in_one_line(settings, s3_uri, tmp_path, capsys, command):
    settings(AWS_ENDPOINT_URL="http://127.0.0.1:1")
    config = tmp_path / "config.yaml"
    config.write_text(f"storage: {{uri: {s3_uri}}}\n")
    places = {"uri": s3_uri, "dir": tmp_path / "out", "config": config}
    began = time.monotonic()
    assert main([word.format(**places) for word in command]) == 1
    assert time.monotonic() - began < LIMIT_S
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("kdscale: bucket ")
    assert shown.err.count("\n") == 1 and "set AWS_ENDPOINT_URL" in shown.err


def test_no_credential_is_shown_anywhere(s3_server, s3_uri, raw, tmp_path):
    """Of a push in a process of its own, with botocore's failures on the way: what it prints,
    what it stores, and what the list of processes shows while it and the server are at work."""
    code = (
        "import sys, logging; from pathlib import Path\n"
        "from tests.worlds.artifacts import put_texts\n"
        "from kdscale.store import open_store\n"
        "from kdscale.cli import main\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "store = open_store(sys.argv[1]); store.preflight(); put_texts(store, 'students/k')\n"
        "print(store, store.find('students', 'k'), store.find('students', 'k').ref())\n"
        "print(store.workspace('students', 'k'), vars(store), store.holdings())\n"
        "main(['artifacts', sys.argv[1]]); main(['artifacts', 's3://nobucket'])\n"
        "processes = [p.read_bytes() for p in Path('/proc').glob('[0-9]*/cmdline')]\n"
        "print(processes)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, s3_uri],
        capture_output=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0, done.stderr.decode()
    shown = [done.stdout, done.stderr, *(raw.get(name) for name in raw.names())]
    assert b"weed" in done.stdout and len(shown) == 5
    for secret in s3_server.secrets:
        assert not any(secret.encode() in part for part in shown)
