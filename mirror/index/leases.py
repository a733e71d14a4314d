"""Leases in Redis: replicas that have their own disks agree on which of them does a piece of work.

    free ── take() ──> ours ── take() again ──> ours for longer ── take(done) ──> done, until it expires ──> free
                         ├── give_back() ──> free
                         └── not renewed: it expires ──> free

Each lease is one key, `{mirror:lease}:<hash of its name>`, the same for all replicas. Its value gives the owner and
whether the work is done. A lease is advisory: a replica that cannot reach Redis works without it, and a fail-over may
lose a lease that was given. Then two replicas do the same work, which does no harm.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from mirror.errors import IndexUnavailable
from mirror.index.redis_address import RedisAddress
from mirror.index.redis_primary import RedisPool
from mirror.index.redis_scripts import run
from mirror.policy.schedule import OtherLease

# Returns false if the lease is now ours, else the value of the key and its remaining time in milliseconds. Nobody of us
# leaves a key without an expiry: such a one would never end.
_TAKE: Final = """
local value, left = redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])
if value and left >= 0 and string.sub(value, 2) ~= ARGV[1] then return {value, left} end
redis.call('SET', KEYS[1], ARGV[2] .. ARGV[1], 'PX', ARGV[3])
return false
"""
_GIVE_BACK: Final = """
local value = redis.call('GET', KEYS[1])
if value and string.sub(value, 2) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""
#: The hash tag of all leases.
_TAG: Final = "mirror:lease"
_RUNS: Final = "-"
_DONE: Final = "+"


class RedisLeases:
    """See `mirror.prefetch.run_leases.Leases`. Belongs to one event loop. Connects at the first call."""

    def __init__(self, address: RedisAddress, *, owner: str, budget: float = 1.0) -> None:
        """`owner` is unique to a replica and stays the same over restarts; `budget` is in seconds for each call."""
        self._owner = owner
        self._budget = budget
        self._client = Redis(connection_pool=RedisPool(address, _TAG, connections=2, budget=budget))

    async def take(self, name: str, seconds: float, *, done: bool = False) -> OtherLease | None:
        """Take or renew the lease for `seconds` from now; `done` marks its work as done.

        Returns None if the lease is now ours, else the lease of the other replica. Raises `IndexUnavailable`.
        """
        milliseconds = max(1, math.ceil(seconds * 1000))
        answer = await self._call(_TAKE, name, self._owner, _DONE if done else _RUNS, milliseconds)
        if not isinstance(answer, list):
            return None
        value, left = answer
        return OtherLease(max(0, int(left)) / 1000, done=bytes(value).startswith(_DONE.encode()))

    async def give_back(self, name: str) -> None:
        """Release the lease if it is ours. Repeatable. Raises `IndexUnavailable`."""
        await self._call(_GIVE_BACK, name, self._owner)

    def __repr__(self) -> str:
        return f"<RedisLeases owner {self._owner}>"

    async def aclose(self) -> None:
        """Close the connections. Leases stay until they expire. Repeatable."""
        await self._client.aclose(close_connection_pool=True)

    async def _call(self, script: str, name: str, *arguments: str | int) -> object:
        key = f"{{{_TAG}}}:{hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}"
        try:
            async with asyncio.timeout(self._budget):
                answer: object = await run(self._client, script, [key], arguments)
        except (RedisError, OSError, TimeoutError) as error:
            raise IndexUnavailable(f"Redis failed to lease: {type(error).__name__}") from error
        return answer
