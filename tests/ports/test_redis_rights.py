"""Redis with TLS and with a user who has the least rights, for each kind; and `mirror check --online`, which names what
is missing.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from mirror.aio.memo import MEMO_TAG, Memo, redis_cache
from mirror.errors import IndexUnavailable
from mirror.index import leases, redis_scripts
from mirror.index.leases import RedisLeases
from mirror.index.probing import NEEDED, NEEDED_IN_CLUSTER, USEFUL, RedisCheck, check_redis, probe_redis
from mirror.index.redis import Keys, RedisIndex
from mirror.index.redis_address import RedisAddress, RedisKind, RedisLogin, RedisTls, parse_redis_url
from mirror.index.redis_primary import RedisPool
from mirror.index.redis_stores import remove_gone_stores
from mirror.oci.reference import Repo
from mirror.policy.records import BlobRole
from tests.support.clock import Clock
from tests.support.index_suite import digest, names, record
from tests.support.redis_server import RedisServer
from tests.support.redis_sets import ClusterSet, RedisSet, SentinelSet

_ROOT = Path(__file__).parents[2]
#: In seconds; far beyond what a busy machine needs.
_PATIENT = 60.0
_LOGIN = RedisLogin("least", "s3cret")


class _Redis:
    """One of any kind, with a user whose rights a test sets."""

    def __init__(self, redis: RedisServer | RedisSet) -> None:
        self._redis = redis

    @property
    def address(self) -> RedisAddress:
        """With the user's login."""
        if isinstance(self._redis, RedisServer):
            return RedisAddress(socket=str(self._redis.socket), login=_LOGIN)
        return self._redis.address(_LOGIN)

    def allow(self, *commands: str) -> None:
        """The user may send these, to keys of the mirror."""
        rights = [f"+{command}" for command in commands]
        words = ("ACL", "SETUSER", "least", "reset", "on", f">{_LOGIN.password}", "~{mirror:*", *rights)
        for server in [self._redis] if isinstance(self._redis, RedisServer) else self._redis.servers:
            assert server.command(*words) == b"+OK\r\n"

    @property
    def kind(self) -> RedisKind:
        return self.address.kind


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(params=["redis_server", "redis_sentinels", "redis_cluster"])
def redis(request: pytest.FixtureRequest) -> _Redis:
    """Empty, of each kind."""
    return _Redis(request.getfixturevalue(request.param))


def _commands(*lines: str) -> list[str]:
    """As users are given the right to them: `hget`, `cluster|slots`."""
    return [line.partition(" ")[0].lower() if " K" in line else line.replace(" ", "|").lower() for line in lines]


def _needed(kind: RedisKind) -> list[str]:
    return _commands(*NEEDED, *(NEEDED_IN_CLUSTER if kind is RedisKind.CLUSTER else ()))


async def _use_all(address: RedisAddress) -> None:
    """Everything that the mirror ever asks of Redis."""
    index = RedisIndex(address, store_id="test", budget=_PATIENT)
    repo = Repo("docker.io", "library/alpine")
    await index.put([record(1), record(2), record(3)])
    await index.record_references([names(1, 2, manifests=[3])])
    await index.touch({digest(1): 300.0})
    assert await index.get(digest(1))
    for role in BlobRole:
        await index.least_recently_used(role, 10)
    assert await index.successors([digest(1)])
    assert [each async for each in index.digests()]
    await index.usage()
    await index.link(repo, {digest(1): 1, digest(2): -1})
    assert await index.linked(repo, digest(1)) == 1
    assert await index.holders(digest(1), 5) == [repo]
    assert [each async for each in index.loose_links()] == [[]]
    await index.unlink(repo, [digest(1), digest(2)])
    token = await index.begin_rebuild("3")
    await index.note_rebuilt("part", 1, token)
    assert await index.rebuild_state("3")
    assert await index.records([digest(1)])
    await index.set_marker("whole", token)
    assert await index.marker() == "whole"
    await index.link(repo, {digest(1): 1})
    await index.drop([digest(1), digest(2)])
    await index.clear()
    await index.aclose()
    assert await remove_gone_stores(address, "one", budget=_PATIENT) == []
    assert await remove_gone_stores(address, "other", budget=_PATIENT) == []
    of_runs = RedisLeases(address, owner="me", budget=_PATIENT)
    for _ in range(2):
        assert await of_runs.take("run", 60) is None
    other = RedisLeases(address, owner="another", budget=_PATIENT)
    assert await other.take("run", 60)
    await of_runs.give_back("run")
    await of_runs.aclose()
    await other.aclose()
    memo = Memo(shared=redis_cache(RedisPool(address, MEMO_TAG, connections=2, budget=_PATIENT)), budget=_PATIENT)
    await memo.put("key", 1, 60)
    second = Memo(shared=redis_cache(RedisPool(address, MEMO_TAG, connections=2, budget=_PATIENT)), budget=_PATIENT)
    assert await second.get("key") == 1
    await memo.forget("key")
    await memo.aclose()
    await second.aclose()


async def test_the_least_rights_are_enough(redis: _Redis) -> None:
    """With the documented commands everything works, and the check finds nothing missing."""
    redis.allow(*_needed(redis.kind))
    await _use_all(redis.address)
    checks = await check_redis(redis.address, budget=_PATIENT)
    assert [each for each in checks if not each.ok] == []
    assert not any(each.step == "memory" for each in checks)
    redis.allow(*_needed(redis.kind), *_commands(*USEFUL))
    assert any(each.step == "memory" for each in await check_redis(redis.address, budget=_PATIENT))
    assert "s3cret" not in str(checks)


def test_the_list_of_commands_is_that_of_the_scripts() -> None:
    """Whatever a script calls is in the list, and whatever is in the list is sent by something."""
    scripts = "".join(Path(str(module.__file__)).read_text() for module in (redis_scripts, leases))
    called = {command.lower() for command in re.findall(r"redis\.p?call\('([A-Z]+)'", scripts)}
    # chosen by a variable; scripts themselves; what aiocache sends
    called |= {"hset", "hsetnx", "eval", "evalsha", "psetex", "del", "get"}
    assert sorted(_commands(*NEEDED)) == sorted(called)


async def test_each_missing_command_is_named(redis_server: RedisServer) -> None:
    """One after the other, by `mirror check`; and a call that lacks it says so."""
    redis = _Redis(redis_server)
    for missing in _needed(RedisKind.SINGLE):
        redis.allow(*(command for command in _needed(RedisKind.SINGLE) if command != missing))
        [found] = [each for each in await check_redis(redis.address, budget=_PATIENT) if not each.ok]
        assert found.step == "rights"
        assert missing.upper() in found.detail
        assert "redis.md" in found.advice
    redis.allow(*(command for command in _needed(RedisKind.SINGLE) if command != "hget"))
    async with aclosing(RedisIndex(redis.address, store_id="test", budget=_PATIENT)) as index:
        with pytest.raises(IndexUnavailable, match="lacks a right"):
            await index.get(digest(1))
    redis_server.command("ACL", "SETUSER", "least", "resetkeys", "~other:*", "+@all")
    [found] = [each for each in await check_redis(redis.address, budget=_PATIENT) if not each.ok]
    assert "{mirror:" in found.detail


def test_the_page_has_these_commands() -> None:
    """The line with which an administrator makes the user."""
    [line] = re.findall(r"^ACL SETUSER mirror .*$", (_ROOT / "docs" / "redis.md").read_text(), re.MULTILINE)
    given = re.findall(r"\+(\S+)", line)
    assert sorted(given) == sorted(_commands(*NEEDED, *NEEDED_IN_CLUSTER, *USEFUL))
    assert "~{mirror:*" in line


async def test_what_the_check_says_of_sentinels(redis_sentinels: SentinelSet) -> None:
    """Each of them, the primary, its replicas and what it does without them."""
    address = redis_sentinels.address()
    first = redis_sentinels.primary()
    found = {each.step: each for each in await check_redis(address, budget=_PATIENT)}
    assert set(found) == {*(f"node 127.0.0.1:{port}" for _, port in redis_sentinels.nodes), *_STEPS, "fail-over"}
    assert all(each.ok for each in found.values())
    assert f"names 127.0.0.1:{first.port}" in found[f"node 127.0.0.1:{redis_sentinels.nodes[0][1]}"].detail
    assert f"Sentinel, primary at 127.0.0.1:{first.port}" in found["answer"].detail
    assert found["fail-over"].detail == "2 replicas, min-replicas-to-write is not set"
    assert "min-replicas-to-write 1" in found["fail-over"].advice
    first.command("CONFIG", "SET", "min-replicas-to-write", "1")
    try:
        assert await _step(address, "fail-over") == RedisCheck(
            "fail-over", True, "2 replicas, min-replicas-to-write is set"
        )
    finally:
        first.command("CONFIG", "SET", "min-replicas-to-write", "0")
    redis_sentinels.sentinels[0].kill()
    gone = await _step(address, f"node 127.0.0.1:{redis_sentinels.nodes[0][1]}")
    assert (gone.ok, gone.detail) == (False, "Connection refused")


async def test_what_the_check_says_of_a_cluster(redis_cluster: ClusterSet) -> None:
    """Every node that anybody knows, also if only one is given."""
    address = RedisAddress(redis_cluster.nodes[:1], kind=RedisKind.CLUSTER)
    nodes = {f"node 127.0.0.1:{port}" for _, port in redis_cluster.nodes}
    found: dict[str, RedisCheck] = {}
    async with asyncio.timeout(_PATIENT):
        # a replica is listed once the node that is asked has heard that it has data
        while set(found) != {*nodes, *_STEPS, "fail-over"}:
            found = {each.step: each for each in await check_redis(address, budget=_PATIENT)}
    assert all(each.ok for each in found.values())
    assert sum("a replica" in found[node].detail for node in nodes) == 3
    redis_cluster.servers[1].kill()
    assert not (await _step(address, f"node 127.0.0.1:{redis_cluster.servers[1].port}")).ok


async def test_what_the_check_says_of_one_server(redis_server: RedisServer) -> None:
    """Whether it evicts keys; and when it is gone, or another kind is meant."""
    found = await check_redis(redis_server.address, budget=_PATIENT)
    assert [(each.step, each.ok) for each in found] == [(step, True) for step in _STEPS]
    redis_server.restart("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")
    assert "noeviction" in (await _step(redis_server.address, "memory")).advice
    assert (await probe_redis(redis_server.address)).policy == "allkeys-lru"
    redis_server.kill()
    [found_gone] = await check_redis(redis_server.address, budget=_PATIENT)
    assert (found_gone.step, found_gone.ok) == ("answer", False)
    assert "Connection refused" in found_gone.detail


_STEPS = ["answer", "rights", "memory"]


async def _step(address: RedisAddress, step: str) -> RedisCheck:
    [found] = [each for each in await check_redis(address, budget=_PATIENT) if each.step == step]
    return found


# --------------------------------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority, and what it has signed for servers and for a client."""
    folder = tmp_path_factory.mktemp("tls")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")

    def run(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    run("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=authority")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("server", "client"):
        run("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", "-days", "2")
        run("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signing)
    return folder


@pytest.mark.parametrize("kind", [SentinelSet, ClusterSet])
async def test_tls_with_client_certificates(kind: type[RedisSet], certificates: Path) -> None:
    """All connections have it, those to Sentinels and nodes as well, each with its own login."""
    with kind(certificates) as redis:
        _Redis(redis).allow(*_needed(redis.kind))
        own = RedisLogin("watcher", "s3cret-too")
        for each in redis.sentinels if isinstance(redis, SentinelSet) else []:
            each.command("ACL", "SETUSER", "watcher", "on", f">{own.password}", "+sentinel|get-master-addr-by-name")
        address = redis.address(_LOGIN, own)
        await _use_all(address)
        clock = Clock(1000.0)
        async with aclosing(RedisIndex(address, store_id="test", budget=_PATIENT, now=clock)) as index:
            await asyncio.to_thread(redis.primary(Keys("test").tag).kill)
            async with asyncio.timeout(2 * _PATIENT):
                while True:
                    try:
                        await index.put([record(1)])
                        break
                    except IndexUnavailable:
                        clock.time += 60
                        await asyncio.sleep(0.01)
        for tls, reason in (
            (RedisTls(), "certificate"),
            (RedisTls(str(certificates / "ca.pem")), "(?i)certificate|reset|failed"),
            (RedisTls(str(certificates / "nothing.pem")), "No such file"),
        ):
            stranger = RedisAddress(
                address.nodes, kind=redis.kind, service=address.service, login=_LOGIN, sentinel_login=own, tls=tls
            )
            async with aclosing(RedisIndex(stranger, store_id="test", budget=_PATIENT)) as index:
                with pytest.raises(IndexUnavailable, match=reason):
                    await index.usage()
        assert parse_redis_url(redis.url).tls == address.tls


async def test_wrong_logins_are_told_without_secrets(redis_sentinels: SentinelSet, redis_cluster: ClusterSet) -> None:
    """Of servers, and of Sentinels."""
    wrong = RedisLogin("nobody", "s3cret")
    for address in (
        redis_sentinels.address(wrong),
        redis_sentinels.address(None, wrong),
        redis_cluster.address(wrong),
    ):
        async with aclosing(RedisIndex(address, store_id="test", budget=_PATIENT)) as index:
            with pytest.raises(IndexUnavailable, match="user name or password") as caught:
                await index.usage()
            assert "s3cret" not in f"{caught.value!r} {caught.value.__cause__!r} {address!r} {address} {index!r}"
        assert "s3cret" not in str(checks := await check_redis(address, budget=_PATIENT))
        assert not all(each.ok for each in checks)


def test_keys_have_one_slot() -> None:
    """Those of a store, those of the memo, and those of leases."""
    for key in (*Keys("abc").fixed, Keys("abc").links("docker.io/library/alpine")):
        assert key.startswith("{mirror:3:abc}:")
