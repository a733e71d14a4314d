"""Blobs over HTTP: whole and in parts, cold, growing and warm, for one client and for many."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import aiohttp
import pytest

from mirror.oci.digest import Digest
from mirror.policy.send_limit import WITHHELD
from mirror.server.registry import sending
from tests.support.fake_registry import FakeRegistry, Fault, silence, stall
from tests.support.live_mirror import PATIENCE, LiveMirror, live_mirror, noise, reached, until
from tests.support.scripted import Stall

_LAYER = noise(1 << 20)
_SIZE = len(_LAYER)


@pytest.fixture
def layer(registry: FakeRegistry) -> Digest:
    """One MiB in library/app."""
    return registry.add_blob("library/app", _LAYER)


def _at(digest: Digest, name: str = "library/app") -> str:
    return f"/v2/{name}/blobs/{digest}"


async def _warm(mirror: LiveMirror, digest: Digest) -> None:
    assert (await mirror.ask(_at(digest))).status == 200
    await mirror.landed(digest)


# --------------------------------------------------------------------------------------------- whole blobs


async def test_cold_then_warm(registry: FakeRegistry, mirror: LiveMirror, layer: Digest) -> None:
    """Equal bytes cold and warm; the second time upstream is not asked. The headers say what clients need."""
    for cache in ("fwd=uri-miss; stored", "hit"):
        answer = await mirror.ask(_at(layer))
        assert (answer.status, answer.whole, answer.body) == (200, True, _LAYER)
        assert answer.cache == cache
        assert answer.headers["Content-Length"] == str(_SIZE)
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert answer.headers["Docker-Content-Digest"] == str(layer)
        assert answer.headers["ETag"] == f'"{layer}"'
        assert answer.headers["Accept-Ranges"] == "bytes"
        assert "Content-Encoding" not in answer.headers
        await mirror.landed(layer)
    assert len(registry.requests) == 1


@pytest.mark.parametrize("size", [0, 1, 64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_sizes(registry: FakeRegistry, mirror: LiveMirror, size: int, algorithm: str) -> None:
    """Blobs about as large as what is held back until the digest is verified, and empty ones."""
    content = noise(size, seed=1)
    digest = registry.add_blob("library/app", content, algorithm)
    for _ in range(2):
        answer = await mirror.ask(_at(digest))
        assert (answer.status, answer.whole, answer.body) == (200, True, content)
        await mirror.landed(digest)
    assert registry.count("blobs") == 1


async def test_the_same_bytes_under_two_digests(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """sha256 and sha512 of the same bytes are two names, each verified for itself."""
    for algorithm in ("sha256", "sha512"):
        digest = registry.add_blob("library/app", _LAYER, algorithm)
        await _warm(mirror, digest)
        assert (await mirror.ask(_at(digest))).body == _LAYER


async def test_accept_encoding_changes_nothing(registry: FakeRegistry, mirror: LiveMirror, layer: Digest) -> None:
    """containerd asks for zstd and gzip: bytes are never encoded for transfer, and upstream is asked for identity."""
    for _ in range(2):
        answer = await mirror.ask(_at(layer), headers={"Accept-Encoding": "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5"})
        assert answer.body == _LAYER
        assert "Content-Encoding" not in answer.headers
    assert registry.of_kind("blobs")[0].header("Accept-Encoding") == "identity"


async def test_if_none_match(mirror: LiveMirror, layer: Digest) -> None:
    """A client that has the blob is told so."""
    await _warm(mirror, layer)
    answer = await mirror.ask(_at(layer), headers={"If-None-Match": f'"{layer}"'})
    assert (answer.status, answer.body) == (304, b"")


async def test_if_none_match_of_head(mirror: LiveMirror, layer: Digest) -> None:
    """HEAD is answered like GET (RFC 9110, 13.1.2), and the connection goes on."""
    await _warm(mirror, layer)
    answer = await mirror.ask(_at(layer), method="HEAD", headers={"If-None-Match": f'"{layer}"'})
    assert (answer.status, answer.headers["ETag"]) == (304, f'"{layer}"')
    answer = await mirror.ask(_at(layer), method="HEAD", headers={"If-None-Match": f'"{Digest.of(b"other")}"'})
    assert (answer.status, answer.headers["Content-Length"]) == (200, str(_SIZE))


@pytest.mark.parametrize("header", [{}, {"Range": "bytes=10-600000"}])
async def test_37_no_descriptor_is_left_for_an_answer(
    mirror: LiveMirror, layer: Digest, monkeypatch: pytest.MonkeyPatch, header: dict[str, str]
) -> None:
    """Row 37: what would be sent past the event loop goes through it where there is no descriptor for that."""
    await _warm(mirror, layer)

    def none_left(_descriptor: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "dup", none_left)
    answer = await mirror.ask(_at(layer), headers=header)
    monkeypatch.undo()
    assert answer.whole
    assert answer.body == (_LAYER[10:600001] if header else _LAYER)


async def test_a_cancelled_answer_keeps_its_descriptors_until_its_thread_is_done(
    mirror: LiveMirror, layer: Digest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number that is given back too early is the next socket's or file's, and bytes of this blob would go there."""
    await _warm(mirror, layer)
    sendfile, begun, go_on = os.sendfile, threading.Event(), threading.Event()
    used: list[int] = []

    def slow(out: int, file: int, position: int, count: int) -> int:
        used.extend((out, file))
        begun.set()
        assert go_on.wait(PATIENCE)
        return sendfile(out, file, position, count)

    monkeypatch.setattr(sending, "_is_cached", lambda *_: False)
    monkeypatch.setattr(os, "sendfile", slow)
    asking = asyncio.create_task(mirror.ask(_at(layer)))
    assert await asyncio.to_thread(begun.wait, PATIENCE)
    before = [os.readlink(f"/proc/self/fd/{number}") for number in used]
    for task in asyncio.all_tasks():
        if "RequestHandler.start" in str(task.get_coro()):
            task.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    assert [os.readlink(f"/proc/self/fd/{number}") for number in used] == before
    go_on.set()
    with suppress(aiohttp.ClientError):
        assert not (await asking).whole


async def test_unknown_blob(registry: FakeRegistry, mirror: LiveMirror, layer: Digest) -> None:
    """404 with the right code; not asked for again at once, but soon."""
    content = noise(1000, seed=2)
    unknown = Digest.of(content)
    for _ in range(3):
        answer = await mirror.ask(_at(unknown))
        assert (answer.status, answer.code) == (404, "BLOB_UNKNOWN")
    assert registry.count("blobs") == 1
    registry.add_blob("library/app", content)
    mirror.clock.forward(60)
    assert (await mirror.ask(_at(unknown))).body == content


# -------------------------------------------------------------------------------------------------- HEAD


async def test_28_head_of_a_warm_blob(registry: FakeRegistry, mirror: LiveMirror, layer: Digest) -> None:
    """Row 28: the same headers as GET and no body."""
    await _warm(mirror, layer)
    registry.forget()
    answer = await mirror.ask(_at(layer), method="HEAD")
    assert (answer.status, answer.body, answer.cache) == (200, b"", "hit")
    assert answer.headers["Content-Length"] == str(_SIZE)
    assert answer.headers["Docker-Content-Digest"] == str(layer)
    assert not registry.requests


async def test_28_head_of_a_cold_blob(registry: FakeRegistry, mirror: LiveMirror, layer: Digest) -> None:
    """Row 28: HEAD tells the size and starts no fill; upstream gets no HEAD of a blob, but a GET of one byte."""
    answer = await mirror.ask(_at(layer), method="HEAD")
    assert (answer.status, answer.body, answer.cache) == (200, b"", "fwd=uri-miss")
    assert answer.headers["Content-Length"] == str(_SIZE)
    assert (await mirror.ask(_at(layer), method="HEAD")).cache == "hit; detail=described"
    assert not mirror.app.shared.flights.active()
    assert not mirror.blob_file(layer).exists()
    assert [(request.method, request.header("Range")) for request in registry.of_kind("blobs")] == [
        ("GET", "bytes=0-0")
    ]


async def test_28_heads_ask_once(registry: FakeRegistry, mirror: LiveMirror, layer: Digest) -> None:
    """Row 28: what upstream said is good for the next HEAD too, for a while."""
    for _ in range(3):
        assert (await mirror.ask(_at(layer), method="HEAD")).headers["Content-Length"] == str(_SIZE)
    assert registry.count("blobs") == 1


async def test_28_head_of_a_blob_that_a_manifest_names(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 28: its size is known from the manifest: nobody is asked."""
    registry.add_image("library/app", "v1", [_LAYER])
    await mirror.ask("/v2/library/app/manifests/v1")
    registry.forget()
    answer = await mirror.ask(_at(Digest.of(_LAYER)), method="HEAD")
    assert (answer.headers["Content-Length"], answer.cache) == (str(_SIZE), "hit; detail=described")
    assert not registry.requests


async def test_28_head_of_an_unknown_blob(registry: FakeRegistry, mirror: LiveMirror, layer: Digest) -> None:
    """404 without a body."""
    answer = await mirror.ask(_at(Digest.of(b"unknown")), method="HEAD")
    assert (answer.status, answer.body) == (404, b"")
    assert registry.count("blobs", "HEAD") == 0


# -------------------------------------------------------------------------------------------------- ranges

_SATISFIABLE = [
    ("bytes=0-0", 0, 1),
    ("bytes=0-99", 0, 100),
    ("bytes=100-199", 100, 200),
    ("bytes=0-", 0, _SIZE),
    (f"bytes={_SIZE - 1}-", _SIZE - 1, _SIZE),
    ("bytes=-1", _SIZE - 1, _SIZE),
    ("bytes=-1000", _SIZE - 1000, _SIZE),
    (f"bytes=-{_SIZE * 9}", 0, _SIZE),
    (f"bytes=500-{_SIZE * 9}", 500, _SIZE),
    ("bytes=500-99999999999999999999999999", 500, _SIZE),
    ("BYTES = 5 - 6", 5, 7),
]


@pytest.mark.parametrize(("header", "start", "stop"), _SATISFIABLE)
async def test_range_of_a_warm_blob(mirror: LiveMirror, layer: Digest, header: str, start: int, stop: int) -> None:
    """First to last, open-ended and suffix: 206 with exactly these bytes."""
    await _warm(mirror, layer)
    answer = await mirror.ask(_at(layer), headers={"Range": header})
    assert answer.status == 206
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{_SIZE}"
    assert answer.headers["Content-Length"] == str(stop - start)
    assert answer.body == _LAYER[start:stop]


@pytest.mark.parametrize(
    "header",
    [
        *(f"bytes={_SIZE}-", f"bytes={_SIZE}-{_SIZE + 1}", "bytes=-0", "bytes=99999999999999999999999999-"),
        *("bytes=500-0", "bytes=5-3"),
    ],
)
@pytest.mark.parametrize("warm", [True, False])
async def test_unsatisfiable_range(mirror: LiveMirror, layer: Digest, header: str, warm: bool) -> None:
    """416 that tells the size (RFC 9110, 15.5.17), cold and warm."""
    if warm:
        await _warm(mirror, layer)
    answer = await mirror.ask(_at(layer), headers={"Range": header})
    assert (answer.status, answer.code) == (416, "RANGE_INVALID")
    assert answer.headers["Content-Range"] == f"bytes */{_SIZE}"
    await mirror.idle()


@pytest.mark.parametrize(
    "header",
    [
        *("bytes=-", "bytes=", "bytes=a-b", "bytes=1-2,4", "bytes=--1", "bytes=0x1-2", "bytes=1 0-20", "bytes=1-2;4-5"),
        *("lines=1-2", "1-2", "lines=" + ",".join(["0-0"] * 1000), "bytes=١-٢".encode().decode("latin-1")),
    ],
)
async def test_27_what_is_no_range(mirror: LiveMirror, layer: Digest, header: str) -> None:
    """Row 27: what is no list of byte ranges is ignored (RFC 9110, 14.2): the whole blob with 200, never an error."""
    await _warm(mirror, layer)
    answer = await mirror.ask(_at(layer), headers={"Range": header})
    assert (answer.status, answer.body) == (200, _LAYER)


async def test_27_several_range_headers(mirror: LiveMirror, layer: Digest) -> None:
    """Row 27: two Range headers are no single range."""
    await _warm(mirror, layer)
    received = await mirror.raw(
        f"GET {_at(layer)} HTTP/1.1\r\nHost: x\r\nRange: bytes=0-0\r\nRange: bytes=5-9\r\n"
        "Connection: close\r\n\r\n".encode()
    )
    assert received.startswith((b"HTTP/1.1 200", b"HTTP/1.1 400"))
    assert not received.startswith(b"HTTP/1.1 200") or received.endswith(_LAYER)


async def test_range_is_only_for_get(mirror: LiveMirror, layer: Digest) -> None:
    """HEAD with a Range is answered as HEAD (RFC 9110, 14.2)."""
    await _warm(mirror, layer)
    answer = await mirror.ask(_at(layer), method="HEAD", headers={"Range": "bytes=0-9"})
    assert (answer.status, answer.headers["Content-Length"]) == (200, str(_SIZE))


async def test_if_range(mirror: LiveMirror, layer: Digest) -> None:
    """A range that depends on other bytes is no range (RFC 9110, 13.1.5)."""
    await _warm(mirror, layer)
    headers = {"Range": "bytes=0-9", "If-Range": f'"{layer}"'}
    assert (await mirror.ask(_at(layer), headers=headers)).status == 206
    headers["If-Range"] = f'"{Digest.of(b"other")}"'
    assert (await mirror.ask(_at(layer), headers=headers)).status == 200


async def test_range_of_a_manifest_is_ignored(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """containerd asks for `bytes=0-` of manifests too."""
    digest = registry.add_image("library/app", "v1", [b"layer"])
    answer = await mirror.ask(f"/v2/library/app/manifests/{digest}", headers={"Range": "bytes=0-"})
    assert (answer.status, answer.body) == (200, registry.manifest("library/app", digest))


@pytest.mark.parametrize(("header", "start", "stop"), _SATISFIABLE)
async def test_range_of_a_cold_blob(
    registry: FakeRegistry, mirror: LiveMirror, layer: Digest, header: str, start: int, stop: int
) -> None:
    """A range of a cold blob starts one fill of the whole, which is then served from the store."""
    answer = await mirror.ask(_at(layer), headers={"Range": header})
    assert (answer.status, answer.body) == (206, _LAYER[start:stop])
    await mirror.landed(layer)
    assert (await mirror.ask(_at(layer))).body == _LAYER
    assert registry.count("blobs") == 1


async def test_ranges_of_a_growing_blob(registry: FakeRegistry, mirror: LiveMirror, layer: Digest) -> None:
    """containerd's dozens of open-ended ranges, each hung up after its share, are served while the blob grows: those
    that are here at once, those beyond when they come, from one download. Of one with an end, that end waits for the
    digest.
    """
    gate = Stall()
    registry.fail("blobs", stall(gate, after=_SIZE // 2))
    whole = asyncio.create_task(mirror.ask(_at(layer)))
    await reached(gate)
    for start in range(0, _SIZE // 2 - 100_000, 100_000):
        async with mirror.open(_at(layer), headers={"Range": f"bytes={start}-"}) as response:
            assert response.status == 206
            assert await response.content.readexactly(20_000) == _LAYER[start : start + 20_000]
            response.close()
    async with mirror.open(_at(layer), headers={"Range": "bytes=1000-200000"}) as response:
        assert await response.content.readexactly(199_001 - WITHHELD) == _LAYER[1000 : 200_001 - WITHHELD]
        response.close()
    part = asyncio.create_task(mirror.ask(_at(layer), headers={"Range": "bytes=1000-200000"}))
    beyond = [
        asyncio.create_task(mirror.ask(_at(layer), headers={"Range": f"bytes={start}-"}))
        for start in range(_SIZE // 2, _SIZE, 50_000)
    ]
    tail = asyncio.create_task(mirror.ask(_at(layer), headers={"Range": "bytes=-10"}))
    assert not whole.done()
    assert not part.done()
    gate.release()
    assert (await part).body == _LAYER[1000:200001]
    for number, answer in enumerate(await asyncio.gather(*beyond)):
        assert answer.whole
        assert answer.body == _LAYER[_SIZE // 2 + number * 50_000 :]
    assert (await tail).body == _LAYER[-10:]
    assert (await whole).body == _LAYER
    assert registry.count("blobs") == 1


# -------------------------------------------------------------------------------------------- many clients


async def test_57_many_clients_one_download(registry: FakeRegistry, mirror: LiveMirror, layer: Digest) -> None:
    """Row 57: 200 clients on one cold blob cost one upstream GET, and each gets every byte."""
    gate = Stall()
    registry.fail("blobs", stall(gate, after=100_000))
    asking = [asyncio.create_task(mirror.ask(_at(layer))) for _ in range(200)]
    await reached(gate)
    await until(lambda: sum(flight.followers for flight in mirror.app.shared.flights.active()) == 200)
    gate.release()
    answers = await asyncio.gather(*asking)
    assert {(answer.status, answer.whole, len(answer.body)) for answer in answers} == {(200, True, _SIZE)}
    assert {answer.cache for answer in answers} == {
        "fwd=uri-miss; stored",
        "fwd=uri-miss; collapsed; stored",
    }
    assert registry.count("blobs") == 1


async def test_bytes_flow_before_the_end(registry: FakeRegistry, mirror: LiveMirror, layer: Digest) -> None:
    """Clients have what upstream has sent, but for the last part, while upstream still stalls."""
    gate = Stall()
    registry.fail("blobs", stall(gate, after=_SIZE // 2))
    async with mirror.open(_at(layer)) as response:
        assert response.status == 200
        assert await response.content.readexactly(_SIZE // 2) == _LAYER[: _SIZE // 2]
        gate.release()
        assert await response.content.read() == _LAYER[_SIZE // 2 :]


async def test_last_bytes_wait_for_the_digest(registry: FakeRegistry, mirror: LiveMirror, layer: Digest) -> None:
    """All but one byte are here: what could pass for the whole is not given yet."""
    gate = Stall()
    registry.fail("blobs", stall(gate, after=_SIZE - 1))
    async with mirror.open(_at(layer)) as response:
        await reached(gate)
        received = await response.content.readexactly(_SIZE - 65536)
        reading = asyncio.create_task(response.content.readexactly(1))
        [flight] = mirror.app.shared.flights.active()
        await until(lambda: flight.received == _SIZE - 1)
        assert flight.sendable == _SIZE - 65536
        assert not reading.done()
        gate.release()
        assert received + await reading + await response.content.read() == _LAYER


async def test_23_all_leave(registry: FakeRegistry, mirror: LiveMirror, layer: Digest) -> None:
    """Row 23: when every client has left, the fill goes on; the next client is served from the store."""
    gate = Stall()
    registry.fail("blobs", stall(gate, after=_SIZE // 2))
    asking = [asyncio.create_task(mirror.ask(_at(layer))) for _ in range(3)]
    await reached(gate)
    for one in asking:
        one.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    gate.release()
    await mirror.landed(layer)
    assert (await mirror.ask(_at(layer))).cache == "hit"
    assert registry.count("blobs") == 1


@pytest.mark.parametrize("fault", [partial(stall, after=_SIZE // 2), silence], ids=["in-the-middle", "before-the-head"])
async def test_24_the_first_leaves(
    registry: FakeRegistry, mirror: LiveMirror, layer: Digest, fault: Callable[[Stall], Fault]
) -> None:
    """Row 24: the one who began the download leaves, however far it is; the others notice nothing."""
    gate = Stall()
    registry.fail("blobs", fault(gate))
    first = asyncio.create_task(mirror.ask(_at(layer)))
    await reached(gate)
    others = [asyncio.create_task(mirror.ask(_at(layer))) for _ in range(4)]
    await until(lambda: sum(flight.followers for flight in mirror.app.shared.flights.active()) == 5)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    gate.release()
    for answer in await asyncio.gather(*others):
        assert (answer.whole, answer.body) == (True, _LAYER)
    assert registry.count("blobs") == 1


async def test_25_slow_readers(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 25: clients that read nothing slow neither the fill nor others, and get every byte once they read."""
    content = noise(24 << 20, seed=3)
    digest = registry.add_blob("library/app", content)
    slow = [await mirror.connect() for _ in range(5)]
    for _, writer in slow:
        writer.write(f"GET {_at(digest)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    await until(lambda: sum(flight.followers for flight in mirror.app.shared.flights.active()) == 5)
    await mirror.landed(digest)
    assert (await mirror.ask(_at(digest))).whole
    assert len(await mirror.logged("request")) == 1, "the others have not been sent yet"
    for reader, writer in slow:
        received = await reader.read(-1)
        assert received.partition(b"\r\n\r\n")[2] == content
        writer.close()
        await writer.wait_closed()


async def test_25_a_reader_that_stalls_is_dropped(registry: FakeRegistry, tmp_path: Path) -> None:
    """Row 25: a client that takes nothing for `client_stall_timeout` is dropped: the connection breaks."""
    content = noise(24 << 20, seed=3)
    digest = registry.add_blob("library/app", content)
    server = {"client_stall_timeout": 0.2}
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, server=server) as mirror:
        reader, writer = await mirror.connect()
        writer.write(f"GET {_at(digest)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        [line] = await until(lambda: mirror.events("request"))
        assert "client" in line["error"]
        received = bytearray()
        try:
            while piece := await reader.read(1 << 20):
                received += piece
        except ConnectionResetError:
            pass
        assert len(received) < len(content)
        writer.close()


# ------------------------------------------------------------------------------------------------- old clients


async def test_http_1_0_client(mirror: LiveMirror, layer: Digest) -> None:
    """HTTP/1.0 is answered with a length and a closed connection, cold and warm."""
    for _ in range(2):
        received = await mirror.raw(f"GET {_at(layer)} HTTP/1.0\r\n\r\n".encode())
        head, _, body = received.partition(b"\r\n\r\n")
        assert re.match(rb"HTTP/1\.[01] 200", head)
        assert b"chunked" not in head.lower()
        assert body == _LAYER


async def test_a_connection_serves_on(mirror: LiveMirror, layer: Digest) -> None:
    """After blobs sent past the event loop the connection is still in step: cold, part, whole, HEAD, and a 404."""
    ask = f"%s {_at(layer)} HTTP/1.1\r\nHost: x\r\n%s\r\n"
    received = await mirror.raw(
        (ask % ("GET", "")).encode(),
        (ask % ("GET", "Range: bytes=7-16\r\n")).encode(),
        (ask % ("HEAD", "")).encode(),
        (ask % ("GET", "")).encode(),
        b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n",
        (ask % ("GET", "Range: bytes=-3\r\nConnection: close\r\n")).encode(),
    )
    assert re.findall(rb"HTTP/1\.1 (\d+)", received) == [b"200", b"206", b"200", b"200", b"404", b"206"]
    bodies = re.split(rb"HTTP/1\.1 .*?\r\n\r\n", received, flags=re.DOTALL)[1:]
    assert bodies[0] == _LAYER
    assert bodies[1] == _LAYER[7:17]
    assert bodies[2] == b""
    assert bodies[3] == _LAYER
    assert bodies[5] == _LAYER[-3:]


# ------------------------------------------------------------------------------------------------------ rights


async def test_74_a_blob_is_not_had_through_another_name(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 74: bytes are shared, the right to them is not: each repository's own upstream must know the blob."""
    registry.add_image("team/private", "v1", [_LAYER])
    registry.add_image("team/public", "v1", [b"other"])
    layer = Digest.of(_LAYER)
    await mirror.ask("/v2/team/private/manifests/v1")
    await _warm_in(mirror, layer, "team/private")
    for method in ("GET", "HEAD"):
        answer = await mirror.ask(_at(layer, "team/public"), method=method)
        assert answer.status == 404, method
    answer = await mirror.ask(_at(layer, "team/public"), headers={"Range": "bytes=0-9"})
    assert (answer.status, answer.code) == (404, "BLOB_UNKNOWN")
    assert (await mirror.ask(_at(layer, "team/private"))).body == _LAYER


async def _warm_in(mirror: LiveMirror, digest: Digest, name: str) -> None:
    assert (await mirror.ask(_at(digest, name))).status == 200
    await mirror.landed(digest)


async def test_74_not_while_it_is_on_its_way(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 74: nor can it be had by joining a download that another repository has begun."""
    layer = registry.add_blob("team/private", _LAYER)
    registry.add_image("team/public", "v1", [b"other"])
    gate = Stall()
    registry.fail("blobs", stall(gate, after=_SIZE // 2))
    whole = asyncio.create_task(mirror.ask(_at(layer, "team/private")))
    await reached(gate)
    answer = await mirror.ask(_at(layer, "team/public"))
    assert (answer.status, answer.code) == (404, "BLOB_UNKNOWN")
    gate.release()
    assert (await whole).body == _LAYER


async def test_74_a_manifest_is_not_had_through_another_name(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 74: the same for manifests, and for the config, which is a blob like any other."""
    digest = registry.add_image("team/private", "v1", [_LAYER], config=b'{"secret": "inside"}')
    registry.add_image("team/public", "v1", [b"other"])
    await mirror.ask("/v2/team/private/manifests/v1")
    assert (await mirror.ask(f"/v2/team/public/manifests/{digest}")).status == 404
    assert (await mirror.ask(f"/v2/team/public/manifests/{digest}", method="HEAD")).status == 404
    assert (await mirror.ask(_at(digest, "team/public"))).status == 404
    assert (await mirror.ask(_at(Digest.of(b'{"secret": "inside"}'), "team/public"))).status == 404


async def test_shared_layers_are_fetched_once(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Two images of two repositories share a layer: upstream sends its bytes once, and is asked once for the right."""
    for name in ("library/one", "library/two"):
        registry.add_image(name, "v1", [_LAYER])
        await mirror.ask(f"/v2/{name}/manifests/v1")
        await _warm_in(mirror, Digest.of(_LAYER), name)
    assert registry.count("blobs") == 1, "the manifest gives the second the right"
    registry.add_blob("library/three", _LAYER)
    await _warm_in(mirror, Digest.of(_LAYER), "library/three")
    assert [request.header("Range") for request in registry.of_kind("blobs")] == [None, "bytes=0-0"]


# ------------------------------------------------------------------------------------------- several processes


async def test_44_two_mirrors_on_one_store(registry: FakeRegistry, tmp_path: Path, layer: Digest) -> None:
    """Row 44: two mirrors on one directory share a download while it runs, and what has come of it."""
    upstreams = {"docker.io": registry.url}
    async with live_mirror(tmp_path / "shared", upstreams) as one, live_mirror(tmp_path / "shared", upstreams) as two:
        gate = Stall()
        registry.fail("blobs", stall(gate, after=_SIZE // 2))
        asking = [asyncio.create_task(one.ask(_at(layer)))]
        await reached(gate)
        asking += [asyncio.create_task(mirror.ask(_at(layer))) for mirror in (two, one, two)]
        async with two.open(_at(layer)) as response:
            start = await response.content.readexactly(_SIZE // 4)
            gate.release()
            assert start + await response.content.read() == _LAYER
        for answer in await asyncio.gather(*asking):
            assert (answer.whole, answer.body) == (True, _LAYER)
        await two.landed(layer)
        assert (await two.ask(_at(layer))).cache == "hit"
    downloads = [request for request in registry.of_kind("blobs") if request.header("Range") != "bytes=0-0"]
    assert len(downloads) == 1


async def test_41_restart_resumes(registry: FakeRegistry, tmp_path: Path, layer: Digest) -> None:
    """Rows 41, 65: what had come before the process ended is not fetched again; the rest is asked for by Range."""
    upstreams = {"docker.io": registry.url}
    gate = Stall()
    registry.fail("blobs", stall(gate, after=_SIZE // 2))
    async with live_mirror(tmp_path / "again", upstreams) as mirror:
        asking = asyncio.create_task(mirror.ask(_at(layer)))
        await reached(gate)
        [flight] = await until(lambda: mirror.app.shared.flights.active())
        await until(lambda: flight.received == _SIZE // 2)
    assert not (await asking).whole
    async with live_mirror(tmp_path / "again", upstreams) as mirror:
        answer = await mirror.ask(_at(layer))
        assert (answer.whole, answer.body) == (True, _LAYER)
        await mirror.landed(layer)
    assert registry.of_kind("blobs")[-1].header("Range") == f"bytes={_SIZE // 2}-"
    gate.release()


async def test_warm_after_restart(registry: FakeRegistry, tmp_path: Path) -> None:
    """A cache outlives its process: manifest and blobs are served without any upstream, index or no index."""
    digest = registry.add_image("library/app", "v1", [_LAYER])
    layer = Digest.of(_LAYER)
    upstreams = {"docker.io": registry.url}
    async with live_mirror(tmp_path / "again", upstreams) as mirror:
        await mirror.ask("/v2/library/app/manifests/v1")
        await _warm(mirror, layer)
    registry.stop()
    for lost in (False, True):
        if lost:
            for file in (tmp_path / "again").glob("index.sqlite*"):
                file.unlink()
        async with live_mirror(tmp_path / "again", upstreams) as mirror:
            assert (await mirror.ask(f"/v2/library/app/manifests/{digest}")).status == 200
            assert (await mirror.ask(_at(layer))).body == _LAYER
            assert (await mirror.ask(_at(layer), method="HEAD")).status == 200
