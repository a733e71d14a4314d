"""A `ContentIndex` in Redis, shared by workers and replicas. Needs Redis 7 or Valkey: one server, Sentinel or Cluster.

Every key has the prefix `{mirror:<schema>:<store id>}:`, because replicas with their own disks may share one Redis. The
braces make it the hash tag: all keys of a store have one slot, and so one server, in a Cluster as well.

    loose     sorted set   digest by time of last use, of blobs that no recorded manifest references
    root      sorted set   likewise, of manifests that no other references: the least-recently-used order of images
    named     sorted set   likewise, of blobs that recorded manifests reference
    sizes     hash         digest to bytes; its length is the number of blobs
    names     hash         manifest to the digests that it references, separated by spaces
    parents   hash         digest to the number of recorded manifests that reference it, even if it has no record itself
    indexes   hash         manifest to the recorded indexes that reference it, separated by spaces
    bytes     counter      the sum of `sizes`
    marker    string       the mark of the last complete rebuild, and the server to which it was written
    rebuild   string       the token of the rebuild that runs
    rebuilt   hash         the parts of it that are done, to the number of blobs of each
    repos     set          names of the repositories that have links, so that `clear` and
                           `loose_links` find them
    alive     string       there for as long as the store counts as in use (redis_stores.py)
    links:<registry>/<name>  hash  digest to bytes

Every operation is a Lua script on a batch. Redis runs a script atomically, so the counters stay exact with any number
of writers. If a key has the wrong type, or the counters do not agree (say, after Redis evicted keys), all records
and the marker are deleted, and the mirror rebuilds them from the disk. A single value that does not parse is skipped.

A fail-over may lose what Redis had acknowledged, without any error: the old primary may have been cut off. Therefore
the mark counts only at the server to which it was written, and a rebuild sets it only if its token is still there.

An operation never waits long for Redis: each batch has a time budget. A failure of Redis is not retried; the breaker
then keeps all callers away from Redis for a while. Replies that only refuse a write (`-OOM`) do not open the breaker,
because reads still work. An instance belongs to one event loop of one process.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from time import monotonic
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    InvalidResponse,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as ConnectionBroken

from mirror.aio.batches import batches
from mirror.aio.breaker import Breaker
from mirror.errors import IndexUnavailable, MirrorError
from mirror.index import redis_scripts as scripts
from mirror.index.redis_address import RedisAddress, no_connection, place_text
from mirror.index.redis_primary import NotPrimary, PrimaryUnknown, RedisPool
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo, read_repo
from mirror.policy.records import BlobRole, ContentRecord, ReferencedBlob, References, Usage
from mirror.ports import RebuildState
from mirror.telemetry import BREAKER, INDEX_FAILURES, log

#: Part of every key. Records of another schema are neither found nor changed.
SCHEMA: Final = 3

#: Records per script: 1 to 2 ms of Redis' single thread, so that the budget suffices on a busy machine too.
_BATCH: Final = 100
#: Manifests per script: few, because each references dozens of blobs. Beyond so many references, a script leaves the
#: rest to the next one: a manifest may have thousands.
_PER_SCRIPT: Final = 10
_REFERENCES: Final = 1000
#: Records per page of `least_recently_used` and `digests`.
_PAGE: Final = 1000
#: Repositories that `holders` looks at, some milliseconds; and how many of them in one script.
_MOST_LOOKED_AT: Final = 5000
_LOOKED_AT: Final = 500
#: Links per step of `loose_links`, each with two look-ups: about a millisecond. And names of repositories per page.
_LINKS_AT_ONCE: Final = 200
_REPOS_AT_ONCE: Final = 100


def is_store_id(text: str) -> bool:
    """Whether a store may have this id: 1 to 128 letters, digits, `.`, `_` and `-`."""
    return re.fullmatch(r"[A-Za-z0-9._-]{1,128}", text) is not None


class Keys:
    """The names of the keys of one store."""

    #: In the order in which the scripts unpack them.
    NAMES: Final = (
        *("loose", "root", "named", "sizes", "names", "parents", "indexes"),
        *("bytes", "marker", "rebuild", "rebuilt", "repos"),
    )

    def __init__(self, store_id: str) -> None:
        """`store_id` has 1 to 128 letters, digits, `.`, `_` and `-`; each store has its own. Raises `ValueError`."""
        if not is_store_id(store_id):
            raise ValueError(f"a store id has 1 to 128 letters, digits, '.', '_' and '-': {store_id[:160]!r}")
        #: The hash tag of all of them.
        self.tag: Final = f"mirror:{SCHEMA}:{store_id}"
        self._prefix = f"{{{self.tag}}}:"
        self.fixed: Final = tuple(self._prefix + name for name in self.NAMES)
        #: Says that the store is in use; no part of the records.
        self.alive: Final = f"{self._prefix}alive"

    def links(self, repo: str) -> str:
        """The key of the links of one repository, which is given as `registry/name`."""
        return f"{self._prefix}links:{repo}"


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
        self._shown_open = False
        self._pool = RedisPool(address, self._keys.tag, connections=connections, budget=budget)
        self._client = Redis(connection_pool=self._pool)
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "unavailable" if self._breaker.is_open else "available"
        return f"<RedisIndex {self._address} {state}>"

    async def put(self, records: Sequence[ContentRecord]) -> None:
        """Add or replace records; the later time of last use is kept."""
        for batch in batches(records, _BATCH):
            arguments: list[str | int] = []
            for record in batch:
                arguments += (str(record.digest), record.size, repr(record.last_used))
            await self._run(scripts.PUT, arguments)

    async def get(self, digest: Digest) -> ContentRecord | None:
        """The record of a blob; None if there is none."""
        size, last_used = await self._run(scripts.GET, [str(digest)])
        return _record(str(digest), size, last_used)

    async def records(self, digests: Sequence[Digest]) -> dict[Digest, ContentRecord]:
        """The records of those of these blobs that have one."""
        found: dict[Digest, ContentRecord] = {}
        for batch in batches(digests, _BATCH):
            rows = await self._run(scripts.RECORDS, [*map(str, batch)])
            records = (_record(str(digest), *row) for digest, row in zip(batch, rows, strict=True))
            found |= {record.digest: record for record in records if record}
        return found

    async def drop(self, digests: Sequence[Digest]) -> None:
        """Drop records, and the references of those that are manifests. Repeatable."""
        for batch in batches(digests, _BATCH):
            rest = [*map(str, batch)]
            while rest:
                done = int(await self._run(scripts.DROP, [_REFERENCES, *rest]))
                rest = rest[done:]

    async def touch(self, seen: Mapping[Digest, float]) -> None:
        """Raise times of last use, also of all indexes above a manifest. Skips blobs without a record."""
        for batch in batches(seen.items(), _BATCH):
            arguments: list[str] = []
            for digest, last_used in batch:
                arguments += (repr(last_used), str(digest))
            await self._run(scripts.TOUCH, arguments)

    async def record_references(self, manifests: Sequence[References]) -> None:
        """Add the references of manifests. Skips manifests without a record."""
        for batch in batches(manifests, _PER_SCRIPT):
            arguments: list[str | int] = []
            for names in batch:
                children = list(dict.fromkeys((*names.manifests, *names.blobs)))
                if arguments and len(arguments) + len(children) > _REFERENCES:
                    await self._run(scripts.RECORD_REFERENCES, arguments)
                    arguments = []
                arguments += (str(names.digest), len(set(names.manifests)), len(children), *map(str, children))
            await self._run(scripts.RECORD_REFERENCES, arguments)

    async def least_recently_used(self, role: BlobRole, limit: int) -> list[ContentRecord]:
        """The least recently used blobs of this role. Reads about `limit` members of a sorted set, in pages."""
        records: dict[Digest, ContentRecord] = {}
        start = 0
        while len(records) < limit:
            wanted = min(limit - len(records), _PAGE)
            page = await self._run(scripts.OLDEST, [role.value, start, start + wanted - 1])
            for digest, size, last_used in page:
                if record := _record(digest, size, last_used):
                    records[record.digest] = record
            if len(page) < wanted:
                break
            start += wanted
        return list(records.values())

    async def successors(self, manifests: Sequence[Digest]) -> dict[Digest, list[ReferencedBlob]]:
        """The recorded blobs that each recorded manifest references. Costs a few look-ups for each such blob."""
        successors: dict[Digest, list[ReferencedBlob]] = {}
        for batch in batches(manifests, _PER_SCRIPT):
            rest = [*map(str, batch)]
            while rest:
                done, found = await self._run(scripts.SUCCESSORS, [_REFERENCES, *rest])
                rest = rest[done:]
                for digest, children in found:
                    successors[Digest.parse(_text(digest))] = [
                        ReferencedBlob(record, _integer(parents) or 1, bool(is_manifest))
                        for child, size, last_used, parents, is_manifest in children
                        if (record := _record(child, size, last_used))
                    ]
        return successors

    async def digests(self) -> AsyncGenerator[list[Digest]]:
        """The digests of all records, in pages, in the order of the hash table."""
        cursor: object = "0"
        while True:
            cursor, texts = await self._run(scripts.DIGESTS, [_text(cursor), _PAGE])
            if digests := [digest for text in texts if (digest := _digest(text))]:
                yield digests
            if _text(cursor) == "0":
                break

    async def usage(self) -> Usage:
        """The number of blobs and their total size in bytes."""
        blobs, total = await self._run(scripts.USAGE)
        return Usage(int(blobs), _integer(total) or 0)

    async def link(self, repo: Repo, blobs: Mapping[Digest, int]) -> None:
        """Link blobs to a repository. An unknown size (-1) does not replace a known one."""
        for batch in batches(blobs.items(), _BATCH):
            arguments: list[str | int] = [str(repo)]
            for digest, size in batch:
                arguments += (str(digest), size)
            await self._run(scripts.LINK, arguments, repo=str(repo))

    async def linked(self, repo: Repo, digest: Digest) -> int | None:
        """The size of a linked blob in bytes, -1 if unknown; None if it is not linked."""
        return _integer(await self._run(scripts.LINKED, [str(digest)], repo=str(repo)))

    async def unlink(self, repo: Repo, digests: Sequence[Digest]) -> None:
        """Drop links of a repository. Repeatable."""
        for batch in batches(digests, _BATCH):
            await self._run(scripts.UNLINK, [str(repo), *map(str, batch)], repo=str(repo))

    async def holders(self, digest: Digest, most: int) -> Sequence[Repo]:
        """Up to `most` repositories that a blob is linked to, of some thousand that are looked at."""
        found: list[Repo] = []
        for names in batches(map(_text, await self._run(scripts.REPOS, [_MOST_LOOKED_AT])), _LOOKED_AT):
            have = await self._call(scripts.WHO_LINKS, [*map(self._keys.links, names)], [str(digest)])
            found += (repo for number in have if (repo := read_repo(names[number - 1])) is not None)
            if len(found) >= most:
                break
        return found[:most]

    async def loose_links(self) -> AsyncGenerator[list[tuple[Repo, Digest]]]:
        """Links of blobs that have no record and that no recorded manifest names, in pages, by repository."""
        repos_cursor: object = "0"
        while True:
            repos_cursor, names = await self._run(scripts.REPOS_PAGE, [_text(repos_cursor), _REPOS_AT_ONCE])
            for name in map(_text, names):
                if (repo := read_repo(name)) is None:
                    continue
                cursor: object = "0"
                while True:
                    cursor, texts = await self._run(scripts.LOOSE_LINKS, [_text(cursor), _LINKS_AT_ONCE], repo=name)
                    yield [(repo, digest) for text in texts if (digest := _digest(text))]
                    if _text(cursor) == "0":
                        break
            if _text(repos_cursor) == "0":
                break

    async def marker(self) -> str | None:
        """The mark of the last complete rebuild; None if there is none, or if there was a fail-over since.

        Inconsistent records are deleted together with the mark, and the result is None.
        """
        mark = await self._run(scripts.MARKER, [await self._server()])
        return _text(mark) if mark is not None else None

    async def begin_rebuild(self, rules: str = "") -> str:
        """Leave a token that a loss of the records takes away."""
        token = f"{rules}.{secrets.token_hex(8)}{await self._server()}"
        await self._run(scripts.BEGIN_REBUILD, [token])
        return token

    async def rebuild_state(self, rules: str) -> RebuildState | None:
        """The rebuild whose token is there. None also if the token was left at another server, before a fail-over."""
        server = await self._server()
        token, done = await self._run(scripts.REBUILD_STATE)
        text = _text(token) if token is not None else ""
        if not text.startswith(f"{rules}.") or not text.endswith(server):
            return None
        pairs = zip(map(_text, done[::2]), map(_integer, done[1::2]), strict=True)
        return RebuildState(text, {part: blobs for part, blobs in pairs if blobs is not None})

    async def note_rebuilt(self, part: str, blobs: int, token: str) -> None:
        """Note that a part is done, if the token is still there."""
        server = await self._server()
        if not token.endswith(server) or not await self._run(scripts.NOTE_REBUILT, [part, blobs, token]):
            raise _lost()

    async def set_marker(self, mark: str, token: str = "") -> None:
        """Set the mark; a rebuild does this as its last step."""
        server = await self._server()
        if (token and not token.endswith(server)) or not await self._run(scripts.SET_MARKER, [mark, server, token]):
            raise _lost()

    async def _server(self) -> str:
        """The server that has the keys, as it is written to marks; empty if it cannot change. Raises
        `IndexUnavailable`.
        """
        primary = self._pool.primary
        if primary is None:
            return ""
        if primary.place is None:
            # any call finds it, within the budget
            await self._run(scripts.USAGE)
        place = primary.place
        if place is None:
            # another call has failed meanwhile. A mark of no server would be taken for one that was lost
            raise IndexUnavailable("the primary of Redis is not known at the moment")
        return f"@{place_text(place)}"

    async def clear(self) -> None:
        """Drop everything of this store. The marker goes first, so that an interrupted call leads to a rebuild."""
        while repos := await self._run(scripts.CLEAR, [_BATCH]):
            for repo in map(_text, repos):
                await self._run(scripts.CLEAR_LINKS, [repo], repo=repo)

    async def show_alive(self, seconds: float) -> None:
        """Let this store count as in use for so many seconds."""
        await self._call(scripts.SHOW_ALIVE, [self._keys.alive], [math.ceil(seconds * 1000)])

    async def is_alive(self) -> bool:
        """Whether this store counts as in use."""
        return bool(await self._call(scripts.IS_ALIVE, [self._keys.alive], ()))

    async def aclose(self) -> None:
        """Close the connections; later operations raise `IndexUnavailable`. Repeatable."""
        self._closed = True
        self._show_breaker(open=False)
        await self._client.aclose(close_connection_pool=True)

    async def _run(self, script: str, arguments: Sequence[str | int] = (), *, repo: str | None = None) -> Any:
        """Run a script. If a key has a wrong type or value, delete it and all records, then run it again."""
        keys = self._keys.fixed if repo is None else (*self._keys.fixed, self._keys.links(repo))
        try:
            return await self._call(script, keys, arguments)
        except _WrongType:
            log.warning("index damaged", redis=str(self._address))
            await self._call(scripts.MEND, keys, ())
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
                answer = await scripts.run(self._client, script, keys, arguments)
        except (RedisError, OSError, TimeoutError) as error:
            self._failed(ticket, error)
            if isinstance(error, ReadOnlyError):
                # only a new connection resolves the host name again, which may now lead to another server
                await self._pool.drop_idle()
            raise (_WrongType if _has_wrong_type(error) else IndexUnavailable)(_explain(error)) from error
        except BaseException:
            self._breaker.withdraw(ticket)
            raise
        self._succeeded(ticket)
        return answer

    def _succeeded(self, ticket: int) -> None:
        if self._breaker.succeed(ticket):
            self._show_breaker(open=False)
            log.info("index available", redis=str(self._address))

    def _failed(self, ticket: int, error: Exception) -> None:
        """Count the failure, and open the breaker unless Redis did answer. A key of a wrong type does not count."""
        if _has_wrong_type(error):
            self._succeeded(ticket)
            return
        INDEX_FAILURES.inc()
        if _only_refuses_writes(error):
            self._succeeded(ticket)
        elif self._breaker.fail(ticket):
            self._show_breaker(open=True)
            log.warning("index unavailable", redis=str(self._address), reason=_explain(error))

    def _show_breaker(self, *, open: bool) -> None:
        """Update the gauge of open breakers, which counts each instance once."""
        if open != self._shown_open:
            self._shown_open = open
            BREAKER.inc(1 if open else -1)


def _lost() -> IndexUnavailable:
    return IndexUnavailable("Redis was emptied or failed over during the rebuild of the index")


class _WrongType(IndexUnavailable):
    """A key of this store has a type or value that this class never writes."""


def _has_wrong_type(error: Exception) -> bool:
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
    if isinstance(error, (PrimaryUnknown, NotPrimary)):
        return str(error)
    if isinstance(error, InvalidResponse):
        return "the server does not answer as a Redis"
    if "NOREPLICAS" in str(error):
        return "Redis has too few replicas to take writes (min-replicas-to-write)"
    if isinstance(error, ReadOnlyError):
        return "Redis is a read-only replica"
    if isinstance(error, MovedError):
        return "Redis is a Cluster: index.url must begin with redis+cluster:// or rediss+cluster://"
    if isinstance(error, (AskError, TryAgainError)):
        return "the Redis Cluster is moving the mirror's keys to another node"
    if isinstance(error, ClusterDownError):
        return "the Redis Cluster is down"
    if isinstance(error, BusyLoadingError):
        return "Redis is loading its data"
    if isinstance(error, NoPermissionError) or "can't run this command" in str(error):
        return f"the user of Redis lacks a right{_lacking(str(error))}: see docs/redis.md"
    if "unknown command" in str(error):
        return "this is no Redis server with scripts; for Sentinels, index.url must begin with redis+sentinel://"
    if "compiling script" in str(error) or "Unexpected engine" in str(error):
        return "Redis is too old: 7.0 or later is needed"
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return "Redis did not answer in time"
    if why := no_connection(error):
        return f"no connection to Redis: {why}"
    if isinstance(error, ConnectionBroken):
        return "the connection to Redis broke"
    return f"Redis failed: {type(error).__name__}"


def _lacking(text: str) -> str:
    """The command in what Redis says about a missing right, if it names one; keys and users are left out."""
    found = re.search(r"run the '([a-z|-]{1,40})' command", text)
    return f" (the command {found[1]})" if found else ""


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
    size_in_bytes = _integer(size)
    if size_in_bytes is None or size_in_bytes < 0 or last_used is None:
        return None
    try:
        return ContentRecord(Digest.parse(_text(digest)), size_in_bytes, float(_text(last_used)))
    except (MirrorError, ValueError):
        return None
