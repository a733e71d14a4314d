"""Small requests to a server that answers byte by byte. Nobody waits: the clock moves at each look, and each time one
more byte has come.
"""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from mirror.errors import BucketUnavailable
from mirror.store.cloud.key_files import S3Keys
from mirror.store.cloud.raw_s3 import RawS3
from mirror.store.cloud.timed_requests import TimedRequests
from tests.support.certificates import Certificate
from tests.support.engines.ports import free_ports

_LIMIT = 15.0


class Dripping:
    """A server with one connection. It sends `begin` when it is looked at for the first time after a request, and then
    one byte of `rest` at each look; None: for ever.
    """

    def __init__(self, server: socket.socket, begin: bytes, rest: bytes | None) -> None:
        self.url = f"http://127.0.0.1:{server.getsockname()[1]}"
        self.looks = 0
        self._server = server
        self._begin = begin
        self._rest = rest
        self._connection: socket.socket | None = None

    def now(self) -> float:
        """Seconds: one more at each look. The first two are before there is a connection."""
        self.looks += 1
        if self.looks > 100:
            raise AssertionError("the answer is waited for without an end")
        if self.looks == 3:
            self._connection = self._server.accept()[0]
            self._connection.sendall(self._begin)
        elif self._connection is not None:
            self._drip()
        return float(self.looks)

    def _drip(self) -> None:
        assert self._connection is not None
        if self._rest is None:
            self._connection.sendall(b"a")
        else:
            self._connection.sendall(self._rest[:1])
            self._rest = self._rest[1:]

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()


@contextmanager
def dripping(begin: bytes, rest: bytes | None = None) -> Iterator[Dripping]:
    """A server; `rest` None: it drips for ever."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60.0)
        drips = Dripping(server, begin, rest)
        try:
            yield drips
        finally:
            drips.close()


def _raw(server: Dripping) -> RawS3:
    """Requests to the bucket of this server."""
    return RawS3(
        f"{server.url}/bucket",
        "",
        "us-east-1",
        lambda: S3Keys("key", "secret"),
        proxies={},
        timeout=_LIMIT,
        now=server.now,
    )


@pytest.mark.parametrize(
    "begin",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nx-drip: ", id="head"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n", id="body"),
        pytest.param(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 1000\r\n\r\n", id="body of an error"),
    ],
)
def test_an_answer_that_drips_ends_at_the_deadline(begin: bytes) -> None:
    """Whatever of it drips: the bucket does not answer."""
    with dripping(begin) as server:
        raw = _raw(server)
        with pytest.raises(BucketUnavailable, match="not complete after 15 s"):
            raw.has_rule_for_uploads()
        assert server.looks == 1 + _LIMIT


def test_a_page_of_a_listing_has_more_time() -> None:
    """It has up to a thousand entries."""
    with dripping(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n") as server:
        raw = _raw(server)
        with pytest.raises(BucketUnavailable, match="not complete after 60 s"):
            raw.unfinished("")
        assert server.looks == 61


@pytest.mark.parametrize(("line", "status"), [(b"200 OK", 200), (b"404 Not Found", 404)])
def test_a_slow_answer_that_comes_in_time_is_whole(line: bytes, status: int) -> None:
    """Also one that is no success."""
    with dripping(b"HTTP/1.1 " + line + b"\r\ncontent-length: 5\r\n\r\n", b"whole") as server:
        requests = TimedRequests(proxies={}, now=server.now)
        answer = requests.ask(urllib.request.Request(server.url), _LIMIT, 1000)
    assert (answer.status, answer.content) == (status, b"whole")


class _Content(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"x" * 300_000)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def test_answers_over_tls_are_whole(tmp_path: Path) -> None:
    """Up to the length that is read; the certificate is checked."""
    certificate = Certificate(tmp_path)
    with HTTPServer(("127.0.0.1", 0), _Content) as server:
        server.socket = certificate.server().wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            request = urllib.request.Request(f"https://127.0.0.1:{server.server_address[1]}")
            requests = TimedRequests(context=certificate.client(), proxies={})
            assert requests.ask(request, 60.0, 1 << 20).content == b"x" * 300_000
            assert requests.ask(request, 60.0, 1000).content == b"x" * 1000
            with pytest.raises(OSError, match="certificate"):
                TimedRequests(proxies={}).ask(request, 60.0, 1000)
        finally:
            server.shutdown()
            thread.join()


def test_why_there_is_no_answer() -> None:
    """In words, without the number of the error."""
    raw = RawS3(f"http://127.0.0.1:{free_ports(1)[0]}/bucket", "", "here", lambda: S3Keys("key", "secret"), proxies={})
    with pytest.raises(BucketUnavailable, match=r"^the bucket does not answer: Connection refused$"):
        raw.call("GET", "")
