"""A proxy before a real S3 server that breaks requests, as networks and stores do.

Every fault is counted when it is done to a request, by kind:

    unavailable   503 instead of an answer; the server never sees the request
    reset         the connection is reset before anything is answered
    lost_answer   the server does what was asked, the answer is never sent: the client cannot
                  know, and its second try finds its own work
    cut_upload    the server gets part of a body, then both connections are reset
    cut_download  the client gets part of a body, then its connection is reset
    away          the store is away for a while (`go_away`): every connection is reset
"""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

KINDS = ("unavailable", "reset", "lost_answer", "cut_upload", "cut_download")
CHUNK = 64 * 1024
MIN_BODY_TO_CUT = 1_000  # smaller bodies arrive whole or not at all
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "proxy-connection"}
UNAVAILABLE = (
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


class FaultProxy(ThreadingHTTPServer):
    """Listens on a free loopback port; `endpoint` is its URL, `counts` the faults so far.

    rate: the share of requests that are broken, 0 to 1; kinds: which faults, drawn evenly among
    those that a request can suffer. The draws follow from `seed` and the order of requests.
    """

    daemon_threads = True

    def __init__(self, upstream: str, rate: float, seed: int = 0, kinds: tuple[str, ...] = KINDS):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.rate, self.kinds = rate, kinds
        self.counts: Counter[str] = Counter()
        self.requests = self.refused = 0  # all of them, and those made while the store was away
        self._rng = random.Random(seed)
        self._lock = threading.Lock()
        self._away_until = 0.0
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def injected(self) -> int:
        return sum(self.counts.values())

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def go_away(self, seconds: float) -> None:
        """Reset every connection for so long from now on."""
        self._away_until = time.monotonic() + seconds
        self.count("away")

    def draw(self, method: str, body: int) -> str | None:
        """The fault of the next request, if any."""
        with self._lock:
            self.requests += 1
            if time.monotonic() < self._away_until:
                self.refused += 1
                return "away"
            if self._rng.random() >= self.rate:
                return None
            possible = [
                kind
                for kind in self.kinds
                if (kind != "cut_upload" or body >= MIN_BODY_TO_CUT)
                and (kind != "cut_download" or method == "GET")
            ]
            return self._rng.choice(possible) if possible else None

    def part(self, whole: int) -> int:
        """How much of a body goes through before the cut."""
        with self._lock:
            return self._rng.randrange(whole)

    def count(self, kind: str) -> None:
        with self._lock:
            self.counts[kind] += 1

    def handle_error(self, request: object, address: object) -> None:
        """A client that goes away in mid-answer is part of the exercise."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def do_any(self) -> None:
        body = int(self.headers.get("Content-Length") or 0)
        fault = self.server.draw(self.command, body)
        if fault == "away":
            self._hang_up()
        elif fault == "reset":
            self._reset(fault)
        elif fault == "unavailable":
            self.rfile.read(body)
            self.server.count(fault)
            self._answer(503, [("Content-Type", "application/xml")], UNAVAILABLE)
        else:
            self._forward(fault, body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_any

    def _forward(self, fault: str | None, body: int) -> None:
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in HOP_BY_HOP and name.lower() != "expect":
                    upstream.putheader(name, value)
            upstream.endheaders()
            keep = self.server.part(body) if fault == "cut_upload" else body
            left = keep
            while left:
                chunk = self.rfile.read(min(CHUNK, left))
                if not chunk:
                    return
                upstream.send(chunk)
                left -= len(chunk)
            if fault == "cut_upload":
                _hang_up(upstream.sock)
                self._reset(fault)
                return
            answer = upstream.getresponse()
            if fault == "lost_answer":
                answer.read()
                self._reset(fault)
                return
            self._relay(answer, fault)
        finally:
            upstream.close()

    def _relay(self, answer: http.client.HTTPResponse, fault: str | None) -> None:
        length = answer.headers.get("Content-Length")
        if length is None or self.command == "HEAD":
            data = b"" if self.command == "HEAD" else answer.read()
            self._answer(answer.status, answer.getheaders(), data, length)
            return
        whole = int(length)
        cut = fault == "cut_download" and whole >= MIN_BODY_TO_CUT
        left = self.server.part(whole) if cut else whole
        self._head(answer.status, answer.getheaders(), length)
        while left:
            chunk = answer.read(min(CHUNK, left))
            if not chunk:
                break
            self.wfile.write(chunk)
            left -= len(chunk)
        if cut:
            self._reset(fault)

    def _answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, length: str | None = None
    ) -> None:
        self._head(status, headers, length or str(len(data)))
        self.wfile.write(data)

    def _head(self, status: int, headers: list[tuple[str, str]], length: str) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in HOP_BY_HOP | {"content-length"}:
                self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", length)
        self.end_headers()

    def _reset(self, fault: str) -> None:
        self.server.count(fault)
        self._hang_up()

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        _hang_up(self.connection)

    def log_message(self, *args: object) -> None:
        """Not to the terminal."""


def _hang_up(connection: socket.socket) -> None:
    """Close with a reset (RST) instead of a farewell, as a broken network does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.shutdown(socket.SHUT_RD)
    connection.close()
