"""Leases in a real Redis: who has what, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from mirror.errors import IndexUnavailable
from mirror.index.leases import RedisLeases
from mirror.index.redis_address import RedisAddress
from mirror.prefetch.run_leases import Leases
from tests.support.redis_server import RedisServer
from tests.support.redis_sets import RedisSet

#: In seconds; far beyond what a busy machine needs.
_PATIENT = 60.0


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """An empty one for each test."""
    with RedisServer() as server:
        yield server


@pytest.fixture(params=["redis_server", "redis_sentinels", "redis_cluster"])
def address(request: pytest.FixtureRequest) -> RedisAddress:
    """Of an empty Redis of each kind."""
    redis: RedisServer | RedisSet = request.getfixturevalue(request.param)
    return redis.address if isinstance(redis, RedisServer) else redis.address()


@asynccontextmanager
async def _of(address: RedisAddress, owner: str, *, budget: float = _PATIENT) -> AsyncIterator[Leases]:
    leases = RedisLeases(address, owner=owner, budget=budget)
    try:
        yield leases
    finally:
        await leases.aclose()


async def test_one_of_many_has_it(address: RedisAddress) -> None:
    """However many ask at the same time."""
    async with _of(address, "a") as a, _of(address, "b") as b, _of(address, "c") as c:
        answers = await asyncio.gather(*(one.take("run", 120) for one in (a, b, c) for _ in range(1)))
        assert answers.count(None) == 1
        [first, second] = [answer for answer in answers if answer]
        assert not first.done
        assert 100 < second.seconds <= 120
        assert await a.take("another", 120) is None


async def test_the_life_of_a_lease(address: RedisAddress) -> None:
    """Taken, taken again by the same owner, done, and given back by its owner alone."""
    async with _of(address, "a") as a, _of(address, "b") as b:
        assert await a.take("run", 120) is None
        await b.give_back("run")
        assert (await b.take("run", 120)) is not None
        assert await a.take("run", 7200, done=True) is None
        other = await b.take("run", 120)
        assert other
        assert other.done
        assert 7000 < other.seconds <= 7200
        assert await a.take("run", 120) is None
        await a.give_back("run")
        await a.give_back("run")
        assert await b.take("run", 120) is None


async def test_a_lease_ends_by_itself(address: RedisAddress) -> None:
    """A replica that died does not keep it."""
    async with _of(address, "a") as a, _of(address, "b") as b:
        assert await a.take("run", 0.001) is None
        async with asyncio.timeout(_PATIENT):
            while await b.take("run", 120) is not None:
                pass


async def test_owners_are_compared_whole(address: RedisAddress) -> None:
    """One whose name begins another's is another."""
    async with _of(address, "ab") as ab, _of(address, "a") as a, _of(address, "") as nobody:
        assert await ab.take("run", 120) is None
        assert await a.take("run", 120)
        assert await nobody.take("run", 120)


async def test_a_lease_that_would_never_end_is_free(redis_server: RedisServer) -> None:
    """No replica leaves one without an expiry: whoever did that would stop a rule everywhere, for ever."""
    async with _of(redis_server.address, "a") as a, _of(redis_server.address, "b") as b:
        assert await a.take("run", 120) is None
        [key] = [word for word in redis_server.command("KEYS", "*").decode().split("\r\n") if "lease" in word]
        redis_server.command("PERSIST", key)
        assert await b.take("run", 120) is None
        assert await a.take("run", 120) is not None


async def test_without_redis(redis_server: RedisServer) -> None:
    """It raises within its budget: dead, silent, or with something else under the key; and works again afterwards."""
    async with _of(redis_server.address, "a", budget=0.2) as leases:
        redis_server.kill()
        with pytest.raises(IndexUnavailable):
            await leases.take("run", 120)
        redis_server.start()
        redis_server.pause()
        with pytest.raises(IndexUnavailable):
            await leases.give_back("run")
        redis_server.resume()
        async with asyncio.timeout(_PATIENT):
            while True:
                try:
                    assert await leases.take("run", 120) is None
                    break
                except IndexUnavailable:
                    continue
        [key] = [word for word in redis_server.command("KEYS", "*").decode().split("\r\n") if "lease" in word]
        redis_server.command("DEL", key)
        redis_server.command("SADD", key, "x")
        with pytest.raises(IndexUnavailable):
            await leases.take("run", 120)
