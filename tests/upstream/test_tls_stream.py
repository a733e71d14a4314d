"""TLS decrypted from memory: every byte once, ends and time-outs as a plain socket has them."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mirror.upstream.http.tls_stream import TlsStream
from tests.support.certificates import Certificate

_BODY = os.urandom(3_000_001)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("tls"))


@contextmanager
def _pair(certificate: Certificate, serve: Callable[[ssl.SSLSocket], None]) -> Iterator[socket.socket]:
    """The client's end of a connection; `serve` has the other end, after the handshake, in a thread."""
    near, far = socket.socketpair()
    context = certificate.server()

    def run() -> None:
        try:
            with context.wrap_socket(far, server_side=True) as secured:
                serve(secured)
        except OSError:
            far.close()

    thread = threading.Thread(target=run)
    thread.start()
    with near:
        near.settimeout(30)
        yield near
    thread.join()


def _stream(near: socket.socket, certificate: Certificate) -> TlsStream:
    stream = TlsStream(near, certificate.client(), "localhost")
    near.settimeout(None)
    return stream


def _rest(stream: TlsStream, size: int) -> bytes:
    buffer, content = memoryview(bytearray(size)), b""
    while count := stream.recv_into(buffer):
        content += buffer[:count]
    return content


@pytest.mark.parametrize("size", [1, 1000, 16 << 10, 512 << 10])
def test_every_byte_comes_once(certificate: Certificate, size: int) -> None:
    """Whatever the size of the caller's buffer; after the end there is nothing."""
    with _pair(certificate, lambda far: far.sendall(_BODY[: 100 * size])) as near:
        stream = _stream(near, certificate)
        assert _rest(stream, size) == _BODY[: 100 * size]
        assert stream.recv_into(memoryview(bytearray(10))) == 0


def test_what_is_sent_arrives(certificate: Certificate) -> None:
    """More than the memory of OpenSSL and of the socket takes at once, and the answer to it."""

    def echo(far: ssl.SSLSocket) -> None:
        count = 0
        while count < len(_BODY):
            count += len(far.recv(1 << 20))
        far.sendall(str(count).encode())

    with _pair(certificate, echo) as near:
        stream = _stream(near, certificate)
        stream.sendall(_BODY)
        assert _rest(stream, 100) == str(len(_BODY)).encode()


def test_one_call_does_not_wait_for_more(certificate: Certificate) -> None:
    """Bytes that are here are given out although the buffer has more room."""
    more = threading.Event()

    def serve(far: ssl.SSLSocket) -> None:
        far.sendall(b"first")
        more.wait(30)
        far.sendall(b"second")

    with _pair(certificate, serve) as near:
        stream = _stream(near, certificate)
        buffer = memoryview(bytearray(100))
        assert bytes(buffer[: stream.recv_into(buffer)]) == b"first"
        assert stream.is_drained
        more.set()
        assert _rest(stream, 100) == b"second"


def test_bytes_that_are_left_are_known(certificate: Certificate) -> None:
    """A connection with unread bytes must not be used for another request."""
    with _pair(certificate, lambda far: far.sendall(b"answer and more")) as near:
        stream = _stream(near, certificate)
        assert stream.recv_into(memoryview(bytearray(6))) == 6
        assert not stream.is_drained


def test_silence_ends_with_the_time_out(certificate: Certificate) -> None:
    """The time-outs of the socket hold: those of Python and those of the kernel."""
    over = threading.Event()

    def serve(far: ssl.SSLSocket) -> None:
        over.wait(30)

    with _pair(certificate, serve) as near:
        stream = _stream(near, certificate)
        near.settimeout(0.01)
        with pytest.raises(TimeoutError):
            stream.recv_into(memoryview(bytearray(1)))
        near.settimeout(0)
        with pytest.raises(BlockingIOError):
            stream.recv_into(memoryview(bytearray(1)))
        over.set()


def test_a_server_that_hangs_up_in_the_handshake(certificate: Certificate) -> None:
    """It is an error, not an endless wait."""
    near, far = socket.socketpair()
    with near, far:
        far.shutdown(socket.SHUT_WR)
        with pytest.raises(OSError, match="EOF"):
            TlsStream(near, certificate.client(), "localhost")


def test_a_handshake_that_takes_too_long_ends(certificate: Certificate) -> None:
    """The time-out is that of the whole handshake, however often something comes."""
    passed = iter([0.0, 1.0, 31.0])
    near, far = socket.socketpair()
    with near, far:
        near.settimeout(30)
        # the beginning of a record that never ends
        far.sendall(b"\x16\x03\x03\x40\x00")
        with pytest.raises(TimeoutError):
            TlsStream(near, certificate.client(), "localhost", clock=lambda: next(passed))


def test_a_certificate_of_another_name_is_refused(certificate: Certificate, tmp_path: Path) -> None:
    """Names are verified, as with Python's own sockets."""
    with _pair(certificate, lambda far: None) as near, pytest.raises(ssl.SSLCertVerificationError):
        TlsStream(near, certificate.client(), "registry.example")
    strange = Certificate(tmp_path / "strange")
    with _pair(certificate, lambda far: None) as near, pytest.raises(ssl.SSLCertVerificationError):
        TlsStream(near, strange.client(), "localhost")


def test_damaged_records_are_an_error(certificate: Certificate) -> None:
    """A bit that has changed on the way is noticed, and no byte of its record is given out."""

    def serve(far: ssl.SSLSocket) -> None:
        with socket.socket(fileno=os.dup(far.fileno())) as plain:
            plain.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))

    with _pair(certificate, serve) as near:
        stream = _stream(near, certificate)
        with pytest.raises(ssl.SSLError):
            _rest(stream, 100)
