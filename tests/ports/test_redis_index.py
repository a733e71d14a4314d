"""The index in Redis: the suite, and what happens to servers. Row numbers are those of the list of faults."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

import pytest
import structlog

from mirror.errors import ConfigError, IndexUnavailable
from mirror.index import redis as redis_module
from mirror.index.leases import RedisLeases
from mirror.index.redis import Keys, RedisIndex
from mirror.index.redis_address import RedisAddress, RedisKind, RedisLogin, RedisTls, parse_redis_url
from mirror.index.redis_primary import RedisPool
from mirror.oci.reference import Repo
from mirror.policy.records import BlobRole, Usage
from mirror.ports import ContentIndex
from tests.support.clock import Clock
from tests.support.engines.ports import free_ports
from tests.support.index_suite import IndexSuite, digest, least_recently_used, names, record
from tests.support.redis_server import RedisServer

REPO = Repo("docker.io", "library/alpine")
#: In seconds; far beyond what a busy machine needs, for tests that are not about time.
PATIENT = 60.0

Connect = Callable[..., AbstractAsyncContextManager[RedisIndex]]


@asynccontextmanager
async def connected(
    address: RedisAddress, *, store_id: str = "test", budget: float = PATIENT, now: Callable[[], float] | None = None
) -> AsyncIterator[RedisIndex]:
    """An index that is closed at the end."""
    index = RedisIndex(address, store_id=store_id, budget=budget, now=now or Clock(1000.0))
    try:
        yield index
    finally:
        await index.aclose()


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """An empty one for each test."""
    with RedisServer() as server:
        yield server


@pytest.fixture
async def index(redis_server: RedisServer) -> AsyncIterator[RedisIndex]:
    """On the test's server."""
    async with connected(redis_server.address) as index:
        yield index


@pytest.fixture
async def another(redis_server: RedisServer) -> AsyncIterator[RedisIndex]:
    """The same store on the same server, with connections of its own."""
    async with connected(redis_server.address) as index:
        yield index


class TestRedisIndex(IndexSuite):
    """The suite; its fixtures are this module's."""


async def test_stores_that_share_a_redis(index: RedisIndex, redis_server: RedisServer) -> None:
    """Two store ids do not see each other, and clearing one leaves the other."""
    async with connected(redis_server.address, store_id="other") as other:
        for each, size in ((index, 1), (other, 2)):
            await each.put([record(1, size=size)])
            await each.link(REPO, {digest(1): size})
            await each.set_marker(str(size))
        await index.clear()
        assert await index.usage() == Usage(0, 0)
        assert await other.usage() == Usage(1, 2)
        assert await other.linked(REPO, digest(1)) == 2
        assert await other.marker() == "2"


async def test_clear_leaves_no_key_behind(index: RedisIndex, redis_server: RedisServer) -> None:
    """After `clear`, or after everything was dropped and unlinked but for a counter, nothing takes memory."""
    await index.put([record(1), record(2), record(3)])
    await index.record_references([names(1, 2, manifests=[3, 4])])
    await index.link(REPO, {digest(1): 1})
    await index.set_marker("x")
    redis_server.command("SET", "foreign", "1")
    await index.clear()
    assert redis_server.command("KEYS", "*") == b"*1\r\n$7\r\nforeign\r\n"
    await index.link(REPO, {digest(1): 1})
    await index.unlink(REPO, [digest(1)])
    await index.put([record(1), record(2)])
    await index.record_references([names(1, 2, manifests=[3, 4])])
    await index.drop([digest(2), digest(1)])
    redis_server.command("DEL", *[key for key in Keys("test").fixed if key.endswith(":bytes")])
    assert redis_server.command("KEYS", "*") == b"*1\r\n$7\r\nforeign\r\n"


@pytest.mark.parametrize("store_id", ["", "a b", "a:b", "*", "x" * 129])
def test_a_store_id_cannot_leave_its_prefix(store_id: str) -> None:
    """An id that could be read as another key, or as a pattern, is refused."""
    with pytest.raises(ValueError, match="store id"):
        Keys(store_id)


async def test_one_outage_is_told_once_and_bypassed(redis_server: RedisServer) -> None:
    """Rows 46, 47: a Redis that is gone is asked once, then again after 1, 2, 4 … 30 s; back, it is used again."""
    clock = Clock(1000.0)
    async with connected(redis_server.address, now=clock) as index:
        await index.put([record(1)])
        redis_server.kill()
        with structlog.testing.capture_logs() as logged:
            for pause in (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0):
                # the connection that was open may be found closed first
                with pytest.raises(IndexUnavailable, match=r"Connection refused|connection to Redis broke"):
                    await index.usage()
                clock.time += pause - 0.1
                with pytest.raises(IndexUnavailable, match="left alone"):
                    await index.usage()
                clock.time += 0.2
            redis_server.start()
            assert await index.usage() == Usage(0, 0)
            assert await index.marker() is None
        assert [line["event"] for line in logged] == ["index unavailable", "index available"]


async def test_redis_absent_at_start(redis_server: RedisServer) -> None:
    """Row 46: an index made while nothing listens works once something does."""
    redis_server.kill()
    clock = Clock(1000.0)
    async with connected(redis_server.address, now=clock) as index:
        with pytest.raises(IndexUnavailable):
            await index.get(digest(1))
        redis_server.start()
        clock.time += 1
        await index.put([record(1)])
        assert await index.get(digest(1)) == record(1)


async def test_a_connection_that_breaks(redis_server: RedisServer) -> None:
    """Row 47: in words, as operators see it in the log and in `mirror status`."""
    async with connected(redis_server.address) as index:
        await index.put([record(1)])
        redis_server.kill()
        with pytest.raises(IndexUnavailable, match=r"the connection to Redis broke|no connection to Redis"):
            await index.get(digest(1))


async def test_a_closed_port() -> None:
    """Row 46: a refused connection is an `IndexUnavailable`."""
    async with connected(RedisAddress((("127.0.0.1", free_ports(1)[0]),))) as index:
        with pytest.raises(IndexUnavailable, match="no connection to Redis: Connection refused"):
            await index.usage()


async def test_a_hung_redis_costs_one_budget(redis_server: RedisServer) -> None:
    """Row 48: whoever waits is let go after the budget, and from then on nobody waits, until it answers again."""
    clock = Clock(1000.0)
    async with connected(redis_server.address, budget=0.2, now=clock) as index:
        while True:  # a busy machine may need more than one try to connect in time
            try:
                await index.put([record(1)])
                break
            except IndexUnavailable:
                clock.time += 60
        redis_server.pause()
        try:
            told = await asyncio.gather(*(index.get(digest(1)) for _ in range(50)), return_exceptions=True)
            assert all(isinstance(each, IndexUnavailable) for each in told)
            with pytest.raises(IndexUnavailable, match="left alone"):
                await index.usage()
            clock.time += 1.5
            probes = await asyncio.gather(*(index.usage() for _ in range(20)), return_exceptions=True)
            assert sum("in time" in str(each) for each in probes) == 1
            assert sum("left alone" in str(each) for each in probes) == 19
        finally:
            redis_server.resume()
        while True:
            clock.time += 60
            try:
                assert await index.get(digest(1)) == record(1)
                break
            except IndexUnavailable:
                continue
        assert len(await asyncio.gather(*(index.get(digest(1)) for _ in range(5)))) == 5


async def test_a_killed_redis_lets_go_of_everybody(index: RedisIndex, redis_server: RedisServer) -> None:
    """Row 47: operations under way when it dies end with `IndexUnavailable`, none hangs."""
    await index.put([record(1)])
    redis_server.pause()
    waiting = [asyncio.ensure_future(index.get(digest(1))) for _ in range(40)]
    for _ in range(20):
        await asyncio.sleep(0)
    redis_server.kill()
    told = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(each, IndexUnavailable) for each in told)


async def test_flushall_shows_in_the_marker(index: RedisIndex, redis_server: RedisServer) -> None:
    """Row 49: after FLUSHALL there is no marker and nothing to evict; what is put then is counted from nothing."""
    await index.put([record(1), record(2)])
    await index.set_marker("whole")
    redis_server.command("FLUSHALL")
    assert await index.marker() is None
    assert await least_recently_used(index, 10) == []
    await index.drop([digest(1)])
    await index.put([record(2)])
    assert await index.usage() == Usage(1, 10)


async def test_flushall_in_the_middle_of_a_rebuild(index: RedisIndex, redis_server: RedisServer) -> None:
    """Row 49: what the rebuild had put before is gone, so it sets no mark; the next one does."""
    token = await index.begin_rebuild()
    await index.put([record(1)])
    redis_server.command("FLUSHALL")
    await index.put([record(2)])
    with pytest.raises(IndexUnavailable, match="emptied or failed over during the rebuild"):
        await index.set_marker("whole", token)
    assert await index.marker() is None
    await index.set_marker("whole", await index.begin_rebuild())
    assert await index.marker() == "whole"


async def test_out_of_memory_refuses_writes_only(index: RedisIndex, redis_server: RedisServer) -> None:
    """Row 50: writes fail and say why, reads answer, drops work, and the breaker stays closed."""
    await index.put([record(number) for number in range(300)])
    await index.link(REPO, {digest(999): 1})
    await index.set_marker("whole")
    redis_server.command("CONFIG", "SET", "maxmemory", "1mb")
    for _ in range(3):
        with pytest.raises(IndexUnavailable, match="out of memory"):
            await index.put([record(1000)])
        with pytest.raises(IndexUnavailable, match="out of memory"):
            await index.link(REPO, {digest(1): 1})
        assert await index.get(digest(1)) == record(1)
        assert await index.marker() == "whole"
    await index.drop([digest(number) for number in range(100)])
    assert await index.usage() == Usage(200, 2000)
    assert [each async for each in index.loose_links()] == [[(REPO, digest(999))]]
    await index.unlink(REPO, [digest(999)])
    assert [each async for each in index.loose_links()] == []
    redis_server.command("CONFIG", "SET", "maxmemory", "0")
    await index.put([record(1000)])
    assert await index.usage() == Usage(201, 2010)


async def test_a_read_only_replica_is_bypassed(redis_server: RedisServer) -> None:
    """Row 51: a write that a replica refuses opens the breaker; promoted, it is used again."""
    clock = Clock(1000.0)
    redis_server.command("REPLICAOF", "127.0.0.1", "1")
    async with connected(redis_server.address, now=clock) as index:
        with pytest.raises(IndexUnavailable, match="read-only replica"):
            await index.put([record(1)])
        with pytest.raises(IndexUnavailable, match="left alone"):
            await index.get(digest(1))
        redis_server.command("REPLICAOF", "NO", "ONE")
        clock.time += 1
        await index.put([record(1)])
        assert await index.usage() == Usage(1, 10)


async def test_no_script_goes_over_many_large_manifests(
    index: RedisIndex, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All others wait while one runs: it leaves the rest to the next, and together they do the whole."""
    monkeypatch.setattr(redis_module, "_REFERENCES", 6)
    manifests = [names(number, *range(number + 1, number + 6)) for number in range(0, 60, 10)]
    await index.put([record(number) for number in range(60)])
    await index.record_references(manifests)
    found = await index.successors([digest(number) for number in range(0, 60, 5)])
    assert {manifest: {each.record.digest for each in blobs} for manifest, blobs in found.items()} == {
        each.digest: set(each.blobs) for each in manifests
    }
    redis_server.command("CONFIG", "RESETSTAT")
    await index.drop([each.digest for each in manifests])
    # two of five references each
    assert b"evalsha:calls=3," in redis_server.command("INFO", "commandstats")
    assert await index.successors([each.digest for each in manifests]) == {}
    assert await index.usage() == Usage(54, 540)
    assert len(await index.least_recently_used(BlobRole.LOOSE, 100)) == 54
    await index.drop([digest(number) for number in range(60)])
    assert await index.usage() == Usage(0, 0)


async def test_whoever_gives_up_takes_no_connection_along(redis_server: RedisServer) -> None:
    """At the very moment when one becomes free: the next one that waits gets it."""
    pool = RedisPool(redis_server.address, "mirror:test", connections=1, budget=1.0)
    for _ in range(3):
        held = await pool.get_connection()
        first, second = (asyncio.create_task(pool.get_connection()) for _ in range(2))
        # both wait now
        await asyncio.sleep(0)
        await pool.release(held)
        first.cancel()
        async with asyncio.timeout(PATIENT):
            await pool.release(await second)
        assert first.cancelled()
    await pool.aclose()


async def test_clients_that_leave_do_not_look_like_an_outage(redis_server: RedisServer) -> None:
    """Many at once, for few connections: whoever stays gets an answer, and that of the own question."""
    dice = random.Random(7)
    index = RedisIndex(redis_server.address, store_id="test", budget=PATIENT, connections=3)
    await index.put([record(number, size=number + 1) for number in range(20)])
    for _ in range(200):
        asked = [asyncio.create_task(index.get(digest(number))) for number in range(12)]
        for each in asked:
            for _ in range(dice.randrange(6)):
                await asyncio.sleep(0)
            if dice.random() < 0.4:
                each.cancel()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for number, answer in enumerate(answers):
            assert isinstance(answer, asyncio.CancelledError) or answer == record(number, size=number + 1)
    await index.aclose()


@pytest.mark.parametrize(
    "said",
    [
        b":abc\r\n",
        b"$x\r\n",
        b"*2\r\n:1\r\n:q\r\n",
        b"*1\r\n" * 5000,
        b"-MOVED nowhere\r\n",
        b"-ASK 1\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
)
@pytest.mark.parametrize("kind", list(RedisKind))
async def test_bytes_that_no_redis_sends_are_no_answer(said: bytes, kind: RedisKind) -> None:
    """Whatever listens there: whoever asks the index goes on without it."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 16)
        writer.write(said)
        # until it has enough of this
        with suppress(ConnectionError):
            await reader.read()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        address = RedisAddress((server.sockets[0].getsockname()[:2],), kind=kind, service="mirror")
        async with connected(address) as index:
            with pytest.raises(IndexUnavailable):
                await index.put([record(1)])
        leases = RedisLeases(address, owner="me", budget=PATIENT)
        with pytest.raises(IndexUnavailable):
            await leases.take("run", 60)
        await leases.aclose()


async def test_a_wrong_password_is_told_without_it(redis_server: RedisServer) -> None:
    """Row 52: wrong, missing or right: the message is clear, and no secret is in message, cause, `repr` or log."""
    redis_server.restart("--requirepass", "right-s3cret")
    wrong = RedisAddress(socket=str(redis_server.socket), login=RedisLogin(password="wrong-s3cret"))
    for address in (wrong, redis_server.address):
        with structlog.testing.capture_logs() as logged:
            async with connected(address) as index:
                with pytest.raises(IndexUnavailable, match="refused the user name or password") as caught:
                    await index.usage()
        assert len(logged) == 1
        assert "s3cret" not in f"{logged}{caught.value!r}{caught.value.__cause__!r}{address!r}{address}"
    async with connected(
        RedisAddress(socket=str(redis_server.socket), login=RedisLogin(password="right-s3cret"))
    ) as index:
        assert await index.usage() == Usage(0, 0)


@pytest.mark.parametrize("name", [*Keys.NAMES, "links"])
@pytest.mark.parametrize("kind", ["string", "list"])
async def test_keys_of_a_wrong_type_are_a_loss(
    index: RedisIndex, redis_server: RedisServer, name: str, kind: str
) -> None:
    """Row 54: junk under any of our keys raises nothing; where records are lost the marker is, and puts count again."""
    keys = Keys("test")
    key = dict(zip(Keys.NAMES, keys.fixed, strict=True)).get(name, keys.links(str(REPO)))
    records = [record(number) for number in range(1, 6)]
    told = [names(1, 2, manifests=[3]), names(4)]
    await index.put(records)
    await index.record_references(told)
    await index.link(REPO, {digest(1): 10})
    await index.set_marker("whole")
    redis_server.command("DEL", key)
    redis_server.command(*(("SET", key, "junk") if kind == "string" else ("RPUSH", key, "junk")))

    await index.get(digest(1))
    for standing in BlobRole:
        await index.least_recently_used(standing, 10)
    await index.successors([digest(1)])
    [_ async for _ in index.digests()]
    [_ async for _ in index.loose_links()]
    await index.usage()
    await index.linked(REPO, digest(1))
    await index.touch({digest(1): 300.0})
    await index.put(records)
    await index.record_references(told)
    await index.link(REPO, {digest(1): 10})
    assert await index.linked(REPO, digest(1)) == 10
    if (name, kind) == ("marker", "string"):
        assert await index.marker() == "junk"
    elif name not in ("rebuild", "rebuilt", "repos", "links"):
        assert await index.marker() is None
    await index.put(records)
    await index.record_references(told)
    assert await index.usage() == Usage(5, 50)
    assert [each.digest for each in await least_recently_used(index, 10)] == [digest(5)]
    assert {each.digest for each in await index.least_recently_used(BlobRole.ROOT, 10)} == {digest(1), digest(4)}
    await index.clear()
    assert await index.usage() == Usage(0, 0)


async def test_values_that_make_no_sense_are_a_miss(index: RedisIndex, redis_server: RedisServer) -> None:
    """Row 54: junk values among good ones are passed over, the good ones are found."""
    await index.put([record(1), record(2)])
    used, _, _, sizes, *_ = Keys("test").fixed
    redis_server.command("ZADD", used, "-5", "nonsense", "-4", str(digest(8)))
    redis_server.command("HSET", sizes, "nonsense", "1", str(digest(2)), "ten", str(digest(9)), "-3")
    redis_server.command("HSET", Keys("test").links(str(REPO)), str(digest(1)), "many")
    assert await least_recently_used(index, 10) == [record(1)]
    assert await least_recently_used(index, 1) == [record(1)]
    assert await index.get(digest(2)) is None
    assert await index.get(digest(8)) is None
    assert await index.get(digest(9)) is None
    assert await index.linked(REPO, digest(1)) is None


@pytest.mark.parametrize("lost", ["loose", "root", "named", "sizes", "names", "parents", "bytes"])
async def test_a_redis_that_evicts_keys(index: RedisIndex, redis_server: RedisServer, lost: str) -> None:
    """A key that Redis dropped on its own makes the marker go, so that a rebuild follows and counts exactly."""
    records = [record(1), record(2), record(3)]
    await index.put(records)
    await index.record_references([names(1, 2)])
    await index.set_marker("whole")
    assert await index.marker() == "whole"
    redis_server.command("DEL", dict(zip(Keys.NAMES, Keys("test").fixed, strict=True))[lost])
    assert await index.marker() is None
    await index.put(records)
    await index.record_references([names(1, 2)])
    assert await index.usage() == Usage(3, 30)
    assert await index.least_recently_used(BlobRole.ROOT, 9) == [record(1)]
    assert await index.least_recently_used(BlobRole.NAMED, 9) == [record(2)]
    assert await index.least_recently_used(BlobRole.LOOSE, 9) == [record(3)]


async def test_times_and_sizes_are_exact(index: RedisIndex) -> None:
    """No digit is lost on the way through Lua's numbers."""
    exact = record(1, size=2**52 + 1, last_used=1732419199.1234567)
    await index.put([exact, record(2, size=1)])
    assert await index.get(digest(1)) == exact
    assert await index.usage() == Usage(2, 2**52 + 2)
    await index.touch({digest(1): 1732419199.1234569})
    assert await least_recently_used(index, 1) == [record(2, size=1)]
    await index.put([record(3)])
    await index.record_references([names(3, 1)])
    await index.drop([digest(3)])
    assert await index.get(digest(1)) == record(1, size=2**52 + 1, last_used=1732419199.1234569)


async def test_scripts_lost_in_a_restart_are_sent_again(index: RedisIndex, redis_server: RedisServer) -> None:
    """A server that does not know our scripts learns them."""
    await index.put([record(1)])
    redis_server.command("SCRIPT", "FLUSH")
    assert await index.get(digest(1)) == record(1)


async def test_closed_is_unavailable(index: RedisIndex) -> None:
    """After `aclose` it says so."""
    await index.aclose()
    with pytest.raises(IndexUnavailable, match="closed"):
        await index.usage()


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://cache", RedisAddress((("cache", 6379),))),
        ("redis://cache:6380/2\n", RedisAddress((("cache", 6380),), db=2)),
        ("REDIS://[::1]:1/?db=3", RedisAddress((("::1", 1),), db=3)),
        ("redis://me:p%40ss%2F@h", RedisAddress((("h", 6379),), login=RedisLogin("me", "p@ss/"))),
        ("redis://:p@h/", RedisAddress((("h", 6379),), login=RedisLogin(None, "p"))),
        ("rediss://h?ssl_ca_certs=/ca.pem", RedisAddress((("h", 6379),), tls=RedisTls("/ca.pem"))),
        (
            "rediss://h/1?ssl_certfile=/c&ssl_keyfile=/k",
            RedisAddress((("h", 6379),), db=1, tls=RedisTls(None, "/c", "/k")),
        ),
        ("unix:///run/redis.sock", RedisAddress(socket="/run/redis.sock")),
        (
            "unix://me:p@/run/redis.sock?db=4",
            RedisAddress(socket="/run/redis.sock", db=4, login=RedisLogin("me", "p")),
        ),
        (
            "redis+sentinel://me:p@a:1,[::1],a:1/my-master/2?sentinel_username=it",
            RedisAddress(
                (("a", 1), ("::1", 26379)),
                kind=RedisKind.SENTINEL,
                service="my-master",
                db=2,
                login=RedisLogin("me", "p"),
                sentinel_login=RedisLogin("it"),
            ),
        ),
        (
            "rediss+sentinel://h/s?ssl_ca_certs=/ca.pem",
            RedisAddress((("h", 26379),), kind=RedisKind.SENTINEL, service="s", tls=RedisTls("/ca.pem")),
        ),
        (
            "redis+cluster://:p@a,b:7/",
            RedisAddress((("a", 6379), ("b", 7)), kind=RedisKind.CLUSTER, login=RedisLogin(None, "p")),
        ),
        ("rediss+cluster://a/0", RedisAddress((("a", 6379),), kind=RedisKind.CLUSTER, tls=RedisTls())),
    ],
)
def test_addresses_are_read(url: str, address: RedisAddress) -> None:
    """Every form of URL that is promised."""
    assert parse_redis_url(url) == address


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "must begin with"),
        ("s3cret", "must begin with"),
        ("http://:s3cret@h", "must begin with"),
        ("s3cret://h", "must begin with"),
        ("sentinel://h", "write redis+sentinel://"),
        ("redis-cluster://h", "write redis+sentinel://"),
        ("rediss+clusters://h", "write redis+sentinel://"),
        ("redis+other://h", "must begin with"),
        ("redis+sentinel://:s3cret@h:26379", "name of the service is missing"),
        ("redis+sentinel://:s3cret@h:26379/s%20t", "name of the service is missing"),
        ("redis+sentinel://:s3cret@/s", "host is missing"),
        ("redis+sentinel://:s3cret@h/s/x", "database is not a number"),
        ("redis+sentinel://h/s?sentinel_password=s3cret", "its query may only have db, sentinel_username"),
        ("redis+sentinel://h/s?sentinel_password_file=/nowhere", "sentinel_password_file cannot be read: No such file"),
        ("redis+cluster://:s3cret@a,b/1", "a Cluster has database 0 only"),
        ("redis+cluster://a?db=0", "its query must be empty"),
        ("redis+cluster://a,b:s3cret", "host or port cannot be read"),
        ("redis+cluster://a,::1:6379", "host or port cannot be read"),
        ("redis+cluster://", "host is missing"),
        ("redis://:s3cret@h1:1,h2:2", "several hosts"),
        ("redis://:s3cret@h1,h2:2", "several hosts"),
        ("redis://", "host is missing"),
        ("redis://:s3cret@", "host is missing"),
        ("redis://h:port", "host or port cannot be read"),
        ("redis://h:99999", "host or port cannot be read"),
        ("redis://[::1", "host or port cannot be read"),
        ("redis://:s3cret/more@h", "host or port cannot be read"),
        ("redis://:s3cret#more@h", "percent-encoded"),
        ("redis://h/s3cret", "database is not a number"),
        ("redis://h?s3cret=1", "its query may only have db"),
        ("redis://h?ssl_ca_certs=/x", "its query may only have db"),
        ("unix://run/redis.sock", "absolute path"),
        ("unix://", "absolute path"),
    ],
)
def test_addresses_that_cannot_work_are_refused(url: str, said: str) -> None:
    """The mistake is named, and nothing of the URL is repeated that could be the password."""
    with pytest.raises(ConfigError) as caught:
        parse_redis_url(url)
    assert said in str(caught.value)
    assert "s3cret" not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_every_mistake_of_an_address_is_named_at_once() -> None:
    """Two mistakes are two lines."""
    with pytest.raises(ConfigError) as caught:
        parse_redis_url("redis:///abc")
    assert len(caught.value.mistakes) == 2


async def test_tcp_and_tls(tmp_path: Path) -> None:
    """A server over TLS is used when its certificate is vouched for, and not otherwise."""
    making = await asyncio.create_subprocess_exec(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem"), "-days", "2"),
        *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await making.wait() == 0
    certificate = str(tmp_path / "cert.pem")
    [port] = free_ports(1)
    with RedisServer(
        *("--tls-port", str(port), "--bind", "127.0.0.1", "--tls-auth-clients", "no"),
        *(
            "--tls-cert-file",
            certificate,
            "--tls-key-file",
            str(tmp_path / "key.pem"),
            "--tls-ca-cert-file",
            certificate,
        ),
    ):
        trusting = parse_redis_url(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}")
        async with connected(trusting) as index:
            await index.put([record(1)])
            assert await index.usage() == Usage(1, 10)
        async with connected(parse_redis_url(f"rediss://127.0.0.1:{port}")) as index:
            with pytest.raises(IndexUnavailable):
                await index.usage()


def test_it_is_a_content_index() -> None:
    """It has every method of the port (checked by the type checker as well)."""
    index: ContentIndex = RedisIndex(RedisAddress(socket="/nowhere"), store_id="x")
    assert isinstance(index, RedisIndex)
