"""Whether Redis is there, as the doctor asks."""

from __future__ import annotations

import pytest

from mirror.errors import IndexUnavailable
from mirror.index.probing import probe_redis
from mirror.index.redis_address import RedisAddress, RedisLogin
from tests.support.redis_server import RedisServer


async def test_a_redis_that_is_well() -> None:
    """Its version, a round trip, and what it does when it is full."""
    with RedisServer("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru") as server:
        found = await probe_redis(server.address)
    assert int(found.version.partition(".")[0]) >= 6
    assert 0 < found.seconds < 5
    assert (found.limit, found.policy) == (64 * 1024 * 1024, "allkeys-lru")


async def test_a_redis_that_wants_a_password() -> None:
    """The wrong one is told without showing it."""
    with RedisServer("--requirepass", "right") as server:
        for password in ("s3cret", None):
            address = RedisAddress(socket=str(server.socket), login=RedisLogin(password=password))
            with pytest.raises(IndexUnavailable, match="password is missing or wrong") as caught:
                await probe_redis(address)
            assert "s3cret" not in str(caught.value)


async def test_a_redis_that_hangs_or_is_gone() -> None:
    """Neither is waited for."""
    with RedisServer() as server:
        server.pause()
        with pytest.raises(IndexUnavailable, match=r"no answer within 0\.2 s"):
            await probe_redis(server.address, patience=0.2)
        server.resume()
        server.kill()
        with pytest.raises(IndexUnavailable, match="Connection refused"):
            await probe_redis(server.address)
