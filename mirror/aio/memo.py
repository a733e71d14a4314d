"""Short-lived shared answers: each is computed once for all concurrent callers, and remembered for a while.

This is the only file that knows aiocache, which is imported if Redis is configured: it and its libraries are a tenth of
all that a worker imports. A key's life:

    unknown ── share() ──> one task makes it, all callers wait ──> remembered ── ttl over, forget(), no room ──> unknown
                                       └── it fails: all callers get the error, nothing is remembered

The task belongs to no caller: cancelling one caller does not affect the others. Values are JSON (never pickle, because
then everyone who can write to Redis could run code here). Entries live in this process, limited in number and bytes,
and, if Redis is configured, there as well for the other workers and replicas. Redis has a tenth of a second to answer;
if it does not, it is not called for a while, and callers notice nothing. `private` entries never leave the process. Any
entry may be lost at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mirror.aio.caches import CacheStats, show
from mirror.aio.closing import close_all
from mirror.aio.singleflight import SingleFlight

if TYPE_CHECKING:
    from aiocache import RedisCache
    from redis.asyncio import ConnectionPool

T = TypeVar("T")

#: The hash tag of all keys in Redis: they have one slot, and so one server, in a Cluster as well.
MEMO_TAG: Final = "mirror:memo"

#: The result of `get` for an unknown key; None is a value like any other.
MISSING: Final = object()

_BUDGET: Final = 0.1
_RETRY_AFTER: Final = 1.0


def redis_cache(pool: ConnectionPool) -> RedisCache:
    """aiocache's Redis on these connections, which it connects at first use and `Memo` closes.

    aiocache knows one server; the connections find the one that has the keys, also in a Cluster. They must not have
    time-outs of their own, which can swallow a cancellation: `Memo` keeps the budget.
    """
    from aiocache import RedisCache
    from aiocache.serializers import StringSerializer

    # aiocache would build a pool from host and port alone, which leaves out unix sockets, users and TLS settings
    return RedisCache(
        serializer=StringSerializer(), timeout=None, connection_pool_class=lambda **_: pool, endpoint="", port=0
    )


class Memo:
    """Answers under `prefix`, which separates several memos in one Redis and carries the version of their format.

    At most `most_entries` and `most_bytes` of JSON text are kept; the least recently used ones are removed first. `now`
    is epoch seconds, because expiry times are shared through Redis.
    """

    def __init__(
        self,
        prefix: str = f"{{{MEMO_TAG}}}:1",
        *,
        shared: RedisCache | None = None,
        most_entries: int = 10_000,
        most_bytes: int = 64 * 1024 * 1024,
        budget: float = _BUDGET,
        now: Callable[[], float] = time.time,
    ) -> None:
        show("shared answers", self)
        self._prefix = prefix
        self._shared = shared
        self._most_entries = most_entries
        self._most_bytes = most_bytes
        self._budget = budget
        self._now = now
        #: The JSON texts of this process, least recently used first, and how long they are together.
        self._local: OrderedDict[str, str] = OrderedDict()
        self._bytes = 0
        self._once = SingleFlight()
        self._shared_after = 0.0

    async def share(
        self, key: str, make: Callable[[], Awaitable[T]], ttl: float | Callable[[T], float], *, private: bool = False
    ) -> T:
        """The value remembered under `key`; otherwise that of `make`, which is called once for all concurrent callers.

        `ttl` is in seconds, or a function that derives it from the value; with 0 or less the value is not remembered.
        The value must be JSON (tuples come back as lists). An error of `make` reaches all waiting callers and is not
        remembered: to remember a refusal for a short while, return a value that says so. Raises the errors of `make`.
        """
        value: T = self._get_local(key)
        if value is not MISSING:
            return value
        return await self._once.run(key, lambda: self._make(key, make, ttl, private))

    async def get(self, key: str, *, private: bool = False) -> Any:
        """The remembered value, or `MISSING`."""
        value = self._get_local(key)
        return await self._get_shared(key) if value is MISSING and not private else value

    async def put(self, key: str, value: Any, ttl: float, *, private: bool = False) -> None:
        """Remember a JSON value for `ttl` seconds. Raises `TypeError` or `ValueError` if the value is not JSON."""
        if ttl <= 0:
            return
        text = json.dumps([self._now() + ttl, value], separators=(",", ":"), allow_nan=False)
        self._put_local(key, text)
        if not private:
            await self._call_shared(lambda cache: cache.set(self._shared_key(key), text, ttl=max(0.001, float(ttl))))

    async def forget(self, key: str, *, private: bool = False) -> None:
        """Forget the entry here and in Redis; other processes that have it keep it until it expires. Repeatable."""
        self._drop_local(key)
        if not private:
            await self._call_shared(lambda cache: cache.delete(self._shared_key(key)))

    async def aclose(self) -> None:
        """Cancel work under way and disconnect from Redis. Repeatable."""
        await close_all(self._once.aclose, self._disconnect)

    async def _disconnect(self) -> None:
        shared, self._shared = self._shared, None
        if shared is not None:
            # aiocache's own close() calls a method that redis-py has deprecated
            with contextlib.suppress(Exception):
                await close_all(shared.client.aclose, shared.client.connection_pool.aclose)

    def __repr__(self) -> str:
        return f"<Memo {self._prefix} {self.stats()}>"

    def stats(self) -> CacheStats:
        """The entries in this process, including expired ones that have not been asked for since, and their size."""
        return CacheStats(len(self._local), self._bytes, self._most_bytes)

    async def _make(
        self, key: str, make: Callable[[], Awaitable[T]], ttl: float | Callable[[T], float], private: bool
    ) -> T:
        if not private:
            value: T = await self._get_shared(key)
            if value is not MISSING:
                return value
        made = await make()
        await self.put(key, made, ttl(made) if callable(ttl) else ttl, private=private)
        return made

    def _shared_key(self, key: str) -> str:
        return f"{self._prefix}:{key}"

    def _get_local(self, key: str) -> Any:
        """The value in this process, or `MISSING`."""
        text = self._local.get(key)
        if text is None:
            return MISSING
        self._local.move_to_end(key)
        value = self._read(text)
        if value is MISSING:
            self._drop_local(key)
        return value

    def _put_local(self, key: str, text: str) -> None:
        self._drop_local(key)
        if len(text) * 8 > self._most_bytes:
            return  # a single large value must not push out everything else
        self._local[key] = text
        self._bytes += len(text)
        while len(self._local) > self._most_entries or self._bytes > self._most_bytes:
            self._drop_local(next(iter(self._local)))

    def _drop_local(self, key: str) -> None:
        self._bytes -= len(self._local.pop(key, ""))

    async def _get_shared(self, key: str) -> Any:
        text = await self._call_shared(lambda cache: cache.get(self._shared_key(key)))
        value = self._read(text) if isinstance(text, str) else MISSING
        if value is not MISSING:
            self._put_local(key, text)
        return value

    async def _call_shared(self, call: Callable[[RedisCache], Awaitable[Any]]) -> Any:
        """One call to Redis within its budget; None if there is no Redis or the call fails."""
        if self._shared is None or self._now() < self._shared_after:
            return None
        try:
            async with asyncio.timeout(self._budget):
                return await call(self._shared)
        except Exception:
            # any error counts as a miss: every value can be obtained again
            self._shared_after = self._now() + _RETRY_AFTER
            return None

    def _read(self, text: str) -> Any:
        """The value, or `MISSING` if it has expired or the text has another form."""
        try:
            expires, value = json.loads(text)
            return value if self._now() < expires else MISSING
        except (ValueError, TypeError):
            return MISSING
