"""Any input from outside: none crashes the mirror, and no answer says that the mirror was at fault.

Examples are few in ordinary runs; `MIRROR_FAULTS_REQUESTS` says how many raw requests are sent.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mirror.aio.memo import Memo
from mirror.errors import IndexUnavailable, UpstreamError
from mirror.index.embedded import EmbeddedIndex
from mirror.index.redis import Keys, RedisIndex
from mirror.oci.digest import Digest
from mirror.oci.manifest import ManifestMalformed, read_manifest
from mirror.oci.reference import Repo
from mirror.policy.records import (
    BlobRole,
    ContentRecord,
    ManifestRecord,
    References,
    TagRecord,
    Usage,
    read_history,
    write_history,
)
from mirror.ports import ContentIndex
from mirror.upstream.credentials.source import GivenCredentials
from mirror.upstream.http.transport import Endpoint
from mirror.upstream.parameters import Clocks
from mirror.upstream.tokens import TokenSource
from tests.faults.conftest import Tally
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import LiveMirror, noise
from tests.support.redis_server import RedisServer

_LAYER = noise(30_000)
_DIGEST = Digest.of(_LAYER)

#: What requests are made of; each is something that has broken a server somewhere.
_METHODS: Final = (
    b"GET",
    b"HEAD",
    b"GET",
    b"POST",
    b"PUT",
    b"DELETE",
    b"PATCH",
    b"OPTIONS",
    b"CONNECT",
    b"TRACE",
    b"G\xc9T",
    b"",
)
_TARGETS: Final = (
    b"/v2/",
    b"/v2",
    b"/v2/library/app/manifests/v1",
    b"/v2/library/app/manifests/" + str(_DIGEST).encode(),
    b"/v2/library/app/blobs/" + str(_DIGEST).encode(),
    b"/v2/library/app/tags/list?n=%s",
    b"/v2/library/app/referrers/" + str(_DIGEST).encode(),
    b"/v2/library/app/blobs/uploads/",
    b"/v2/library/app/blobs/sha256:%s",
    b"/v2/%s/manifests/%s",
    b"/v2/library/app/tags/list?last=%s&n=5",
    b"/v2/library/app/manifests/v1?ns=%s",
    b"http://%s/v2/library/app/manifests/v1",
    b"*",
    b"/readyz?%s",
    b"/%s",
    b"%s",
)
_PIECES: Final = (
    b"..%2f..%2fetc%2fpasswd",
    b"%00",
    b"%ff%fe",
    b"../../x",
    b"a" * 300,
    b"\xe2\x82\xac",
    b"-1",
    b"0",
    b"99999999999999999999",
    b"docker.io",
    b"169.254.169.254",
    b"[::1]",
    b"sha256:",
    b"sha512:00",
    b"%2e%2e/",
    b"?",
    b"#",
    b"//",
    b"a;b=c",
    b"%",
    b"%zz",
    b"\\",
    b"",
)
_HEADERS: Final = (
    b"Host: docker.io",
    b"Host: %s",
    b"Host:",
    b"Range: bytes=%s-",
    b"Range: bytes=-%s",
    b"Range: bytes=5-2",
    b"Range: bytes=0-0,5-9",
    b"Range: bytes=0-99999999999999999999",
    b"Range: %s",
    b"If-None-Match: %s",
    b'If-None-Match: "' + str(_DIGEST).encode() + b'"',
    b"If-Range: %s",
    b"Accept: %s",
    b"Accept: */*;q=\xff",
    b"Content-Length: 5",
    b"Content-Length: %s",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: %s",
    b"Connection: close",
    b"Connection: upgrade",
    b"Upgrade: websocket",
    b"Expect: 100-continue",
    b"Authorization: Basic %s",
    b"Authorization: Bearer %s",
    b"X: " + b"y" * 9000,
    b"No colon",
    b" folded",
    b"Cookie: %s",
    b"X-Request-Id: %s",
)
_VERSIONS: Final = (b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"http/1.1", b"", b"HTTP/1.%s")
_RECORD_FIELDS: Final = ("digest", "media_type", "mediaType", "size", "fetched_at", "fetchedAt", "v", "version")
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


def _filled(chance: random.Random, text: bytes) -> bytes:
    while b"%s" in text:
        text = text.replace(b"%s", chance.choice(_PIECES), 1)
    return text


def _request(chance: random.Random) -> bytes:
    """One request; most are nearly right, because those get furthest."""
    method = b"GET" if chance.random() < 0.7 else chance.choice(_METHODS)
    version = b"HTTP/1.1" if chance.random() < 0.9 else _filled(chance, chance.choice(_VERSIONS))
    lines = [b" ".join((method, _filled(chance, chance.choice(_TARGETS)), version))]
    lines += [b"Host: x"] * (chance.random() < 0.9)
    lines += [_filled(chance, chance.choice(_HEADERS)) for _ in range(chance.choice((0, 0, 1, 1, 2, 4)))]
    request = (b"\n" if chance.random() < 0.03 else b"\r\n").join(lines) + b"\r\n\r\n"
    if chance.random() < 0.1:
        where = chance.randrange(len(request))
        request = request[:where] + chance.randbytes(chance.randrange(4)) + request[where + chance.randrange(4) :]
    if chance.random() < 0.05:
        request += chance.randbytes(chance.randrange(20))
    return request


async def _exchange(port: int, request: bytes) -> bytes:
    """The bytes received until the mirror closes the connection or waits for more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = bytearray()
    try:
        writer.write(request)
        async with asyncio.timeout(0.5):
            while piece := await reader.read(1 << 18):
                received += piece
    except (ConnectionError, TimeoutError):
        pass
    finally:
        writer.close()
    return bytes(received)


async def _send(port: int, seed: int, count: int, seen: Counter[bytes], bad: list[tuple[bytes, bytes]]) -> None:
    """`count` requests, several to a connection where it stays open."""
    chance = random.Random(seed)
    sent = 0
    while sent < count:
        batch = [_request(chance) for _ in range(min(chance.choice((1, 1, 1, 4, 16)), count - sent))]
        sent += len(batch)
        # the last one ends the connection, unless it is taken for the body of another
        received = await _exchange(port, b"".join(batch) + b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        for status in _STATUS.findall(received):
            seen[status] += 1
            # 502 and 504 are upstream's; everything else from 500 on is ours
            if status.startswith(b"5") and status not in (b"502", b"504"):
                bad.append((b"".join(batch), received[:500]))


async def test_31_32_raw_requests(
    registry: FakeRegistry, mirror: LiveMirror, times: Callable[[str, int], int], tally: Tally
) -> None:
    """Rows 27, 30, 31, 32: requests of every kind of nonsense: none is answered with a 5xx of our own, none leaves a
    traceback, and the mirror still serves.
    """
    registry.add_image("library/app", "v1", [_LAYER])
    blob = f"/v2/library/app/blobs/{_DIGEST}"
    await mirror.ask("/v2/library/app/manifests/v1")
    await mirror.ask(blob)
    count = times("REQUESTS", 2000)
    seed = times("SEED", 0)
    seen: Counter[bytes] = Counter()
    bad: list[tuple[bytes, bytes]] = []
    crashes: list[str] = []
    done = 0
    while done < count:
        part = min(2000, count - done)
        await asyncio.gather(*(_send(mirror.port, seed + done * 100 + n, part // 40, seen, bad) for n in range(40)))
        done += part // 40 * 40
        crashes += [line["event"] for line in mirror.log if "crashed" in line["event"] or "exception" in line]
        # a long run's log would fill the memory
        mirror.clear_log()
        assert not bad, bad[0]
        assert not crashes
    assert (await mirror.ask(blob)).body == _LAYER
    tally(requests=done, answers={int(status): number for status, number in sorted(seen.items())}, ours=len(bad))
    assert seen[b"200"]
    assert seen[b"400"]


# --------------------------------------------------------------------------------------------- what upstreams say

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=12), inner, max_size=5),
    max_leaves=20,
)
_fields = st.sampled_from(
    ["schemaVersion", "mediaType", "config", "layers", "manifests", "subject", "digest", "size", "platform", "urls"]
)
_manifests = st.dictionaries(_fields, _json | st.dictionaries(_fields, _json, max_size=6), max_size=6)


_documents = st.binary(max_size=400) | (_manifests | _json).map(lambda value: json.dumps(value).encode())


@given(_documents, st.text(max_size=40) | st.none(), st.sampled_from(["sha256", "sha512"]))
@settings(max_examples=300, deadline=None)
def test_18_any_manifest(content: bytes, media_type: str | None, algorithm: str) -> None:
    """Row 18: a manifest is read, or refused with an error of ours, and what is read are the bytes that came."""
    with suppress(ManifestMalformed):
        assert read_manifest(content, media_type, algorithm=algorithm).digest == Digest.of(content, algorithm)


_answers = st.binary(max_size=200) | (
    _json | st.dictionaries(st.sampled_from(["token", "access_token", "expires_in"]), _json | st.text(), max_size=3)
).map(lambda value: json.dumps(value).encode())


@given(st.integers(100, 599), st.text(max_size=30) | st.none(), _answers)
@settings(max_examples=300, deadline=None)
def test_17_any_token_answer(status: int, retry_after: str | None, content: bytes) -> None:
    """Row 17: a token that can stand in a header, usable for a bounded time; or an error that is upstream's."""
    url = "https://registry.example"
    source = TokenSource(
        Endpoint("test", url), _no_session, GivenCredentials(), Memo(), clocks=Clocks(now=lambda: 1.7e9)
    )
    try:
        token = source._read(status, retry_after, content)
    except UpstreamError:
        return
    assert re.fullmatch(r"[!-~]+", token["token"])
    assert 0 < token["usable"] <= 86400 * 366


def _no_session() -> Any:
    raise AssertionError("nothing is asked")


@given(_documents | st.dictionaries(st.sampled_from(_RECORD_FIELDS), _json).map(lambda it: json.dumps(it).encode()))
@settings(max_examples=300, deadline=None)
def test_54_any_record(content: bytes) -> None:
    """Row 54: a record on disk that makes no sense counts as absent; a valid record is written back unchanged."""
    tag = TagRecord.from_json("v1", content)
    assert tag is None or TagRecord.from_json("v1", tag.to_json()) == tag
    manifest = ManifestRecord.from_json(_DIGEST, content)
    assert manifest is None or ManifestRecord.from_json(_DIGEST, manifest.to_json()) == manifest
    history = read_history(content)
    assert read_history(write_history(history)) == history


#: What a Redis, or a file, of somebody else may hold where we look for a value of ours.
_junk = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20),
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(str),
    st.just(str(_DIGEST)),
    st.just(f"{_DIGEST} {_DIGEST}"),
)
_digests = st.just(str(_DIGEST)) | st.sampled_from([str(Digest.of(bytes([number]))) for number in range(3)]) | _junk
_REPO: Final = Repo("docker.io", "library/app")


async def _use_every_operation(index: ContentIndex) -> None:
    """Nothing comes out of it but records that make sense, and `IndexUnavailable`."""
    other = Digest.of(b"other")
    for operation in (
        lambda: index.get(_DIGEST),
        lambda: index.usage(),
        lambda: index.linked(_REPO, _DIGEST),
        lambda: index.marker(),
        lambda: index.successors([_DIGEST]),
        lambda: index.least_recently_used(BlobRole.LOOSE, 10),
        lambda: index.least_recently_used(BlobRole.ROOT, 10),
        lambda: index.touch({_DIGEST: 5.0}),
        lambda: index.put([ContentRecord(_DIGEST, 10, 1.0), ContentRecord(other, 20, 2.0)]),
        lambda: index.record_references([References(_DIGEST, (), (other,))]),
        lambda: index.link(_REPO, {_DIGEST: 10}),
        lambda: index.unlink(_REPO, [_DIGEST]),
        lambda: index.drop([_DIGEST]),
        lambda: index.set_marker("whole"),
    ):
        with suppress(IndexUnavailable):
            await operation()
    with suppress(IndexUnavailable):
        async for batch in index.digests():
            assert all(isinstance(digest, Digest) for digest in batch)
    with suppress(IndexUnavailable):
        async for links in index.loose_links():
            assert all(isinstance(repo, Repo) and isinstance(digest, Digest) for repo, digest in links)


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """One for all examples."""
    with RedisServer() as server:
        yield server


_KINDS: Final = ("string", "hash", "zset", "set", "list")


@given(
    st.dictionaries(
        st.sampled_from(Keys.NAMES) | st.just("links"),
        st.tuples(st.sampled_from(_KINDS), st.lists(st.tuples(_digests, _junk), min_size=1, max_size=4)),
        min_size=1,
    )
)
# a manifest that is its own index
@example({"indexes": ("hash", [(str(_DIGEST), str(_DIGEST))])})
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
def test_54_any_redis(redis: RedisServer, held: dict[str, tuple[str, list[tuple[str, str]]]]) -> None:
    """Row 54: junk under our keys in Redis, of any type, is a miss; a rebuild repairs it."""
    keys = Keys("junk")
    redis.command("FLUSHALL")
    for name, (kind, members) in held.items():
        key = keys.links(str(_REPO)) if name == "links" else dict(zip(Keys.NAMES, keys.fixed, strict=True))[name]
        for number, (member, value) in enumerate(members):
            match kind:
                case "string":
                    redis.command("SET", key, value)
                case "hash":
                    redis.command("HSET", key, member, value)
                case "zset":
                    redis.command("ZADD", key, str(number), member)
                case "set":
                    redis.command("SADD", key, member)
                case _:
                    redis.command("RPUSH", key, value)

    async def use() -> None:
        index = RedisIndex(redis.address, store_id="junk", budget=30.0)
        try:
            await _use_every_operation(index)
            await _rebuilt(index)
        finally:
            await index.aclose()

    asyncio.run(use())


async def _rebuilt(index: ContentIndex) -> None:
    """After a rebuild the index counts exactly: no junk is left."""
    await index.clear()
    assert await index.marker() is None
    await index.put([ContentRecord(_DIGEST, 10, 1.0)])
    assert await index.usage() == Usage(1, 10)
    assert await index.least_recently_used(BlobRole.LOOSE, 9) == [ContentRecord(_DIGEST, 10, 1.0)]


_cells = st.none() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | st.binary(max_size=20) | _digests


@given(
    st.lists(st.tuples(_cells, _cells, _cells, _cells, _cells, _cells), max_size=4),
    st.lists(st.tuples(_cells, _cells, _cells), max_size=4),
    st.lists(st.tuples(_cells, _cells), max_size=2),
)
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
def test_54_any_embedded_index(
    content: list[tuple[object, ...]], links: list[tuple[object, ...]], usage: list[tuple[object, ...]]
) -> None:
    """Row 54: junk in the tables of the embedded index is a miss; a rebuild repairs it."""

    async def use(path: Path) -> None:
        index = EmbeddedIndex(path)
        try:
            await index.usage()
            with closing(sqlite3.connect(path, isolation_level=None)) as connection:
                for statement, rows in (
                    ("INSERT INTO content VALUES (?, ?, ?, ?, ?, ?)", content),
                    ("INSERT INTO links VALUES (?, ?, ?)", links),
                    ("UPDATE usage SET blobs = ?, bytes = ?", usage),
                ):
                    for row in rows:
                        with suppress(sqlite3.Error):
                            connection.execute(statement, row)
            await _use_every_operation(index)
            await _rebuilt(index)
        finally:
            await index.aclose()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(use(Path(folder) / "index.sqlite"))
