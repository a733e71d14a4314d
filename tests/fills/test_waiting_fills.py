"""How long a fill waits for an upstream that refuses connections in the middle of a blob (row 136)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirror.aio.memo import Memo
from mirror.errors import UpstreamUnavailable
from mirror.fills.filler import Filler
from mirror.fills.flight import Flight
from mirror.fills.flights import Flights
from mirror.fills.room import ReservedSpace
from mirror.oci.digest import Digest
from mirror.ports import BlobInfo, Body
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from mirror.upstream.endpoints import EndpointsUpstream
from mirror.upstream.registry import RegistryUpstream
from tests.support.clock import Clock
from tests.support.fake_registry import FakeRegistry, stall, status
from tests.support.following import read_to_end
from tests.support.live_mirror import noise, reached
from tests.support.registry_upstream import registry_upstream
from tests.support.scripted import Stall

_LAYER = noise(3 << 20)
_DIGEST = Digest.of(_LAYER)
_NAME = "library/app"


class _Outage:
    """Time, which passes while somebody waits; the registry is back at a moment that is set."""

    def __init__(self, registry: FakeRegistry, clock: Clock) -> None:
        self._registry = registry
        self._clock = clock
        self._back_at: float | None = None
        self._nobody_asks = asyncio.Event()
        self._nobody_asks.set()
        self._asking = 0

    def begin(self, seconds: float) -> None:
        """The registry refuses connections from now on, for so long."""
        self._back_at = self._clock() + seconds
        self._registry.away()

    @asynccontextmanager
    async def asking(self, asked: AbstractAsyncContextManager[Body]) -> AsyncIterator[Body]:
        """Fills that wait wait for the answer of one that asks: its dial is a real one."""
        async with AsyncExitStack() as stack:
            self._asking += 1
            self._nobody_asks.clear()
            try:
                body = await stack.enter_async_context(asked)
            finally:
                self._asking -= 1
                if not self._asking:
                    self._nobody_asks.set()
            yield body

    async def sleep_of_a_fill(self, seconds: float) -> None:
        """Time passes, once nobody asks."""
        await self._nobody_asks.wait()
        await self.sleep(seconds)

    async def sleep(self, seconds: float) -> None:
        """Time passes."""
        self._clock.time += seconds
        if self._back_at is not None and self._clock() >= self._back_at:
            self._back_at = None
            self._registry.back()
        await asyncio.sleep(0)


class _Room:
    """Room without end."""

    async def reserve(self, size: int | None) -> ReservedSpace:
        """As `Room`."""

        class Held:
            def release(self) -> None:
                """Nothing was set aside."""

        return Held()

    async def make_room(self, size: int) -> None:
        """As `Room`."""


@dataclass
class _Site:
    """Flights from a registry, by clocks that the outage moves."""

    registry: FakeRegistry
    outage: _Outage
    clock: Clock
    flights: Flights
    store: LocalStore
    upstream: RegistryUpstream | EndpointsUpstream

    async def join(self, digest: Digest = _DIGEST) -> Flight:
        def pull(start: int, stop: int | None = None) -> AbstractAsyncContextManager[Body]:
            return self.outage.asking(self.upstream.blob(_NAME, digest, start, stop))

        return await self.flights.join(digest, pull, upstream=self.upstream.name)

    async def join_and_break(self, seconds: float) -> Flight:
        """A flight whose upstream goes away in its middle, for so long."""
        gate = Stall()
        self.registry.fail("blobs", stall(gate, after=len(_LAYER) // 2))
        flight = await self.join()
        await reached(gate)
        self.outage.begin(seconds)
        return flight


@pytest.fixture(params=["the registry", "a mirror of it, and it"])
async def site(request: pytest.FixtureRequest, registry: FakeRegistry, tmp_path: Path) -> AsyncIterator[_Site]:
    """With a patience of 30 s."""
    registry.add_blob(_NAME, _LAYER)
    clock = Clock()
    outage = _Outage(registry, clock)
    store = LocalStore(Layout(tmp_path))
    memo = Memo(now=clock)

    async def published(_info: BlobInfo, _flight: Flight) -> None:
        """Nobody remembers it."""

    with ThreadPoolExecutor(8) as executor:

        def make() -> RegistryUpstream:
            return registry_upstream(
                "docker.io",
                registry.url,
                executor=executor,
                memo=memo,
                clock=clock,
                sleep=outage.sleep,
                jitter=lambda: 0.5,
            )

        upstream: RegistryUpstream | EndpointsUpstream = make()
        if request.param != "the registry":
            # at one address: both go away together
            upstream = EndpointsUpstream([make(), make()], clock=clock)
        filler = Filler(
            store,
            _Room(),
            executor,
            published=published,
            sleep=outage.sleep_of_a_fill,
            jitter=lambda: 0.5,
            clock=clock,
            patience=30.0,
        )
        flights = Flights(filler)
        yield _Site(registry, outage, clock, flights, store, upstream)
        await flights.aclose()
        await upstream.aclose()
        await memo.aclose()


@pytest.mark.parametrize("seconds", [0.3, 1.0, 5.0, 20.0])
async def test_136_away_in_mid_blob(site: _Site, seconds: float) -> None:
    """However long within our patience: the blob is gone on with where it broke, and its follower sees no seam."""
    flight = await site.join_and_break(seconds)
    assert await read_to_end(flight) == _LAYER
    starts = [request.start for request in site.registry.of_kind("blobs")]
    assert len(starts) == 2
    assert 0 < starts[1] <= len(_LAYER) // 2


async def test_136_away_for_longer_than_our_patience(site: _Site) -> None:
    """Then the clients' connections break; what has come stays, and is gone on with once upstream is back."""
    began = site.clock()
    flight = await site.join_and_break(3600.0)
    with pytest.raises(UpstreamUnavailable):
        await read_to_end(flight)
    assert 30.0 <= site.clock() - began < 45.0
    await flight.over.wait()
    with pytest.raises(UpstreamUnavailable):
        await site.join()
    await site.outage.sleep(3600.0)
    assert await read_to_end(await site.join()) == _LAYER


async def test_136_a_blob_that_is_asked_for_meanwhile(site: _Site) -> None:
    """It waits with those that have begun: an image's next layer must not end the pull of the image."""
    other = b"another layer" * 10_000
    site.registry.add_blob(_NAME, other)
    flight = await site.join_and_break(5.0)
    next_one = asyncio.create_task(site.join(Digest.of(other)))
    assert await read_to_end(await next_one) == other
    assert await read_to_end(flight) == _LAYER


async def test_136_an_upstream_that_was_never_there(site: _Site) -> None:
    """Is not waited for: whoever asks has an error, and may ask elsewhere."""
    site.outage.begin(3600.0)
    began = site.clock()
    with pytest.raises(UpstreamUnavailable):
        await site.join()
    assert site.clock() - began < 3.0


async def test_136_another_process_received_when_the_outage_began(site: _Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is done once upstream is back, before this process has asked again, which then does not give up."""
    received = iter([True])
    monkeypatch.setattr(site.store, "is_filling", lambda registry, besides: next(received, False))
    site.outage.begin(5.0)
    assert await read_to_end(await site.join()) == _LAYER


async def test_136_an_upstream_that_has_been_away_for_long(site: _Site) -> None:
    """Is not waited for anew by each that asks."""
    flight = await site.join_and_break(3600.0)
    with pytest.raises(UpstreamUnavailable):
        await read_to_end(flight)
    await flight.over.wait()
    began = site.clock()
    with pytest.raises(UpstreamUnavailable):
        await site.join()
    assert site.clock() - began < 3.0


async def test_136_an_upstream_that_answers_that_it_cannot(site: _Site) -> None:
    """A load balancer before an upstream that restarts answers 503 meanwhile."""
    flight = await site.join_and_break(0.0)
    site.registry.fail("blobs", status(503), times=14)
    assert await read_to_end(flight) == _LAYER
