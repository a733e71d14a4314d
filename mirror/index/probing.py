"""The check of Redis for `mirror doctor`: whether it answers, its version, speed and memory settings."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import perf_counter

from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, RedisError

from mirror.errors import IndexUnavailable
from mirror.index.redis_address import RedisAddress, no_connection
from mirror.index.redis_primary import RedisPool


@dataclass(frozen=True, slots=True)
class RedisHealth:
    """`seconds` is the time of the fastest of a few round trips, `limit` is `maxmemory` in bytes (0: no limit),
    `policy` is `maxmemory-policy`.
    """

    version: str
    seconds: float
    limit: int
    policy: str


async def probe_redis(address: RedisAddress, *, patience: float = 5.0) -> RedisHealth:
    """Connect to Redis and measure it, for at most `patience` seconds.

    Raises `IndexUnavailable` if Redis fails or does not answer in time; its message contains no secret.
    """
    client: Redis = Redis(connection_pool=RedisPool(address, "mirror:check", connections=1, budget=patience))
    try:
        async with asyncio.timeout(patience):
            info = await client.info()
            trips = []
            for _ in range(5):
                began = perf_counter()
                await client.ping()
                trips.append(perf_counter() - began)
        version = str(info.get("redis_version", "unknown"))
        return RedisHealth(version, min(trips), int(info.get("maxmemory", 0)), str(info.get("maxmemory_policy", "")))
    except TimeoutError as error:
        raise IndexUnavailable(f"{address}: no answer within {patience:g} s") from error
    except (RedisError, OSError) as error:
        # during connecting, redis-py wraps the server's authentication error
        refused = isinstance(error, AuthenticationError) or isinstance(error.__cause__, AuthenticationError)
        why = "user name or password is missing or wrong" if refused else no_connection(error)
        raise IndexUnavailable(f"{address}: {why or type(error).__name__}") from error
    finally:
        await client.aclose(close_connection_pool=True)
