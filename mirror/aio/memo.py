"""Short-lived shared answers: asked once however many want them, remembered for a while.

The only file that knows aiocache. A key's life:

    unknown ── share() ──> one task makes it, all callers wait ──> remembered ── ttl over, forget(), no room ──> unknown
                                       └── it fails: all callers get the error, nothing is remembered

The task belongs to nobody: a caller that is cancelled takes nothing from the others. Values are JSON (never pickle,
which would let whoever can write to Redis run code here). Entries live in this process, bounded in number and bytes,
and, where Redis is given, there as well for the other workers and replicas; Redis has a tenth of a second to answer
and is left alone for a while when it does not, unnoticed by callers. What is `private` never leaves the process.
Everything here may be lost at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import redis.asyncio
from aiocache import RedisCache, SimpleMemoryCache
from aiocache.serializers import NullSerializer, StringSerializer
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from mirror.aio.singleflight import SingleFlight

__all__ = ["MISSING", "Memo", "redis_cache"]

T = TypeVar("T")

#: What `get` says when there is nothing: None is a value like any other.
MISSING: Final = object()

_BUDGET: Final = 0.1
_LEFT_ALONE: Final = 1.0


def redis_cache(url: str, *, budget: float = _BUDGET, connections: int = 8) -> RedisCache:
    """aiocache's Redis for a `redis://`, `rediss://` or `unix://` URL; connects at first use.

    `budget` in seconds bounds the wait for a free connection; that for an answer is the memo's. redis-py's own retries
    are off: ten of them make a dead Redis cost seconds. Raises `ValueError` for another URL.
    """
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url,
        max_connections=connections,
        timeout=budget,
        # redis-py's own time-outs can swallow a cancellation (see `index/redis.py`); `Memo` keeps the budget
        socket_timeout=None,
        socket_connect_timeout=None,
        retry=Retry(NoBackoff(), 0),
    )
    # aiocache would build a pool from host and port alone, which leaves out unix sockets, users and TLS settings
    return RedisCache(
        serializer=StringSerializer(), timeout=None, connection_pool_class=lambda **_: pool, endpoint="", port=0
    )


class Memo:
    """Answers under `prefix`, which keeps several memos in one Redis apart and carries the version of their form.

    At most `most_entries` and `most_bytes` of JSON text are kept, least recently used ones leave first. `now` is
    epoch seconds, because times of expiry are shared through Redis.
    """

    def __init__(
        self,
        prefix: str = "mirror:memo:1",
        *,
        shared: RedisCache | None = None,
        most_entries: int = 10_000,
        most_bytes: int = 64 * 1024 * 1024,
        budget: float = _BUDGET,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._prefix = prefix
        self._shared = shared
        self._most_entries = most_entries
        self._most_bytes = most_bytes
        self._budget = budget
        self._now = now
        self._local = SimpleMemoryCache(serializer=NullSerializer(), timeout=None)
        #: Sizes of what `_local` holds, least recently used first: aiocache itself has no bound.
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._bytes = 0
        self._once = SingleFlight()
        self._shared_after = 0.0

    async def share(
        self, key: str, make: Callable[[], Awaitable[T]], ttl: float | Callable[[T], float], *, private: bool = False
    ) -> T:
        """What is remembered under `key`; else what `make` gives, called once for all who ask meanwhile.

        `ttl` in seconds, or how to tell it from the value; 0 or less is not remembered. The value must be JSON (tuples
        come back as lists). An error of `make` reaches all who wait and is not remembered: to remember a refusal for a
        short while, return a value that says so. Raises what `make` raises.
        """
        found = await self._get_local(key)
        if found is not MISSING:
            value: T = found
            return value
        return await self._once.run(key, lambda: self._make(key, make, ttl, private))

    async def get(self, key: str, *, private: bool = False) -> Any:
        """What is remembered, or `MISSING`."""
        found = await self._get_local(key)
        return await self._get_shared(key) if found is MISSING and not private else found

    async def put(self, key: str, value: Any, ttl: float, *, private: bool = False) -> None:
        """Remember a JSON value for `ttl` seconds. Raises `TypeError` for what is not JSON."""
        if ttl <= 0:
            return
        text = json.dumps([self._now() + ttl, value], separators=(",", ":"), allow_nan=False)
        await self._put_local(key, text)
        if not private:
            await self._ask_shared(lambda cache: cache.set(self._name(key), text, ttl=max(0.001, float(ttl))))

    async def forget(self, key: str, *, private: bool = False) -> None:
        """Forget it here and in Redis; other processes that have it keep it until its time is over. Repeatable."""
        await self._drop_local(key)
        if not private:
            await self._ask_shared(lambda cache: cache.delete(self._name(key)))

    async def aclose(self) -> None:
        """End what is under way and let go of Redis. Repeatable."""
        await self._once.aclose()
        shared, self._shared = self._shared, None
        if shared is not None:
            # aiocache's own close() calls a method that redis-py has deprecated
            with contextlib.suppress(Exception):
                await shared.client.aclose()
                await shared.client.connection_pool.aclose()

    @property
    def entries(self) -> int:
        """How many are kept in this process, outdated ones that nobody has asked for since included."""
        return len(self._sizes)

    async def _make(
        self, key: str, make: Callable[[], Awaitable[T]], ttl: float | Callable[[T], float], private: bool
    ) -> T:
        if not private:
            found = await self._get_shared(key)
            if found is not MISSING:
                value: T = found
                return value
        made = await make()
        await self.put(key, made, ttl(made) if callable(ttl) else ttl, private=private)
        return made

    def _name(self, key: str) -> str:
        return f"{self._prefix}:{key}"

    async def _get_local(self, key: str) -> Any:
        """Never waits: `share` relies on nobody coming in between."""
        text = await self._local.get(key)
        if text is None:
            return MISSING
        self._sizes.move_to_end(key)
        value = self._read(text)
        if value is MISSING:
            await self._drop_local(key)
        return value

    async def _put_local(self, key: str, text: str) -> None:
        await self._drop_local(key)
        if len(text) * 8 > self._most_bytes:
            return  # one value must not push out everything else
        await self._local.set(key, text)
        self._sizes[key] = len(text)
        self._bytes += len(text)
        while len(self._sizes) > self._most_entries or self._bytes > self._most_bytes:
            await self._drop_local(next(iter(self._sizes)))

    async def _drop_local(self, key: str) -> None:
        self._bytes -= self._sizes.pop(key, 0)
        await self._local.delete(key)

    async def _get_shared(self, key: str) -> Any:
        text = await self._ask_shared(lambda cache: cache.get(self._name(key)))
        value = self._read(text) if isinstance(text, str) else MISSING
        if value is not MISSING:
            await self._put_local(key, text)
        return value

    async def _ask_shared(self, ask: Callable[[RedisCache], Awaitable[Any]]) -> Any:
        """One call to Redis within its budget; None where there is no Redis or it fails."""
        if self._shared is None or self._now() < self._shared_after:
            return None
        try:
            async with asyncio.timeout(self._budget):
                return await ask(self._shared)
        except Exception:
            # whatever it is: this is a memory of things that can be asked for again
            self._shared_after = self._now() + _LEFT_ALONE
            return None

    def _read(self, text: str) -> Any:
        """The value, unless its time is over or somebody else wrote something else there."""
        try:
            expires, value = json.loads(text)
            return value if self._now() < expires else MISSING
        except (ValueError, TypeError):
            return MISSING
