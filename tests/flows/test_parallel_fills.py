"""What clients, operators and the disk do while a blob comes over several connections: it comes all the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from mirror import telemetry
from mirror.errors import StoreFull
from mirror.eviction.scrub import scrub_all
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.fills.span_blocks import BLOCK
from mirror.policy.image_names import Image
from mirror.store.local.recovery import sweep
from mirror.upstream.endpoints import EndpointsUpstream
from mirror.upstream.registry import RegistryUpstream
from tests.support.fake_registry import FakeRegistry, Fault, stall, status
from tests.support.live_mirror import Got, LiveMirror, live_mirror, noise, reached, until
from tests.support.out_of_turn import bytes_out_of_turn
from tests.support.scripted import Answering, Request, Reset, Script, Stall
from tests.support.several_connections import CONNECTIONS, small_parts
from tests.support.tmpfs import tmpfs

_LAYER = noise(1_200_000, seed=59)
_SIZE = len(_LAYER)
_DIGEST = Digest.of(_LAYER)
_AT = f"/v2/library/app/blobs/{_DIGEST}"
_TAG = "/v2/library/app/manifests/v1"
#: Bytes that each connection brings before it stands still: a block and some.
_BROUGHT = 70_000

Asking = list[asyncio.Task[Got]]
#: The stack is closed once the blob is here.
Deed = Callable[[LiveMirror, Asking, AsyncExitStack], Awaitable[None]]


@pytest.fixture(autouse=True)
def _content(registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    small_parts(monkeypatch.setattr)
    registry.add_image("library/app", "v1", [_LAYER])


@asynccontextmanager
async def _three_open(mirror: LiveMirror, registry: FakeRegistry, clients: int = 3) -> AsyncIterator[Asking]:
    """Clients of the layer, of which three connections stand still in their middle until the end of the block."""
    assert (await mirror.ask(_TAG)).status == 200
    gates = [Stall() for _ in range(CONNECTIONS)]
    for gate in gates:
        registry.fail("blobs", stall(gate, _BROUGHT))
    asking = [asyncio.create_task(mirror.ask(_AT)) for _ in range(clients)]
    try:
        for gate in gates:
            await reached(gate)
        await until(lambda: sum(flight.followers for flight in mirror.app.shared.flights.active()) == clients)
        await until(lambda: _bytes_ahead(mirror) >= (CONNECTIONS - 1) * BLOCK)
        yield asking
    finally:
        for gate in gates:
            gate.release()


def _bytes_ahead(mirror: LiveMirror) -> int:
    return bytes_out_of_turn(mirror.app.storage.store, _DIGEST)


def _fill_up(file: Path, leave: int) -> None:
    """Nothing but `leave` bytes can be written any more."""
    with file.open("wb", buffering=0) as foreign:
        with suppress(OSError):
            while True:
                foreign.write(bytes(4096))
        foreign.truncate(foreign.tell() - leave)


def _received() -> int:
    return int(sum(count for _, count in telemetry.counted("mirror_upstream_bytes")))


def _is_whole(got: Got) -> None:
    assert (got.status, got.whole, got.body == _LAYER) == (200, True, True)


async def _nothing_left(mirror: LiveMirror) -> None:
    await mirror.idle()
    assert not [*(mirror.root / "ingest").iterdir()]
    upstream = mirror.app.router._upstream_for("docker.io")
    for member in upstream.members if isinstance(upstream, EndpointsUpstream) else [upstream]:
        assert isinstance(member, RegistryUpstream)
        # every turn was given back
        assert member._blobs._value == mirror.config.upstream[0].max_concurrent_downloads


# ------------------------------------------------------------------------------------------------- what others do


async def _first_leaves(mirror: LiveMirror, asking: Asking, leaving: AsyncExitStack) -> None:
    asking.pop(0).cancel()


async def _all_leave(mirror: LiveMirror, asking: Asking, leaving: AsyncExitStack) -> None:
    while asking:
        asking.pop().cancel()


async def _one_reads_nothing(mirror: LiveMirror, asking: Asking, leaving: AsyncExitStack) -> None:
    _, writer = await mirror.connect()
    writer.write(f"GET {_AT} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    await until(lambda: any(flight.followers > len(asking) for flight in mirror.app.shared.flights.active()))
    leaving.push_async_callback(_close, writer)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def _ranges_are_asked_for(mirror: LiveMirror, asking: Asking, leaving: AsyncExitStack) -> None:
    async def part(first: int, last: int) -> Got:
        got = await mirror.ask(_AT, headers={"Range": f"bytes={first}-{last}"})
        assert (got.status, got.body == _LAYER[first : last + 1]) == (206, True)
        return Got(200, got.headers, _LAYER, got.whole)

    # of what is here, of what comes, of what nobody has asked for, and all that is behind
    for first, last in ((0, 100), (150_000, 700_000), (1_000_000, 1_000_099), (1_000_000, _SIZE - 1)):
        asking.append(asyncio.create_task(part(first, last)))


async def _is_purged(mirror: LiveMirror, asking: Asking, leaving: AsyncExitStack) -> None:
    await mirror.app.admin.images.purge(Image(Repo("docker.io", "library/app"), "v1"))


async def _is_evicted(mirror: LiveMirror, asking: Asking, leaving: AsyncExitStack) -> None:
    with suppress(StoreFull):
        await mirror.app.storage.eviction.space.make_room(1 << 40)


async def _is_swept(mirror: LiveMirror, asking: Asking, leaving: AsyncExitStack) -> None:
    later = time.time() + 1e6
    await asyncio.to_thread(sweep, mirror.app.storage.layout, keep=1.0, now=lambda: later)


async def _is_scrubbed(mirror: LiveMirror, asking: Asking, leaving: AsyncExitStack) -> None:
    await scrub_all(mirror.app.scrub(rate=None), mirror.app.storage.store, mirror.app.storage.records("scrubs"))


async def _comes_otherwise(mirror: LiveMirror, asking: Asking, leaving: AsyncExitStack) -> None:
    mirror.app.storage.store.put(_DIGEST, _LAYER)


async def _spans_are_deleted(mirror: LiveMirror, asking: Asking, leaving: AsyncExitStack) -> None:
    for file in (mirror.root / "ingest").iterdir():
        if file.suffix in (".map", ".spans"):
            file.unlink()


@pytest.mark.parametrize(
    "deed",
    [
        _first_leaves,
        _all_leave,
        _one_reads_nothing,
        _ranges_are_asked_for,
        _is_purged,
        _is_evicted,
        _is_swept,
        _is_scrubbed,
        _comes_otherwise,
        _spans_are_deleted,
    ],
)
@pytest.mark.parametrize("ranges", ["verified", "lazy"])
async def test_23_to_25_60_to_62_beside_a_fill(registry: FakeRegistry, tmp_path: Path, deed: Deed, ranges: str) -> None:
    """Rows 23 to 25, 40, 60 to 62: with all connections open. Those who stay get every byte, each comes once, and
    nothing is left.
    """
    routes = [{"match": "docker.io/**", "ranges": ranges, "lazy_share": 1.0, "lazy_pause": "0s"}]
    upstream = {"url": registry.url, "connections_per_blob": CONNECTIONS}
    async with live_mirror(tmp_path / "store", {"docker.io": upstream}, route=routes) as mirror:
        before = _received()
        async with AsyncExitStack() as leaving:
            async with _three_open(mirror, registry) as asking:
                await deed(mirror, asking, leaving)
            for answer in await asyncio.gather(*asking):
                _is_whole(answer)
            await mirror.landed(_DIGEST)
        await _nothing_left(mirror)
        again = CONNECTIONS * 2 * BLOCK if deed in (_spans_are_deleted, _is_purged, _comes_otherwise, _is_swept) else 0
        assert _received() - before <= _SIZE + again
        assert (await mirror.ask(_AT)).body == _LAYER


@pytest.mark.parametrize("leave", [0, 200_000, 1_300_000])
async def test_34_the_disk_fills_up(registry: FakeRegistry, tmp_path: Path, leave: int) -> None:
    """Row 34: with all connections open. There is room for nothing, for some bytes that came ahead, or for the blob
    alone. Clients get every byte, and the next pull is as ever once there is room.
    """
    upstream = {"url": registry.url, "connections_per_blob": CONNECTIONS}
    with tmpfs(tmp_path, "size=80m") as disk:
        async with live_mirror(disk / "store", {"docker.io": upstream}) as mirror:
            async with _three_open(mirror, registry) as asking:
                _fill_up(disk / "foreign", leave)
            for answer in await asyncio.gather(*asking):
                _is_whole(answer)
            await mirror.idle()
            (disk / "foreign").unlink()
            _is_whole(await mirror.ask(_AT))
            await mirror.landed(_DIGEST)
            await _nothing_left(mirror)


async def test_an_endpoint_that_breaks_off(registry: FakeRegistry, tmp_path: Path) -> None:
    """Row 8: all connections to one address of an upstream break. The blob goes on at the other, over several as well,
    and both get all turns back.
    """
    gates = [Stall() for _ in range(CONNECTIONS)]

    def broken(gate: Stall) -> Fault:
        def fault(request: Request, answer: Answering) -> Script:
            return [*stall(gate, _BROUGHT)(request, answer)[:3], Reset()]

        return fault

    with FakeRegistry() as nearer:
        nearer.add_image("library/app", "v1", [_LAYER])
        for gate in gates:
            nearer.fail("blobs", broken(gate))
        nearer.fail("blobs", status(503), times=100)
        upstream = {"url": registry.url, "endpoints": [nearer.url], "connections_per_blob": CONNECTIONS}
        async with live_mirror(tmp_path / "store", {"docker.io": upstream}) as mirror:
            assert (await mirror.ask(_TAG)).status == 200
            before = _received()
            asking = asyncio.create_task(mirror.ask(_AT))
            for gate in gates:
                await reached(gate)
            await until(lambda: _bytes_ahead(mirror) >= (CONNECTIONS - 1) * BLOCK)
            for gate in gates:
                gate.release()
            _is_whole(await asking)
            await mirror.landed(_DIGEST)
            await _nothing_left(mirror)
        assert registry.count("blobs") >= CONNECTIONS
        assert _received() - before <= _SIZE + CONNECTIONS * BLOCK
