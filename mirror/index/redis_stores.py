"""Removes from Redis the indexes of stores that are gone.

An index has no expiry. A disk that was given up, such as that of a pod that was replaced, never comes back to delete
its index; and once Redis is full, no index takes new entries any more. So every store says that it is in use, and
deletes what those that have not said so for days have left:

    in use ── `alive` is set again, every hour ──> in use
      └── nobody does that until it expires ──> gone ── another store deletes its keys ──> off the list
                                                 └── comes back after all ──> in use: its index is rebuilt

    {mirror:stores}:ids      set     the ids of the stores that have an index here
    {mirror:3:STORE}:alive   string  with an expiry: the time passes on Redis's clock, whatever others say

Everything is repeatable, and any number of stores may do it at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from mirror.errors import IndexUnavailable
from mirror.index import redis_scripts as scripts
from mirror.index.redis import RedisIndex, is_store_id
from mirror.index.redis_address import RedisAddress
from mirror.index.redis_primary import RedisPool

#: Seconds for which a store counts as in use: a mirror that is switched off over a long weekend keeps its index.
KEPT: Final = 4 * 86400.0
#: Stores that are looked at in one call, drawn at random: each costs a connection and some round trips.
_MOST: Final = 100
#: The hash tag of the list.
_TAG: Final = "mirror:stores"
_LIST: Final = f"{{{_TAG}}}:ids"


async def remove_gone_stores(
    address: RedisAddress, store_id: str, *, budget: float = 1.0, kept: float = KEPT
) -> Sequence[str]:
    """Says that this store is in use, for `kept` seconds, and deletes the indexes of stores that are gone. Returns the
    ids of those. `budget` is in seconds for each call of Redis. Raises `IndexUnavailable`.
    """
    # alive before it is on the list, where others look at it
    async with _index(address, store_id, budget) as own:
        await own.show_alive(kept)
    client: Redis = Redis(connection_pool=RedisPool(address, _TAG, connections=1, budget=budget))
    gone = []
    try:
        for name in await _call(client, budget, scripts.ENTER_STORE, store_id, _MOST):
            if await _is_gone(address, name.decode(errors="replace"), budget):
                await _call(client, budget, scripts.STRIKE_STORE, name)
                gone.append(name.decode(errors="replace"))
    finally:
        await client.aclose(close_connection_pool=True)
    return gone


async def _is_gone(address: RedisAddress, store: str, budget: float) -> bool:
    """Whether nobody uses a store; what was left of it is deleted then."""
    if not is_store_id(store):
        # no mirror has entered it
        return True
    async with _index(address, store, budget) as index:
        if await index.is_alive():
            return False
        await index.clear()
        return True


@asynccontextmanager
async def _index(address: RedisAddress, store: str, budget: float) -> AsyncIterator[RedisIndex]:
    index = RedisIndex(address, store_id=store, budget=budget, connections=1)
    try:
        yield index
    finally:
        await index.aclose()


async def _call(client: Redis, budget: float, script: str, *arguments: Any) -> Any:
    try:
        async with asyncio.timeout(budget):
            return await scripts.run(client, script, [_LIST], arguments)
    except (RedisError, OSError, TimeoutError) as error:
        raise IndexUnavailable(f"Redis failed: {type(error).__name__}") from error
