"""Several ranges in one request: as podman asks for them of zstd:chunked layers, stargz and SOCI of theirs."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
import threading
from pathlib import Path

import aiohttp
import pytest

from mirror.oci.digest import Digest
from mirror.oci.span import MOST_RANGES
from mirror.policy.send_limit import WITHHELD
from mirror.server.registry import sending
from mirror.server.registry.handler import RegistryServer
from tests.support.certificates import Certificate
from tests.support.fake_registry import FakeRegistry, stall, wrong_bytes
from tests.support.live_mirror import PATIENCE, Got, LiveMirror, live_mirror, noise, reached, until
from tests.support.multipart import parts_of
from tests.support.scripted import Stall

_LAYER = noise(1 << 20)
_SIZE = len(_LAYER)
_DIGEST = Digest.of(_LAYER)
_AT = f"/v2/library/app/blobs/{_DIGEST}"

#: (first, last) as podman asks for a layer: its manifest and tar-split first, then hundreds of chunks of files.
_TOC = [(_SIZE - 30_000, _SIZE - 20_001), (_SIZE - 20_000, _SIZE - 9_001)]
_CHUNKS = [(at, at + 20 + at % 700) for at in range(0, 1_024 * 1_000, 1_000)]


@pytest.fixture(autouse=True)
def _content(registry: FakeRegistry) -> None:
    registry.add_image("library/app", "v1", [_LAYER])


def _header(ranges: list[tuple[int, int]]) -> dict[str, str]:
    return {"Range": "bytes=" + ",".join(f"{first}-{last}" for first, last in ranges)}


def _are_right(got: Got, ranges: list[tuple[int, int]]) -> None:
    """Exactly the parts that were asked for, in that order."""
    parts = parts_of(got)
    assert [(part.first, part.last, part.size) for part in parts] == [(*one, _SIZE) for one in ranges]
    for part in parts:
        assert part.content == _LAYER[part.first : part.last + 1]


async def _warm(mirror: LiveMirror) -> None:
    assert (await mirror.ask("/v2/library/app/manifests/v1")).status == 200
    assert (await mirror.ask(_AT)).whole
    await mirror.landed(_DIGEST)


# ---------------------------------------------------------------------------------------------------- what is sent

_PATTERNS = {
    "toc": _TOC,
    "chunks": _CHUNKS,
    "backwards": [(900_000, 999_999), (0, 9), (500_000, 500_000)],
    "adjacent": [(0, 99), (100, 199), (200, 299)],
    "overlapping": [(0, 1_000), (500, 1_500), (500, 1_500)],
    "the whole twice": [(0, _SIZE - 1), (0, _SIZE - 1)],
    "large": [(0, 600_000), (600_010, _SIZE - 1)],
}


@pytest.mark.parametrize("pattern", _PATTERNS.values(), ids=_PATTERNS)
async def test_27_of_a_warm_blob(mirror: LiveMirror, pattern: list[tuple[int, int]]) -> None:
    """Row 27: 206 with each range as a part of its own, in the order of the request, none merged with another; the
    answer's own headers are those of the blob.
    """
    await _warm(mirror)
    got = await mirror.ask(_AT, headers=_header(pattern))
    _are_right(got, pattern)
    assert got.cache == "hit"
    assert got.headers["ETag"] == f'"{_DIGEST}"'
    assert got.headers["Docker-Content-Digest"] == str(_DIGEST)
    [line] = await mirror.logged("request", status=206)
    assert (line["bytes"], line["parts"]) == (len(got.body), len(pattern))


@pytest.mark.parametrize(
    "pattern", [_TOC, _CHUNKS, [(0, 600_000), (600_010, _SIZE - 1)]], ids=["toc", "chunks", "large"]
)
async def test_27_of_a_cold_blob(registry: FakeRegistry, mirror: LiveMirror, pattern: list[tuple[int, int]]) -> None:
    """Row 27: they begin one download of the whole, and are sent from it."""
    _are_right(await mirror.ask(_AT, headers=_header(pattern)), pattern)
    await mirror.landed(_DIGEST)
    assert (await mirror.ask(_AT)).body == _LAYER
    assert registry.count("blobs") == 1


async def test_27_open_ends(mirror: LiveMirror) -> None:
    """Row 27: open-ended and suffix ranges among others."""
    await _warm(mirror)
    got = await mirror.ask(_AT, headers={"Range": f"bytes=0-9,{_SIZE - 20}-, -5"})
    _are_right(got, [(0, 9), (_SIZE - 20, _SIZE - 1), (_SIZE - 5, _SIZE - 1)])


async def test_27_some_lie_outside(mirror: LiveMirror) -> None:
    """Row 27: what lies outside is left out; if one range is left, the answer has no parts (RFC 9110, 15.3.7)."""
    await _warm(mirror)
    got = await mirror.ask(_AT, headers={"Range": f"bytes=0-9,{_SIZE}-,20-29,-0"})
    _are_right(got, [(0, 9), (20, 29)])
    got = await mirror.ask(_AT, headers={"Range": f"bytes={_SIZE}-,20-29"})
    assert (got.status, got.body) == (206, _LAYER[20:30])
    assert got.headers["Content-Range"] == f"bytes 20-29/{_SIZE}"
    assert got.headers["Content-Type"] == "application/octet-stream"


@pytest.mark.parametrize("header", [f"bytes={_SIZE}-,{_SIZE + 5}-{_SIZE + 9},-0", "bytes=500-0", "bytes=0-9,500-0"])
async def test_27_nothing_can_be_satisfied(mirror: LiveMirror, header: str) -> None:
    """Row 27: 416 that tells the size; also for a range that ends before it starts, as conformance tests want it."""
    await _warm(mirror)
    got = await mirror.ask(_AT, headers={"Range": header})
    assert (got.status, got.code) == (416, "RANGE_INVALID")
    assert got.headers["Content-Range"] == f"bytes */{_SIZE}"


async def test_27_so_many_and_no_more(mirror: LiveMirror) -> None:
    """Row 27: 1,024 parts, as podman asks for; more is 400, after which clients ask for fewer, and never 416. The same
    for ranges that overlap so much that they add up to more than twice the blob (CVE-2011-3192).
    """
    await _warm(mirror)
    assert len(_CHUNKS) == MOST_RANGES
    for ranges in ([*_CHUNKS, (1_024_500, 1_024_600)], [(number, _SIZE - 1) for number in range(3)]):
        got = await mirror.ask(_AT, headers=_header(ranges))
        assert (got.status, got.code) == (400, "RANGE_INVALID")
    _are_right(await mirror.ask(_AT, headers=_header(_CHUNKS)), _CHUNKS)


async def test_27_only_for_get_and_only_if_it_is_this_blob(mirror: LiveMirror) -> None:
    """Row 27: HEAD has no ranges (RFC 9110, 14.2), and a condition about other bytes means the whole (13.1.5)."""
    await _warm(mirror)
    headers = _header(_TOC)
    got = await mirror.ask(_AT, method="HEAD", headers=headers)
    assert (got.status, got.headers["Content-Length"]) == (200, str(_SIZE))
    assert got.headers["Accept-Ranges"] == "bytes"
    _are_right(await mirror.ask(_AT, headers={**headers, "If-Range": f'"{_DIGEST}"'}), _TOC)
    for other in (f'"{Digest.of(b"other")}"', f'W/"{_DIGEST}"', "Sat, 29 Oct 1994 19:43:31 GMT"):
        got = await mirror.ask(_AT, headers={**headers, "If-Range": other})
        assert (got.status, got.body) == (200, _LAYER), other


async def test_27_any_ranges(mirror: LiveMirror) -> None:
    """Row 27: whatever is asked for, what comes is what slicing gives."""
    await _warm(mirror)
    dice = random.Random(27)
    for _ in range(40):
        first = [dice.randrange(_SIZE) for _ in range(dice.randint(2, 30))]
        ranges = [(at, min(_SIZE - 1, at + dice.choice((0, 1, 100, 30_000)))) for at in first]
        _are_right(await mirror.ask(_AT, headers=_header(ranges)), ranges)


# ---------------------------------------------------------------------------------------------------------- clients


async def test_stargz_and_soci(mirror: LiveMirror) -> None:
    """How both resolve and read a layer (`fs/remote/resolver.go`): two bytes to find redirects, the size by HEAD, then
    ranges in ascending order with `Accept-Encoding: identity`; a single one has no parts.
    """
    at = f"{_AT}?ns=docker.io"
    got = await mirror.ask(at, headers={"Range": "bytes=0-1"})
    assert (got.status, got.headers["Content-Range"]) == (206, f"bytes 0-1/{_SIZE}")
    got = await mirror.ask(at, method="HEAD")
    assert (got.status, got.headers["Content-Length"]) == (200, str(_SIZE))
    await mirror.landed(_DIGEST)
    for ranges in ([(0, 49_999), (150_000, 199_999)], [(at, at + 49_999) for at in range(0, _SIZE - 50_000, 100_000)]):
        _are_right(await mirror.ask(at, headers={**_header(ranges), "Accept-Encoding": "identity"}), ranges)


async def test_a_connection_serves_on(mirror: LiveMirror) -> None:
    """After parts that were sent past the event loop the connection is still in step."""
    await _warm(mirror)
    ask = f"GET {_AT} HTTP/1.1\r\nHost: x\r\nRange: bytes=%s\r\n%s\r\n"
    received = await mirror.raw(
        (ask % ("0-9,20-29", "")).encode() * 3,
        f"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n{ask % ('5-6', 'Connection: close')}\r\n".encode(),
    )
    assert received.count(b"HTTP/1.1 206") == 4
    assert received.count(_LAYER[20:30] + b"\r\n--") == 3
    assert received.count(b"\r\n\r\n{}HTTP/1.1 206") == 1
    assert received.endswith(b"\r\n\r\n" + _LAYER[5:7])


# ----------------------------------------------------------------------------------------- before it is verified


async def test_27_of_a_growing_blob(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 27: the last bytes of each part, too, wait for the digest of the whole; what is before them may leave."""
    gate = Stall()
    registry.fail("blobs", stall(gate, after=_SIZE - 1))
    ranges = [(1_000, 200_000), (300_000, 300_099), (300_100, 400_000)]
    async with mirror.open(_AT, headers=_header(ranges)) as response:
        assert response.status == 206
        await reached(gate)
        [flight] = mirror.app.shared.flights.active()
        await until(lambda: flight.received == _SIZE - 1)
        head = await response.content.readuntil(b"\r\n\r\n")
        early = await response.content.readexactly(199_001 - WITHHELD)
        assert early == _LAYER[1_000 : 200_001 - WITHHELD]
        more = asyncio.create_task(response.content.readexactly(1))
        asked = [
            asyncio.create_task(mirror.ask(_AT, headers=_header(one)))
            for one in ([(0, 9), (20, 29)], [(_SIZE - 9, _SIZE - 1), (0, 9)], ranges)
        ]
        await until(lambda: flight.followers == 1 + len(asked))
        assert not more.done()
        assert not any(one.done() for one in asked)
        gate.release()
        body = head + early + await more + await response.content.read()
        _are_right(Got(206, response.headers, body, True), ranges)
    _are_right(await asked[0], [(0, 9), (20, 29)])
    _are_right(await asked[1], [(_SIZE - 9, _SIZE - 1), (0, 9)])
    _are_right(await asked[2], ranges)
    assert registry.count("blobs") == 1


async def test_4_no_part_of_wrong_bytes(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 4: of bytes that are not those of the digest no part ever comes whole."""
    registry.fail("blobs", wrong_bytes, times=9)
    got = await mirror.ask(_AT, headers=_header([(1_000, 200_000), (300_000, 300_099)]))
    assert not got.whole or got.status >= 500
    assert b"300000-300099" not in got.body
    assert len(got.body) < 199_001 - WITHHELD + 500


async def test_34_of_a_blob_that_passes_the_store_by(registry: FakeRegistry, tmp_path: Path) -> None:
    """Row 34: it comes once, in its own order, and is verified at its end: it is sent whole, which every client that
    asks for several ranges reads as well.
    """
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, store={"capacity": "100KB"}) as mirror:
        got = await mirror.ask(_AT, headers=_header(_TOC))
        assert (got.status, got.whole, got.body, got.cache) == (200, True, _LAYER, "fwd=bypass")
        got = await mirror.ask(_AT, headers=_header(_TOC[:1]))
        assert (got.status, got.body) == (206, _LAYER[_TOC[0][0] : _TOC[0][1] + 1])
        assert (await mirror.ask(_AT, headers={"Range": "bytes=500-0"})).status == 416


# ---------------------------------------------------------------------------------------------------- other ways


async def test_37_in_pieces(mirror: LiveMirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 37: without a descriptor to send past the event loop the parts go through it."""
    await _warm(mirror)

    def none_left(_descriptor: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "dup", none_left)
    got = await mirror.ask(_AT, headers=_header(_CHUNKS))
    monkeypatch.undo()
    _are_right(got, _CHUNKS)


async def test_over_tls(mirror: LiveMirror, tmp_path: Path) -> None:
    """TLS: each part is read and encrypted here."""
    await _warm(mirror)
    certificate = Certificate(tmp_path / "certificate")
    server, context = RegistryServer(mirror.app.front), certificate.server()
    listening = await asyncio.get_running_loop().create_server(lambda: server.over_tls(context), "127.0.0.1", 0)
    try:
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            for ranges in (_TOC, _CHUNKS, [(0, 600_000), (600_010, _SIZE - 1)]):
                url = f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}{_AT}"
                async with session.get(url, headers=_header(ranges), ssl=certificate.client()) as response:
                    _are_right(Got(response.status, response.headers, await response.read(), True), ranges)
    finally:
        listening.close()
        await server.shutdown(1.0)


async def test_25_a_slow_reader(mirror: LiveMirror) -> None:
    """Row 25: what does not fit into the client's socket is sent when there is room, heads of parts as well."""
    await _warm(mirror)
    ranges = [(at, at + 15) for at in range(0, 1_024 * 1_000, 1_000)]
    ask = f"GET {_AT} HTTP/1.1\r\nHost: x\r\nRange: {_header(ranges)['Range']}\r\n"
    connection = socket.create_connection(("127.0.0.1", mirror.port))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader, writer = await asyncio.open_connection(sock=connection, limit=1024)
    writer.write(f"{ask}\r\n".encode() * 40 + f"{ask}Connection: close\r\n\r\n".encode())
    received = bytearray()
    while piece := await reader.read(64_000):
        received += piece
    writer.close()
    assert received.count(b"HTTP/1.1 206") == 41
    for first, last in ranges:
        part = f"bytes {first}-{last}/{_SIZE}\r\n\r\n".encode() + _LAYER[first : last + 1] + b"\r\n--"
        assert received.count(part) == 41


async def test_39_a_file_that_is_cut_in_mid_body(
    registry: FakeRegistry, mirror: LiveMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 39: the connection breaks, never a part that is short; the blob is looked at and fetched again."""
    await _warm(mirror)
    mirror.blob_file(_DIGEST).chmod(0o600)
    sendfile = os.sendfile

    def cut(out: int, file: int, position: int, count: int) -> int:
        os.truncate(mirror.blob_file(_DIGEST), 300_010)
        return sendfile(out, file, position, count)

    monkeypatch.setattr(os, "sendfile", cut)
    got = await mirror.ask(_AT, headers=_header([(0, 9), (300_000, 300_099), (400_000, 400_099)]))
    monkeypatch.undo()
    assert (got.status, got.whole) == (206, False)
    assert b"400000-400099" not in got.body
    await until(lambda: mirror.events("damaged blob set aside"))
    _are_right(await mirror.ask(_AT, headers=_header(_TOC)), _TOC)
    assert registry.count("blobs") == 2


async def test_a_client_that_leaves_in_mid_body(mirror: LiveMirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its descriptors are given back, and the next one is served."""
    await _warm(mirror)
    begun, go_on = threading.Event(), threading.Event()
    sendfile = os.sendfile

    def slow(out: int, file: int, position: int, count: int) -> int:
        begun.set()
        assert go_on.wait(PATIENCE)
        return sendfile(out, file, position, count)

    monkeypatch.setattr(sending, "_is_cached", lambda *_: False)
    monkeypatch.setattr(os, "sendfile", slow)
    _, writer = await mirror.connect()
    writer.write(f"GET {_AT} HTTP/1.1\r\nHost: x\r\nRange: {_header(_CHUNKS)['Range']}\r\n\r\n".encode())
    assert await asyncio.to_thread(begun.wait, PATIENCE)
    writer.transport.abort()
    go_on.set()
    monkeypatch.undo()
    await until(lambda: [line for line in mirror.events("request") if line["status"] == 206])
    assert not [name for name in os.listdir("/proc/self/fd") if _leads_to(name, str(mirror.blob_file(_DIGEST)))]
    _are_right(await mirror.ask(_AT, headers=_header(_TOC)), _TOC)


def _leads_to(descriptor: str, path: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}") == path
    except FileNotFoundError:
        return False
