"""The index and the memo over Sentinels and over a Cluster, and what a fail-over does to them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest

from mirror.aio.memo import MEMO_TAG, MISSING, Memo, redis_cache
from mirror.errors import IndexUnavailable
from mirror.index.redis import Keys, RedisIndex
from mirror.index.redis_address import Place, RedisAddress, RedisKind
from mirror.index.redis_primary import Primary, PrimaryUnknown, RedisPool, named_by_most, read_slots
from mirror.oci.reference import Repo
from mirror.policy.records import Usage
from tests.support.clock import Clock
from tests.support.index_suite import IndexSuite, digest, record
from tests.support.redis_server import RedisServer
from tests.support.redis_sets import ClusterSet, RedisSet, SentinelSet

REPO = Repo("docker.io", "library/alpine")
TAG = Keys("test").tag
#: In seconds; far beyond what a busy machine needs, for tests that are not about time.
PATIENT = 60.0


@asynccontextmanager
async def connected(
    address: RedisAddress, *, budget: float = PATIENT, now: Callable[[], float] | None = None
) -> AsyncIterator[RedisIndex]:
    """An index that is closed at the end."""
    index = RedisIndex(address, store_id="test", budget=budget, now=now or Clock(1000.0))
    try:
        yield index
    finally:
        await index.aclose()


@pytest.fixture(params=["redis_sentinels", "redis_cluster"])
def redis(request: pytest.FixtureRequest) -> RedisSet:
    """Whole and empty."""
    found: RedisSet = request.getfixturevalue(request.param)
    return found


@pytest.fixture
async def index(redis: RedisSet) -> AsyncIterator[RedisIndex]:
    async with connected(redis.address()) as index:
        yield index


@pytest.fixture
async def another(redis: RedisSet) -> AsyncIterator[RedisIndex]:
    """The same store, with connections of its own."""
    async with connected(redis.address()) as index:
        yield index


class TestEveryKind(IndexSuite):
    """The suite; its fixtures are this module's."""


async def test_answers_are_shared(redis: RedisSet) -> None:
    """What one process remembers, another one knows, until it is forgotten."""

    def memo() -> Memo:
        pool = RedisPool(redis.address(), MEMO_TAG, connections=8, budget=PATIENT)
        return Memo(shared=redis_cache(pool), budget=PATIENT)

    one, other = memo(), memo()
    for number in range(20):
        await one.put(f"key {number}", number, 60)
        assert await other.get(f"key {number}") == number
    await other.forget("key 1")
    third = memo()
    assert await third.get("key 1") is MISSING
    for each in (one, other, third):
        await each.aclose()


async def test_many_repositories_that_have_a_blob(index: RedisIndex) -> None:
    """They are looked at in several scripts, each of which is given its keys."""
    names = [Repo("docker.io", f"library/app-{number}") for number in range(700)]
    for name in names:
        await index.link(name, {digest(1): 1})
    await index.unlink(names[0], [digest(1)])
    assert len(await index.holders(digest(1), 10)) == 10
    assert set(await index.holders(digest(1), 1000)) == set(names[1:])


async def _again(operation: Callable[[], object], clock: Clock) -> object:
    """The result, once Redis can be used: each try is after the breaker's pause."""
    async with asyncio.timeout(PATIENT):
        while True:
            try:
                return await operation()  # type: ignore[misc]
            except IndexUnavailable:
                clock.time += 60
                await asyncio.sleep(0.01)


async def test_128_the_primary_dies(redis: RedisSet) -> None:
    """Row 128: calls fail at once until there is another primary, which is then used; and the index is not whole any
    more, because what the old one acknowledged last may be lost.
    """
    clock = Clock(1000.0)
    async with connected(redis.address(), now=clock) as index:
        await index.put([record(1)])
        await index.set_marker("whole")
        assert await index.marker() == "whole"
        redis.primary(TAG).kill()
        # unless the machine is so busy that another one has taken over already
        with suppress(IndexUnavailable):
            await index.put([record(2)])
        assert await _again(index.marker, clock) is None
        await _again(lambda: index.put([record(3)]), clock)
        assert await _again(lambda: index.get(digest(3)), clock) == record(3)


async def test_128_a_primary_that_slept_acknowledges_what_is_lost(redis: RedisSet) -> None:
    """Row 128: it was paused, another one took over, and it wakes: whatever it acknowledges before it learns of that
    is lost. A rebuild in which it took part does not count, nor does one that was over before.
    """
    clock, sleepy = Clock(1000.0), Clock(1000.0)
    async with (
        connected(redis.address(), budget=1.0, now=clock) as index,
        connected(redis.address(), now=sleepy) as idle,
    ):
        await _again(lambda: idle.set_marker("whole"), sleepy)
        token = str(await _again(idle.begin_rebuild, sleepy))
        old = redis.primary(TAG)
        old.pause()
        try:
            await asyncio.to_thread(redis.wait_for_another, old, TAG)
            assert await _again(index.marker, clock) is None
        finally:
            old.resume()
        # `idle` has an open connection to the old primary, which may acknowledge some of these, for nothing
        for number in itertools.count(10):
            await _again(partial(idle.put, [record(number)]), sleepy)
            if await _again(partial(index.get, digest(number)), clock) is not None:
                break
        with pytest.raises(IndexUnavailable, match="failed over during the rebuild"):
            await idle.set_marker("rebuilt", token)
        assert await _again(index.marker, clock) is None
        token = str(await _again(idle.begin_rebuild, sleepy))
        await _again(partial(idle.set_marker, "rebuilt", token), sleepy)
        assert await _again(index.marker, clock) == "rebuilt"


async def test_a_planned_fail_over_is_not_noticed(redis_cluster: ClusterSet) -> None:
    """Another node takes over while the old one goes on as its replica: the call is made again, there."""
    async with connected(redis_cluster.address()) as index:
        await index.put([record(1)])
        await index.set_marker("whole")
        await asyncio.to_thread(redis_cluster.hand_over, TAG)
        await index.put([record(2)])
        assert await index.usage() == Usage(2, 20)
        assert await index.marker() is None


async def test_a_mark_outlives_a_primary_that_is_doubted_for_a_moment(
    redis: RedisSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another call may fail between the one that finds the primary and the one that reads the mark."""
    async with connected(redis.address()) as index:
        await index.set_marker("whole")
    async with connected(redis.address()) as index:
        found = Primary.find

        async def find(primary: Primary) -> Place:
            place = await found(primary)
            primary.forget(place)
            return place

        with monkeypatch.context() as doubting:
            doubting.setattr(Primary, "find", find)
            for call in (
                index.marker,
                index.begin_rebuild,
                lambda: index.rebuild_state(""),
                lambda: index.set_marker("x"),
            ):
                with pytest.raises(IndexUnavailable, match="not known at the moment"):
                    await call()
        assert await index.marker() == "whole"


async def test_a_replica_is_never_taken_for_the_primary(redis_sentinels: SentinelSet) -> None:
    """Whatever Sentinels say: a server that says that it is a replica is not written to, and the message says why."""
    replica = next(each for each in redis_sentinels.servers if each is not redis_sentinels.primary())
    liar = await _fake_sentinel(("127.0.0.1", replica.port))
    address = RedisAddress((liar.sockets[0].getsockname()[:2],), kind=RedisKind.SENTINEL, service="mirror")
    async with connected(address) as index:
        with pytest.raises(IndexUnavailable, match="says that it is none"):
            await index.put([record(1)])
    liar.close()
    await liar.wait_closed()


async def test_one_sentinel_that_lags_is_outvoted(redis_sentinels: SentinelSet) -> None:
    """It answers first, with a server that is not the primary any more; the others are believed."""
    replica = next(each for each in redis_sentinels.servers if each is not redis_sentinels.primary())
    liar = await _fake_sentinel(("127.0.0.1", replica.port))
    nodes = (liar.sockets[0].getsockname()[:2], *redis_sentinels.nodes[:2])
    clock = Clock(1000.0)
    async with connected(RedisAddress(nodes, kind=RedisKind.SENTINEL, service="mirror"), now=clock) as index:
        # a busy machine may make the others too slow
        await _again(lambda: index.put([record(1)]), clock)
        assert await _again(index.usage, clock) == Usage(1, 10)
    liar.close()
    await liar.wait_closed()


async def _fake_sentinel(named: Place) -> asyncio.Server:
    """A Sentinel that names this server, whatever it is asked."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            host, port = named[0], str(named[1])
            writer.write(f"*2\r\n${len(host)}\r\n{host}\r\n${len(port)}\r\n{port}\r\n".encode())
        writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", 0)


@pytest.mark.parametrize("harm", [RedisServer.kill, RedisServer.pause])
async def test_sentinels_that_are_gone_or_hang(
    redis_sentinels: SentinelSet, harm: Callable[[RedisServer], None]
) -> None:
    """The one that is left is enough; with none, the reason is told, and the primary that is known is used on."""
    clock = Clock(1000.0)
    async with connected(redis_sentinels.address(), now=clock) as known:
        await known.put([record(1)])
        for each in redis_sentinels.sentinels[:2]:
            harm(each)
        async with connected(redis_sentinels.address(), now=clock) as index:
            assert await _again(lambda: index.get(digest(1)), clock) == record(1)
        harm(redis_sentinels.sentinels[2])
        async with connected(redis_sentinels.address(), budget=0.2, now=clock) as index:
            with pytest.raises(IndexUnavailable, match=r"Connection refused|in time"):
                await index.get(digest(1))
        assert await known.get(digest(1)) == record(1)


async def test_wrong_kinds_are_named(redis_sentinels: SentinelSet, redis_cluster: ClusterSet) -> None:
    """A URL of one kind for a Redis of another says so."""
    sentinel, node = redis_sentinels.nodes[0], redis_cluster.nodes[0]
    server = ("127.0.0.1", redis_sentinels.primary().port)
    other = next(each for each in redis_cluster.servers if each is not redis_cluster.primary(TAG))
    for address, reason in (
        (RedisAddress((sentinel,)), "for Sentinels, index.url must begin with redis"),
        (RedisAddress((("127.0.0.1", other.port),)), "index.url must begin with redis\\+cluster"),
        (RedisAddress((node,), kind=RedisKind.SENTINEL, service="mirror"), "it is no Sentinel"),
        (RedisAddress((sentinel,), kind=RedisKind.SENTINEL, service="other"), "do not know the service other"),
        (RedisAddress((server,), kind=RedisKind.CLUSTER), "it is no node of a Cluster"),
        (RedisAddress((sentinel,), kind=RedisKind.CLUSTER), "it is no node of a Cluster"),
    ):
        async with connected(address) as index:
            with pytest.raises(IndexUnavailable, match=reason):
                await index.usage()


async def test_what_refuses_for_a_while(redis_cluster: ClusterSet) -> None:
    """Slots that nobody has, and keys that are on the move: the reason is told, and Redis is used again afterwards."""
    clock = Clock(1000.0)
    async with connected(redis_cluster.address(), now=clock) as index:
        await index.put([record(1)])
        primary = redis_cluster.primary(TAG)
        slot = primary.command("CLUSTER", "KEYSLOT", f"{{{TAG}}}")[1:].decode().strip()
        assert primary.command("CLUSTER", "DELSLOTS", slot) == b"+OK\r\n"
        with pytest.raises(IndexUnavailable, match="Redis Cluster is down"):
            await index.get(digest(1))
        assert primary.command("CLUSTER", "ADDSLOTS", slot) == b"+OK\r\n"
        assert await _again(lambda: index.get(digest(1)), clock) == record(1)
        target = next(
            each
            for each in redis_cluster.servers
            if each is not primary and each.command("ROLE").startswith(b"*3\r\n$6\r\nmaster")
        )
        name = target.command("CLUSTER", "MYID").split(b"\r\n")[1].decode()
        assert primary.command("CLUSTER", "SETSLOT", slot, "MIGRATING", name) == b"+OK\r\n"
        with pytest.raises(IndexUnavailable, match="moving the mirror's keys"):
            await index.get(digest(1))
        assert primary.command("CLUSTER", "SETSLOT", slot, "STABLE") == b"+OK\r\n"
        assert await _again(lambda: index.get(digest(1)), clock) == record(1)


async def test_too_few_replicas_refuse_writes_only(redis_sentinels: SentinelSet) -> None:
    """A primary that is cut off from its replicas, and asked to mind that, answers reads; the breaker stays closed."""
    async with connected(redis_sentinels.address()) as index:
        await index.put([record(1)])
        primary = redis_sentinels.primary()
        primary.command("CONFIG", "SET", "min-replicas-to-write", "3")
        try:
            for _ in range(3):
                with pytest.raises(IndexUnavailable, match="too few replicas"):
                    await index.put([record(2)])
                assert await index.get(digest(1)) == record(1)
        finally:
            primary.command("CONFIG", "SET", "min-replicas-to-write", "0")
        await index.put([record(2)])


@pytest.mark.parametrize(
    ("answers", "asked", "named"),
    [
        ([], 3, None),
        ([("a", 1)], 3, None),
        ([("a", 1), ("b", 1)], 3, None),
        ([("a", 1), ("b", 1), ("a", 1)], 3, ("a", 1)),
        ([("a", 1)], 1, ("a", 1)),
        ([("a", 1), ("a", 1)], 4, None),
        ([("a", 1), ("a", 2)], 2, None),
    ],
)
def test_the_majority_decides(answers: list[Place], asked: int, named: Place | None) -> None:
    """More than half of all that were asked, not of those that answered."""
    assert named_by_most(answers, asked) == named


def test_slots_are_read_as_nodes_give_them() -> None:
    """A node without a host is the one that was asked; anything else than slots is refused."""
    reply = [[0, 5, [b"a", 1, b"id"], [b"", 2, b"id"]], [6, 9, [None, 3, b"id", []]]]
    assert read_slots(reply, ("me", 7)) == [(0, 5, [("a", 1), ("me", 2)]), (6, 9, [("me", 3)])]
    for junk in (b"OK", None, [[1]], [[0, 1, [b"a", b"x"]]], [["a", "b"]]):
        with pytest.raises(PrimaryUnknown, match="me:7 gave no list of slots"):
            read_slots(junk, ("me", 7))
