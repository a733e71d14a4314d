"""Bodies of any size and pace, from real sockets: whole, in order, and the connection goes on behind them."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from mirror.errors import Denied, QuotaExceeded
from mirror.oci.digest import Digest
from mirror.repository import protocol
from mirror.server.registry.upload_pace import UploadPace
from tests.support.certificates import Certificate
from tests.support.live_mirror import noise, until
from tests.support.push_server import PushServer, push_server

_LARGE = noise(3 << 20)
_DIGEST = Digest.of(_LARGE)
_UPLOADS = "/v2/app/blobs/uploads/"
_LAST = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.fixture
async def server() -> AsyncIterator[PushServer]:
    """Without a lowest rate."""
    async with push_server() as running:
        yield running


@pytest.fixture
def lent(server: PushServer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes of each body that got the socket had come before."""
    found: list[int] = []
    kind = type(server.front())
    lend = kind.lend

    def watched(connection: Any, body: Any) -> Any:
        given = lend(connection, body)
        found.append(-1 if given is None else len(given[1]))
        return given

    monkeypatch.setattr(kind, "lend", watched)
    return found


def _post(body: bytes, digest: Digest | None = None, more: str = "") -> bytes:
    target = f"{_UPLOADS}?digest={digest or Digest.of(body)}"
    return f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode()


def _chunked(body: bytes, size: int) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def _statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


# ------------------------------------------------------------------------------------------------ whole bodies


async def test_a_large_body_takes_the_socket(server: PushServer, lent: list[int]) -> None:
    """Its bytes come past the event loop, and the connection goes on."""
    request = _post(_LARGE)
    assert _statuses(await server.raw(request, _LARGE, _LAST)) == [201, 200]
    assert server.repository.blobs == {_DIGEST: _LARGE}
    assert len(lent) == 1
    assert lent[0] < len(_LARGE)


async def test_a_small_body_does_not(server: PushServer, lent: list[int]) -> None:
    """The switch would cost more than it saves."""
    small = noise(20_000)
    assert _statuses(await server.raw(_post(small), small, _LAST)) == [201, 200]
    assert lent == []


@pytest.mark.parametrize("seed", range(12))
async def test_any_pieces(server: PushServer, seed: int) -> None:
    """Three pushes and other requests on one connection, cut anywhere: every body is whole, every request answered."""
    dice = random.Random(seed)
    bodies = [dice.randbytes(dice.choice([0, 1, 70_000, 300_000, 600_000, 1_500_000])) for _ in range(3)]
    text = bytearray()
    for body in bodies:
        if dice.random() < 0.3:
            text += f"POST {_UPLOADS}?digest={Digest.of(body)} HTTP/1.1\r\nHost: x\r\n".encode()
            text += b"Transfer-Encoding: chunked\r\n\r\n" + _chunked(body, dice.randint(1_000, 200_000))
        else:
            text += _post(body) + body
        text += b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n" * dice.randint(0, 2)
    text += _LAST
    pieces = []
    while text:
        count = dice.choice([1, 100, 5_000, 65_536, 400_000, 2_000_000])
        pieces.append(bytes(text[:count]))
        del text[:count]
    statuses = _statuses(await server.raw(*pieces))
    assert statuses.count(201) == 3
    assert statuses[-1] == 200
    assert server.repository.blobs == {Digest.of(body): body for body in bodies}


async def test_over_tls_and_in_chunks(tmp_path: Path) -> None:
    """Through aiohttp's stream, with its length and without."""
    async with push_server(tls=Certificate(tmp_path / "tls").server()) as server:

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(_LARGE), 100_000):
                yield _LARGE[start : start + 100_000]

        for body in (_LARGE, pieces()):
            answer = await server.ask("POST", f"{_UPLOADS}?digest={_DIGEST}", body=body, secure=True)
            assert answer.status == 201
        assert server.repository.blobs == {_DIGEST: _LARGE}


# ---------------------------------------------------------------------------------------------- 100-continue


async def test_the_client_is_told_to_go_on(server: PushServer) -> None:
    """RFC 9110, 10.1.1: once, and only then does it send the body."""
    reader, writer = await server.connect()
    writer.write(_post(_LARGE, more="Expect: 100-continue\r\n"))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(_LARGE)
    writer.write(_LAST)
    assert _statuses(await reader.read()) == [201, 200]
    writer.close()


@pytest.mark.parametrize("what", ["rights", "quota"])
async def test_who_is_refused_sends_no_body(server: PushServer, what: str) -> None:
    """The error comes instead, and the connection ends: nobody can tell what would come next."""
    if what == "rights":
        server.gate.refuse = Denied("user:alice may not push here")
    else:
        server.repository.refuse = QuotaExceeded("corp has 10 GB, and may have 10 GB")
    received = await server.raw(_post(_LARGE, more="Expect: 100-continue\r\n"))
    assert _statuses(received) == [403]
    assert b"\r\nConnection: close\r\n" in received


# ------------------------------------------------------------------------------------------- bodies that end early


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_an_error_reaches_who_is_sending(server: PushServer, framing: str) -> None:
    """A client that sends a large body without asking first still reads why it was refused."""
    server.repository.refuse = QuotaExceeded("corp has 10 GB, and may have 10 GB")
    location = _UPLOADS + "session-1"
    server.repository.sessions["session-1"] = bytearray()
    header = "Transfer-Encoding: chunked" if framing == "chunked" else f"Content-Length: {len(_LARGE) * 4}"
    body = _chunked(_LARGE * 4, 32 << 10) if framing == "chunked" else _LARGE * 4
    received = await server.raw(f"PATCH {location} HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode(), body)
    assert _statuses(received) == [403]
    assert b"corp has 10 GB, and may have 10 GB" in received


async def test_an_error_in_mid_body(server: PushServer, lent: list[int]) -> None:
    """The socket is given back with a part of the body still in it: the client reads the error all the same."""

    def full() -> None:
        raise QuotaExceeded("corp has 10 GB, and may have 10 GB")

    server.repository.received = full
    received = await server.raw(_post(_LARGE * 4), _LARGE * 4, _LAST)
    assert lent
    assert _statuses(received)[0] == 403
    assert b"corp has 10 GB, and may have 10 GB" in received


async def test_a_short_rest_is_read(server: PushServer) -> None:
    """The connection stays: it costs less than a new one."""
    server.repository.refuse = QuotaExceeded("corp has 10 GB, and may have 10 GB")
    small = noise(50_000)
    server.repository.sessions["session-1"] = bytearray()
    head = f"PATCH {_UPLOADS}session-1 HTTP/1.1\r\nHost: x\r\nContent-Length: {len(small)}\r\n\r\n".encode()
    assert _statuses(await server.raw(head + small[:9], small[9:], _LAST)) == [403, 200]


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_83_the_client_leaves(server: PushServer, framing: str) -> None:
    """Row 83: the session keeps what came, and nobody holds it any more."""
    location = await server.begin()
    header = "Transfer-Encoding: chunked" if framing == "chunked" else f"Content-Length: {len(_LARGE)}"
    part = _LARGE[: 2 << 20]
    sent = b"%x\r\n%b\r\n" % (len(part), part) if framing == "chunked" else part
    _, writer = await server.connect()
    writer.write(f"PATCH {location} HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode() + sent)
    await writer.drain()
    session = location.rpartition("/")[2]
    await until(lambda: len(server.repository.sessions[session]) == len(part))
    writer.close()
    await until(lambda: not server.repository.busy)
    assert bytes(server.repository.sessions[session]) == part
    rest = _LARGE[len(part) :]
    done = await server.ask("PUT", f"{location}?digest={_DIGEST}", body=rest)
    assert done.status == 201


@pytest.mark.parametrize("broken", [b"zz\r\n", b"5\r\nabcdefgh\r\n", b"5\r\nabc", b"-1\r\n"])
async def test_broken_chunks(server: PushServer, broken: bytes) -> None:
    """400 and the end of the connection: nothing behind them is a request."""
    location = await server.begin()
    head = f"PATCH {location} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    reader, writer = await server.connect()
    writer.write(head + b"3\r\nabc\r\n")
    await until(lambda: any(server.repository.sessions.values()))
    writer.write(broken + b"\r\n" + _LAST)
    writer.write_eof()
    assert _statuses(await reader.read()) in ([400], [])
    writer.close()
    await until(lambda: not server.repository.busy)


_BROKEN = {"chunk": b"zz\r\n", "trailer": b"0\r\nx y: z\r\n\r\n"}


@pytest.mark.parametrize("what", _BROKEN)
@pytest.mark.parametrize("reader", ["push", "nobody"])
async def test_32_one_line_tells_of_a_malformed_body(
    server: PushServer, what: str, reader: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Row 32: whether it is read by the push or, behind a refusal, passed over."""
    location = await server.begin()
    if reader == "nobody":
        server.gate.refuse = Denied("user:alice may not push here")
    head = f"PATCH {location} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with capture_logs() as lines:
        client, writer = await server.connect()
        writer.write(head + b"3\r\nabc\r\n")
        if reader == "nobody":
            answer = await client.readuntil(b"}]}")
        else:
            await until(lambda: any(server.repository.sessions.values()))
        writer.write(_BROKEN[what])
        if reader == "push":
            answer = await client.readuntil(b"}]}")
            assert b"the body broke off after 3 bytes: it is malformed: " in answer
        assert await client.read() == b""
        writer.close()
    assert _statuses(answer) == [400 if reader == "push" else 403]
    (line,) = (line for line in lines if line["event"] == "malformed request")
    assert line["client"] == "127.0.0.1"
    assert line["error"].startswith("not a body that can be read: ")
    assert not [record for record in caplog.records if record.exc_info]


# ------------------------------------------------------------------------------------------------ slow clients


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("silent", [True, False])
async def test_106_a_body_that_drips(framing: str, silent: bool) -> None:
    """Row 106: a body that comes too slowly, or not at all, ends; the session stays."""
    async with push_server(lowest=10_000, window=0.3) as server:
        location = await server.begin()
        header = "Transfer-Encoding: chunked" if framing == "chunked" else f"Content-Length: {len(_LARGE)}"
        reader, writer = await server.connect()
        writer.write(f"PATCH {location} HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode())

        async def drip() -> None:
            while True:
                writer.write(b"1\r\nx\r\n" if framing == "chunked" else b"x")
                await asyncio.sleep(0.01)

        dripping = asyncio.create_task(asyncio.Event().wait() if silent else drip())
        assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Connection: close" in head
        # who goes on sending to a closed connection may have it reset
        assert b"BLOB_UPLOAD_INVALID" in await reader.readuntil(b"}]}")
        dripping.cancel()
        writer.close()
        assert (await server.ask("GET", location)).status == 204


async def test_stalled_clients_cost_no_thread(server: PushServer) -> None:
    """A hundred clients stop in mid-body, more than there are threads; another push goes through."""
    clients = []
    for _ in range(100):
        location = await server.begin()
        _, writer = await server.connect()
        head = f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(_LARGE)}\r\n\r\n"
        writer.write(head.encode() + _LARGE[:1_000])
        clients.append(writer)
    await until(lambda: len([1 for content in server.repository.sessions.values() if len(content) == 1_000]) == 100)
    answer = await server.ask("POST", f"{_UPLOADS}?digest={_DIGEST}", body=_LARGE)
    assert answer.status == 201
    for writer in clients:
        writer.close()
    await until(lambda: not server.repository.busy)


@pytest.mark.parametrize("framing", ["Content-Length: {size}", "Transfer-Encoding: chunked"])
async def test_who_reads_is_told_that_nothing_comes(
    server: PushServer, framing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each wait; and goes on when the client does."""
    monkeypatch.setattr(protocol, "IDLE", 0.001)
    location = await server.begin()
    reader, writer = await server.connect()
    body = _chunked(_LARGE, 400_000) if "chunked" in framing else _LARGE
    writer.write(f"PATCH {location} HTTP/1.1\r\nHost: x\r\n{framing.format(size=len(_LARGE))}\r\n\r\n".encode())
    for start in range(0, len(body), 1 << 20):
        writer.write(body[start : start + (1 << 20)])
        idle = server.repository.idle
        if start + (1 << 20) < len(body):
            await until(lambda seen=idle: server.repository.idle > seen)  # type: ignore[misc]
    assert await reader.readline() == b"HTTP/1.1 202 Accepted\r\n"
    writer.close()
    assert (await server.ask("PUT", f"{location}?digest={_DIGEST}")).status == 201


def test_pace() -> None:
    """Only waiting counts, over whole windows; without a lowest rate everything is fast enough."""
    pace = UploadPace(100.0, 10.0)
    assert pace.patience == 10.0
    assert pace.keeps_up(1, 4.0)
    assert pace.patience == 6.0
    assert pace.keeps_up(10_000, 0.0)
    assert pace.keeps_up(0, 6.0)
    assert pace.patience == 10.0
    assert pace.keeps_up(999, 9.0)
    assert not pace.keeps_up(0, 1.0)
    free = UploadPace(0.0, 10.0)
    assert free.patience is None
    assert free.keeps_up(0, 1e6)
