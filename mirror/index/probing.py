"""What `mirror doctor` and `mirror check --online` find out about Redis: who answers, its version and speed, what the
mirror's user may not do, and settings that lose or refuse something.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from mirror.errors import IndexUnavailable
from mirror.index.redis_address import Place, RedisAddress, RedisKind, no_connection, place_text
from mirror.index.redis_primary import NotPrimary, PrimaryUnknown, RedisPool, ask_node, read_slots, said_of
from mirror.index.redis_scripts import run

#: What the mirror's user must be allowed to send, each with arguments that Redis can judge. `K` is a key.
NEEDED: Final = (
    *("EVAL x 1 K", "EVALSHA x 1 K"),
    *("GET K", "SET K 1", "PSETEX K 1 1", "DEL K", "UNLINK K", "EXISTS K", "TYPE K", "PTTL K"),
    *("INCRBY K 1", "DECRBY K 1", "SADD K 1", "SREM K 1", "SRANDMEMBER K 1", "SSCAN K 0"),
    *("HGET K 1", "HSET K 1 1", "HSETNX K 1 1", "HDEL K 1", "HEXISTS K 1", "HINCRBY K 1 1", "HLEN K", "HSCAN K 0"),
    *("ZADD K 1 1", "ZREM K 1", "ZSCORE K 1", "ZRANGE K 0 1", "ZCARD K"),
)
#: Besides these in a Cluster; and those with which `mirror check` and `mirror doctor` can say more.
NEEDED_IN_CLUSTER: Final = ("CLUSTER SLOTS",)
USEFUL: Final = ("INFO", "PING")
#: The oldest version that has what the scripts need.
_OLDEST: Final = 7
_TAG: Final = "mirror:check"
_LACKING: Final = """
local lacking = {}
for _, line in ipairs(ARGV) do
    local words = {}
    for word in string.gmatch(line, '%S+') do words[#words + 1] = word == 'K' and KEYS[1] or word end
    if not redis.acl_check_cmd(unpack(words)) then lacking[#lacking + 1] = line end
end
return lacking
"""


@dataclass(frozen=True, slots=True)
class RedisHealth:
    """`seconds` is the time of the fastest of a few round trips, `limit` is `maxmemory` in bytes (0: no limit),
    `policy` is `maxmemory-policy`; both are unknown (0, empty) if the user may not ask (`INFO`). `guarded` is whether
    the primary refuses writes without replicas (`min-replicas-to-write`), `replicas` how many it has; None: unknown.
    """

    version: str
    seconds: float
    limit: int
    policy: str
    guarded: bool | None = None
    replicas: int | None = None

    @property
    def is_too_old(self) -> bool:
        """Whether scripts of the mirror cannot run there, or the version is not known."""
        major = self.version.partition(".")[0]
        return not major.isdigit() or int(major) < _OLDEST


@dataclass(frozen=True, slots=True)
class RedisCheck:
    """The result for one thing: `detail` describes it, `advice` says what to do, if there is something to do."""

    step: str
    ok: bool
    detail: str
    advice: str = ""


async def probe_redis(address: RedisAddress, *, patience: float = 5.0) -> RedisHealth:
    """Connect to the server that has the mirror's keys and measure it, for at most `patience` seconds.

    Raises `IndexUnavailable` if Redis fails or does not answer in time; its message contains no secret.
    """
    async with _connected(address, patience) as client:
        return await _health(client)


async def check_redis(address: RedisAddress, *, budget: float, patience: float = 5.0) -> list[RedisCheck]:
    """Everything that the mirror needs of Redis, tried, for at most `patience` seconds each. `budget` is how long calls
    may take (seconds).
    """
    found = await _ask_nodes(address, patience)
    try:
        async with _connected(address, patience) as client:
            health = await _health(client)
            pool = client.connection_pool
            primary = pool.primary.place if isinstance(pool, RedisPool) and pool.primary is not None else None
            found += [_answers(address, health, primary, budget), await _rights(client, address)]
            if health.policy:
                found.append(_memory(health))
            if address.kind is not RedisKind.SINGLE:
                found.append(_guard(health))
    except IndexUnavailable as error:
        advice = "start it, or correct index.url; the mirror goes on without it"
        found.append(RedisCheck("answer", False, str(error), advice))
    return found


@asynccontextmanager
async def _connected(address: RedisAddress, patience: float) -> AsyncIterator[Redis]:
    client: Redis = Redis(connection_pool=RedisPool(address, _TAG, connections=1, budget=patience))
    try:
        async with asyncio.timeout(patience):
            yield client
    except TimeoutError as error:
        raise IndexUnavailable(f"{address}: no answer within {patience:g} s") from error
    except (RedisError, OSError) as error:
        raise IndexUnavailable(f"{address}: {_why(error)}") from error
    finally:
        await client.aclose(close_connection_pool=True)


def _why(error: Exception) -> str:
    # during connecting, redis-py wraps the server's authentication error
    if isinstance(error, AuthenticationError) or isinstance(error.__cause__, AuthenticationError):
        return "user name or password is missing or wrong"
    if isinstance(error, (PrimaryUnknown, NotPrimary)):
        return str(error)
    return no_connection(error) or type(error).__name__


async def _health(client: Redis) -> RedisHealth:
    info: Mapping[str, Any] = {}
    try:
        info = await client.info()
        version = str(info.get("valkey_version") or info.get("redis_version", "unknown"))
    except NoPermissionError:
        version = said_of(await _hello(client)).get("version", "unknown")
    trips = []
    for _ in range(5):
        began = perf_counter()
        await _hello(client)
        trips.append(perf_counter() - began)
    return RedisHealth(
        version,
        min(trips),
        int(info.get("maxmemory", 0)),
        str(info.get("maxmemory_policy", "")),
        # Redis shows how many are good only if it minds
        "min_slaves_good_slaves" in info if info else None,
        int(info.get("connected_slaves", 0)) if info else None,
    )


async def _hello(client: Redis) -> object:
    """What the server says of itself to every user, whatever the user's rights."""
    said: object = await client.execute_command("HELLO")  # type: ignore[no-untyped-call]  # redis-py has no types there
    return said


async def _ask_nodes(address: RedisAddress, patience: float) -> list[RedisCheck]:
    """What each Sentinel says, or each node of the Cluster."""
    if address.kind is RedisKind.SINGLE:
        return []
    places: Sequence[Place] = address.nodes
    if address.kind is RedisKind.CLUSTER:
        places = await _nodes_of(address, patience)
    look = _look_at_sentinel if address.kind is RedisKind.SENTINEL else _look_at_node
    return await asyncio.gather(*(_timed(look(address, place), place, patience) for place in places))


async def _nodes_of(address: RedisAddress, patience: float) -> Sequence[Place]:
    """All nodes of the Cluster that anybody knows."""
    known = dict.fromkeys(address.nodes)
    for place in address.nodes:
        try:
            async with asyncio.timeout(patience):
                slots = read_slots(await ask_node(address, place, "CLUSTER", "SLOTS"), place)
        except (PrimaryUnknown, TimeoutError):
            continue
        return list(known | dict.fromkeys(each for _, _, places in slots for each in places))
    return list(known)


async def _timed(work: Any, place: Place, patience: float) -> RedisCheck:
    step = f"node {place_text(place)}"
    try:
        async with asyncio.timeout(patience):
            return RedisCheck(step, True, await work)
    except TimeoutError:
        return RedisCheck(step, False, f"no answer within {patience:g} s")
    except PrimaryUnknown as error:
        return RedisCheck(step, False, str(error).removeprefix(f"{place_text(place)}: "))


async def _look_at_sentinel(address: RedisAddress, place: Place) -> str:
    said = await ask_node(address, place, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.service)
    if not isinstance(said, list):
        raise PrimaryUnknown(f"a Sentinel that does not know the service {address.service}")
    host, port = (part.decode(errors="replace") for part in said)
    return f"a Sentinel, which names {place_text((host, int(port)))} as the primary of {address.service}"


async def _look_at_node(address: RedisAddress, place: Place) -> str:
    said = said_of(await ask_node(address, place, "HELLO"))
    if said.get("mode") != "cluster":
        raise PrimaryUnknown("it is no node of a Cluster")
    return f"version {said.get('version')}, {'a primary' if said.get('role') == 'master' else 'a replica'}"


def _answers(address: RedisAddress, health: RedisHealth, primary: Place | None, budget: float) -> RedisCheck:
    kind = address.kind.value if primary is None else f"{address.kind.value}, primary at {place_text(primary)}"
    detail = f"version {health.version}, {kind}, {health.seconds * 1000:.1f} ms per round trip"
    if health.is_too_old:
        return RedisCheck("answer", False, detail, "the index needs Redis 7 or Valkey")
    slow = health.seconds > budget / 4
    return RedisCheck(
        "answer", True, detail, f"too slow for index.timeout ({budget:g} s): move it closer" if slow else ""
    )


async def _rights(client: Redis, address: RedisAddress) -> RedisCheck:
    needed = [*NEEDED, *(NEEDED_IN_CLUSTER if address.kind is RedisKind.CLUSTER else ())]
    advice = "docs/redis.md has the line that gives them: ACL SETUSER"
    try:
        lacking = await run(client, _LACKING, [f"{{{_TAG}}}:rights"], needed)
    except NoPermissionError as error:
        what = "a key that begins with {mirror:" if "key" in str(error) else "EVAL and EVALSHA"
        return RedisCheck("rights", False, f"the user lacks the right to {what}", advice)
    if lacking:
        names = ", ".join(_command(line.decode()) for line in lacking)
        return RedisCheck("rights", False, f"the user may not send {names}", advice)
    return RedisCheck("rights", True, "the user may send all that is needed")


def _command(line: str) -> str:
    """The command of a line of `NEEDED`, without its arguments."""
    return line.partition(" ")[0] if " K" in line else line


def _memory(health: RedisHealth) -> RedisCheck:
    limit = f"maxmemory {health.limit}, {health.policy}" if health.limit else "maxmemory is not limited"
    evicts = health.limit and health.policy != "noeviction"
    advice = "set maxmemory-policy noeviction: an index that loses keys is rebuilt again and again"
    return RedisCheck("memory", True, limit, advice if evicts else "")


def _guard(health: RedisHealth) -> RedisCheck:
    if health.guarded is None:
        return RedisCheck("fail-over", True, "not known: the user may not send INFO")
    detail = f"{health.replicas} replicas, min-replicas-to-write is {'set' if health.guarded else 'not set'}"
    if not health.replicas:
        return RedisCheck("fail-over", True, detail, "the primary has no replica: nothing takes over from it")
    advice = (
        "set min-replicas-to-write 1 and min-replicas-max-lag 2: a primary that is cut off then stops taking writes"
    )
    return RedisCheck("fail-over", True, detail, "" if health.guarded else advice)
