"""Several endpoints behind the `Upstream` port: order, fall-over, hedging, health, and what belongs to whom."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from mirror.aio.memo import Memo
from mirror.errors import UpstreamDenied, UpstreamNotFound, UpstreamThrottled, UpstreamUnavailable
from mirror.oci.digest import Digest
from mirror.policy.upstream.retrying import CLOSED
from mirror.ports import Upstream
from mirror.upstream.credentials.source import Credentials, GivenCredentials
from mirror.upstream.endpoints import EndpointsUpstream, _Race
from mirror.upstream.registry import RegistryUpstream
from tests.support.bodies import read_body
from tests.support.clock import Clock
from tests.support.fake_registry import FakeRegistry, Fault, cut, html, silence, status, throttle, wrong_bytes
from tests.support.live_mirror import PATIENCE, until
from tests.support.registry_upstream import registry_upstream
from tests.support.scripted import Answering, Request, Script, Scripted, Stall, head

NAME = "team/app"
LAYER = bytes(range(256)) * 1024


@pytest.fixture
def mirror() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        yield running


@pytest.fixture
def origin() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        yield running


Build = Callable[..., EndpointsUpstream]


@pytest.fixture
async def build(clock: Clock) -> AsyncIterator[Build]:
    opened: list[EndpointsUpstream] = []
    executor, memo = ThreadPoolExecutor(8), Memo(now=clock)

    async def sleep(_seconds: float) -> None: ...

    def make(*urls: str, hedge_after: float | None = None, **more: Any) -> EndpointsUpstream:
        settings = {"executor": executor, "memo": memo, "clock": clock, "sleep": sleep, **more}
        members = [registry_upstream("a.io", url, retries=0, **settings) for url in urls]
        opened.append(EndpointsUpstream(members, hedge_after=hedge_after, clock=clock))
        return opened[-1]

    yield make
    for upstream in opened:
        await upstream.aclose()
        await upstream.aclose()
    await memo.aclose()
    executor.shutdown()


async def pull(upstream: Upstream, digest: Digest, start: int = 0) -> bytes:
    async with upstream.blob(NAME, digest, start) as body:
        assert body.start == start
        return await read_body(body)


def gone_url() -> str:
    """Where nobody listens."""
    with Scripted() as server:
        return server.url


async def test_the_first_endpoint_answers(mirror: FakeRegistry, origin: FakeRegistry, build: Build) -> None:
    """Everything comes from it, and the registry itself is not bothered."""
    digest = mirror.add_image(NAME, "v1", [LAYER])
    upstream: Upstream = build(mirror.url, origin.url)
    assert upstream.name == "a.io"
    assert (await upstream.resolve(NAME, "v1")).digest == digest
    assert (await upstream.manifest(NAME, digest)).digest == digest
    assert [tag async for batch in upstream.tags(NAME) for tag in batch.tags] == ["v1"]
    layer = Digest.of(LAYER)
    assert await upstream.blob_size(NAME, layer) == len(LAYER)
    assert await pull(upstream, layer) == LAYER
    assert not origin.requests


@pytest.mark.parametrize("fault", [status(503), status(404), status(401), status(403), throttle(), html()])
async def test_what_the_first_does_not_give_the_next_does(
    mirror: FakeRegistry, origin: FakeRegistry, build: Build, fault: Any
) -> None:
    """Whatever it answers instead, within the one request of the client."""
    for registry in (mirror, origin):
        digest = registry.add_image(NAME, "v1", [LAYER])
    upstream = build(mirror.url, origin.url)
    mirror.fail("manifests", fault)
    mirror.fail("tags", fault)
    assert (await upstream.manifest(NAME, "v1")).digest == digest
    assert [tag async for batch in upstream.tags(NAME) for tag in batch.tags] == ["v1"]
    assert origin.count("manifests") == origin.count("tags") == 1


async def test_an_endpoint_that_is_not_there(origin: FakeRegistry, build: Build, clock: Clock) -> None:
    """It is passed over, after a few tries without being asked, and asked again when its pause is over."""
    origin.add_image(NAME, "v1", [LAYER])
    upstream = build(gone_url(), origin.url)
    for _ in range(5):
        await upstream.resolve(NAME, "v1")
    assert origin.count("manifests") == 5
    assert upstream._order() == [1, 0]
    clock.time += 2
    assert upstream._order() == [0, 1]
    await upstream.resolve(NAME, "v1")
    assert upstream._order() == [1, 0]


async def test_what_an_endpoint_was_not_asked_is_no_failure(origin: FakeRegistry, build: Build) -> None:
    """While an endpoint's own circuit is open nobody dials it, so nothing is held against it (row 136)."""
    origin.add_image(NAME, "v1", [LAYER])
    upstream = build(gone_url(), origin.url)
    first = upstream.members[0]
    for _ in range(3):
        first._calls.circuit = first._calls.circuit.failed(first.clocks.monotonic())
    for _ in range(10):
        await upstream.resolve(NAME, "v1")
    assert upstream._circuits[0] == CLOSED


async def test_the_word_of_the_registry_counts(mirror: FakeRegistry, origin: FakeRegistry, build: Build) -> None:
    """Where all fail: a mirror's 404 proves nothing while the registry is down, and the registry's 404 settles it."""
    origin.add_image(NAME, "v1", [LAYER])
    upstream = build(mirror.url, origin.url)
    # HEAD, and GET before it is given up
    origin.fail("manifests", status(503), times=2)
    with pytest.raises(UpstreamUnavailable):
        await upstream.resolve(NAME, "v1")
    mirror.fail("manifests", status(503), times=1)
    with pytest.raises(UpstreamNotFound):
        await upstream.resolve(NAME, "v2")
    origin.fail("manifests", throttle(9), times=1)
    with pytest.raises(UpstreamThrottled):
        await upstream.resolve(NAME, "v1")


async def test_a_blob_that_breaks_off_goes_on_elsewhere(
    mirror: FakeRegistry, origin: FakeRegistry, build: Build
) -> None:
    """From the byte where it stood, at the next endpoint, and back again if that one breaks, too."""
    for registry in (mirror, origin):
        layer = registry.add_blob(NAME, LAYER)
    upstream = build(mirror.url, origin.url)
    mirror.fail("blobs", cut(1000))
    with pytest.raises(UpstreamUnavailable):
        await pull(upstream, layer)
    origin.fail("blobs", cut(500))
    with pytest.raises(UpstreamUnavailable):
        await pull(upstream, layer, 1000)
    assert await pull(upstream, layer, 1500) == LAYER[1500:]
    assert [request.start for request in mirror.of_kind("blobs")] == [0, 1500]
    assert [request.start for request in origin.of_kind("blobs")] == [1000]


async def test_a_mirror_that_gives_wrong_bytes(
    mirror: FakeRegistry, origin: FakeRegistry, build: Build, clock: Clock
) -> None:
    """Faults row 4: what is asked for again soon was not good; it comes from another endpoint then."""
    for registry in (mirror, origin):
        layer = registry.add_blob(NAME, LAYER)
        digest = registry.add_image(NAME, "v1", [LAYER])
    upstream = build(mirror.url, origin.url)
    mirror.fail("blobs", wrong_bytes, times=2)
    assert await pull(upstream, layer) != LAYER
    assert await pull(upstream, layer) == LAYER
    clock.time += 61
    assert await pull(upstream, layer) != LAYER
    mirror.fail("manifests", wrong_bytes)
    assert (await upstream.manifest(NAME, digest)).digest == digest


async def test_no_referrers_at_a_mirror(mirror: FakeRegistry, origin: FakeRegistry, build: Build) -> None:
    """A mirror may not have an image's signatures: only the registry knows that there are none."""
    digest = origin.add_image(NAME, "v1", [LAYER])
    mirror.add_image(NAME, "v1", [LAYER])
    subject = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": str(digest), "size": 1}
    origin.add_image(NAME, None, [b"signature"], subject=subject)
    upstream = build(mirror.url, origin.url)
    assert len(await upstream.referrers(NAME, digest)) == 1
    other = origin.add_image(NAME, "v2", [b"unsigned"])
    assert await upstream.referrers(NAME, other) == []


async def test_a_slow_endpoint_is_raced(mirror: FakeRegistry, origin: FakeRegistry, build: Build) -> None:
    """The next one is asked beside it, its answer counts, and the slow one's connection is closed at once."""
    for registry in (mirror, origin):
        layer = registry.add_blob(NAME, LAYER)
        digest = registry.add_image(NAME, "v1", [LAYER])
    upstream = build(mirror.url, origin.url, hedge_after=0.01)
    for kind in ("manifests", "blobs"):
        gate = Stall()
        mirror.fail(kind, silence(gate))
        origin.fail(kind, _once_reached(gate))
        if kind == "blobs":
            assert await pull(upstream, layer) == LAYER
        else:
            assert (await upstream.resolve(NAME, "v1")).digest == digest
        gate.release()
    assert (mirror.count("manifests"), mirror.count("blobs")) == (1, 1)
    assert (origin.count("manifests"), origin.count("blobs")) == (1, 1)


def _once_reached(gate: Stall) -> Fault:
    """Not answered before the other one stands at its gate: on a busy machine its thread may be late."""

    def fault(request: Request, answer: Answering) -> Script:
        assert gate.reached.wait(PATIENCE)
        return answer(request)

    return fault


async def test_the_loser_of_a_race_hangs_up(origin: FakeRegistry, build: Build) -> None:
    """Its thread is free and its connection closed although it never answers."""
    layer = origin.add_blob(NAME, LAYER)
    closed = threading.Event()
    gate = Stall()
    with Scripted() as slow:

        def answer(_request: Any) -> Any:
            return [gate, head(200, {"Content-Length": "1000000000"}), b"x" * 50_000_000]

        slow.on("*", answer)
        serve = slow._serve

        def watched(connection: Any, number: int) -> None:
            serve(connection, number)
            closed.set()

        slow._serve = watched  # type: ignore[method-assign]
        upstream = build(slow.url, origin.url, hedge_after=0.01)
        assert await pull(upstream, layer) == LAYER
        gate.release()
        # had the connection stayed open, 50 MB would wait in it until the read time-out
        assert await asyncio.to_thread(closed.wait, 20)


async def test_an_answer_that_nobody_gets_is_discarded() -> None:
    """Whoever asked is cancelled while the race waits for the end of the loser."""
    may_end, discarded = asyncio.Event(), []

    async def ask(member: RegistryUpstream) -> str:
        if cast(str, member) == "fast":
            return "answer"
        try:
            await asyncio.Event().wait()
        finally:
            await may_end.wait()
        raise AssertionError("unreachable")

    async def discard(answer: str) -> None:
        discarded.append(answer)

    members = cast(Sequence[RegistryUpstream], ["slow", "fast"])
    race = _Race([0, 1], members, ask, discard, 0.0, lambda number, error: None)
    running = asyncio.create_task(race.run())
    await until(lambda: len(race._running) == 2 and any(task.done() for task in race._running))
    for _ in range(5):
        await asyncio.sleep(0)
    running.cancel()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert discarded == ["answer"]


@pytest.mark.parametrize("end", ["cancelled", "failed"])
async def test_an_answer_that_nobody_gets_is_discarded_though_another_one_is_late(end: str) -> None:
    """Both endpoints have answered, and the answer of the loser cannot be discarded in peace."""
    discarding, discarded = asyncio.Event(), list[str]()

    async def ask(member: RegistryUpstream) -> str:
        return cast(str, member)

    async def discard(answer: str) -> None:
        discarded.append(answer)
        if answer == "loser" and end == "failed":
            raise OSError("it cannot be closed")
        if answer == "loser":
            discarding.set()
            await asyncio.Event().wait()

    members = cast(Sequence[RegistryUpstream], ["winner", "loser"])
    race = _Race([0, 1], members, ask, discard, 0.0, lambda number, error: None)
    race._ask_next()
    race._ask_next()
    running = asyncio.create_task(race.run())
    if end == "cancelled":
        await discarding.wait()
        running.cancel()
    with pytest.raises(asyncio.CancelledError if end == "cancelled" else OSError):
        await running
    assert discarded == ["loser", "winner"]


async def test_no_race_without_being_told(mirror: FakeRegistry, origin: FakeRegistry, build: Build) -> None:
    """By default a slow endpoint is waited for: a second request may cost something."""
    mirror.add_image(NAME, "v1", [LAYER])
    gate = Stall()
    mirror.fail("manifests", silence(gate))
    asking = asyncio.ensure_future(build(mirror.url, origin.url).resolve(NAME, "v1"))
    assert await asyncio.to_thread(gate.reached.wait, 60)
    gate.release()
    await asking
    assert not origin.requests


async def test_a_caller_that_leaves_ends_the_race(mirror: FakeRegistry, origin: FakeRegistry, build: Build) -> None:
    """Nothing is left under way behind it."""
    layer = mirror.add_blob(NAME, LAYER)
    gate = Stall()
    mirror.fail("blobs", silence(gate))
    upstream = build(mirror.url, origin.url)
    pulling = asyncio.ensure_future(pull(upstream, layer))
    assert await asyncio.to_thread(gate.reached.wait, 60)
    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pulling
    gate.release()
    assert await pull(upstream, layer) == LAYER


async def test_credentials_belong_to_one_endpoint(build: Build, clock: Clock) -> None:
    """Faults row 73: those of the registry are never shown to a mirror, nor the other way round."""
    users = {"user": "canary-origin"}
    with FakeRegistry(users={"other": "canary-mirror"}) as mirror, FakeRegistry(tokens=True, users=users) as origin:
        origin.add_image(NAME, "v1", [LAYER])
        executor, memo = ThreadPoolExecutor(2), Memo(now=clock)
        own = GivenCredentials(Credentials("user", "canary-origin"))
        members = [
            registry_upstream("a.io", mirror.url, executor=executor, memo=memo),
            registry_upstream("a.io", origin.url, executor=executor, memo=memo, credentials=own),
        ]
        upstream = EndpointsUpstream(members)
        await upstream.resolve(NAME, "v1")
        await upstream.resolve(NAME, "v1")
        assert mirror.count("manifests") >= 2
        assert all(request.header("Authorization") is None for request in mirror.requests)
        with pytest.raises(UpstreamDenied):
            await EndpointsUpstream(members[:1]).resolve(NAME, "v1")
        await upstream.aclose()
        await memo.aclose()
        executor.shutdown()


async def test_an_error_that_is_none_of_upstreams(mirror: FakeRegistry, origin: FakeRegistry, build: Build) -> None:
    """A fault of ours is not hidden by asking the next endpoint."""
    upstream = build(mirror.url, origin.url)
    with pytest.raises(AttributeError):
        await upstream._first(lambda member: member.nonsense())  # type: ignore[attr-defined]
    assert not origin.requests


async def test_ipv6(build: Build) -> None:
    """An upstream at a literal IPv6 address: manifests, tokens and blobs."""
    with FakeRegistry(address="::1", tokens=True) as registry:
        registry.add_image(NAME, "v1", [LAYER])
        upstream = build(registry.url).members[0]
        assert "[::1]" in upstream.url
        await upstream.resolve(NAME, "v1")
        assert await pull(upstream, Digest.of(LAYER)) == LAYER
        assert registry.requests[0].header("Host") == registry.host


async def test_a_mirror_without_the_image(mirror: FakeRegistry, origin: FakeRegistry, build: Build) -> None:
    """An endpoint that answers 404 is asked once per call, by HEAD and then by GET, and counts as healthy."""
    mirror.add_image(NAME, "other", [LAYER])
    origin.add_image(NAME, "v1", [LAYER])
    upstream = build(mirror.url, origin.url)
    for _ in range(5):
        await upstream.resolve(NAME, "v1")
    assert [request.method for request in mirror.of_kind("manifests")] == ["HEAD", "GET"] * 5
    assert upstream._order() == [0, 1]
