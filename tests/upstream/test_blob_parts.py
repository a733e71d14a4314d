"""A blob in parts: turns among the blobs under way, and further connections on which nothing depends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mirror.aio.memo import Memo
from mirror.errors import AskAgain, UpstreamError, UpstreamInvalid, UpstreamThrottled, UpstreamUnavailable
from mirror.oci.digest import Digest
from mirror.ports import BlobParts
from mirror.upstream.endpoints import EndpointsUpstream
from mirror.upstream.registry import RegistryUpstream
from tests.support.bodies import read_body
from tests.support.clock import Clock
from tests.support.fake_registry import FakeRegistry, Fault, cut, gzipped, ignore_range, refuse_ranges, status, throttle
from tests.support.registry_upstream import registry_upstream
from tests.support.scripted import reply

_NAME = "team/app"
_LAYER = bytes(range(256)) * 1024
_DIGEST = Digest.of(_LAYER)
_SIZE = len(_LAYER)

Build = Callable[..., RegistryUpstream]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def build(clock: Clock) -> AsyncIterator[Build]:
    upstreams: list[RegistryUpstream] = []
    executor, memo = ThreadPoolExecutor(8), Memo(now=clock)

    def make(url: str, **settings: Any) -> RegistryUpstream:
        upstreams.append(registry_upstream("test", url, executor=executor, memo=memo, clock=clock, **settings))
        return upstreams[-1]

    yield make
    for upstream in upstreams:
        await upstream.aclose()
    await memo.aclose()
    executor.shutdown()


@pytest.fixture
def registry() -> Any:
    with FakeRegistry() as made:
        made.add_blob(_NAME, _LAYER)
        yield made


async def _part(parts: BlobParts, start: int, stop: int | None = None) -> bytes:
    async with parts.pull(start, stop) as body:
        return await read_body(body)


async def _further(parts: BlobParts, start: int, stop: int) -> bytes | None:
    async with parts.further(start, stop, _SIZE) as body:
        return None if body is None else await read_body(body)


async def _turn_of_the_loop() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_a_turn_is_kept_from_part_to_part(registry: FakeRegistry, build: Build) -> None:
    """A blob that was asked for meanwhile waits until the last part has come."""
    upstream = build(registry.url, blobs_at_once=1)
    parts = upstream.parts(_NAME, _DIGEST)
    assert await _part(parts, 0, 1000) == _LAYER[:1000]
    other = asyncio.create_task(_part(upstream.parts(_NAME, _DIGEST), 0))
    await _turn_of_the_loop()
    assert await _part(parts, 1000, 2000) == _LAYER[1000:2000]
    await _turn_of_the_loop()
    assert not other.done()
    assert registry.count("blobs") == 2
    assert await _part(parts, 2000) == _LAYER[2000:]
    assert await other == _LAYER


@pytest.mark.parametrize("ends", ["released", "an error"])
async def test_a_turn_is_given_back(registry: FakeRegistry, build: Build, ends: str) -> None:
    """By the flight, and by whatever ends a part: the pause before the next try belongs to others."""
    upstream = build(registry.url, blobs_at_once=1)
    parts = upstream.parts(_NAME, _DIGEST)
    if ends == "released":
        await _part(parts, 0, 1000)
        parts.release()
        parts.release()
    else:
        registry.fail("blobs", cut(10))
        with pytest.raises(UpstreamUnavailable):
            await _part(parts, 0, 1000)
    assert await _part(upstream.parts(_NAME, _DIGEST), 0) == _LAYER


async def test_a_further_connection_takes_a_free_turn_only(registry: FakeRegistry, build: Build) -> None:
    """It counts as a blob under way, and never waits for one."""
    upstream = build(registry.url, blobs_at_once=2)
    parts = upstream.parts(_NAME, _DIGEST)
    await _part(parts, 0, 1000)
    async with parts.further(5000, 6000, _SIZE) as body:
        assert body is not None
        assert await _further(parts, 6000, 7000) is None
        other = asyncio.create_task(_part(upstream.parts(_NAME, _DIGEST), 0))
        await _turn_of_the_loop()
        assert not other.done()
        assert await read_body(body) == _LAYER[5000:6000]
    assert await other == _LAYER
    assert registry.count("blobs") == 3


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (ignore_range, UpstreamInvalid),
        (gzipped, UpstreamInvalid),
        (lambda request, answer: reply(206, b"x" * 10, {"Content-Range": f"bytes 0-9/{_SIZE}"}), UpstreamInvalid),
        (lambda request, answer: reply(206, b"x" * 10, {"Content-Range": "bytes 5000-5009/7000"}), UpstreamInvalid),
        (lambda request, answer: reply(206, b"x" * 10, {"Content-Range": "bytes 5000-5009/*"}), UpstreamInvalid),
        (
            lambda request, answer: reply(206, b"x" * 2000, {"Content-Range": f"bytes 5000-6999/{_SIZE}"}),
            UpstreamInvalid,
        ),
        (status(416), UpstreamInvalid),
        (throttle(), UpstreamThrottled),
        (status(503), UpstreamUnavailable),
        (status(401), UpstreamUnavailable),
        (status(404), UpstreamUnavailable),
    ],
)
async def test_a_further_connection_that_fails_changes_nothing(
    registry: FakeRegistry, build: Build, fault: Fault, error: type[UpstreamError]
) -> None:
    """Faults rows 10 and 22: it is asked for once, and other calls are sent as before."""
    upstream = build(registry.url)
    parts = upstream.parts(_NAME, _DIGEST)
    registry.fail("blobs", fault)
    with pytest.raises(error):
        await _further(parts, 5000, 6000)
    assert registry.count("blobs") == 1
    assert upstream.health()[0].state == "ok"
    assert await _further(parts, 5000, 6000) == _LAYER[5000:6000]


async def test_a_further_connection_may_bring_less(registry: FakeRegistry, build: Build) -> None:
    """Faults row 22: a server may send less than it was asked for."""
    registry.fail(
        "blobs", lambda request, answer: reply(206, _LAYER[5000:5010], {"Content-Range": f"bytes 5000-5009/{_SIZE}"})
    )
    assert await _further(build(registry.url).parts(_NAME, _DIGEST), 5000, 6000) == _LAYER[5000:5010]


async def test_no_further_connection_where_upstream_is_unwell(registry: FakeRegistry, build: Build) -> None:
    """Nothing is sent while it is left alone."""
    upstream = build(registry.url, retries=0)
    registry.fail("blobs", throttle())
    with pytest.raises(UpstreamThrottled):
        await _part(upstream.parts(_NAME, _DIGEST), 0)
    with pytest.raises(UpstreamThrottled):
        await _further(upstream.parts(_NAME, _DIGEST), 5000, 6000)
    assert registry.count("blobs") == 1


async def test_parts_come_from_the_address_that_answered(build: Build) -> None:
    """Until it fails: then the next one gives the rest, and the further connections follow."""
    with FakeRegistry() as mirror, FakeRegistry() as origin:
        for each in (mirror, origin):
            each.add_blob(_NAME, _LAYER)
        upstream = EndpointsUpstream([build(mirror.url, retries=0), build(origin.url, retries=0)])
        parts = upstream.parts(_NAME, _DIGEST)
        assert await _further(parts, 5000, 6000) is None
        for start in (0, 1000):
            assert await _part(parts, start, start + 1000) == _LAYER[start : start + 1000]
        assert await _further(parts, 5000, 6000) == _LAYER[5000:6000]
        assert (mirror.count("blobs"), origin.count("blobs")) == (3, 0)
        mirror.fail("blobs", cut(10))
        with pytest.raises(UpstreamUnavailable):
            await _part(parts, 2000, 3000)
        assert await _further(parts, 5000, 6000) is None
        assert await _part(parts, 2000, 3000) == _LAYER[2000:3000]
        assert await _further(parts, 5000, 6000) == _LAYER[5000:6000]
        assert (mirror.count("blobs"), origin.count("blobs")) == (4, 2)
        parts.release()


async def test_a_turn_that_was_taken_first_outlives_an_error(registry: FakeRegistry, build: Build) -> None:
    """Whoever has claimed bytes asks again at once: others wait for them, perhaps with the next turn."""
    upstream = build(registry.url, blobs_at_once=1, retries=0)
    parts = upstream.parts(_NAME, _DIGEST)
    await parts.take_turn()
    await parts.take_turn()
    other = asyncio.create_task(_part(upstream.parts(_NAME, _DIGEST), 0))
    registry.fail("blobs", cut(10))
    with pytest.raises(UpstreamUnavailable):
        await _part(parts, 0, 1000)
    assert await _part(parts, 10) == _LAYER[10:]
    await _turn_of_the_loop()
    assert not other.done()
    parts.release()
    assert await other == _LAYER


@pytest.mark.parametrize(
    ("fault", "costs"), [(refuse_ranges(403), 3), (refuse_ranges(400), 3), (refuse_ranges(416), 2), (ignore_range, 1)]
)
async def test_an_upstream_without_ranges_is_asked_for_the_whole_at_once(
    registry: FakeRegistry, build: Build, clock: Clock, fault: Fault, costs: int
) -> None:
    """For ten minutes: refused requests count for a registry as well."""
    wholes: list[None] = []
    upstream = build(registry.url, on_whole=lambda: wholes.append(None))
    registry.fail("blobs", fault, times=20)

    async def rest() -> int:
        """The requests that the rest of a blob costs."""
        before = registry.count("blobs")
        async with upstream.parts(_NAME, _DIGEST).pull(1000) as body:
            assert body.start == 0
            assert await read_body(body) == _LAYER
        return registry.count("blobs") - before

    assert [await rest(), await rest(), await rest()] == [costs, 1, 1]
    assert len(wholes) == 1
    clock.time += 601
    assert await rest() == costs
    assert len(wholes) == 2


@pytest.mark.parametrize(
    ("code", "headers", "seconds"),
    [
        (429, {"Retry-After": "120"}, 120),
        (429, {}, 2),
        (429, {"Retry-After": "86400"}, 300),
        (503, {"Retry-After": "9"}, 9),
        # says nothing of requests
        (503, {}, 600),
    ],
)
async def test_throttling_is_no_refusal_of_ranges(
    registry: FakeRegistry, build: Build, clock: Clock, code: int, headers: dict[str, str], seconds: int
) -> None:
    """The upstream is asked for parts again once the time is over for which it wanted fewer requests."""
    upstream = build(registry.url)
    registry.fail("blobs", refuse_ranges(code, headers), times=3)
    async with upstream.blob(_NAME, _DIGEST, 1000) as body:
        assert body.start == 0
        body.abort()
    for passed, start in ((0, 0), (seconds - 1, 0), (2, 1000)):
        clock.time += passed
        async with upstream.blob(_NAME, _DIGEST, 1000) as body:
            assert body.start == start
            body.abort()


async def _whole_for_the_rest(registry: FakeRegistry, upstream: RegistryUpstream) -> None:
    """The rest of the blob is asked for, and the whole comes."""
    registry.fail("blobs", refuse_ranges(403), times=3)
    async with upstream.blob(_NAME, _DIGEST, 1000) as body:
        assert body.start == 0
        body.abort()


async def test_parts_are_asked_for_again_after_a_whole_has_broken_off(registry: FakeRegistry, build: Build) -> None:
    """The upstream may have refused for a moment, and a large blob never come as a whole."""
    upstream = build(registry.url, retries=0)
    await _whole_for_the_rest(registry, upstream)
    registry.fail("blobs", cut(2000))
    with pytest.raises(UpstreamUnavailable):
        await _part(upstream.parts(_NAME, _DIGEST), 1000)
    assert registry.of_kind("blobs")[-1].header("Range") is None
    async with upstream.blob(_NAME, _DIGEST, 2000) as body:
        assert body.start == 2000
        body.abort()


async def test_a_small_part_is_asked_for_as_a_part_after_a_whole_has_come(registry: FakeRegistry, build: Build) -> None:
    """The whole is of no use to whoever asks: other blobs would not be had in parts for what one has met."""
    upstream = build(registry.url, retries=0)
    await _whole_for_the_rest(registry, upstream)
    parts = upstream.parts(_NAME, _DIGEST)
    await parts.take_turn()
    assert await _part(parts, 1000, 2000) == _LAYER[1000:2000]
    parts.release()


async def test_a_small_part_waits_for_a_turn_at_the_next_address_before_it_is_asked_for(build: Build) -> None:
    """Whoever has claimed its bytes gives them back meanwhile. The first address is not asked again."""
    with FakeRegistry() as mirror, FakeRegistry() as origin:
        origin.add_blob(_NAME, _LAYER)
        first, last = build(mirror.url, retries=0), build(origin.url, blobs_at_once=1)
        upstream = EndpointsUpstream([first, last])
        parts = upstream.parts(_NAME, _DIGEST)
        async with last.blob(_NAME, _DIGEST) as other:
            await parts.take_turn()
            with pytest.raises(AskAgain) as raised:
                await _part(parts, 0, 1000)
            assert raised.value.retry_after == 0.0
            waiting = asyncio.create_task(parts.take_turn())
            await _turn_of_the_loop()
            assert not waiting.done()
            other.abort()
        await waiting
        assert await _part(parts, 0, 1000) == _LAYER[:1000]
        assert (mirror.count("blobs"), origin.count("blobs")) == (1, 2)
        assert upstream.health()[1].state == "ok"
        parts.release()
        assert await _part(last.parts(_NAME, _DIGEST), 0) == _LAYER


async def test_a_pause_is_made_although_another_address_has_no_turn(build: Build) -> None:
    """Otherwise the address that fails is asked again at once, until its tries are used up."""
    with FakeRegistry() as mirror, FakeRegistry() as origin:
        mirror.add_blob(_NAME, _LAYER)
        origin.add_blob(_NAME, _LAYER)
        last = build(origin.url, blobs_at_once=1)
        parts = EndpointsUpstream([build(mirror.url, retries=2), last]).parts(_NAME, _DIGEST)
        mirror.fail("blobs", status(500), times=1)
        async with last.blob(_NAME, _DIGEST) as other:
            await parts.take_turn()
            with pytest.raises(AskAgain) as raised:
                await _part(parts, 0, 1000)
            assert raised.value.retry_after > 0
            assert await _part(parts, 0, 1000) == _LAYER[:1000]
            other.abort()
        parts.release()


@pytest.mark.parametrize("several", [False, True])
async def test_the_caller_makes_the_pauses_of_a_small_part(build: Build, several: bool) -> None:
    """As many tries, and as long pauses, as of any other call; the last error is the answer."""
    with FakeRegistry() as mirror, FakeRegistry() as origin:
        origin.add_blob(_NAME, _LAYER)
        failures: list[UpstreamError] = []
        own = build(origin.url, retries=2, on_failure=failures.append, jitter=lambda: 0.5)
        upstream = EndpointsUpstream([build(mirror.url, retries=0), own]) if several else own
        parts = upstream.parts(_NAME, _DIGEST)
        for last_status in (200, 500):
            origin.fail("blobs", status(500), times=2 if last_status == 200 else 3)
            pauses = []
            for _ in range(2):
                await parts.take_turn()
                with pytest.raises(AskAgain) as raised:
                    await _part(parts, 0, 1000)
                pauses.append(raised.value.retry_after)
            assert 0 < pauses[0] < pauses[1]
            assert failures == []
            if last_status == 200:
                assert await _part(parts, 0, 1000) == _LAYER[:1000]
            else:
                with pytest.raises(UpstreamUnavailable) as ended:
                    await _part(parts, 0, 1000)
                assert (type(ended.value), ended.value.status) == (UpstreamUnavailable, 500)
            parts = upstream.parts(_NAME, _DIGEST)
        assert len(failures) == 1
        assert origin.count("blobs") == 6
        assert mirror.count("blobs") == (2 if several else 0)


async def test_a_token_is_obtained_before_a_small_part_is_asked_for(build: Build, clock: Clock) -> None:
    """The last one is too old: whoever waits for the bytes does not wait for the next one as well."""
    with FakeRegistry(tokens=True) as registry:
        registry.add_blob(_NAME, _LAYER)
        upstream = build(registry.url)
        assert await _part(upstream.parts(_NAME, _DIGEST), 0) == _LAYER
        clock.time += 3000
        asked = registry.count("token")
        parts = upstream.parts(_NAME, _DIGEST)
        await parts.take_turn()
        assert registry.count("token") == asked + 1
        assert await _part(parts, 0, 1000) == _LAYER[:1000]
        assert registry.count("token") == asked + 1


async def test_small_parts_come_from_the_nearest_address(build: Build) -> None:
    """One after another, also if it has just given one: the registry itself is farther away, or counts them."""
    with FakeRegistry() as mirror, FakeRegistry() as origin:
        for each in (mirror, origin):
            each.add_blob(_NAME, _LAYER)
        upstream = EndpointsUpstream([build(mirror.url, retries=0), build(origin.url, retries=0)])
        for start in (0, 1000, 2000):
            parts = upstream.parts(_NAME, _DIGEST)
            await parts.take_turn()
            assert await _part(parts, start, start + 1000) == _LAYER[start : start + 1000]
            parts.release()
        assert (mirror.count("blobs"), origin.count("blobs")) == (3, 0)
