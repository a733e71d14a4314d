"""Indexes in Redis of stores that are gone: who counts as gone, and what is left of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mirror.errors import IndexUnavailable
from mirror.index.redis import RedisIndex
from mirror.index.redis_stores import remove_gone_stores
from mirror.oci.reference import Repo
from tests.support.index_suite import digest, record
from tests.support.redis_server import RedisServer
from tests.support.redis_sets import ClusterSet

_REPO = Repo("docker.io", "library/alpine")
#: In seconds.
_PATIENT = 60.0


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """An empty one for each test."""
    with RedisServer() as server:
        yield server


async def _fill(server: RedisServer, store: str) -> None:
    index = RedisIndex(server.address, store_id=store, budget=_PATIENT)
    await index.put([record(1)])
    await index.link(_REPO, {digest(1): 1})
    await index.set_marker("whole")
    await index.aclose()


async def _remove(server: RedisServer, store: str) -> list[str]:
    return sorted(await remove_gone_stores(server.address, store, budget=_PATIENT))


def _keys(server: RedisServer, pattern: str) -> int:
    return int(server.command("KEYS", pattern).partition(b"\r\n")[0][1:])


async def test_the_index_of_a_disk_that_is_gone_is_deleted(server: RedisServer) -> None:
    """And no other one: each says that it is in use, now and again."""
    for store in ("gone", "here", "also-here"):
        await _fill(server, store)
        assert await _remove(server, store) == []
    server.command("DEL", "{mirror:3:gone}:alive")
    assert await _remove(server, "here") == ["gone"]
    assert _keys(server, "*gone*") == 0
    assert _keys(server, "{mirror:3:here}:*") == _keys(server, "{mirror:3:also-here}:*") > 5
    assert await _remove(server, "also-here") == []
    members = server.command("SMEMBERS", "{mirror:stores}:ids")
    assert b"here" in members
    assert b"gone" not in members


async def test_time_passes_on_the_clock_of_redis(server: RedisServer) -> None:
    """For some days, whatever time it is at a mirror."""
    await _remove(server, "one")
    left = int(server.command("PTTL", "{mirror:3:one}:alive")[1:])
    assert 3 * 86_400_000 < left <= 4 * 86_400_000


async def test_a_store_that_comes_back_is_rebuilt(server: RedisServer) -> None:
    """Its mark is gone with the rest, and it is on the list again."""
    await _fill(server, "slept")
    await _remove(server, "slept")
    server.command("DEL", "{mirror:3:slept}:alive")
    assert await _remove(server, "here") == ["slept"]
    index = RedisIndex(server.address, store_id="slept", budget=_PATIENT)
    assert await index.marker() is None
    await index.aclose()
    assert await _remove(server, "slept") == []
    assert b"slept" in server.command("SMEMBERS", "{mirror:stores}:ids")


async def test_a_full_redis_takes_nobody_for_gone(server: RedisServer) -> None:
    """It refuses writes, and yet is told who is there; and what is gone makes room."""
    for store in ("gone", "here"):
        await _fill(server, store)
        await _remove(server, store)
    server.command("DEL", "{mirror:3:gone}:alive", "{mirror:3:here}:alive")
    server.command("CONFIG", "SET", "maxmemory", "1")
    assert await _remove(server, "here") == ["gone"]
    assert _keys(server, "*gone*") == 0
    assert _keys(server, "{mirror:3:here}:alive") == 1


async def test_what_no_mirror_has_written_is_taken_off_the_list(server: RedisServer) -> None:
    """It could be no store, whoever put it there."""
    server.command("SADD", "{mirror:stores}:ids", "a b", "*")
    assert await _remove(server, "here") == ["*", "a b"]
    assert await _remove(server, "here") == []


async def test_a_redis_that_does_not_answer(server: RedisServer) -> None:
    """The next round is early enough."""
    server.kill()
    with pytest.raises(IndexUnavailable):
        await _remove(server, "here")


async def test_in_a_cluster_the_list_is_at_another_node(redis_cluster: ClusterSet) -> None:
    """Each part is asked for where it is."""
    address = redis_cluster.address()
    for store in ("a", "b", "c"):
        assert await remove_gone_stores(address, store, budget=_PATIENT) == []
    primary = redis_cluster.primary("mirror:3:a")
    primary.command("DEL", "{mirror:3:a}:alive")
    assert await remove_gone_stores(address, "b", budget=_PATIENT) == ["a"]
