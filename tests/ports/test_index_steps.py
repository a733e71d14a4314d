"""An operation of the index takes as many steps in a large index as in a small one.

In SQLite the steps are those of its virtual machine; in Redis, the commands that scripts call. A command of Redis may
itself take longer the more there is, so only those that do not are allowed.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
from redis import Redis

from bench.growing_bulk import MadeContent, write_redis, write_sqlite
from mirror.index.embedded import EmbeddedIndex
from mirror.index.redis import RedisIndex
from mirror.oci.digest import Digest
from mirror.policy.records import BlobRole, ContentRecord, References
from mirror.ports import ContentIndex
from tests.support.redis_server import RedisServer

_Verb = Callable[[ContentIndex, MadeContent], Awaitable[object]]

_SMALL: Final = MadeContent(200)
_LARGE: Final = MadeContent(10_000)
_NEW: Final = MadeContent(50, series=1)

#: Of constant cost, or of the logarithm of what there is, each with what it is given here.
_CHEAP: Final = {
    *("evalsha", "eval", "get", "set", "exists", "incrby", "decrby", "unlink"),
    *("hget", "hset", "hsetnx", "hdel", "hexists", "hlen", "hincrby"),
    *("zadd", "zrem", "zscore", "zcard", "zrange", "sadd", "srem"),
    # of one page
    *("hscan",),
}


async def _first_page(index: ContentIndex) -> None:
    async for _ in index.digests():
        return


async def _first_links(index: ContentIndex) -> None:
    async with aclosing(index.loose_links()) as steps:
        async for _ in steps:
            return


async def _pulled(index: ContentIndex) -> None:
    """What a new image costs, and then its eviction."""
    manifest, parts = _NEW.digest(0, 0), _NEW.parts(0)
    await index.link(_NEW.repo(0), dict.fromkeys([manifest, *parts], 10))
    await index.put([ContentRecord(manifest, 10, 1.0)])
    await index.record_references([References(manifest, (), tuple(parts))])
    await index.put([ContentRecord(part, 10, 1.0) for part in parts])
    await index.drop([manifest, *parts])
    await index.unlink(_NEW.repo(0), [manifest, *parts])


async def _rebuilt(index: ContentIndex) -> None:
    token = await index.begin_rebuild("3")
    await index.note_rebuilt("blobs 1", 5, token)
    await index.rebuild_state("3")
    await index.set_marker("3", token)
    await index.marker()


def _some(made: MadeContent) -> list[Digest]:
    return [made.digest(image, 0) for image in range(50)]


#: What is done to an index, by name.
_VERBS: Final[Mapping[str, _Verb]] = {
    "a record": lambda index, made: index.get(made.digest(1, 1)),
    "some records": lambda index, made: index.records(_some(made)),
    "usage": lambda index, made: index.usage(),
    "a link": lambda index, made: index.linked(made.repo(1), made.digest(1, 1)),
    "no link": lambda index, made: index.linked(made.repo(1), _NEW.digest(1, 1)),
    "oldest images": lambda index, made: index.least_recently_used(BlobRole.ROOT, 64),
    "oldest loose blobs": lambda index, made: index.least_recently_used(BlobRole.LOOSE, 64),
    "what images name": lambda index, made: index.successors(_some(made)),
    "uses": lambda index, made: index.touch(dict.fromkeys(_some(made), 1e9)),
    "a page of digests": lambda index, made: _first_page(index),
    "a pull and an eviction": lambda index, made: _pulled(index),
    "the notes of a rebuild": lambda index, made: _rebuilt(index),
}
#: Redis looks at some thousand repositories for the first, and pages of links differ there by a few.
_IN_SQLITE: Final[Mapping[str, _Verb]] = {
    "who has it": lambda index, made: index.holders(made.digest(1, 1), 2),
    "a step of loose links": lambda index, made: _first_links(index),
}


@asynccontextmanager
async def _sqlite(path: Path, made: MadeContent) -> AsyncIterator[EmbeddedIndex]:
    index = EmbeddedIndex(path)
    await index.usage()
    await index.aclose()
    write_sqlite(path, made)
    index = EmbeddedIndex(path)
    await index.usage()
    try:
        yield index
    finally:
        await index.aclose()


async def _sqlite_steps(path: Path, made: MadeContent) -> dict[str, int]:
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    counted: dict[str, int] = {}
    async with _sqlite(path, made) as index:
        assert index._connections is not None
        for connection in (index._connections.reading, index._connections.writing):
            await connection.set_progress_handler(step, 1)
        for name, verb in {**_VERBS, **_IN_SQLITE}.items():
            before = steps
            await verb(index, made)
            counted[name] = steps - before
    return counted


async def test_sqlite_takes_as_many_steps_whatever_it_has(tmp_path: Path) -> None:
    """Of its virtual machine, with those of the triggers."""
    small = await _sqlite_steps(tmp_path / "small.sqlite", _SMALL)
    large = await _sqlite_steps(tmp_path / "large.sqlite", _LARGE)
    assert all(small.values())
    assert {name: steps for name, steps in large.items() if steps > small[name] * 1.1} == {}, (small, large)


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """An empty one for each test."""
    with RedisServer() as server:
        yield server


async def _redis_commands(server: RedisServer, store_id: str, made: MadeContent) -> dict[str, dict[str, int]]:
    counted: dict[str, dict[str, int]] = {}
    index = RedisIndex(server.address, store_id=store_id, budget=60.0)
    with Redis(unix_socket_path=str(server.socket)) as client:
        write_redis(client, store_id, made)
        for name, verb in _VERBS.items():
            client.config_resetstat()
            await verb(index, made)
            stats = client.info("commandstats")
            counted[name] = {
                command.removeprefix("cmdstat_"): int(each["calls"])
                for command, each in stats.items()
                if not re.match(r"cmdstat_(config|info|client)", command)
            }
    await index.aclose()
    return counted


async def test_redis_carries_out_as_many_commands_whatever_it_has(redis_server: RedisServer) -> None:
    """And none that takes longer the more there is."""
    small = await _redis_commands(redis_server, "small", _SMALL)
    large = await _redis_commands(redis_server, "large", _LARGE)
    # a script that the server does not know yet is sent once more
    scripts = {"evalsha", "eval", "script|load"}
    for name, commands in small.items():
        assert commands.keys() <= _CHEAP, name
        assert large[name].keys() <= _CHEAP, name
        counts = [
            {command: count for command, count in each.items() if command not in scripts}
            for each in (commands, large[name])
        ]
        assert counts[0] == counts[1], name
        assert counts[0], name


async def test_redis_looks_at_few_links_in_a_step(redis_server: RedisServer) -> None:
    """Also of a repository that has a hundred thousand, all of whose blobs are gone."""
    index, made = RedisIndex(redis_server.address, store_id="one", budget=60.0), MadeContent(20_000)
    blobs = [made.digest(image, part) for image in range(made.images) for part in range(5)]
    scans, looks, found = [], [], 0
    with Redis(unix_socket_path=str(redis_server.socket)) as client:
        async with aclosing(index):
            await index.link(made.repo(0), dict.fromkeys(blobs, 10))
            client.config_resetstat()
            async for links in index.loose_links():
                stats = client.info("commandstats")
                client.config_resetstat()
                scans.append(int(stats["cmdstat_hscan"]["calls"]))
                looks.append(int(stats.get("cmdstat_hexists", {"calls": 0})["calls"]))
                found += len(links)
    assert set(scans) == {1}
    # the table gives whole buckets
    assert max(looks) <= 2 * 300
    assert found >= len(blobs)
