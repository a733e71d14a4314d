"""Row 63: work that is cancelled at any await leaves nothing behind, and the next caller gets everything."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest

from mirror.aio.memo import MISSING, Memo
from mirror.errors import MirrorError
from mirror.index.embedded import EmbeddedIndex
from mirror.oci.challenge import Challenge, Scope
from mirror.oci.digest import Digest
from mirror.policy.records import ContentRecord
from mirror.upstream.credentials.source import Credentials, LoginState
from mirror.upstream.http.client import open_session
from mirror.upstream.http.transport import Endpoint
from mirror.upstream.parameters import Clocks
from mirror.upstream.tokens import TokenSource
from tests.faults.conftest import Tally
from tests.support.cancelling import Baseline, cancelled_everywhere
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import LiveMirror, live_mirror, noise, until
from tests.support.process import PATIENCE
from tests.support.redis_server import RedisServer
from tests.support.scripted import Answering, Close, Request, Script

_LAYER = noise(200_000)
_DIGEST = Digest.of(_LAYER)
_AT = f"/v2/library/app/blobs/{_DIGEST}"
_TAG = "/v2/library/app/manifests/v1"


async def _nothing_left(mirror: LiveMirror) -> None:
    """Of a pull: no flight, no reservation."""
    await mirror.idle()
    await until(lambda: not mirror.app.storage.eviction.space.reserved, lambda: "still reserved")


async def _ask(mirror: LiveMirror, target: str) -> None:
    """Whatever comes of it; on a connection of its own. The invariant is looked at."""
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        with suppress(aiohttp.ClientError, ConnectionError):
            async with session.get(f"http://127.0.0.1:{mirror.port}{target}") as response:
                body = await response.read()
                if response.status == 200:
                    assert Digest.parse(response.headers["Docker-Content-Digest"]).matches(body)


@pytest.mark.parametrize("inside", ["RequestHandler._handle_request", "Flights._run"])
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
    assert rounds > 2


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
    """Row 63: room that is being made for a fill is given back, at whichever await its caller is cancelled."""
    registry.add_image("library/app", "v1", [_LAYER])
    await mirror.ask(_TAG)
    await mirror.ask(_AT)
    await mirror.landed(_DIGEST)
    await mirror.rebuilt()
    space = mirror.app.storage.eviction.space
    baseline = Baseline()

    async def reserve_for_a_while() -> None:
        reservation = await space.reserve(1_000_000)
        try:
            await asyncio.sleep(0)
        finally:
            reservation.release()

    async def scenario() -> None:
        with suppress(asyncio.CancelledError, MirrorError):
            await asyncio.create_task(reserve_for_a_while())
        await until(lambda: not space.reserved, lambda: "still reserved")
        await baseline.reached()

    rounds = await cancelled_everywhere("reserve_for_a_while", scenario)
    tally(awaits=rounds)
    assert rounds >= 1


def _on_its_own_connection(request: Request, answer: Answering) -> Script:
    """The connection ends with the answer, so that the next exchange has to make one."""
    start, *body = answer(request)
    assert isinstance(start, bytes)
    return [start.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1), *body, Close()]


class _Issued:
    """Credentials that are asked for somewhere: each call waits, and those that were refused are replaced."""

    def __init__(self, *given: Credentials) -> None:
        self._given = list(given)
        self.issuing = LoginState("issuer")

    async def credentials(self) -> Credentials | None:
        await asyncio.sleep(0)
        return self._given[0]

    async def reject(self, credentials: Credentials) -> None:
        await asyncio.sleep(0)
        if credentials == self._given[0]:
            # as an issuer does: the next ones
            self._given.append(self._given.pop(0))

    async def aclose(self) -> None:
        pass


_GOOD, _OTHER, _OLD = Credentials("ci", "good"), Credentials("", "", "good"), Credentials("ci", "old")
_SCOPE = Scope.pull("library/app")


@asynccontextmanager
async def _token_source(*given: Credentials) -> AsyncIterator[tuple[TokenSource, Challenge, FakeRegistry]]:
    """Of a registry whose token service takes a new connection for each exchange."""
    with FakeRegistry(tokens=True, users={"ci": "good"}) as registry:
        registry.fail("token", _on_its_own_connection, times=10_000)
        endpoint = Endpoint("test", registry.url)
        session = open_session(endpoint)
        memo = Memo()
        now = asyncio.get_running_loop().time
        source = TokenSource(endpoint, lambda: session, _Issued(*given), memo, clocks=Clocks(now=now))
        challenge = Challenge("bearer", {"realm": f"{registry.url}/token", "service": "fake", "scope": ""})
        try:
            yield source, challenge, registry
        finally:
            await memo.aclose()
            await session.close()


@pytest.mark.parametrize("inside", ["one_token", "_as_coroutine"])
@pytest.mark.parametrize(
    ("given", "least"),
    [((_GOOD,), 3), ((_OTHER,), 3), ((_OLD, _GOOD), 4)],
    ids=["password", "refresh-token", "refused-and-renewed"],
)
async def test_63_tokens(inside: str, given: tuple[Credentials, ...], least: int, tally: Tally) -> None:
    """Row 63: who wants a token, and the exchange itself (with a password, with a refresh token, again with other
    credentials after a refusal), cancelled at each await from the challenge to the rejection of a token: the next one
    gets a token.
    """
    async with _token_source(*given) as (source, challenge, _):

        async def one_token() -> None:
            await source.learn([challenge], _SCOPE)
            token = await source.authorization(_SCOPE)
            assert token
            await source.reject(_SCOPE, token)

        async def scenario() -> None:
            with suppress(asyncio.CancelledError, MirrorError):
                await asyncio.create_task(one_token())
            token = await source.authorization(_SCOPE)
            assert str(token).startswith("Bearer ")
            await source.reject(_SCOPE, str(token))
            assert not source._memo._once._running
            if len(given) > 1 and await source._credentials.credentials() == _GOOD:
                # so that each round begins with those that are refused
                await source._credentials.reject(_GOOD)
            await baseline.reached()

        await one_token()
        if len(given) > 1:
            await source._credentials.reject(_GOOD)
        baseline = Baseline()
        rounds = await cancelled_everywhere(inside, scenario)
        tally(awaits=rounds)
        assert rounds >= least


@pytest.mark.parametrize("inside", ["first_waiter", "other_waiter", "_as_coroutine"])
async def test_63_waiters_for_one_token(inside: str, tally: Tally) -> None:
    """Row 63: of many callers that wait for one exchange, a cancelled one does not disturb the others; if the exchange
    itself is cancelled, each of them ends, and the next caller gets a token.
    """
    async with _token_source(_GOOD) as (source, challenge, registry):
        await source.learn([challenge], _SCOPE)

        async def first_waiter() -> str | None:
            return await source.authorization(_SCOPE)

        async def other_waiter() -> str | None:
            return await source.authorization(_SCOPE)

        async def scenario() -> None:
            before = registry.count("token")
            waiting = [asyncio.create_task(first_waiter()), *(asyncio.create_task(other_waiter()) for _ in range(4))]
            got = await asyncio.gather(*waiting, return_exceptions=True)
            tokens = [one for one in got if isinstance(one, str)]
            assert len(set(tokens)) <= 1, "one exchange for all"
            if inside != "_as_coroutine":
                assert len(tokens) >= len(waiting) - 1
                assert registry.count("token") == before + 1
            token = await source.authorization(_SCOPE)
            assert str(token).startswith("Bearer ")
            await source.reject(_SCOPE, str(token))
            await baseline.reached()

        await _once_before(source)
        baseline = Baseline()
        rounds = await cancelled_everywhere(inside, scenario)
        tally(awaits=rounds)
        assert rounds >= 2


async def _once_before(source: TokenSource) -> None:
    """Whatever is made once is made."""
    token = await source.authorization(_SCOPE)
    await source.reject(_SCOPE, str(token))


@pytest.mark.parametrize(
    ("inside", "target"),
    [
        ("RequestHandler._handle_request", _TAG),
        ("_as_coroutine", _TAG),
        ("RequestHandler._handle_request", _AT),
        ("Flights._run", _AT),
        ("_as_coroutine", _AT),
    ],
    ids=["tag", "tag-shared", "blob", "blob-flight", "blob-token"],
)
async def test_63_a_pull_that_needs_a_token(tmp_path: Path, inside: str, target: str, tally: Tally) -> None:
    """Row 63: a pull whose token has expired, so that it is challenged, gets another one and asks again, cancelled at
    each await of that way: nothing is left, and the next pull is whole.
    """
    with FakeRegistry(tokens=True) as registry:
        registry.add_image("library/app", "v1", [_LAYER])
        registry.fail("token", _on_its_own_connection, times=10_000)
        async with live_mirror(tmp_path / "store", {"docker.io": registry.url}) as mirror:
            wanted = (await mirror.ask(_TAG)).body if target == _TAG else _LAYER
            await mirror.ask(_TAG)
            await mirror.ask(_AT)
            await mirror.landed(_DIGEST)
            await mirror.rebuilt()
            baseline = Baseline()

            async def scenario() -> None:
                registry.expire_tokens()
                if target == _TAG:
                    mirror.clock.forward(1_000)
                else:
                    mirror.blob_file(_DIGEST).unlink(missing_ok=True)
                await _ask(mirror, target)
                await _nothing_left(mirror)
                assert (await mirror.ask(target)).body == wanted
                if target == _AT:
                    await mirror.landed(_DIGEST)
                await baseline.reached()

            rounds = await cancelled_everywhere(inside, scenario)
            tally(awaits=rounds)
            assert rounds >= 1


@pytest.mark.parametrize("inside", ["one_share", "_as_coroutine"])
async def test_63_answers_shared_through_redis(inside: str, tally: Tally) -> None:
    """Row 63: after a cancellation in the middle of a call to Redis, no caller gets the answer to another call."""
    with RedisServer() as redis:
        # a busy machine may take longer than the budget; Redis would then be left alone, and nothing be cancelled in it
        memo = Memo(shared=redis.cache(), budget=PATIENCE)
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
            other = Memo(shared=redis.cache(), budget=PATIENCE)
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


@pytest.mark.parametrize("inside", ["EmbeddedIndex.put", "EmbeddedIndex.clear", "EmbeddedIndex.aclose"])
async def test_63_the_embedded_index(tmp_path: Path, inside: str, tally: Tally) -> None:
    """Row 63: cancelled while it is opened, begun anew or closed, no connection is left: its thread would keep the
    process from ending, and its files from being closed.
    """
    before = set(threading.enumerate())
    baseline = Baseline()
    records = [ContentRecord(_DIGEST, 1, 1.0)]

    async def scenario() -> None:
        index = EmbeddedIndex(tmp_path / "index.sqlite")
        for work in (index.put(records), index.clear(), index.put(records), index.aclose(), index.aclose()):
            with suppress(asyncio.CancelledError):
                await asyncio.create_task(work)
        (tmp_path / "index.sqlite").unlink(missing_ok=True)
        # threads of the pool stay
        await until(lambda: not [one for one in set(threading.enumerate()) - before if "connection" in one.name])
        await baseline.reached()

    rounds = await cancelled_everywhere(inside, scenario)
    tally(awaits=rounds)
    assert rounds >= 1
