"""Row 63: cancelled at any await, the work leaves nothing behind, and the next one who asks gets everything."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import aiohttp
import pytest

from mirror.errors import MirrorError
from mirror.memo import MISSING, Memo, redis_cache
from mirror.oci.challenge import Challenge, Scope
from mirror.oci.digest import Digest
from mirror.policy.realms import Bounds
from mirror.upstream.client import open_session
from mirror.upstream.credentials import GivenCredentials
from mirror.upstream.tokens import TokenSource
from tests.faults.conftest import Tally
from tests.support.cancelling import Baseline, cancelled_everywhere
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import LiveMirror, noise, until
from tests.support.redis_server import RedisServer

_LAYER = noise(200_000)
_DIGEST = Digest.of(_LAYER)
_AT = f"/v2/library/app/blobs/{_DIGEST}"
_TAG = "/v2/library/app/manifests/v1"


async def _nothing_left(mirror: LiveMirror) -> None:
    """Of a pull: no flight, no reservation."""
    await mirror.idle()
    await until(lambda: not mirror.app.storage.evictor._reserved, lambda: "still reserved")


async def _ask(mirror: LiveMirror, target: str) -> None:
    """Whatever comes of it; on a connection of its own. The invariant is looked at."""
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        with suppress(aiohttp.ClientError, ConnectionError):
            async with session.get(f"http://127.0.0.1:{mirror.port}{target}") as response:
                body = await response.read()
                if response.status == 200:
                    assert Digest.parse(response.headers["Docker-Content-Digest"]).matches(body)


@pytest.mark.parametrize("inside", ["RequestHandler._handle_request", "Flights._carry"])
async def test_63_a_cold_blob(registry: FakeRegistry, mirror: LiveMirror, inside: str, tally: Tally) -> None:
    """Row 63: a client's request, and the download itself, cancelled at each await of a cold pull: no task, no
    descriptor and no reservation stays, and the next pull is whole.
    """
    registry.add_image("library/app", "v1", [_LAYER])
    await mirror.ask(_TAG)
    assert (await mirror.ask(_AT)).body == _LAYER
    await mirror.landed(_DIGEST)
    await mirror.rebuilt()
    baseline = Baseline()

    async def scenario() -> None:
        mirror.blob_file(_DIGEST).unlink(missing_ok=True)
        await _ask(mirror, _AT)
        await _nothing_left(mirror)
        assert (await mirror.ask(_AT)).body == _LAYER
        await mirror.landed(_DIGEST)
        await baseline.reached()

    rounds = await cancelled_everywhere(inside, scenario)
    tally(awaits=rounds)
    assert rounds > 3


@pytest.mark.parametrize("inside", ["RequestHandler._handle_request", "_as_coroutine"])
async def test_63_a_tag(registry: FakeRegistry, mirror: LiveMirror, inside: str, tally: Tally) -> None:
    """Row 63: a tag that has to be asked for again, cancelled at each await of the request and of the shared work."""
    registry.add_image("library/app", "v1", [_LAYER])
    wanted = (await mirror.ask(_TAG)).body
    await mirror.rebuilt()
    baseline = Baseline()

    async def scenario() -> None:
        mirror.clock.forward(100_000)
        await _ask(mirror, _TAG)
        assert (await mirror.ask(_TAG)).body == wanted
        await baseline.reached()

    rounds = await cancelled_everywhere(inside, scenario)
    tally(awaits=rounds)
    assert rounds >= 1


async def test_63_a_reservation(registry: FakeRegistry, mirror: LiveMirror, tally: Tally) -> None:
    """Row 63: room that is being made for a fill is given back, wherever whoever wants it is cancelled."""
    registry.add_image("library/app", "v1", [_LAYER])
    await mirror.ask(_TAG)
    await mirror.ask(_AT)
    await mirror.landed(_DIGEST)
    await mirror.rebuilt()
    evictor = mirror.app.storage.evictor
    baseline = Baseline()

    async def reserve_for_a_while() -> None:
        reservation = await evictor.reserve(1_000_000)
        try:
            await asyncio.sleep(0)
        finally:
            reservation.release()

    async def scenario() -> None:
        with suppress(asyncio.CancelledError, MirrorError):
            await asyncio.create_task(reserve_for_a_while())
        await until(lambda: not evictor._reserved, lambda: "still reserved")
        await baseline.reached()

    rounds = await cancelled_everywhere("reserve_for_a_while", scenario)
    tally(awaits=rounds)
    assert rounds >= 1


@pytest.mark.parametrize("inside", ["one_token", "_as_coroutine"])
async def test_63_tokens(inside: str, tally: Tally) -> None:
    """Row 63: who wants a token, and the exchange itself, cancelled at each await: the next one gets a token."""
    scope = Scope.pull("library/app")
    with FakeRegistry(tokens=True) as registry:
        bounds = Bounds.of(registry.url, ())
        session = open_session(bounds, None, connect_timeout=5, read_timeout=20)
        memo = Memo()
        source = TokenSource(
            "test", bounds, lambda: session, GivenCredentials(), memo, now=asyncio.get_running_loop().time
        )
        challenge = Challenge("bearer", {"realm": f"{registry.url}/token", "service": "fake", "scope": ""})

        async def one_token() -> str | None:
            await source.learn([challenge], scope)
            token = await source.authorization(scope)
            assert token
            await source.reject(scope, token)
            return token

        async def scenario() -> None:
            with suppress(asyncio.CancelledError, MirrorError):
                await asyncio.create_task(one_token())
            assert str(await source.authorization(scope)).startswith("Bearer ")
            await source.reject(scope, str(await source.authorization(scope)))
            await baseline.reached()

        await one_token()
        baseline = Baseline()
        rounds = await cancelled_everywhere(inside, scenario)
        tally(awaits=rounds)
        assert rounds >= 1
        await memo.aclose()
        await session.close()


@pytest.mark.parametrize("inside", ["one_share", "_as_coroutine"])
async def test_63_answers_shared_through_redis(inside: str, tally: Tally) -> None:
    """Row 63: cancelled in the middle of a call to Redis: nobody ever gets the answer to another one's question."""
    with RedisServer() as redis:
        memo = Memo(shared=redis_cache(redis.url))
        number = 0

        async def one_share() -> None:
            async def make() -> int:
                return number

            await memo.share(f"key {number}", make, 60)
            await memo.get(f"other {number}")
            await memo.put(f"other {number}", -number, 60)
            await memo.forget(f"other {number}")

        async def scenario() -> None:
            nonlocal number
            number += 1
            with suppress(asyncio.CancelledError):
                await asyncio.create_task(one_share())
            # another process asks: nothing of this one's own memory answers
            other = Memo(shared=redis_cache(redis.url))
            for n in (number - 1, number):
                assert await other.get(f"key {n}") in (n, MISSING)
            await other.aclose()
            await memo.put("mine", number, 60)
            assert await memo.get("mine") == number
            await baseline.reached()

        await one_share()
        baseline = Baseline()
        rounds = await cancelled_everywhere(inside, scenario)
        tally(awaits=rounds)
        assert rounds >= 1
        await memo.aclose()
