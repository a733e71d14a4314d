"""The table of ready answers changes no answer: raw requests, however they are written, mixed and cut, get the same
bytes with it and without it.

`MIRROR_FAULTS_REQUESTS` says how many examples are tried.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import uvloop
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mirror.oci.digest import Digest
from mirror.server.registry.handler import RegistryServer
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import PATIENCE, LiveMirror, live_mirror, noise
from tests.support.ready_requests import LAST, request, watching, without_what_varies

_LAYER: Final = noise(20_000)
_BLOB: Final = str(Digest.of(_LAYER))
_NAME: Final = "/v2/library/app"
_EXAMPLES: Final = max(60, int(os.environ.get("MIRROR_FAULTS_REQUESTS", "0")) // 20)

_METHODS: Final = ("GET", "HEAD", "GET", "HEAD", "get", "POST", "DELETE", "OPTIONS")
_TARGETS: Final = (
    f"{_NAME}/manifests/v1",
    f"{_NAME}/manifests/v1",
    f"{_NAME}/manifests/DIGEST",
    f"{_NAME}/blobs/{_BLOB}",
    f"{_NAME}/blobs/{_BLOB}",
    f"{_NAME}/manifests/v1?ns=docker.io",
    f"{_NAME}/manifests/v1?ns=DOCKER.io&x=%",
    f"{_NAME}/manifests/v%31",
    f"http://elsewhere{_NAME}/manifests/v1",
    f"/{_NAME}/manifests/v1",
    f"{_NAME}/manifests/none",
    f"{_NAME}/tags/list",
    "/v2/",
    "/readyz",
)
_VERSIONS: Final = ("HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/1.1 ", "HTTP/9.9")
_HEADERS: Final = (
    "Accept: application/vnd.oci.image.manifest.v1+json",
    "accept: */*",
    "ACCEPT:*/*",
    "User-Agent: containerd/2.0",
    "Accept-Encoding: gzip",
    "Connection: keep-alive",
    "Connection: Keep-Alive",
    "Connection: close",
    "Host: another",
    "Range: bytes=0-5",
    'If-None-Match: "sha256:0"',
    f'If-None-Match: "{_BLOB}"',
    "Authorization: Basic YTpi",
    "X-Forwarded-For: 192.0.2.1",
    "Content-Length: 0",
    "Content-Length: 4",
    "Transfer-Encoding: chunked",
    "Expect: 100-continue",
    "Upgrade: websocket",
    "Accept: a\r\n folded",
    "Accept : x",
    "No colon",
    "X: \xff",
    "Accept: a\x01b",
)
_ENDS: Final = ("\r\n\r\n", "\r\n\r\n", "\r\n\r\n", "\r\n\r\n", "\n\n", "\r\n\r\n\r\n", "\r\n", "\r\n\r\nabcd")


@st.composite
def _requests(draw: st.DrawFn) -> bytes:
    """A request as clients write it, most often; or nearly one."""
    if draw(st.integers(0, 2)):
        usual = request(draw(st.sampled_from(_TARGETS)), draw(st.sampled_from(("GET", "HEAD"))))
        return usual if draw(st.integers(0, 5)) else usual[: draw(st.integers(1, len(usual)))]
    lines = [f"{draw(st.sampled_from(_METHODS))} {draw(st.sampled_from(_TARGETS))} {draw(st.sampled_from(_VERSIONS))}"]
    headers = draw(st.lists(st.sampled_from(_HEADERS), max_size=4))
    if draw(st.integers(0, 9)):
        headers.insert(draw(st.integers(0, len(headers))), draw(st.sampled_from(("Host: mirror", "host: mirror"))))
    return ("\r\n".join([*lines, *headers]) + draw(st.sampled_from(_ENDS))).encode("latin-1")


#: Turns of the event loop between two pieces: while the one before is being answered, or after that.
_TURNS: Final = (60, 3, 60)

#: What one client sends: pieces, at any of which the bytes may be cut.
_Pieces = Sequence[bytes]


@st.composite
def _conversations(draw: st.DrawFn) -> _Pieces:
    """Requests in a row, whose bytes come as they were written, in one packet, or cut anywhere."""
    row = draw(st.lists(_requests(), min_size=1, max_size=5))
    row += [row[0]] * draw(st.integers(0, 2))
    how = draw(st.integers(0, 4))
    if how > 1:
        return row
    whole = b"".join(row)
    if how == 1:
        return [whole]
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=4)))
    return [whole[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


class _Both:
    """One mirror with two listeners: one with the table, one without."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._digest = ""
        self.ports = (0, 0)
        self.given = 0

    async def open(self, root: Path, registry: FakeRegistry) -> None:
        self._digest = str(registry.add_image("library/app", "v1", [_LAYER]))
        mirror = await self._stack.enter_async_context(live_mirror(root / "store", {"docker.io": registry.url}))
        self._mirror: LiveMirror = mirror
        for target in (f"{_NAME}/manifests/v1", f"{_NAME}/blobs/{_BLOB}"):
            assert (await mirror.ask(target)).status == 200
        await mirror.landed(Digest.parse(_BLOB))
        plain = RegistryServer(mirror.app.front, access_log=None, keepalive_timeout=75.0, lingering_time=2.0)
        listening = await asyncio.get_running_loop().create_server(plain, "127.0.0.1", 0)
        self._stack.push_async_callback(plain.shutdown, 0.1)
        self._stack.callback(listening.close)
        self.ports = mirror.port, listening.sockets[0].getsockname()[1]
        self._watch = self._stack.enter_context(watching(mirror))

    async def close(self) -> None:
        # aiohttp logs bodies in chunks that are none, whose requests were answered already
        self._mirror.clear_log()
        await self._stack.aclose()

    async def compare(self, pieces: _Pieces, turns: int) -> None:
        """The same bytes to both, twice to the table: what the first client was answered, the second one may get."""
        pieces = [piece.replace(b"DIGEST", self._digest.encode()) for piece in pieces]
        answers = [await self._converse(port, pieces, turns) for port in (*self.ports, self.ports[0])]
        self.given += self._watch.reset()
        with_table, without, again = map(without_what_varies, answers)
        assert with_table == without
        assert again == without

    async def _converse(self, port: int, pieces: _Pieces, turns: int) -> bytes:
        loop = asyncio.get_running_loop()
        transport, client = await loop.create_connection(_Client, "127.0.0.1", port)
        # whatever was begun is ended, so that nothing is waited for
        for piece in (*pieces, b"\r\n\r\n", LAST):
            if not transport.is_closing():
                transport.write(piece)
            # the mirror reads what has come, or answers it as well, before the next piece is written
            for _ in range(turns):
                await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE):
            await client.ended
        return bytes(client.received)


class _Client(asyncio.Protocol):
    """Keeps what it has received, however the connection ends."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set_result(None)


def test_answers_are_equal_with_the_table_and_without_it(tmp_path: Path, registry: FakeRegistry) -> None:
    """Byte for byte, except the date and the numbers of failed requests."""
    both = _Both()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(both.open(tmp_path, registry))
        try:
            known = request(f"{_NAME}/manifests/v1"), request(f"{_NAME}/blobs/{_BLOB}", "HEAD")
            in_a_body = b"POST /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(known[0])

            @settings(max_examples=_EXAMPLES, deadline=None, suppress_health_check=[*HealthCheck])
            @example([*known, *known], _TURNS[-1])
            @example([b"".join((*known, *known))], _TURNS[-1])
            @example([known[0][:50], known[0][50:] + known[1], known[0]], _TURNS[-1])
            @example([b"\r\n" + known[0], known[0]], _TURNS[-1])
            @example([in_a_body, *known], _TURNS[-1])
            @given(_conversations(), st.sampled_from(_TURNS))
            def each(pieces: _Pieces, turns: int) -> None:
                runner.run(both.compare(pieces, turns))

            each()
            assert both.given >= 4
        finally:
            runner.run(both.close())
