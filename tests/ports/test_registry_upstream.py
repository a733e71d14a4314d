"""One remote registry behind the `Upstream` port, against one that is small and fails on demand."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from aiohttp.resolver import ThreadedResolver

from mirror.aio.memo import Memo
from mirror.errors import (
    CredentialsRefused,
    DigestMismatch,
    UpstreamDenied,
    UpstreamError,
    UpstreamInvalid,
    UpstreamNotFound,
    UpstreamOffLimits,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from mirror.oci.challenge import Scope
from mirror.oci.digest import Digest
from mirror.oci.manifest import ACCEPT, DOCKER_MANIFEST, LARGEST, OCI_INDEX, OCI_MANIFEST, Descriptor
from mirror.ports import Body, Upstream
from mirror.upstream.credentials.source import Credentials, GivenCredentials
from mirror.upstream.http.body import describe
from mirror.upstream.http.page_file import ListBounds
from mirror.upstream.http.proxies import Proxies
from mirror.upstream.http.transport import Endpoint
from mirror.upstream.registry import RegistryUpstream
from tests.support.certificates import Certificate
from tests.support.clock import Clock
from tests.support.fake_registry import (
    FakeRegistry,
    Fault,
    cut,
    gzipped,
    html,
    ignore_range,
    reset,
    silence,
    stall,
    status,
    throttle,
    wrong_bytes,
)
from tests.support.live_mirror import until
from tests.support.registry_upstream import registry_upstream
from tests.support.scripted import Close, Request, Scripted, Stall, head, reply, reply_json

NAME = "team/app"
LAYER = bytes(range(256)) * 1024
SECRET = "canary-password"
USER = GivenCredentials(Credentials("user", SECRET))


@pytest.fixture
def waits() -> list[float]:
    """What was slept between tries."""
    return []


Build = Callable[..., RegistryUpstream]


@pytest.fixture
async def build(clock: Clock, waits: list[float]) -> AsyncIterator[Build]:
    upstreams: list[RegistryUpstream] = []
    executor = ThreadPoolExecutor(8)
    memo = Memo(now=clock)

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    def make(url: str, name: str = "test", **settings: Any) -> RegistryUpstream:
        settings = {"memo": memo, "clock": clock, "sleep": sleep, "jitter": lambda: 0.5, **settings}
        upstreams.append(registry_upstream(name, url, executor=executor, **settings))
        return upstreams[-1]

    yield make
    for upstream in upstreams:
        await upstream.aclose()
        await upstream.aclose()
    await memo.aclose()
    executor.shutdown()


async def read_all(body: Body) -> bytes:
    """In a thread, as it is meant."""

    def read() -> bytes:
        content, room = bytearray(), memoryview(bytearray(64 * 1024))
        while count := body.readinto(room):
            content += room[:count]
        return bytes(content)

    return await asyncio.to_thread(read)


async def tags_of(upstream: Upstream, repo: str, after: str = "") -> list[str]:
    """All batches."""
    async with aclosing(upstream.tags(repo, after)) as batches:
        return [tag async for batch in batches for tag in batch.tags]


async def pull(
    upstream: Upstream, digest: Digest, start: int = 0, stop: int | None = None
) -> tuple[int, int | None, bytes]:
    async with upstream.blob(NAME, digest, start, stop) as body:
        return body.start, body.size, await read_all(body)


def test_it_is_an_upstream() -> None:
    """The adapter has the port's shape."""
    with ThreadPoolExecutor(1) as executor:
        upstream: Upstream = RegistryUpstream(
            Endpoint("docker.io", "https://registry-1.docker.io/"), executor=executor, memo=Memo()
        )
    assert upstream.name == "docker.io"
    assert repr(upstream) == "<RegistryUpstream docker.io at https://registry-1.docker.io/>"


# ---------------------------------------------------------------------------------------------------- manifests


async def test_resolve(registry: FakeRegistry, build: Build) -> None:
    """A tag by one HEAD, asking for every type in one Accept."""
    digest = registry.add_image(NAME, "v1", [LAYER])
    descriptor = await build(registry.url).resolve(NAME, "v1")
    assert descriptor == Descriptor(OCI_MANIFEST, digest, len(registry.manifest(NAME, digest)))
    (request,) = registry.requests
    assert request.method == "HEAD"
    assert [value for name, value in request.headers if name.lower() == "accept"] == [", ".join(ACCEPT)]
    assert request.header("Accept-Encoding") == "identity"


async def test_resolve_where_head_says_too_little(registry: FakeRegistry, build: Build) -> None:
    """Without digest, type or length a GET says the same."""
    digest = registry.add_image(NAME, "v1", [LAYER])
    registry.head_says = False
    assert (await build(registry.url).resolve(NAME, "v1")).digest == digest
    assert registry.count("manifests", "GET") == 1


@pytest.mark.parametrize("fault", [status(405), html()])
async def test_resolve_where_head_is_not_offered(registry: FakeRegistry, build: Build, fault: Fault) -> None:
    """A refused method, or a page of something in between, is no answer: GET is asked."""
    digest = registry.add_image(NAME, "v1", [LAYER])

    registry.fail("manifests", fault)
    assert (await build(registry.url).resolve(NAME, "v1")).digest == digest


async def test_a_lying_digest_header(build: Build) -> None:
    """Faults row 20: by digest the header is nobody's business, and by tag the body's hash wins."""
    content = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()
    lie = {"Docker-Content-Digest": f"sha256:{'0' * 64}", "Content-Type": OCI_INDEX}
    digest = Digest.of(content)
    with Scripted() as liar:

        def answer(request: Request) -> Any:
            return [
                head(200, {**lie, "Content-Length": str(len(content))}),
                content if request.method == "GET" else b"",
            ]

        liar.on(f"/v2/{NAME}/manifests/v1", answer)
        liar.on(f"/v2/{NAME}/manifests/{digest}", answer)
        upstream = build(liar.url)
        assert (await upstream.manifest(NAME, "v1")).digest == digest
        assert (await upstream.manifest(NAME, digest)).digest == digest
        assert (await upstream.resolve(NAME, digest)).digest == digest


async def test_a_manifest(registry: FakeRegistry, build: Build) -> None:
    """Exactly upstream's bytes, by tag and by digest, of either algorithm."""
    digest = registry.add_image(NAME, "v1", [LAYER])
    content = registry.manifest(NAME, digest)
    upstream = build(registry.url)
    for reference in ("v1", digest):
        manifest = await upstream.manifest(NAME, reference)
        assert (manifest.content, manifest.digest, manifest.media_type) == (content, digest, OCI_MANIFEST)
        assert Digest.of(LAYER) in [blob.digest for blob in manifest.blobs]
    long = registry.add_manifest(NAME, content, OCI_MANIFEST, "long", algorithm="sha512")
    assert (await upstream.manifest(NAME, long)).digest == long
    assert (await upstream.manifest(NAME, "long")).digest == long


async def test_other_bytes_than_the_digest_names(registry: FakeRegistry, build: Build) -> None:
    """Faults row 4, for manifests: refused before it is parsed."""
    digest = registry.add_image(NAME, "v1", [LAYER])
    registry.fail("manifests", wrong_bytes)
    with pytest.raises(DigestMismatch):
        await build(registry.url).manifest(NAME, digest)


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        (b"<html>", "text/html"),
        (b"{}" + b" " * LARGEST, OCI_MANIFEST),
        (b"[" * 100_000, OCI_MANIFEST),
        (b'{"schemaVersion":2,"manifests":[],"layers":[]}', OCI_INDEX),
        (json.dumps({"mediaType": DOCKER_MANIFEST, "layers": []}).encode(), OCI_MANIFEST),
        (b"\xff\xfe", OCI_MANIFEST),
    ],
    ids=["html", "huge", "deep", "both", "contradicting", "binary"],
)
async def test_a_manifest_that_is_none(registry: FakeRegistry, build: Build, content: bytes, media_type: str) -> None:
    """Faults rows 18 and 19: 4 MiB before parsing; nonsense and ambiguity are refused."""
    registry.add_manifest(NAME, content, media_type, "v1")
    with pytest.raises(UpstreamInvalid):
        await build(registry.url).manifest(NAME, "v1")


async def test_an_encoded_manifest(registry: FakeRegistry, build: Build) -> None:
    """Faults row 5: identity was asked for; the form counts whose digest is right, and the limit holds for both."""
    digest = registry.add_image(NAME, "v1", [LAYER])
    for reference in ("v1", digest):
        registry.fail("manifests", gzipped)
        manifest = await build(registry.url).manifest(NAME, reference)
        assert (manifest.digest, manifest.content) == (digest, registry.manifest(NAME, digest))
    registry.add_manifest(NAME, b"{}" + b" " * LARGEST, OCI_MANIFEST, "bomb")
    registry.fail("manifests", gzipped)
    with pytest.raises(UpstreamInvalid, match="larger than"):
        await build(registry.url).manifest(NAME, "bomb")


async def test_a_manifest_cut_short_is_asked_for_again(registry: FakeRegistry, build: Build) -> None:
    """Faults rows 1 and 8: a small answer that breaks costs another try, not an error."""
    digest = registry.add_image(NAME, "v1", [LAYER])
    registry.fail("manifests", cut(10))
    registry.fail("manifests", reset(10))
    assert (await build(registry.url).manifest(NAME, "v1")).digest == digest
    assert registry.count("manifests") == 3


async def test_a_manifest_that_drips(registry: FakeRegistry, build: Build) -> None:
    """Faults rows 6 and 7: the whole of a small answer has one time-out, and it is not tried again."""
    registry.add_image(NAME, "v1", [LAYER])
    registry.fail("manifests", stall(Stall(), 10))
    with pytest.raises(UpstreamTimeout):
        await build(registry.url, answer_timeout=2).manifest(NAME, "v1")
    # a busy machine may have taken up the request only after all that time
    await until(lambda: registry.count("manifests"))
    assert registry.count("manifests") == 1


async def test_manifests_may_be_redirected(build: Build) -> None:
    """Some registries keep their manifests elsewhere; nothing of ours goes there (faults row 15)."""
    content = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()
    with Scripted() as front, Scripted() as elsewhere:
        front.on(f"/v2/{NAME}/manifests/v1", reply(307, b"", {"Location": f"{elsewhere.url}/a%2Fb?sig=%2b~"}))
        front.once(
            f"/v2/{NAME}/manifests/v1", reply(401, b"", {"WWW-Authenticate": f'Bearer realm="{front.url}/token"'})
        )
        front.on("/token", reply_json(200, {"token": SECRET}))
        elsewhere.on("*", reply(200, content, {"Content-Type": OCI_INDEX, "Set-Cookie": "a=b"}))
        manifest = await build(front.url).manifest(NAME, "v1")
        assert manifest.content == content
        (request,) = elsewhere.requests
        assert request.target == "/a%2Fb?sig=%2b~"
        assert SECRET not in str(request.headers)
        assert front.requests[-1].header("Authorization") == f"Bearer {SECRET}"


async def test_a_redirect_loop(build: Build) -> None:
    """Faults row 14: six requests, then an error that is not tried again."""
    with Scripted() as front:
        front.on("*", lambda request: reply(302, b"", {"Location": request.target}))
        with pytest.raises(UpstreamInvalid):
            await build(front.url).manifest(NAME, "v1")
        assert len(front.requests) == 6


@pytest.mark.parametrize(
    "location", ["http://169.254.169.254/x", "http://[::ffff:169.254.169.254]/", "ftp://127.0.0.1/"]
)
async def test_a_redirect_off_limits(build: Build, location: str) -> None:
    """Faults row 72: each hop is checked, for manifests and blobs alike."""
    with Scripted() as front:
        front.on("*", reply(307, b"", {"Location": location}))
        upstream = build(front.url)
        with pytest.raises(UpstreamInvalid):
            await upstream.manifest(NAME, "v1")
        with pytest.raises(UpstreamInvalid):
            await pull(upstream, Digest.of(b"x"))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.2", "127.2", "[::ffff:127.0.0.2]", "0x7f000002"])
async def test_a_public_upstream_leads_nobody_inside(build: Build, host: str) -> None:
    """Faults row 72: neither an address of ours, in any spelling, nor a name that resolves to one."""
    with Scripted(host="0.0.0.0") as inside, Scripted() as front:
        front.on("*", reply(307, b"", {"Location": f"http://{host}:{inside.port}/secret"}))
        # what is configured may be where it is; where it sends to may not be inside
        upstream = build(front.url, internal=False)
        with pytest.raises(UpstreamInvalid):
            await upstream.manifest(NAME, "v1")
        with pytest.raises(UpstreamInvalid):
            await pull(upstream, Digest.of(b"x"))
        assert inside.connections == 0


@pytest.fixture
def inward(monkeypatch: pytest.MonkeyPatch) -> str:
    """A host name that leads to this machine, as a stranger's DNS may answer."""
    blocking, in_loop = socket.getaddrinfo, ThreadedResolver.resolve

    def at(host: str) -> str:
        return "127.0.0.1" if host == "registry.example.com" else host

    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *more, **named: blocking(at(host), *more, **named))
    # uvloop does not ask Python's resolver
    monkeypatch.setattr(ThreadedResolver, "resolve", lambda self, host, *more: in_loop(self, at(host), *more))
    return "registry.example.com"


async def test_72_a_name_that_leads_inward(build: Build, inward: str) -> None:
    """Faults row 72: the upstream's own name is not dialled at a private address, unless it is configured `private`."""
    with FakeRegistry() as registry:
        digest = registry.add_blob(NAME, LAYER)
        url = f"http://{inward}:{registry.host.partition(':')[2]}"
        upstream = build(url)
        for call in (upstream.manifest(NAME, "v1"), pull(upstream, digest), tags_of(upstream, NAME)):
            with pytest.raises(UpstreamOffLimits) as refused:
                await call
            assert "127.0.0.1" not in str(refused.value)
            assert refused.value.public == "test cannot be reached"
        assert not registry.requests
        assert (await pull(build(url, internal=True), digest))[2] == LAYER


@pytest.mark.parametrize("host", ["127.0.0.2", "127.2", "0x7f000002", "2130706434", "[::ffff:0:7f00:2]"])
async def test_72_addresses_through_a_proxy(build: Build, host: str) -> None:
    """Faults row 72: a proxy would dial what it is given, so an address is refused in every spelling before."""
    with Scripted() as proxy:
        proxy.on("*", reply(307, b"", {"Location": f"http://{host}:1/secret"}))
        upstream = build("http://registry.example.com", proxies=Proxies.given(proxy.url))
        for call in (upstream.manifest(NAME, "v1"), pull(upstream, Digest.of(b"x"))):
            with pytest.raises(UpstreamOffLimits):
                await call
        assert proxy.requests
        assert all(request.target.startswith("http://registry.example.com/") for request in proxy.requests)


# -------------------------------------------------------------------------------------------------------- blobs


@pytest.mark.parametrize("cdn", [False, True])
async def test_a_blob(build: Build, cdn: bool) -> None:
    """Whole and from an offset, straight or by way of a signed URL; never by HEAD."""
    with FakeRegistry(cdn=cdn) as registry:
        digest = registry.add_blob(NAME, LAYER)
        upstream = build(registry.url)
        assert await pull(upstream, digest) == (0, len(LAYER), LAYER)
        assert await pull(upstream, digest, 1000) == (1000, len(LAYER), LAYER[1000:])
        assert await pull(upstream, digest, len(LAYER)) == (len(LAYER), len(LAYER), b"")
        assert await pull(upstream, digest, 0, 1000) == (0, len(LAYER), LAYER[:1000])
        assert await pull(upstream, digest, 1000, 2000) == (1000, len(LAYER), LAYER[1000:2000])
        assert await upstream.blob_size(NAME, digest) == len(LAYER)
        assert registry.count("blobs", "HEAD") == 0
        assert registry.count("cdn") == (6 if cdn else 0)


async def test_blob_size(registry: FakeRegistry, build: Build) -> None:
    """By the first byte; where ranges are ignored by the length of the whole; nothing known of what has none."""
    digest, empty = registry.add_blob(NAME, LAYER), registry.add_blob(NAME, b"")
    upstream = build(registry.url)
    registry.fail("blobs", ignore_range)
    assert await upstream.blob_size(NAME, digest) == len(LAYER)
    assert await upstream.blob_size(NAME, empty) == 0
    registry.fail("blobs", lambda request, answer: [head(200, version="1.0"), LAYER, Close()])
    assert await upstream.blob_size(NAME, digest) is None
    with pytest.raises(UpstreamNotFound):
        await upstream.blob_size(NAME, Digest.of(b"none"))


async def test_a_blob_cut_short_can_be_resumed(registry: FakeRegistry, build: Build) -> None:
    """Faults row 1: what came is good, and the rest is had from there on."""
    digest = registry.add_blob(NAME, LAYER)
    registry.fail("blobs", cut(5000))
    upstream = build(registry.url)
    room, got = memoryview(bytearray(len(LAYER))), 0
    async with upstream.blob(NAME, digest) as body:
        while got < 5000:
            got += await asyncio.to_thread(body.readinto, room[got:])
        with pytest.raises(UpstreamUnavailable):
            await asyncio.to_thread(body.readinto, room[got:])
    assert bytes(room[:got]) == LAYER[:5000]
    assert await pull(upstream, digest, got) == (5000, len(LAYER), LAYER[5000:])


async def test_a_signed_url_that_has_run_out(build: Build) -> None:
    """Faults row 16: the registry is asked for a fresh one, in a resume and in the middle of an answer alike."""
    with FakeRegistry(cdn=True) as registry:
        digest = registry.add_blob(NAME, LAYER)
        upstream = build(registry.url)
        assert (await pull(upstream, digest))[2] == LAYER
        registry.expire_urls()
        assert (await pull(upstream, digest, 5))[2] == LAYER[5:]
        registry.fail("cdn", status(403))
        assert (await pull(upstream, digest, 6))[2] == LAYER[6:]
        targets = [request.target for request in registry.of_kind("cdn")]
        # the refused part may have been refused for its range: the whole is asked for before the part is again
        assert len(set(targets)) == len(targets) == 5


async def test_a_range_that_is_ignored(registry: FakeRegistry, build: Build) -> None:
    """Faults row 22: the body says that it begins at 0."""
    digest = registry.add_blob(NAME, LAYER)
    registry.fail("blobs", ignore_range)
    assert await pull(build(registry.url), digest, 1000) == (0, len(LAYER), LAYER)


async def test_a_blob_that_comes_encoded(registry: FakeRegistry, build: Build) -> None:
    """Faults row 5: a blob that is compressed itself has been compressed once more; of others the coding is the file's
    own. The digest decides later whether that was right.
    """
    packed = gzip.compress(LAYER)
    digest, plain = registry.add_blob(NAME, packed), registry.add_blob(NAME, LAYER)
    registry.fail("blobs", gzipped, times=2)
    upstream = build(registry.url)
    assert await pull(upstream, digest) == (0, None, packed)
    start, size, content = await pull(upstream, plain)
    assert (start, size, gzip.decompress(content)) == (0, len(content), LAYER)


async def test_blobs_at_once_are_bounded(registry: FakeRegistry, build: Build) -> None:
    """The third waits until one of the first two is done with."""
    digest = registry.add_blob(NAME, LAYER)
    upstream = build(registry.url, blobs_at_once=2)
    async with upstream.blob(NAME, digest):
        async with upstream.blob(NAME, digest):
            third = asyncio.create_task(pull(upstream, digest))
            for _ in range(50):
                await asyncio.sleep(0)
            assert registry.count("blobs") == 2
        assert (await third)[2] == LAYER


async def test_a_caller_that_leaves_while_a_blob_opens(registry: FakeRegistry, build: Build) -> None:
    """Faults row 63: what the thread brings afterwards is closed; no descriptor, no slot is kept."""
    digest = registry.add_blob(NAME, LAYER)
    gate = Stall()
    upstream = build(registry.url, blobs_at_once=1)
    registry.fail("blobs", silence(gate))
    leaving = asyncio.create_task(pull(upstream, digest))
    assert await asyncio.to_thread(gate.reached.wait, 30)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    gate.release()
    assert (await pull(upstream, digest))[2] == LAYER


async def test_leaving_a_blob_that_is_being_read(registry: FakeRegistry, build: Build) -> None:
    """Faults row 63: cancelled in the middle, the reading thread ends soon."""
    digest = registry.add_blob(NAME, LAYER)
    gate = Stall()
    registry.fail("blobs", stall(gate, 10))
    upstream = build(registry.url)
    begun, ended = threading.Event(), threading.Event()

    async def read() -> None:
        async with upstream.blob(NAME, digest) as body:

            def blocked() -> None:
                try:
                    while body.readinto(memoryview(bytearray(100))):
                        begun.set()
                except UpstreamUnavailable:
                    ended.set()

            await asyncio.to_thread(blocked)

    reading = asyncio.create_task(read())
    assert await asyncio.to_thread(begun.wait, 30)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await asyncio.to_thread(ended.wait, 30)


# ----------------------------------------------------------------------------------------------------- let in


async def test_tokens(build: Build) -> None:
    """One 401 teaches how; from then on requests carry a token at once, manifests and blobs alike."""
    with FakeRegistry(tokens=True, users={"user": SECRET}, cdn=True) as registry:
        digest = registry.add_image(NAME, "v1", [LAYER])
        upstream = build(registry.url, credentials=USER)
        await upstream.resolve(NAME, "v1")
        await upstream.manifest(NAME, digest)
        assert (await pull(upstream, Digest.of(LAYER)))[2] == LAYER
        assert (registry.count("token"), registry.count("manifests"), registry.count("blobs")) == (1, 3, 1)
        assert SECRET not in str(registry.cdn_requests)
        assert all("token-" not in str(request.headers) for request in registry.cdn_requests)


async def test_basic(build: Build) -> None:
    """Basic goes to the registry itself, and nowhere else."""
    with FakeRegistry(users={"user": SECRET}, cdn=True) as registry:
        digest = registry.add_blob(NAME, LAYER)
        assert (await pull(build(registry.url, credentials=USER), digest))[2] == LAYER
        assert registry.requests[-1].header("Authorization") == USER.given.basic if USER.given else None
        assert all(request.header("Authorization") is None for request in registry.cdn_requests)


@pytest.mark.parametrize("tokens", [False, True])
async def test_credentials_that_are_refused(build: Build, tokens: bool) -> None:
    """401 after every credential was tried, once; no secret in the message."""
    with FakeRegistry(tokens=tokens, users={"user": "another"}) as registry:
        registry.add_image(NAME, "v1", [LAYER])
        for credentials in (USER, None):
            with pytest.raises(UpstreamDenied) as refusal:
                await build(registry.url, credentials=credentials, memo=Memo()).manifest(NAME, "v1")
            assert refusal.value.status == 401
            assert "canary" not in str(refusal.value)
        assert len(registry.requests) <= 4


async def test_a_token_that_does_not_help(build: Build) -> None:
    """Another 401 with a fresh token is final: one re-authentication a call."""
    with FakeRegistry(tokens=True) as registry:
        registry.add_image(NAME, "v1", [LAYER])
        refuse = status(401, {"WWW-Authenticate": f'Bearer realm="{registry.url}/token",error="insufficient_scope"'})
        registry.fail("manifests", refuse, times=5)
        with pytest.raises(UpstreamDenied):
            await build(registry.url).manifest(NAME, "v1")
        assert registry.count("manifests") == 2
        assert registry.count("token") == 1


async def test_a_token_that_expires_in_mid_session(build: Build) -> None:
    """Faults row 11: however many are refused, one refresh, one retry each."""
    with FakeRegistry(tokens=True) as registry:
        digest = registry.add_image(NAME, "v1", [LAYER])
        upstream = build(registry.url)
        await upstream.manifest(NAME, "v1")
        registry.expire_tokens()
        registry.forget()
        answers = await asyncio.gather(*(upstream.manifest(NAME, digest) for _ in range(50)))
        assert {answer.digest for answer in answers} == {digest}
        assert registry.count("token") == 1
        assert registry.count("manifests") <= 100


async def test_a_stampede(build: Build) -> None:
    """Faults row 64: a thousand who know no token yet cause one exchange."""
    with FakeRegistry(tokens=True) as registry:
        digest = registry.add_image(NAME, "v1", [LAYER])
        upstream = build(registry.url, answer_timeout=120)
        answers = await asyncio.gather(*(upstream.resolve(NAME, "v1") for _ in range(1000)))
        assert {answer.digest for answer in answers} == {digest}
        assert registry.count("token") == 1


async def test_a_realm_elsewhere(build: Build) -> None:
    """Faults row 71: a challenge that names another site is not followed; the answer counts as invalid."""
    with FakeRegistry(tokens=True) as registry:
        registry.add_image(NAME, "v1", [LAYER])
        registry.realm = "http://collector.example/token"
        with pytest.raises(UpstreamInvalid, match=r"collector\.example"):
            await build(registry.url, credentials=USER).manifest(NAME, "v1")


async def test_the_challenge_of_a_redirect_is_not_ours(build: Build) -> None:
    """Faults row 71: whoever we are sent to sees nothing of ours, neither do its token service and its password box."""
    with Scripted() as front, Scripted() as elsewhere:
        front.on("*", reply(307, b"", {"Location": f"{elsewhere.url}/x"}))
        for challenge in ('Basic realm="x"', f'Bearer realm="{elsewhere.url}/token",service="x"'):
            elsewhere.on("/x", reply(401, b"", {"WWW-Authenticate": challenge}))
            elsewhere.on("/token", reply_json(200, {"token": "theirs"}))
            with pytest.raises(UpstreamUnavailable):
                await build(front.url, credentials=USER, retries=0).manifest(NAME, "v1")
        shown = [request.header("Authorization") for request in elsewhere.requests]
        assert set(shown) == {None, "Bearer theirs"}
        assert elsewhere.asked("/token")
        assert all(request.header("Authorization") is None for request in elsewhere.asked("/token"))


@pytest.mark.parametrize("where", ["/v2/other/name", ""])
async def test_a_registry_behind_a_redirect(build: Build, where: str) -> None:
    """A vanity registry sends to one that wants a token of its own: it gets one for nobody, for the name there.

    The first one's login is for the first one alone, and the token of each goes to the registry that gave it.
    """
    with FakeRegistry(tokens=True, users={"user": SECRET}) as vanity, FakeRegistry(tokens=True, cdn=True) as other:
        other._issued = 1000
        at = where or f"/v2/{NAME}"
        digest = other.add_image(at.removeprefix("/v2/"), "v1", [LAYER])

        def send_on(request: Request, answer: Any) -> Any:
            parts = answer(request)
            if b" 401 " in parts[0]:
                return parts
            return reply(307, b"", {"Location": other.url + request.target.replace(f"/v2/{NAME}", at)})

        for kind in ("manifests", "blobs"):
            vanity.fail(kind, send_on, times=50)
        upstream = build(vanity.url, credentials=USER)
        assert (await upstream.resolve(NAME, "v1")).digest == digest
        assert (await upstream.manifest(NAME, digest)).digest == digest
        assert (await pull(upstream, Digest.of(LAYER)))[2] == LAYER
        assert (await pull(upstream, Digest.of(LAYER), 1000))[2] == LAYER[1000:]
        assert other.count("token") == 1
        (request,) = other.of_kind("token")
        assert request.query["scope"] == [f"repository:{at.removeprefix('/v2/')}:pull"]
        for request in (*other.requests, *other.cdn_requests):
            assert SECRET not in str(request)
            assert "Basic" not in (request.header("Authorization") or "")
        assert not any(request.header("Authorization") for request in other.cdn_requests)
        # each has given one token: the other never sees it
        ours = {request.header("Authorization") for request in vanity.of_kind("manifests")}
        theirs = {request.header("Authorization") for request in other.of_kind("manifests")}
        assert len(vanity.of_kind("manifests")) == 4, "one challenge of each, and no second one"
        assert (ours, theirs) == ({None, "Bearer token-1"}, {None, "Bearer token-1001"})
        other.expire_tokens()
        assert (await upstream.manifest(NAME, digest)).digest == digest
        assert other.count("token") == 2


async def test_a_check_follows_a_redirect_to_a_registry_that_wants_a_token(build: Build) -> None:
    """What can be pulled is not called a failure by `mirror check --online` and the doctor."""
    with FakeRegistry() as vanity, FakeRegistry(tokens=True) as other:
        vanity.fail("ping", lambda request, answer: reply(307, b"", {"Location": other.url + request.target}), times=9)
        assert await build(vanity.url).check() == "answers; anonymous"
        assert other.count("token") == 1


@pytest.mark.parametrize("realm", ["http://collector.example/token", "http://169.254.169.254/token", "junk", ""])
async def test_the_realm_behind_a_redirect_is_bound(build: Build, realm: str) -> None:
    """Faults row 71: on the site of the registry that is redirected to, and nowhere that our upstream may not lead."""
    with FakeRegistry() as front, FakeRegistry(tokens=True) as other:
        other.realm = realm or "x"
        front.fail(
            "manifests", lambda request, answer: reply(307, b"", {"Location": other.url + request.target}), times=9
        )
        with pytest.raises(UpstreamUnavailable):
            await build(front.url, retries=0).manifest(NAME, "v1")
        assert not other.count("token")


@pytest.mark.parametrize("fault", [status(404), status(500), status(401), throttle(60), html()])
async def test_a_token_service_behind_a_redirect_that_fails(build: Build, fault: Fault) -> None:
    """That is the other registry's trouble: ours is not left alone for it."""
    with FakeRegistry() as front, FakeRegistry(tokens=True) as other:
        digest = front.add_image(NAME, "here", [LAYER])
        front.fail("manifests", lambda request, answer: reply(307, b"", {"Location": other.url + request.target}))
        other.fail("token", fault, times=9)
        upstream = build(front.url, retries=0)
        with pytest.raises(UpstreamUnavailable):
            await upstream.manifest(NAME, "v1")
        assert (await upstream.manifest(NAME, "here")).digest == digest


_FAILING = [status(404), status(500), status(503), status(401), status(403), throttle(60), html()]


@pytest.mark.parametrize("fault", _FAILING)
@pytest.mark.parametrize("credentials", [USER, None])
async def test_one_challenge_closes_no_open_registry(build: Build, fault: Fault, credentials: Any) -> None:
    """A registry that asks nobody to log in answers once with 401 and a challenge whose token service fails: what was
    learnt, and what is guessed of it for other repositories, is forgotten, and they are asked without.
    """
    with FakeRegistry() as registry:
        digest = registry.add_image(NAME, "v1", [LAYER])
        registry.add_image("team/other", "v1", [LAYER])
        registry.fail("manifests", status(401, {"WWW-Authenticate": f'Bearer realm="{registry.url}/token"'}))
        registry.fail("token", fault, times=99)
        # the 429 of a token service that the registry really asks for holds all of it back
        upstream = build(registry.url, credentials=credentials, retries=0)
        with pytest.raises(UpstreamError) as failure:
            await upstream.manifest(NAME, "v1")
        if isinstance(failure.value, UpstreamThrottled):
            upstream._accounts.own.throttled_until = 0
        assert (await upstream.manifest("team/other", "v1")).digest == digest
        assert (await upstream.manifest(NAME, "v1")).digest == digest
        before = registry.count("token")
        assert (await upstream.manifest(NAME, digest)).digest == digest
        assert (await pull(upstream, Digest.of(LAYER)))[2] == LAYER
        assert registry.count("token") == before


async def test_a_token_service_that_fails_is_asked_once_a_try(build: Build, waits: list[float]) -> None:
    """Where the registry does want a token, its service's failure is the call's, and is tried again like any."""
    with FakeRegistry(tokens=True) as registry:
        digest = registry.add_image(NAME, "v1", [LAYER])
        upstream = build(registry.url)
        await upstream.manifest(NAME, "v1")
        registry.expire_tokens()
        await upstream._tokens.reject(Scope.pull(NAME), f"Bearer token-{registry.count('token')}")
        registry.forget()
        registry.fail("token", status(500), times=2)
        assert (await upstream.manifest(NAME, digest)).digest == digest
        assert registry.count("token") == 3
        registry.expire_tokens()
        registry.fail("token", status(500), times=9)
        registry.forget()
        with pytest.raises(UpstreamUnavailable, match="token service"):
            await upstream.manifest(NAME, "v1")
        assert registry.count("token") == 3


async def test_refused_credentials_are_sent_once_a_call(build: Build) -> None:
    """A token service that counts wrong passwords gets one of each call, however sure of the challenge we are."""
    with FakeRegistry(tokens=True, users={"user": "another"}) as registry:
        registry.add_image(NAME, "v1", [LAYER])
        upstream = build(registry.url, credentials=USER)
        for number in range(1, 4):
            with pytest.raises(CredentialsRefused) as refusal:
                await upstream.manifest(NAME, "v1")
            assert refusal.value.status == 401
            assert registry.count("token") == number


async def test_upstreams_know_nothing_of_each_other(build: Build) -> None:
    """Faults row 73: neither tokens, credentials nor cookies of one get to another, though they share a memo."""
    content = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()
    with FakeRegistry(tokens=True, users={"user": SECRET}) as first_registry, Scripted() as other:
        first_registry.add_manifest(NAME, content, OCI_INDEX, "v1")
        other.on("*", reply(200, content, {"Content-Type": OCI_INDEX, "Set-Cookie": "session=1; Path=/"}))
        first = build(first_registry.url, name="same", credentials=USER)
        second = build(other.url, name="same", credentials=USER)
        await first.manifest(NAME, "v1")
        await second.manifest(NAME, "v1")
        await second.manifest(NAME, "v1")
        for request in other.requests:
            assert request.header("Authorization") is None
            assert request.header("Cookie") is None


# ------------------------------------------------------------------------------------------------ errors and waits


@pytest.mark.parametrize(
    ("fault", "error", "code"),
    [
        (status(403), UpstreamDenied, 403),
        (status(401), UpstreamDenied, 401),
        (status(404), UpstreamNotFound, 404),
        (status(400), UpstreamInvalid, 400),
        (status(418), UpstreamInvalid, 418),
        (status(204), UpstreamInvalid, 204),
        (status(500), UpstreamUnavailable, 500),
        (status(501), UpstreamUnavailable, 501),
        (status(503), UpstreamUnavailable, 503),
        (status(503, {"Retry-After": "5"}), UpstreamThrottled, 503),
        (throttle(), UpstreamThrottled, 429),
    ],
)
async def test_a_status_keeps_its_class(
    registry: FakeRegistry, build: Build, fault: Fault, error: type[UpstreamError], code: int
) -> None:
    """For manifests, blobs and lists alike: clients act on 401, 403, 404, 429 and 5xx in different ways."""
    digest = registry.add_image(NAME, "v1", [LAYER])

    def bodiless(request: Request, answer: Any) -> Any:
        return [head(204)] if code == 204 else fault(request, answer)

    calls: list[Callable[[RegistryUpstream], Any]] = [
        lambda upstream: upstream.resolve(NAME, "v1"),
        lambda upstream: upstream.manifest(NAME, digest),
        lambda upstream: pull(upstream, Digest.of(LAYER)),
        lambda upstream: upstream.blob_size(NAME, Digest.of(LAYER)),
        lambda upstream: tags_of(upstream, NAME),
    ]
    for call in calls:
        registry.heal()
        for kind in ("manifests", "blobs", "tags"):
            registry.fail(kind, bodiless, times=9)
        with pytest.raises(error) as failure:
            await call(build(registry.url))
        assert type(failure.value) is error
        assert failure.value.status == code
        assert failure.value.upstream == "test"


async def test_5xx_is_tried_twice_more(registry: FakeRegistry, build: Build, waits: list[float]) -> None:
    """Faults row 12: jittered, growing waits; then it is an error, which nobody remembers."""
    digest = registry.add_image(NAME, "v1", [LAYER])
    upstream = build(registry.url)
    registry.fail("manifests", status(502), times=2)
    assert (await upstream.manifest(NAME, "v1")).digest == digest
    registry.fail("manifests", status(502), times=3)
    with pytest.raises(UpstreamUnavailable):
        await upstream.manifest(NAME, "v1")
    assert registry.count("manifests") == 6
    assert waits == [0.1875, 0.375] * 2
    assert (await upstream.manifest(NAME, "v1")).digest == digest
    registry.fail("blobs", status(500), times=2)
    assert (await pull(upstream, Digest.of(LAYER)))[2] == LAYER
    assert registry.count("blobs") == 3


async def test_a_404_that_flaps(registry: FakeRegistry, build: Build) -> None:
    """Faults row 13: not tried again, and not remembered here."""
    digest = registry.add_image(NAME, "v1", [LAYER])
    upstream = build(registry.url)
    registry.fail("manifests", status(404))
    with pytest.raises(UpstreamNotFound):
        await upstream.manifest(NAME, "v1")
    assert (await upstream.manifest(NAME, "v1")).digest == digest
    assert registry.count("manifests") == 2


@pytest.mark.parametrize("kind", ["manifests", "blobs", "token"])
async def test_one_back_off_for_all(build: Build, clock: Clock, kind: str) -> None:
    """Faults row 10: after a 429 nothing goes out to this upstream until its time is over, then everything does."""
    with FakeRegistry(tokens=True) as registry:
        digest = registry.add_image(NAME, "v1", [LAYER])
        layer = Digest.of(LAYER)
        upstream = build(registry.url)
        registry.fail(kind, throttle(30))
        with pytest.raises(UpstreamThrottled) as first:
            await (pull(upstream, layer) if kind == "blobs" else upstream.manifest(NAME, digest))
        assert first.value.retry_after == 30
        before = len(registry.requests)
        clock.time += 10
        for call in (upstream.resolve(NAME, "v1"), tags_of(upstream, NAME), pull(upstream, layer)):
            with pytest.raises(UpstreamThrottled) as later:
                await call
            assert later.value.retry_after == 20
        assert len(registry.requests) == before
        clock.time += 20
        assert (await upstream.manifest(NAME, digest)).digest == digest
        assert (await pull(upstream, layer))[2] == LAYER


async def test_retry_after_may_be_a_date_or_missing(registry: FakeRegistry, build: Build, clock: Clock) -> None:
    """Faults row 10: without a time the waits grow with each strike; any answer forgives."""
    registry.add_image(NAME, "v1", [LAYER])
    upstream = build(registry.url)
    seen = []
    for retry_after in ("Tue, 14 Nov 2023 22:14:20 GMT", None, None):
        registry.fail("manifests", throttle(retry_after))
        with pytest.raises(UpstreamThrottled) as failure:
            await upstream.manifest(NAME, "v1")
        seen.append(failure.value.retry_after)
        clock.time += failure.value.retry_after
    assert seen == [60.0, 4.0, 8.0]
    await upstream.manifest(NAME, "v1")
    registry.fail("manifests", throttle(None))
    with pytest.raises(UpstreamThrottled) as failure:
        await upstream.manifest(NAME, "v1")
    assert failure.value.retry_after == 2.0


async def test_a_dead_upstream(build: Build, clock: Clock, waits: list[float]) -> None:
    """Faults row 21: after three failed dials calls fail at once for a while, then one probe goes out at a time."""
    with FakeRegistry() as gone:
        url = gone.url
    seen: list[tuple[str, int | None]] = []
    upstream = build(url, observe=lambda event, code, seconds: seen.append((event, code)))
    with pytest.raises(UpstreamUnavailable):
        await upstream.manifest(NAME, "v1")
    assert seen == [("manifest", None)] * 3
    for call in (tags_of(upstream, NAME), pull(upstream, Digest.of(b"x")), upstream.resolve(NAME, "v1")):
        with pytest.raises(UpstreamUnavailable):
            await call
    assert len(seen) == 3
    for delay in (1.0, 2.0, 4.0):
        clock.time += delay
        failures = await asyncio.gather(*(upstream.manifest(NAME, "v1") for _ in range(20)), return_exceptions=True)
        assert all(isinstance(failure, UpstreamUnavailable) for failure in failures)
    assert len(seen) == 6


async def test_an_upstream_that_comes_back(registry: FakeRegistry, build: Build, clock: Clock) -> None:
    """Faults row 21: the probe's success lets everybody in."""
    digest = registry.add_image(NAME, "v1", [LAYER])
    upstream = build(registry.url)
    for _ in range(3):
        upstream._calls.circuit = upstream._calls.circuit.failed(clock())
    with pytest.raises(UpstreamUnavailable):
        await upstream.manifest(NAME, "v1")
    clock.time += 1
    assert (await upstream.manifest(NAME, "v1")).digest == digest
    assert len(await asyncio.gather(*(upstream.manifest(NAME, "v1") for _ in range(20)))) == 20


async def test_a_cancelled_probe_is_no_probe(registry: FakeRegistry, build: Build, clock: Clock) -> None:
    """Faults row 63: whoever leaves while probing lets the next one probe."""
    digest = registry.add_image(NAME, "v1", [LAYER])
    upstream = build(registry.url)
    for _ in range(3):
        upstream._calls.circuit = upstream._calls.circuit.failed(clock())
    clock.time += 1
    gate = Stall()
    registry.fail("manifests", stall(gate))
    probe = asyncio.create_task(upstream.manifest(NAME, "v1"))
    assert await asyncio.to_thread(gate.reached.wait, 30)
    with pytest.raises(UpstreamUnavailable):
        await upstream.manifest(NAME, "v1")
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    assert (await upstream.manifest(NAME, "v1")).digest == digest


async def test_names_and_certificates(build: Build, tmp_path: Path) -> None:
    """Faults row 21: DNS and TLS failures are an upstream that is not there; a trusted or unchecked one works."""
    with pytest.raises(UpstreamUnavailable):
        await build("http://name.invalid").manifest(NAME, "v1")
    certificate = Certificate(tmp_path)
    with FakeRegistry(tls=certificate.server()) as registry:
        digest = registry.add_image(NAME, "v1", [LAYER])
        stranger = build(registry.url)
        with pytest.raises(UpstreamUnavailable, match=r"not trusted: self.signed certificate"):
            await stranger.manifest(NAME, "v1")
        stranger = build(registry.url)
        with pytest.raises(UpstreamUnavailable, match="certificate"):
            await pull(stranger, Digest.of(LAYER))
        assert not registry.requests
        for verify in (certificate.client(), False):
            upstream = build(registry.url, verify=verify)
            assert (await upstream.manifest(NAME, "v1")).digest == digest
            assert (await pull(upstream, Digest.of(LAYER)))[2] == LAYER


async def test_a_scheme_that_is_not_the_registrys(build: Build) -> None:
    """https:// where no TLS is spoken is said so: by the client of manifests, and by that of blobs."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as plain:
        upstream = build(f"https://127.0.0.1:{plain.sockets[0].getsockname()[1]}")
        said = r"does not speak TLS; should the URL begin with http://\?"
        for call in (upstream.resolve(NAME, "v1"), pull(upstream, Digest.of(LAYER))):
            with pytest.raises(UpstreamUnavailable, match=said):
                await call
            [health] = upstream.health()
            assert health.state != "ok"
            assert "does not speak TLS" in health.reason


def test_tls_that_ends_in_a_body_is_not_said_to_end_before() -> None:
    """OpenSSL gives no reason then, whatever was under way."""
    said = describe(ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "EOF occurred in violation of protocol (_ssl.c:1)"))
    assert said == "TLS failed: the connection ended"


async def test_the_health_says_why(registry: FakeRegistry, build: Build) -> None:
    """Why upstream is left alone is known to operators, with its own words."""
    registry.add_image(NAME, "v1", [LAYER])
    upstream = build(registry.url)
    await upstream.manifest(NAME, "v1")
    assert [health.reason for health in upstream.health()] == [""]
    registry.fail("manifests", status(429, message="no more pulls"), times=9)
    with pytest.raises(UpstreamThrottled):
        await upstream.manifest(NAME, "v1")
    [health] = upstream.health()
    assert health.state == "throttled"
    assert health.reason.endswith("answers 429 (UNKNOWN: no more pulls)")


async def test_what_upstream_says_is_quoted_with_care(registry: FakeRegistry, build: Build) -> None:
    """Faults row 76: short, escaped, without our secrets, without queries."""
    upstream = build(registry.url)
    registry.add_image(NAME, "v1", [LAYER])
    registry.fail("manifests", status(403, message="no\r\nentry\x1b[31m" + "x" * 1000))
    with pytest.raises(UpstreamDenied) as failure:
        await upstream.manifest(NAME, "v1")
    shown = str(failure.value)
    assert "UNKNOWN: no\\r\\nentry\\x1b[31mxxx" in shown
    assert shown.isprintable()
    assert len(shown) < 400
    with FakeRegistry(users={"user": SECRET}) as echoing:
        echo = build(echoing.url, credentials=USER)
        assert USER.given
        echoing.add_image(NAME, "v1", [LAYER])
        await echo.manifest(NAME, "v1")
        for repeated in (USER.given.basic, SECRET):
            echoing.fail("manifests", status(403, message=f"you sent {repeated}"))
            with pytest.raises(UpstreamDenied) as failure:
                await echo.manifest(NAME, "v1")
            assert USER.given.basic.partition(" ")[2] not in str(failure.value)
            assert SECRET not in str(failure.value)


async def test_what_is_sent_is_observed(registry: FakeRegistry, build: Build) -> None:
    """Each request to upstream is told: what for, and what came."""
    seen: list[tuple[str, int | None]] = []
    registry.add_image(NAME, "v1", [LAYER])
    registry.fail("manifests", status(500))
    upstream = build(registry.url, observe=lambda event, code, seconds: seen.append((event, code)))
    await upstream.resolve(NAME, "v1")
    await pull(upstream, Digest.of(LAYER))
    await tags_of(upstream, NAME)
    assert seen == [("resolve", 500), ("resolve", 200), ("blob", 200), ("tags", 200)]


async def test_a_path_before_v2(build: Build) -> None:
    """Some registries are served below a path."""
    digest = Digest.of(LAYER)
    with Scripted() as front:
        front.on(f"/api/docker/remote/v2/{NAME}/blobs/{digest}", reply(200, LAYER))
        front.on(f"/api/docker/remote/v2/{NAME}/tags/list", reply_json(200, {"tags": ["a"]}))
        upstream = build(f"{front.url}/api/docker/remote/")
        assert (await pull(upstream, digest))[2] == LAYER
        assert await tags_of(upstream, NAME) == ["a"]


# -------------------------------------------------------------------------------------------------------- lists


async def test_tags(registry: FakeRegistry, build: Build) -> None:
    """All pages, whatever their size; none is an empty list."""
    registry.largest_page = 7
    tags = [f"v{number:02}" for number in range(50)]
    digest = registry.add_image(NAME, tags[0], [LAYER])
    for tag in tags[1:]:
        registry.add_manifest(NAME, registry.manifest(NAME, digest), OCI_MANIFEST, tag)
    upstream = build(registry.url)
    assert await tags_of(upstream, NAME) == tags
    assert registry.count("tags") == 8
    with pytest.raises(UpstreamNotFound):
        await tags_of(upstream, "team/none")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"tags": None}, []),
        ({}, []),
        ({"tags": ["b", "a", "b", "..", "no tag", "x" * 200]}, ["b", "a", "b"]),
    ],
)
async def test_odd_tag_lists(build: Build, body: Any, expected: list[str]) -> None:
    """Null and absent are empty; the order is upstream's; what nobody could ask for is left out."""
    with Scripted() as front:
        front.on("*", reply_json(200, body))
        assert await tags_of(build(front.url), NAME) == expected


@pytest.mark.parametrize(
    "script",
    [
        reply(200, b"<html>", {"Content-Type": "text/html"}),
        reply(200, b"["),
        reply(200, b"[" * 100_000),
        reply_json(200, []),
        reply_json(200, {"tags": {}}),
        reply_json(200, {"tags": "abc"}),
        reply_json(200, {"tags": [1]}),
        reply(200, b" " * 5_000_000),
        reply_json(200, {"tags": []}, {"Link": '<http://evil.example/v2/x>; rel="next"'}),
        reply_json(200, {"tags": []}, {"Link": '<//evil.example/v2/x>; rel="next"'}),
        reply_json(200, {"tags": []}, {"Link": '<?page=2>; rel="next"'}),
        reply_json(200, {"tags": []}, {"Link": '<a b>; rel="next"'}),
    ],
    ids=["html", "cut", "deep", "list", "object", "string", "numbers", "huge", "host", "host 2", "loop", "junk"],
)
async def test_a_tag_list_that_is_none(build: Build, script: Any) -> None:
    """Faults row 17, for lists: not believed, not tried again, pages on other hosts not asked for."""
    with Scripted() as front:
        front.on("*", script)
        with pytest.raises(UpstreamInvalid):
            await tags_of(build(front.url), NAME)
        assert len(front.requests) <= 2


@pytest.mark.parametrize(
    "link",
    [
        "/v2/team/app/tags/list?last=a&n=1",
        "https://127.0.0.1/v2/team/app/tags/list?last=a&n=1",
        "http://registry.internal:5000/v2/team/app/tags/list?last=a&n=1",
        "http://169.254.169.254/latest/meta-data?last=a&n=1",
        "?last=a&n=1",
        "//inner/?last=a&n=1#end",
    ],
)
async def test_the_next_page_is_on_our_own_path(build: Build, link: str) -> None:
    """Behind a proxy, registries write links without their base path, with another scheme or with an inner host."""
    path = "/base/path/v2/team/app/tags/list"
    with Scripted() as front:
        front.once(path, reply_json(200, {"tags": ["a"]}, {"Link": f'<{link}>; rel="next"'}))
        front.once(path, reply_json(200, {"tags": ["b"]}))
        assert await tags_of(build(f"{front.url}/base/path"), NAME) == ["a", "b"]
        assert [request.target for request in front.requests] == [f"{path}?n=10000", f"{path}?last=a&n=1"]


@pytest.mark.parametrize(("largest", "expected"), [(1_000, ["10000", "1000"]), (50, ["10000", "1000", None])])
async def test_an_n_that_is_refused(
    registry: FakeRegistry, build: Build, largest: int, expected: list[str | None]
) -> None:
    """Then less is asked for, and that is remembered."""
    registry.page, registry.largest_n = 50, largest
    tags = [f"v{number:03}" for number in range(120)]
    digest = registry.add_image(NAME, tags[0], [LAYER])
    for tag in tags[1:]:
        registry.add_manifest(NAME, registry.manifest(NAME, digest), OCI_MANIFEST, tag)
    upstream = build(registry.url)
    for _ in range(2):
        assert await tags_of(upstream, NAME) == tags
        assert await tags_of(upstream, NAME, "v050") == tags[51:]
    sizes = [request.query.get("n", [None])[0] for request in registry.of_kind("tags")]
    assert sizes[: len(expected)] == expected
    assert sizes.count("10000") == 1


async def test_a_last_that_is_refused(build: Build) -> None:
    """A registry that pages by a mark of its own gives the list from its beginning."""
    with Scripted() as front:

        def answer(request: Request) -> Any:
            return reply(400, b"") if "last" in request.query else reply_json(200, {"tags": ["a", "b"]})

        front.on("*", answer)
        assert await tags_of(build(front.url), NAME, "a") == ["a", "b"]


async def test_a_list_in_one_large_page(build: Build, tmp_path: Path) -> None:
    """A registry that ignores `n` may send 20 MB at once: it is put on disk, read in batches, and gone at the end."""
    tags = [f"v1.{number:07}-alpine" for number in range(200_000)]
    bounds = ListBounds(tmp_path / "lists", 8 * 1024 * 1024)
    with Scripted() as front:
        front.on("*", reply_json(200, {"tags": tags}))
        upstream = build(front.url, lists=bounds)
        async with aclosing(upstream.tags(NAME)) as batches:
            first = await anext(batches)
            assert (list(first.tags), first.more) == (tags[: len(first.tags)], True)
        assert await tags_of(upstream, NAME) == tags
        assert (list((tmp_path / "lists").iterdir()), bounds.on_disk) == ([], 0)
        assert len(front.requests) == 2
        # all lists of a process together are bounded, too
        async with aclosing(upstream.tags(NAME)) as batches:
            await anext(batches)
            with pytest.raises(UpstreamInvalid, match="tag_lists_max_size"):
                await tags_of(upstream, NAME)
        assert bounds.on_disk == 0
        front.on("*", reply_json(200, {"tags": tags, "more": "x" * 5_000_000}))
        with pytest.raises(UpstreamInvalid, match="tag_lists_max_size"):
            await tags_of(upstream, NAME)


async def test_a_list_whose_page_breaks_off(registry: FakeRegistry, build: Build) -> None:
    """The page is asked for again, and read from its beginning."""
    registry.add_image(NAME, "v1", [LAYER])
    registry.fail("tags", cut(15))
    registry.fail("tags", status(503))
    assert await tags_of(build(registry.url), NAME) == ["v1"]
    assert registry.count("tags") == 3


async def test_pages_elsewhere_get_no_token(build: Build) -> None:
    """Faults row 15: where the first page was redirected to, the next ones come from without our authorisation."""
    with Scripted() as front, Scripted() as elsewhere:
        path = f"/v2/{NAME}/tags/list"
        front.once(path, reply(401, b"", {"WWW-Authenticate": f'Bearer realm="{front.url}/token"'}))
        front.on("/token", reply_json(200, {"token": SECRET}))
        front.on(path, reply(307, b"", {"Location": f"{elsewhere.url}/tags"}))
        elsewhere.once("/tags", reply_json(200, {"tags": ["a"]}, {"Link": '</tags?2>; rel="next"'}))
        elsewhere.once("/tags", reply_json(200, {"tags": ["b"]}))
        assert await tags_of(build(front.url), NAME) == ["a", "b"]
        assert SECRET not in str(elsewhere.requests)


@pytest.mark.parametrize("api", [True, False])
async def test_referrers(build: Build, api: bool) -> None:
    """By the API, and where that is unknown by the fallback tag; none is an empty list."""
    with FakeRegistry(referrers=api) as registry:
        image = registry.add_image(NAME, "v1", [LAYER])
        subject = {"mediaType": OCI_MANIFEST, "digest": str(image), "size": len(registry.manifest(NAME, image))}
        signature = registry.add_image(NAME, None, [b"sig"], subject=subject, artifactType="application/x.sig")
        registry.add_index(NAME, f"sha256-{image.hex}", [signature])
        upstream = build(registry.url)
        (referrer,) = await upstream.referrers(NAME, image)
        assert referrer.digest == signature
        assert not api or referrer.artifact_type == "application/x.sig"
        assert await upstream.referrers(NAME, Digest.of(b"none")) == []


async def test_referrers_that_are_none(registry: FakeRegistry, build: Build) -> None:
    """Faults row 18: nonsense in a list is not an empty list."""
    registry.add_image(NAME, "v1", [LAYER])
    upstream = build(registry.url)
    bodies = [b'{"manifests": [{}]}', b'{"manifests": ["x"]}', b'{"manifests": [], "x": NaN}', b'{"manifests": [']
    for body in bodies:
        answer = reply(200, body)
        registry.fail("referrers", lambda request, _, answer=answer: answer)  # type: ignore[misc]
        with pytest.raises(UpstreamInvalid):
            await upstream.referrers(NAME, Digest.of(b"x"))


def _refer(registry: FakeRegistry, count: int = 1) -> tuple[Digest, list[Digest]]:
    """An image, and what refers to it by the fallback tag."""
    image = registry.add_image(NAME, "v1", [LAYER])
    subject = {"mediaType": OCI_MANIFEST, "digest": str(image), "size": len(registry.manifest(NAME, image))}
    children = [
        registry.add_image(NAME, None, [b"%d" % number], subject=subject, artifactType="application/x.sig")
        for number in range(count)
    ]
    registry.add_index(NAME, f"sha256-{image.hex}", children)
    return image, children


_NO_API = {
    "400": status(400),
    "404": status(404),
    "405": status(405),
    "406": status(406),
    "501": status(501),
    "html": html(),
    "html 400": html(400),
    "null": lambda request, answer: reply_json(200, None),
    "list": lambda request, answer: reply_json(200, []),
    "no manifests": lambda request, answer: reply_json(200, {"schemaVersion": 2}),
    "manifests is an object": lambda request, answer: reply_json(200, {"manifests": {}}),
    "deep": lambda request, answer: reply(200, b"[" * 100_000),
    "a redirect that is refused": status(302, {"Location": "ftp://pages.example/"}),
    "a redirect without an end": status(302, {"Location": f"/v2/{NAME}/referrers/"}),
}


@pytest.mark.parametrize("fault", _NO_API.values(), ids=_NO_API.keys())
async def test_no_referrers_api(registry: FakeRegistry, build: Build, waits: list[float], fault: Fault) -> None:
    """Whatever is no index of referrers means that there is no such API: the fallback tag is asked, at once."""
    image, children = _refer(registry)
    upstream = build(registry.url)
    registry.fail("referrers", fault, times=9)
    (referrer,) = await upstream.referrers(NAME, image)
    assert (referrer.digest, referrer.artifact_type) == (children[0], "application/x.sig")
    assert await upstream.referrers(NAME, Digest.of(b"none")) == []
    assert waits == []


@pytest.mark.parametrize("code", [500, 503])
async def test_referrers_that_cannot_be_told(registry: FakeRegistry, build: Build, code: int) -> None:
    """A registry that fails has not said that it has no such API."""
    image, _ = _refer(registry)
    registry.fail("referrers", status(code), times=9)
    with pytest.raises(UpstreamUnavailable):
        await build(registry.url).referrers(NAME, image)


_PAGES_ELSEWHERE = {
    "429": reply(429, b"<html>", {"Retry-After": "120"}),
    "503 with a time": reply(503, b"<html>", {"Retry-After": "120"}),
    "html": reply(200, b"<html>", {"Content-Type": "text/html"}),
    "403": reply(403, b"<html>"),
    "404": reply(404, b"<html>"),
    "500": reply(500, b"<html>"),
}


@pytest.mark.parametrize("script", _PAGES_ELSEWHERE.values(), ids=_PAGES_ELSEWHERE.keys())
async def test_referrers_on_a_page_of_another_host(registry: FakeRegistry, build: Build, script: Any) -> None:
    """GHCR redirects to a web page: what that answers is no word of the registry, and holds nobody but itself."""
    image, children = _refer(registry)
    with Scripted() as pages:
        pages.on("*", script)
        registry.fail("referrers", status(303, {"Location": f"{pages.url}/login"}), times=9)
        upstream = build(registry.url)
        for _ in range(3):
            assert [referrer.digest for referrer in await upstream.referrers(NAME, image)] == children
        if script[0].startswith((b"HTTP/1.1 429", b"HTTP/1.1 503")):
            assert len(pages.requests) == 1
    assert await tags_of(upstream, NAME)
    assert (await pull(upstream, Digest.of(LAYER)))[2] == LAYER


async def test_lists_of_a_registry_that_redirects_to_another(build: Build) -> None:
    """That other one challenges us, and has an API for referrers: its lists are those of the first."""
    with FakeRegistry(tokens=True) as other, Scripted() as vanity:
        vanity.on("*", lambda request: reply(307, b"", {"Location": f"{other.url}{request.target}"}))
        image, children = _refer(other)
        other.drop_tag(NAME, f"sha256-{image.hex}")
        upstream = build(vanity.url)
        assert [referrer.digest for referrer in await upstream.referrers(NAME, image)] == children
        assert await tags_of(upstream, NAME) == ["v1"]


async def test_referrers_where_nothing_listens(registry: FakeRegistry, build: Build) -> None:
    """A page that cannot be reached: the fallback tag tells, and if there is none, nobody has said that there are no
    referrers. The registry is not taken to be down.
    """
    image, children = _refer(registry)
    with Scripted() as gone:
        url = gone.url
    registry.fail("referrers", status(303, {"Location": f"{url}/login"}), times=99)
    upstream = build(registry.url)
    for _ in range(3):
        assert [referrer.digest for referrer in await upstream.referrers(NAME, image)] == children
        with pytest.raises(UpstreamUnavailable):
            await upstream.referrers(NAME, Digest.of(b"none"))
    assert await tags_of(upstream, NAME)


async def test_the_back_off_of_storage_is_its_own(registry: FakeRegistry, build: Build, clock: Clock) -> None:
    """Faults row 10: a 429 of the host behind a blob keeps that host from being asked, and nothing else."""
    first, second = registry.add_blob(NAME, b"first"), registry.add_blob(NAME, b"second")
    registry.add_image(NAME, "v1", [LAYER])
    with Scripted() as storage:
        storage.once("/x", reply(429, b"", {"Retry-After": "30"}))
        storage.on("/x", reply(200, b"second"))
        away = status(307, {"Location": f"{storage.url}/x"})
        upstream = build(registry.url)
        registry.fail("blobs", away, times=3)
        with pytest.raises(UpstreamThrottled) as failure:
            await pull(upstream, first)
        assert failure.value.retry_after == 30
        clock.time += 10
        with pytest.raises(UpstreamThrottled) as failure:
            await pull(upstream, second)
        assert failure.value.retry_after == 20
        assert len(storage.requests) == 1
        assert await tags_of(upstream, NAME) == ["v1"]
        clock.time += 20
        assert (await pull(upstream, second))[2] == b"second"


async def test_gitlab_resolves_the_fallback_tag_to_the_subject(registry: FakeRegistry, build: Build) -> None:
    """Then the platforms of the image are no referrers of it."""
    registry.referrers = False
    platforms = [registry.add_image(NAME, None, [b"%d" % number]) for number in range(2)]
    image = registry.add_index(NAME, "v1", platforms)
    registry.add_index(NAME, f"sha256-{image.hex}", platforms)
    single = registry.add_image(NAME, "v2", [LAYER])
    registry.add_manifest(NAME, registry.manifest(NAME, single), OCI_MANIFEST, f"sha256-{single.hex}")
    upstream = build(registry.url)
    assert await upstream.referrers(NAME, image) == []
    assert await upstream.referrers(NAME, single) == []


async def test_children_of_a_fallback_index(registry: FakeRegistry, build: Build) -> None:
    """They count if they are what the index says: there, of that size, with this subject. Each is asked for once."""
    registry.referrers = False
    image, children = _refer(registry, 3)
    other = registry.add_image(NAME, "v2", [b"other"])
    pointer = {"mediaType": OCI_MANIFEST, "digest": str(other), "size": len(registry.manifest(NAME, other))}
    elsewhere = registry.add_image(NAME, None, [b"x"], subject=pointer)
    named = [*children, elsewhere, other]
    listed: list[dict[str, Any]] = [
        {"mediaType": OCI_MANIFEST, "digest": str(digest), "size": len(registry.manifest(NAME, digest))}
        for digest in named
    ]
    listed[1]["size"] += 1
    listed += [
        {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(b"gone")), "size": 4},
        {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(b"huge")), "size": 1 << 40},
        listed[0],
    ]
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}
    upstream = build(registry.url)
    registry.add_manifest(NAME, json.dumps(index).encode(), OCI_INDEX, f"sha256-{image.hex}")
    with pytest.raises(UpstreamInvalid, match="lists too many referrers"):
        await upstream.referrers(NAME, image)
    del listed[-2]
    registry.add_manifest(NAME, json.dumps(index).encode(), OCI_INDEX, f"sha256-{image.hex}")
    for _ in range(2):
        referrers = await upstream.referrers(NAME, image)
        assert [referrer.digest for referrer in referrers] == [children[0], children[2]]
        assert {referrer.artifact_type for referrer in referrers} == {"application/x.sig"}
    fetched = [request.path.rpartition("/")[2] for request in registry.of_kind("manifests")]
    assert fetched.count(str(children[0])) == 1


def _descriptor(number: int, **more: Any) -> dict[str, Any]:
    return {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(b"%d" % number)), "size": 1, **more}


async def test_pages_of_referrers(build: Build) -> None:
    """All pages, each referrer once."""
    with Scripted() as front:
        path = f"/v2/{NAME}/referrers/{Digest.of(b'x')}"
        more = {"Link": f'<{path}?page=2>; rel="next"'}
        front.once(path, reply_json(200, {"manifests": [_descriptor(1), _descriptor(2)]}, more))
        front.once(path, reply_json(200, {"manifests": [_descriptor(2), _descriptor(3)]}))
        referrers = await build(front.url).referrers(NAME, Digest.of(b"x"))
        assert [referrer.digest for referrer in referrers] == [Digest.of(b"%d" % number) for number in (1, 2, 3)]
        assert [request.target for request in front.requests] == [path, f"{path}?page=2"]


@pytest.mark.parametrize("kind", ["padded", "annotated", "repeated", "empty", "many"])
async def test_137_referrers_without_end(build: Build, kind: str) -> None:
    """Items and bytes are bounded over all pages, and pages that bring nothing new are not asked for without end."""
    numbers = iter(range(1, 1_000_000))
    padding = "x" * 3_000_000

    def page(request: Request) -> Any:
        number = next(numbers)
        manifests = {
            "padded": [_descriptor(number)],
            "annotated": [_descriptor(number, annotations={"a": padding})],
            "repeated": [_descriptor(0)] * 1_000,
            "empty": [],
            "many": [_descriptor(1_000 * number + more) for more in range(1_000)],
        }[kind]
        body = {"manifests": manifests, "padding": padding if kind == "padded" else ""}
        return reply_json(200, body, {"Link": f'<{request.path}?page={number}>; rel="next"'})

    with Scripted() as front:
        front.on("*", page)
        with pytest.raises(UpstreamInvalid):
            await build(front.url).referrers(NAME, Digest.of(b"x"))
        assert len(front.requests) <= 50


@pytest.mark.parametrize("second", [status(404), html(), status(400)])
async def test_a_next_page_of_referrers_that_is_none(registry: FakeRegistry, build: Build, second: Fault) -> None:
    """A list that ends in the middle is no list, and no reason to ask for the fallback tag."""
    image, _ = _refer(registry)
    more = {"Link": '</v2/x?page=2>; rel="next"'}
    registry.fail("referrers", lambda request, answer: reply_json(200, {"manifests": [_descriptor(1)]}, more))
    registry.fail("referrers", second)
    with pytest.raises(UpstreamInvalid):
        await build(registry.url).referrers(NAME, image)


# ------------------------------------------------------------------------------------------------------ the rest


async def test_large_blobs_at_once(build: Build) -> None:
    """Eight at a time through threads, every byte right, a handful of connections."""
    with FakeRegistry(cdn=True) as registry:
        contents = [os.urandom(3_000_000) for _ in range(4)]
        digests = [registry.add_blob(NAME, content) for content in contents]
        upstream = build(registry.url)
        pulled = await asyncio.gather(*(pull(upstream, digest) for digest in digests * 2))
        assert [hashlib.sha256(content).hexdigest() for _, _, content in pulled] == [
            digest.hex for digest in digests * 2
        ]
