"""A `ContentIndex` in Redis, shared by workers and replicas. Needs Redis 7 or Valkey; no Sentinel, no Cluster.

Every key has the prefix `mirror:<schema>:<store id>:`, because replicas with their own disks may share one Redis:

    loose     sorted set   digest by time of last use, of blobs that no recorded manifest references
    root      sorted set   likewise, of manifests that no other references: the least-recently-used order of images
    named     sorted set   likewise, of blobs that recorded manifests reference
    sizes     hash         digest to bytes; its length is the number of blobs
    names     hash         manifest to the digests that it references, separated by spaces
    parents   hash         digest to the number of recorded manifests that reference it, even if it has no record itself
    indexes   hash         manifest to the recorded indexes that reference it, separated by spaces
    bytes     counter      the sum of `sizes`
    marker    string       the mark of the last complete rebuild
    repos     set          names of the repositories that have links, so that `clear` finds them
    links:<registry>/<name>  hash  digest to bytes

Every operation is a Lua script on a batch. Redis runs a script atomically, so the counters stay exact with any number
of writers. If a key has the wrong type, or the counters do not agree (say, after Redis evicted keys), all records
and the marker are deleted, and the mirror rebuilds them from the disk. A single value that does not parse is skipped.

An operation never waits long for Redis: each batch has a time budget. A failure of Redis is not retried; the breaker
then keeps all callers away from Redis for a while. Replies that only refuse a write (`-OOM`) do not open the breaker,
because reads still work. An instance belongs to one event loop of one process.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, OutOfMemoryError, ReadOnlyError, RedisError, ResponseError

from mirror.errors import ConfigError, IndexUnavailable, MirrorError
from mirror.index.batches import batches
from mirror.index.breaker import Breaker
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.records import BlobRole, ContentRecord, ReferencedBlob, References, Usage
from mirror.telemetry import BREAKER, INDEX_FAILURES, log

#: Part of every key. Records of another schema are neither found nor changed.
SCHEMA: Final = 2

#: Records per script: 1 to 2 ms of Redis' single thread, so that the budget suffices on a busy machine too.
_BATCH: Final = 100
#: Manifests per script: few, because each references dozens of blobs.
_PER_SCRIPT: Final = 10
#: Records per page of `least_recently_used` and `digests`.
_PAGE: Final = 1000

_LOCALS: Final = """
local loose, root, named, sizes, names, parents, indexes, bytes, marker, repos, links = unpack(KEYS)
"""
# A blob is in exactly one of the three sorted sets; `parents` and `names` alone determine which one.
_ROLES: Final = (
    _LOCALS
    + """
local function order_of(digest)
    if redis.call('HEXISTS', parents, digest) == 1 then return named end
    return redis.call('HEXISTS', names, digest) == 1 and root or loose
end
local function settle(digest)
    local order = order_of(digest)
    for _, other in ipairs({loose, root, named}) do
        local seen = other ~= order and redis.call('ZSCORE', other, digest)
        if seen then
            redis.call('ZREM', other, digest)
            redis.call('ZADD', order, 'GT', seen, digest)
        end
    end
end
"""
)

_PUT: Final = (
    _ROLES
    + """
local grown = 0
for i = 1, #ARGV, 3 do
    local digest, size, seen = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    grown = grown + tonumber(size) - (tonumber(redis.call('HGET', sizes, digest) or 0) or 0)
    redis.call('HSET', sizes, digest, size)
    redis.call('ZADD', order_of(digest), 'GT', seen, digest)
end
redis.call('INCRBY', bytes, string.format('%.0f', grown))
"""
)
_GET: Final = (
    _ROLES
    + """
return {redis.call('HGET', sizes, ARGV[1]), redis.call('ZSCORE', order_of(ARGV[1]), ARGV[1])}
"""
)
# Must work when Redis is out of memory: otherwise eviction would find the same records again and again.
_DROP: Final = (
    "#!lua flags=allow-oom\n"
    + _ROLES
    + """
local shrunk = 0
for _, digest in ipairs(ARGV) do
    shrunk = shrunk + (tonumber(redis.call('HGET', sizes, digest) or 0) or 0)
    redis.call('HDEL', sizes, digest)
    for _, order in ipairs({loose, root, named}) do redis.call('ZREM', order, digest) end
    local below = redis.call('HGET', names, digest)
    redis.call('HDEL', names, digest)
    for child in string.gmatch(below or '', '%S+') do
        if redis.call('HINCRBY', parents, child, -1) <= 0 then redis.call('HDEL', parents, child) end
        local above, rest = redis.call('HGET', indexes, child), {}
        if above then
            for index in string.gmatch(above, '%S+') do
                if index ~= digest then rest[#rest + 1] = index end
            end
            if #rest == 0 then
                redis.call('HDEL', indexes, child)
            else
                redis.call('HSET', indexes, child, table.concat(rest, ' '))
            end
        end
        settle(child)
    end
end
if shrunk ~= 0 then redis.call('DECRBY', bytes, string.format('%.0f', shrunk)) end
"""
)
# Also touches every index above a manifest.
_TOUCH: Final = (
    _LOCALS
    + """
local function touch(seen, digest)
    for _, order in ipairs({named, root, loose}) do redis.call('ZADD', order, 'XX', 'GT', seen, digest) end
    for index in string.gmatch(redis.call('HGET', indexes, digest) or '', '%S+') do touch(seen, index) end
end
for i = 1, #ARGV, 2 do touch(ARGV[i], ARGV[i + 1]) end
"""
)
# ARGV: for each manifest its digest, the number of manifests and of all digests it references, and these digests.
_RECORD_REFERENCES: Final = (
    _ROLES
    + """
local i = 1
while i <= #ARGV do
    local digest, manifests, count = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
    local first, last = i + 3, i + 2 + count
    if redis.call('HEXISTS', sizes, digest) == 1 and redis.call('HEXISTS', names, digest) == 0 then
        redis.call('HSET', names, digest, table.concat(ARGV, ' ', first, last))
        settle(digest)
        for j = first, last do
            local child = ARGV[j]
            redis.call('HINCRBY', parents, child, 1)
            if j < first + manifests then
                local above = redis.call('HGET', indexes, child)
                redis.call('HSET', indexes, child, above and above .. ' ' .. digest or digest)
            end
            settle(child)
        end
    end
    i = last + 1
end
"""
)
_OLDEST: Final = (
    _LOCALS
    + """
local order = ({loose = loose, root = root, named = named})[ARGV[1]]
local found, page = redis.call('ZRANGE', order, ARGV[2], ARGV[3], 'WITHSCORES'), {}
for i = 1, #found, 2 do
    page[#page + 1] = {found[i], redis.call('HGET', sizes, found[i]), found[i + 1]}
end
return page
"""
)
_SUCCESSORS: Final = (
    _ROLES
    + """
local found = {}
for _, digest in ipairs(ARGV) do
    local below = redis.call('HGET', names, digest)
    if below then
        local children = {}
        for child in string.gmatch(below, '%S+') do
            local size = redis.call('HGET', sizes, child)
            if size then
                children[#children + 1] = {
                    child, size, redis.call('ZSCORE', order_of(child), child),
                    redis.call('HGET', parents, child), redis.call('HEXISTS', names, child),
                }
            end
        end
        found[#found + 1] = {digest, children}
    end
end
return found
"""
)
_DIGESTS: Final = (
    _LOCALS
    + """
local cursor, found = unpack(redis.call('HSCAN', sizes, ARGV[1], 'COUNT', ARGV[2]))
local digests = {}
for i = 1, #found, 2 do digests[#digests + 1] = found[i] end
return {cursor, digests}
"""
)
_USAGE: Final = (
    _LOCALS
    + """
return {redis.call('HLEN', sizes), redis.call('GET', bytes)}
"""
)
_LINK: Final = (
    _LOCALS
    + """
redis.call('SADD', repos, ARGV[1])
for i = 2, #ARGV, 2 do
    local write = tonumber(ARGV[i + 1]) >= 0 and 'HSET' or 'HSETNX'
    redis.call(write, links, ARGV[i], ARGV[i + 1])
end
"""
)
_LINKED: Final = (
    _LOCALS
    + """
return redis.call('HGET', links, ARGV[1])
"""
)
_UNLINK: Final = (
    _LOCALS
    + """
redis.call('HDEL', links, unpack(ARGV, 2))
if redis.call('EXISTS', links) == 0 then redis.call('SREM', repos, ARGV[1]) end
"""
)
_FORGET_RECORDS: Final = "redis.call('UNLINK', marker, loose, root, named, sizes, names, parents, indexes, bytes)\n"
# A rebuild only adds records, so inconsistent records must be deleted before it.
_MARKER: Final = (
    _LOCALS
    + f"""
local blobs = redis.call('HLEN', sizes)
local roots, held = redis.call('ZCARD', root), redis.call('ZCARD', named)
if blobs == redis.call('ZCARD', loose) + roots + held
    and (blobs == 0 or redis.call('EXISTS', bytes) == 1)
    and redis.call('HLEN', names) >= roots
    and redis.call('HLEN', parents) >= held
then
    return redis.call('GET', marker)
end
{_FORGET_RECORDS}
return false
"""
)
_SET_MARKER: Final = (
    _LOCALS
    + """
redis.call('SET', marker, ARGV[1])
"""
)
_MEND: Final = (
    _LOCALS
    + _FORGET_RECORDS
    + """
if redis.call('TYPE', repos).ok ~= 'set' then redis.call('UNLINK', repos) end
if links and redis.call('TYPE', links).ok ~= 'hash' then redis.call('UNLINK', links) end
"""
)
_CLEAR: Final = (
    _LOCALS
    + _FORGET_RECORDS
    + """
return redis.call('SRANDMEMBER', repos, ARGV[1])
"""
)
_CLEAR_LINKS: Final = (
    _LOCALS
    + """
redis.call('UNLINK', links)
redis.call('SREM', repos, ARGV[1])
"""
)


class Keys:
    """The names of the keys of one store."""

    #: In the order in which `_LOCALS` unpacks them.
    NAMES: Final = (
        *("loose", "root", "named", "sizes", "names", "parents", "indexes"),
        *("bytes", "marker", "repos"),
    )

    def __init__(self, store_id: str) -> None:
        """`store_id` has 1 to 128 letters, digits, `.`, `_` and `-`; each store has its own. Raises `ValueError`."""
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", store_id):
            raise ValueError(f"a store id has 1 to 128 letters, digits, '.', '_' and '-': {store_id[:160]!r}")
        self._prefix = f"mirror:{SCHEMA}:{store_id}:"
        self.fixed: Final = tuple(self._prefix + name for name in self.NAMES)

    def links(self, repo: str) -> str:
        """The key of the links of one repository, which is given as `registry/name`."""
        return f"{self._prefix}links:{repo}"


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """The address of a Redis server and its credentials. `str` and `repr` omit the password."""

    host: str = ""
    port: int = 6379
    socket: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    def __str__(self) -> str:
        if self.socket:
            return f"unix://{self.socket}?db={self.db}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.db}"

    def pool(self, *, connections: int, budget: float) -> BlockingConnectionPool:
        """A pool of up to `connections` connections, which waits at most `budget` seconds for a free one and never
        retries.
        """
        options: dict[str, Any] = {
            "db": self.db,
            "username": self.username,
            "password": self.password,
            # no timeouts of redis-py: they put every command through asyncio.wait_for, which in Python 3.11 can swallow
            # a cancellation, so that a cancelled task runs on for ever. The callers apply the budget to each call.
            "socket_timeout": None,
            "socket_connect_timeout": None,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        kind: type[Connection | UnixDomainSocketConnection] = Connection
        if self.socket:
            kind = UnixDomainSocketConnection
            options |= {"path": self.socket}
        else:
            options |= {"host": self.host, "port": self.port}
        if self.tls:
            kind = SSLConnection
            options |= {
                "ssl_cert_reqs": "required",
                "ssl_check_hostname": True,
                "ssl_min_version": ssl.TLSVersion.TLSv1_2,
                "ssl_ca_certs": self.ca_file,
                "ssl_certfile": self.cert_file,
                "ssl_keyfile": self.key_file,
            }
        return BlockingConnectionPool(max_connections=connections, timeout=budget, connection_class=kind, **options)


_FILES: Final = {"ssl_ca_certs": "ca_file", "ssl_certfile": "cert_file", "ssl_keyfile": "key_file"}


def parse_redis_url(url: str) -> RedisAddress:
    """Parse `redis://[user:password@]host[:port][/db]`, the same with `rediss://` (TLS), or `unix://[…@]/path[?db=n]`.

    `rediss://` takes `ssl_ca_certs`, `ssl_certfile` and `ssl_keyfile` (paths of PEM files) in its query. Raises
    `ConfigError` with all mistakes; its messages quote no part of the URL that could contain the password.
    """
    scheme, there, _ = url.strip().partition("://")
    scheme = scheme.lower()
    if there and re.fullmatch(r"[a-z+.-]*(sentinel|cluster)[a-z+.-]*", scheme):
        raise ConfigError(["Redis URL: Sentinel and Cluster are not supported; give the redis:// URL of one server"])
    if not there or scheme not in ("redis", "rediss", "unix"):
        raise ConfigError(["Redis URL: must begin with redis://, rediss:// or unix://"])
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        # the text of the ValueError could quote a password whose special characters were not escaped
        raise ConfigError(["Redis URL: host or port cannot be read; is the password percent-encoded?"]) from None
    mistakes = []
    options: dict[str, Any] = {}
    if parts.username:
        options["username"] = unquote(parts.username)
    if parts.password:
        options["password"] = unquote(parts.password)
    if parts.fragment or "#" in url:
        mistakes.append("Redis URL: holds a '#'; is the password percent-encoded?")
    database = ""
    if scheme == "unix":
        if not parts.path.startswith("/") or parts.hostname:
            mistakes.append("Redis URL: unix:// needs an absolute path, as in unix:///run/redis/redis.sock")
        options["socket"] = unquote(parts.path)
    else:
        if not parts.hostname:
            mistakes.append("Redis URL: the host is missing")
        elif "," in parts.netloc.rpartition("@")[2]:
            mistakes.append("Redis URL: names several hosts; Sentinel and Cluster are not supported")
        options |= {"host": parts.hostname or "", "port": 6379 if port is None else port, "tls": scheme == "rediss"}
        database = parts.path.strip("/")
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name == "db":
            database = value
        elif name in _FILES and scheme == "rediss":
            options[_FILES[name]] = value
        else:
            known = ["db", *(_FILES if scheme == "rediss" else ())]
            mistakes.append(f"Redis URL: its query holds something else than {', '.join(known)}")
    if database and not re.fullmatch(r"[0-9]{1,5}", database):
        mistakes.append("Redis URL: the database is not a number")
    elif database:
        options["db"] = int(database)
    if mistakes:
        raise ConfigError(list(dict.fromkeys(mistakes)))
    return RedisAddress(**options)


class RedisIndex:
    """See `mirror.ports.ContentIndex`. Connects at the first operation."""

    def __init__(
        self,
        address: RedisAddress,
        *,
        store_id: str,
        budget: float = 0.1,
        connections: int = 16,
        now: Callable[[], float] = monotonic,
    ) -> None:
        """`budget` is in seconds for each batch of an operation, connecting included. Raises `ValueError` (`Keys`)."""
        self._address = address
        self._keys = Keys(store_id)
        self._budget = budget
        self._breaker = Breaker(now)
        self._told_open = False
        self._pool = address.pool(connections=connections, budget=budget)
        self._client = Redis(connection_pool=self._pool)
        self._closed = False

    async def put(self, records: Sequence[ContentRecord]) -> None:
        """Add or replace records; the later time of last use is kept."""
        for batch in batches(records, _BATCH):
            arguments: list[str | int] = []
            for record in batch:
                arguments += (str(record.digest), record.size, repr(record.last_used))
            await self._run(_PUT, arguments)

    async def get(self, digest: Digest) -> ContentRecord | None:
        """The record of a blob; None if there is none."""
        size, last_used = await self._run(_GET, [str(digest)])
        return _record(str(digest), size, last_used)

    async def drop(self, digests: Sequence[Digest]) -> None:
        """Drop records, and the references of those that are manifests. Repeatable."""
        for batch in batches(digests, _BATCH):
            await self._run(_DROP, [str(digest) for digest in batch])

    async def touch(self, seen: Mapping[Digest, float]) -> None:
        """Raise times of last use, also of all indexes above a manifest. Skips blobs without a record."""
        for batch in batches(seen.items(), _BATCH):
            arguments: list[str] = []
            for digest, last_used in batch:
                arguments += (repr(last_used), str(digest))
            await self._run(_TOUCH, arguments)

    async def record_references(self, manifests: Sequence[References]) -> None:
        """Add the references of manifests. Skips manifests without a record."""
        for batch in batches(manifests, _PER_SCRIPT):
            arguments: list[str | int] = []
            for names in batch:
                children = list(dict.fromkeys((*names.manifests, *names.blobs)))
                arguments += (str(names.digest), len(set(names.manifests)), len(children), *map(str, children))
            await self._run(_RECORD_REFERENCES, arguments)

    async def least_recently_used(self, role: BlobRole, limit: int) -> list[ContentRecord]:
        """The least recently used blobs of this role. Reads about `limit` members of a sorted set, in pages."""
        found: dict[Digest, ContentRecord] = {}
        start = 0
        while len(found) < limit:
            wanted = min(limit - len(found), _PAGE)
            page = await self._run(_OLDEST, [role.value, start, start + wanted - 1])
            for digest, size, last_used in page:
                if record := _record(digest, size, last_used):
                    found[record.digest] = record
            if len(page) < wanted:
                break
            start += wanted
        return list(found.values())

    async def successors(self, manifests: Sequence[Digest]) -> dict[Digest, list[ReferencedBlob]]:
        """The recorded blobs that each recorded manifest references. Costs a few look-ups for each such blob."""
        found: dict[Digest, list[ReferencedBlob]] = {}
        for batch in batches(manifests, _PER_SCRIPT):
            for digest, children in await self._run(_SUCCESSORS, [*map(str, batch)]):
                found[Digest.parse(_text(digest))] = [
                    ReferencedBlob(record, _integer(parents) or 1, bool(is_manifest))
                    for child, size, last_used, parents, is_manifest in children
                    if (record := _record(child, size, last_used))
                ]
        return found

    async def digests(self) -> AsyncIterator[list[Digest]]:
        """The digests of all records, in pages, in the order of the hash table."""
        cursor: object = "0"
        while True:
            cursor, digests = await self._run(_DIGESTS, [_text(cursor), _PAGE])
            if found := [digest for text in digests if (digest := _digest(text))]:
                yield found
            if _text(cursor) == "0":
                break

    async def usage(self) -> Usage:
        """The number of blobs and their total size in bytes."""
        blobs, total = await self._run(_USAGE)
        return Usage(int(blobs), _integer(total) or 0)

    async def link(self, repo: Repo, blobs: Mapping[Digest, int]) -> None:
        """Link blobs to a repository. An unknown size (-1) does not replace a known one."""
        for batch in batches(blobs.items(), _BATCH):
            arguments: list[str | int] = [str(repo)]
            for digest, size in batch:
                arguments += (str(digest), size)
            await self._run(_LINK, arguments, repo=str(repo))

    async def linked(self, repo: Repo, digest: Digest) -> int | None:
        """The size of a linked blob in bytes, -1 if unknown; None if it is not linked."""
        return _integer(await self._run(_LINKED, [str(digest)], repo=str(repo)))

    async def unlink(self, repo: Repo, digests: Sequence[Digest]) -> None:
        """Drop links of a repository. Repeatable."""
        for batch in batches(digests, _BATCH):
            await self._run(_UNLINK, [str(repo), *map(str, batch)], repo=str(repo))

    async def marker(self) -> str | None:
        """The mark of the last complete rebuild; None if there is none.

        Inconsistent records are deleted together with the mark, and the result is None.
        """
        mark = await self._run(_MARKER)
        return _text(mark) if mark is not None else None

    async def set_marker(self, mark: str) -> None:
        """Set the mark; a rebuild does this as its last step."""
        await self._run(_SET_MARKER, [mark])

    async def clear(self) -> None:
        """Drop everything of this store. The marker goes first, so that an interrupted call leads to a rebuild."""
        while repos := await self._run(_CLEAR, [_BATCH]):
            for repo in map(_text, repos):
                await self._run(_CLEAR_LINKS, [repo], repo=repo)

    async def aclose(self) -> None:
        """Close the connections; later operations raise `IndexUnavailable`. Repeatable."""
        self._closed = True
        self._tell_breaker(open=False)
        await self._client.aclose(close_connection_pool=True)

    async def _run(self, script: str, arguments: Sequence[str | int] = (), *, repo: str | None = None) -> Any:
        """Run a script. If a key has a wrong type or value, delete it and all records, then run it again."""
        keys = self._keys.fixed if repo is None else (*self._keys.fixed, self._keys.links(repo))
        try:
            return await self._call(script, keys, arguments)
        except _Junk:
            log.warning("index damaged", redis=str(self._address))
            await self._call(_MEND, keys, ())
            return await self._call(script, keys, arguments)

    async def _call(self, script: str, keys: Sequence[str], arguments: Sequence[str | int]) -> Any:
        """One round trip to Redis within the budget. Raises `IndexUnavailable`, also if the breaker is open."""
        if self._closed:
            raise IndexUnavailable("the index is closed")
        ticket = self._breaker.admit()
        if ticket is None:
            raise IndexUnavailable("Redis has failed and is left alone for a while")
        try:
            async with asyncio.timeout(self._budget):
                answer = await self._client.register_script(script)(keys=list(keys), args=list(arguments))
        except (RedisError, OSError, TimeoutError) as error:
            self._failed(ticket, error)
            if isinstance(error, ReadOnlyError):
                # only a new connection resolves the host name again, which may now lead to another server
                with suppress(RedisError, OSError):
                    await self._pool.disconnect(inuse_connections=False)
            raise (_Junk if _is_junk(error) else IndexUnavailable)(_explain(error)) from error
        except BaseException:
            self._breaker.withdraw(ticket)
            raise
        self._succeeded(ticket)
        return answer

    def _succeeded(self, ticket: int) -> None:
        if self._breaker.succeed(ticket):
            self._tell_breaker(open=False)
            log.info("index available", redis=str(self._address))

    def _failed(self, ticket: int, error: Exception) -> None:
        """Count the failure, and open the breaker unless Redis did answer. A key of a wrong type does not count."""
        if _is_junk(error):
            self._succeeded(ticket)
            return
        INDEX_FAILURES.inc()
        if _only_refuses_writes(error):
            self._succeeded(ticket)
        elif self._breaker.fail(ticket):
            self._tell_breaker(open=True)
            log.warning("index unavailable", redis=str(self._address), reason=_explain(error))

    def _tell_breaker(self, *, open: bool) -> None:
        """Update the gauge of open breakers, which counts each instance once."""
        if open != self._told_open:
            self._told_open = open
            BREAKER.inc(1 if open else -1)


class _Junk(IndexUnavailable):
    """A key of this store has a type or value that this class never writes."""


def _is_junk(error: Exception) -> bool:
    return isinstance(error, ResponseError) and any(
        sign in str(error) for sign in ("WRONGTYPE", "value is not an integer", "would overflow")
    )


def _only_refuses_writes(error: Exception) -> bool:
    return isinstance(error, OutOfMemoryError) or (
        isinstance(error, ResponseError) and any(code in str(error) for code in ("OOM ", "MISCONF", "NOREPLICAS"))
    )


def _explain(error: Exception) -> str:
    """The cause in our own words, because a message of Redis may quote the data that was sent."""
    # an error during connecting is wrapped in a plain ConnectionError; and Redis refuses a command of more than ten
    # arguments before authentication with «Protocol error: unauthenticated multibulk length»
    refused = isinstance(error, AuthenticationError) or isinstance(error.__cause__, AuthenticationError)
    if refused or "unauthenticated" in str(error):
        return "Redis refused the user name or password"
    if isinstance(error, OutOfMemoryError) or "OOM " in str(error):
        return "Redis is out of memory (maxmemory)"
    if isinstance(error, ReadOnlyError):
        return "Redis is a read-only replica"
    if "compiling script" in str(error) or "Unexpected engine" in str(error):
        return "Redis is too old: 7.0 or later is needed"
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return "Redis did not answer in time"
    if why := no_connection(error):
        return f"no connection to Redis: {why}"
    return f"Redis failed: {type(error).__name__}"


def no_connection(error: BaseException) -> str:
    """The system's or TLS's reason why connecting failed; empty if the error has another cause."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, ssl.SSLError):
            return getattr(inner, "verify_message", "") or inner.reason or "TLS failed"
        if isinstance(inner, OSError) and inner.errno:
            # errors of the resolver are negative, and strerror does not know them
            return os.strerror(inner.errno) if inner.errno > 0 else str(inner.strerror)
        inner = inner.__cause__ or inner.__context__
    return ""


def _text(raw: object) -> str:
    return raw.decode(errors="replace") if isinstance(raw, bytes) else str(raw)


def _integer(raw: object) -> int | None:
    """The value as an integer; None if it is absent or does not parse."""
    try:
        return int(_text(raw)) if raw is not None else None
    except ValueError:
        return None


def _digest(raw: object) -> Digest | None:
    """The value as a digest; None if it does not parse."""
    try:
        return Digest.parse(_text(raw))
    except MirrorError:
        return None


def _record(digest: object, size: object, last_used: object) -> ContentRecord | None:
    """The record; None if a value is absent or does not parse, which counts as no record."""
    known = _integer(size)
    if known is None or known < 0 or last_used is None:
        return None
    try:
        return ContentRecord(Digest.parse(_text(digest)), known, float(_text(last_used)))
    except (MirrorError, ValueError):
        return None
