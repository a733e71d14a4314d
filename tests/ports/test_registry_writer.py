"""Pushes to one registry behind the `Writer` port, against one that fails on demand, byte by byte."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mirror.errors import (
    DigestMismatch,
    UpstreamDenied,
    UpstreamInvalid,
    UpstreamNotFound,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST, read_manifest
from mirror.policy.upstream.upload_range import received
from mirror.ports import SentBlob
from mirror.replication.rate_limit import RateLimit
from mirror.upstream.credentials.source import Credentials, GivenCredentials
from mirror.upstream.http.blob_sender import BlobSender, BlobSendingClient
from mirror.upstream.parameters import Clocks
from mirror.upstream.registry_writer import RegistryWriter
from tests.support.certificates import Certificate
from tests.support.live_mirror import noise, until
from tests.support.push_client import image
from tests.support.push_target import Exchange, PushTarget, answers, cut, says, swallowed, throttled
from tests.support.registry_upstream import endpoint

_BLOB = noise(3_000_000, 5)
_DIGEST = Digest.of(_BLOB)


@dataclass
class _Content:
    """A `BlobReader` over bytes."""

    content: bytes
    closed: int = 0

    def pread(self, size: int, offset: int) -> bytes:
        return self.content[offset : offset + size]

    def close(self) -> None:
        self.closed += 1


class _Time:
    """A clock that sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def time() -> _Time:
    """Of the writer."""
    return _Time()


@pytest.fixture
async def writer(target: PushTarget, time: _Time) -> AsyncIterator[RegistryWriter]:
    """Pushes to it."""
    async with _writer(target.url, time) as made:
        yield made


@asynccontextmanager
async def _writer(
    url: str, time: _Time, login: Credentials | None = None, **settings: Any
) -> AsyncIterator[RegistryWriter]:
    executor = ThreadPoolExecutor(4)
    made = RegistryWriter(
        endpoint("other.example.com", url, **settings),
        executor=executor,
        credentials=GivenCredentials(login),
        clocks=Clocks(now=time, monotonic=time, sleep=time.sleep),
    )
    yield made
    await made.aclose()
    executor.shutdown()


def _blob(content: bytes = _BLOB, **more: Any) -> SentBlob:
    return SentBlob(Digest.of(content), len(content), lambda: _Content(content), **more)


def _image(*layers: bytes, **more: Any) -> Any:
    return read_manifest(image(b"{}", *layers, **more), OCI_MANIFEST)


@pytest.mark.parametrize("content", [b"", b"x", b"small", _BLOB], ids=["empty", "one", "small", "large"])
async def test_a_blob_arrives(writer: RegistryWriter, target: PushTarget, content: bytes) -> None:
    """Whatever its size; it is then found there with its size."""
    digest, seen, counted = Digest.of(content), [0], [0]
    assert not await writer.has_blob("app", digest, len(content))

    def take(count: int) -> float:
        counted.append(count)
        return 0.0

    blob = SentBlob(digest, len(content), lambda: _Content(content), take, seen.append)
    assert await writer.put_blob("app", blob)
    assert target.repository("app").blobs[digest] == content
    assert await writer.has_blob("app", digest, len(content))
    assert not await writer.has_blob("app", digest, len(content) + 1)
    assert sum(counted) == len(content)
    assert seen == sorted(seen)
    assert seen[-1] == len(content)


async def test_a_mount_moves_no_byte(writer: RegistryWriter, target: PushTarget) -> None:
    """And if the registry refuses it, the session that it gives is used."""
    target.repository("base").blobs[_DIGEST] = _BLOB
    assert not await writer.put_blob("app", _blob(), ["base"])
    assert target.repository("app").blobs[_DIGEST] == _BLOB
    assert not target.of_kind("begin", "patch")
    target.mounts = False
    assert await writer.put_blob("other", _blob(), ["base"])
    assert not target.of_kind("begin")
    assert target.repository("other").blobs[_DIGEST] == _BLOB
    target.fail("mount", answers(405, "UNSUPPORTED"))
    assert await writer.put_blob("third", _blob(), ["base"])
    assert target.repository("third").blobs[_DIGEST] == _BLOB


async def test_an_upload_that_breaks_off_is_resumed(writer: RegistryWriter, target: PushTarget) -> None:
    """The registry is asked how far it is; the rest follows with a Content-Range."""
    target.fail("patch", cut(1_000_000))
    target.fail("patch", cut(500_000))
    assert await writer.put_blob("app", _blob())
    assert target.repository("app").blobs[_DIGEST] == _BLOB
    first, second, third = target.of_kind("patch")
    assert "content-range" not in first.headers
    assert second.headers["content-range"] == f"1000000-{len(_BLOB) - 1}"
    assert third.headers["content-range"] == f"1500000-{len(_BLOB) - 1}"
    assert len(target.of_kind("begin")) == 1


async def test_a_session_that_is_forgotten_begins_anew(writer: RegistryWriter, target: PushTarget) -> None:
    """At most twice; then the error says which blob."""
    target.fail("patch", cut(1_000_000, kept=False), 2)
    assert await writer.put_blob("app", _blob())
    assert len(target.of_kind("begin")) == 3
    target.fail("patch", cut(1_000_000, kept=False), 3)
    with pytest.raises(DigestMismatch, match=str(_DIGEST)):
        await writer.put_blob("other", _blob())


async def test_an_upload_without_progress_ends(writer: RegistryWriter, target: PushTarget) -> None:
    """It is not tried for ever."""
    target.fail("patch", cut(0), 100)
    with pytest.raises(UpstreamUnavailable):
        await writer.put_blob("app", _blob())
    assert len(target.of_kind("patch")) < 10


async def test_429_is_heeded_everywhere(writer: RegistryWriter, target: PushTarget, time: _Time) -> None:
    """Each call waits as long as the registry asks, and the upload goes on where it was."""
    for kind in ("look", "begin", "patch", "commit", "manifest"):
        target.fail(kind, throttled(7))
    await writer.has_blob("app", _DIGEST, len(_BLOB))
    await writer.put_blob("app", _blob())
    manifest = _image(_BLOB)
    await writer.put_blob("app", _blob(b"{}"))
    await writer.put_manifest("app", manifest, "v1")
    assert time.slept.count(7) == 5
    assert target.repository("app").tags["v1"] == manifest.digest
    target.fail("look", throttled(100_000))
    time.slept.clear()
    await writer.digest_of("app", "v1")
    # bounded, however long the registry asks for
    assert time.slept == [300]
    target.fail("look", throttled(1), 100)
    with pytest.raises(UpstreamThrottled):
        await writer.digest_of("app", "v1")


async def test_a_login_that_ends_in_the_middle(writer: RegistryWriter, target: PushTarget) -> None:
    """A 401 in the middle of a push gets a new token, whose scope has what the request needs."""
    target.tokens = True

    def expired(exchange: Exchange, usual: Any) -> bool:
        target.expire_tokens()
        return bool(usual())

    target.fail("patch", expired)
    target.fail("commit", expired)
    target.fail("manifest", expired)
    assert await writer.put_blob("app", _blob())
    await writer.put_blob("app", _blob(b"{}"))
    manifest = _image(_BLOB)
    await writer.put_manifest("app", manifest, "v1")
    assert target.repository("app").blobs[_DIGEST] == _BLOB
    assert await writer.delete_tag("app", "v1")
    scopes = [asked.target for asked in target.of_kind("token")]
    assert any("push" in scope for scope in scopes)
    assert any("delete" in scope for scope in scopes)
    target.repository("base").blobs[Digest.of(b"of base")] = b"of base"
    assert not await writer.put_blob("app", _blob(b"of base"), ["base"])
    assert "repository%3Abase%3Apull" in target.of_kind("token")[-1].target


async def test_a_login_that_is_refused(writer: RegistryWriter, target: PushTarget) -> None:
    """Says so; nothing is repeated."""
    target.tokens = True
    target.fail("token", answers(401, "UNAUTHORIZED"), 10)
    with pytest.raises(UpstreamDenied):
        await writer.has_blob("app", _DIGEST, 1)
    target.tokens = False
    target.fail("manifest", answers(403, "DENIED"))
    with pytest.raises(UpstreamDenied, match="denied"):
        await writer.put_manifest("app", _image(), "v1")
    assert len(target.of_kind("manifest")) == 1


async def test_a_registry_that_goes_forward_and_back(writer: RegistryWriter, target: PushTarget) -> None:
    """Only bytes beyond all that it had before are progress: otherwise, the upload would never end."""
    target.fail("patch", lambda exchange, usual: exchange.answer(202, {"Range": "0-999"}), 200)
    target.fail("session", lambda exchange, usual: exchange.answer(204, {"Range": "0-0"}), 200)
    with pytest.raises(DigestMismatch):
        await writer.put_blob("app", _blob())
    assert len(target.of_kind("patch")) < 50


async def test_credentials_stay_at_the_registry(writer: RegistryWriter, target: PushTarget) -> None:
    """The upload goes where the registry says; another host gets the bytes, and no token."""
    target.tokens = True
    with PushTarget() as elsewhere:
        await writer.has_blob("app", _DIGEST, 1)
        for kind in ("begin",):
            target.fail(kind, lambda exchange, usual: exchange.answer(202, {"Location": _begun_at(elsewhere)}))
        assert await writer.put_blob("app", _blob())
        assert elsewhere.repository("app").blobs[_DIGEST] == _BLOB
        assert not [asked for asked in elsewhere.asked if "authorization" in asked.headers]
        assert [asked for asked in target.of_kind("begin") if "authorization" in asked.headers]


async def test_another_host_does_not_get_the_login_by_asking_for_it(target: PushTarget, time: _Time) -> None:
    """The host that the upload goes to wants a token of its own token service: neither is sent the credentials."""
    target.tokens = True
    with PushTarget() as elsewhere:
        elsewhere.tokens = True
        target.fail("begin", lambda exchange, usual: exchange.answer(202, {"Location": _begun_at(elsewhere)}))
        async with _writer(target.url, time, Credentials("robot", "secret")) as writer:
            await writer.has_blob("app", _DIGEST, 1)
            with pytest.raises(UpstreamUnavailable):
                await writer.put_blob("app", _blob())
        assert elsewhere.asked
        assert not [asked for asked in elsewhere.asked if "authorization" in asked.headers]
        assert [asked for asked in target.of_kind("token") if "authorization" in asked.headers]


async def test_a_refusal_that_repeats_the_token_is_not_quoted(writer: RegistryWriter, target: PushTarget) -> None:
    """The message of a 404 helps whoever reads the log, unless it repeats what was sent to log in."""
    target.tokens = True

    def repeating(exchange: Exchange, usual: Callable[[], bool]) -> bool:
        return exchange.error(404, f"no repository for {exchange.asked.headers['authorization']}")

    await writer.has_blob("app", _DIGEST, 1)
    for fault, message in ((answers(404, "NAME_UNKNOWN"), r"404 \(NAME_UNKNOWN"), (repeating, "404$")):
        target.fail("manifest", fault)
        with pytest.raises(UpstreamNotFound, match=message):
            await writer.put_manifest("app", _image(), "v1")


def _begun_at(target: PushTarget) -> str:
    target._sessions["abc"] = bytearray()
    return f"{target.url}/v2/app/blobs/uploads/abc"


@pytest.mark.parametrize("location", ["", "ftp://127.0.0.1/x", "http://169.254.169.254/v2/app/blobs/uploads/a"])
async def test_a_place_that_is_not_allowed(writer: RegistryWriter, target: PushTarget, location: str) -> None:
    """Metadata services and other schemes are never written to."""
    target.fail("begin", lambda exchange, usual: exchange.answer(202, {"Location": location}), 10)
    with pytest.raises(UpstreamInvalid):
        await writer.put_blob("app", _blob())
    assert not target.of_kind("patch", "commit")


async def test_a_registry_that_got_other_bytes(writer: RegistryWriter, target: PushTarget) -> None:
    """What it says it has stored is compared; a refused digest is tried again from the start."""
    target.fail("commit", says("Docker-Content-Digest", str(Digest.of(b"another"))))
    with pytest.raises(DigestMismatch):
        await writer.put_blob("app", _blob())
    target.fail("commit", answers(400, "DIGEST_INVALID"))
    assert await writer.put_blob("other", _blob())
    target.fail("manifest", says("Docker-Content-Digest", str(Digest.of(b"another"))))
    await writer.put_blob("app", _blob(b"{}"))
    with pytest.raises(DigestMismatch):
        await writer.put_manifest("app", _image(), "v1")


async def test_an_answer_that_is_lost(writer: RegistryWriter, target: PushTarget) -> None:
    """The work was done; it is seen by the next try, and not done twice."""
    target.fail("commit", swallowed)
    assert await writer.put_blob("app", _blob())
    assert len(target.of_kind("begin")) == 1
    await writer.put_blob("app", _blob(b"{}"))
    target.fail("manifest", swallowed)
    await writer.put_manifest("app", _image(), "v1")
    assert await writer.digest_of("app", "v1") == _image().digest


async def test_a_refusal_before_the_end_of_the_body(writer: RegistryWriter, target: PushTarget) -> None:
    """The rest is not sent, and the reason is reported."""

    def refused(exchange: Exchange, usual: Any) -> bool:
        exchange.left = 0
        exchange.error(413, "SIZE_INVALID")
        return False

    target.fail("patch", refused)
    with pytest.raises(UpstreamInvalid, match="413"):
        await writer.put_blob("app", _blob())


async def test_manifests_and_tags(writer: RegistryWriter, target: PushTarget) -> None:
    """Absent is an answer, and anything else that is no success an error."""
    assert await writer.digest_of("app", "v1") is None
    assert await writer.manifest("app", "v1") is None
    manifest = _image()
    assert not await writer.has_manifest("app", manifest.digest)
    with pytest.raises(UpstreamNotFound, match="MANIFEST_BLOB_UNKNOWN"):
        await writer.put_manifest("app", manifest, "v1")
    await writer.put_blob("app", _blob(b"{}"))
    assert not await writer.put_manifest("app", manifest, "v1")
    assert await writer.has_manifest("app", manifest.digest)
    assert (await writer.manifest("app", "v1") or manifest).content == manifest.content
    target.fail("look", says("Docker-Content-Digest", "nonsense"))
    assert await writer.digest_of("app", "v1") == manifest.digest
    for status in (500, 503):
        target.fail("look", answers(status), 10)
        with pytest.raises(UpstreamUnavailable):
            await writer.digest_of("app", "v1")
        target._faults.clear()
    assert await writer.delete_tag("app", "v1")
    assert await writer.delete_tag("app", "v1")
    target.tag_deletion = False
    await writer.put_manifest("app", manifest, "v2")
    assert not await writer.delete_tag("app", "v2")
    assert target.repository("app").tags == {"v2": manifest.digest}


async def test_who_lists_referrers(writer: RegistryWriter, target: PushTarget) -> None:
    """A registry with the referrers API says so in its answer."""
    await writer.put_blob("app", _blob(b"{}"))
    subject = {"mediaType": OCI_MANIFEST, "digest": str(_DIGEST), "size": 3}
    assert await writer.put_manifest("app", _image(subject=subject), _image(subject=subject).digest)
    target.referrers = False
    assert not await writer.put_manifest("app", _image(subject=subject), _image(subject=subject).digest)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0-99", 100),
        ("0-0", 1),
        ("bytes=0-9", 10),
        (" 0-9 ", 10),
        ("1-9", None),
        ("", None),
        (None, None),
        ("0-", None),
    ],
)
def test_how_far_a_session_is(text: str | None, count: int | None) -> None:
    """By the header of its answers."""
    assert received(text) == count


async def test_a_rate_is_kept_and_a_wait_can_be_ended(writer: RegistryWriter, target: PushTarget) -> None:
    """The thread waits as long as it is told before each piece; a caller that gives up does not wait for that."""
    waits = iter([0.01, 0.01, 3600.0])
    task = asyncio.create_task(writer.put_blob("app", _blob(take=lambda count: next(waits, 0.0))))
    await until(lambda: target.of_kind("patch"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    limit = RateLimit(1000.0, clock=lambda: 5.0)
    assert [limit.take(500), limit.take(500)] == [0.5, 1.0]
    assert RateLimit(None).take(1 << 40) == 0


async def test_over_tls(tmp_path: Path, time: _Time) -> None:
    """The same, with tokens and a connection that breaks; a certificate that is not trusted gets no byte."""
    certificate = Certificate(tmp_path)
    with PushTarget(tls=certificate.server(), tokens=True) as target:
        async with _writer(target.url, time) as stranger:
            with pytest.raises(UpstreamUnavailable):
                await stranger.put_blob("app", _blob())
        assert not target.asked
        async with _writer(target.url, time, verify=certificate.client()) as writer:
            target.fail("patch", cut(1_000_000))
            assert await writer.put_blob("app", _blob())
            assert await writer.put_blob("app", _blob(b"{}"))
            await writer.put_manifest("app", _image(_BLOB), "v1")
            assert await writer.digest_of("app", "v1") == _image(_BLOB).digest
        assert target.repository("app").blobs[_DIGEST] == _BLOB
        assert len(target.of_kind("patch")) > 1


async def test_a_blob_is_open_until_its_thread_has_ended(
    writer: RegistryWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often whoever sends it is cancelled: the number of a closed file is soon that of another one."""
    content, reading, may_end = _Content(_BLOB), threading.Event(), threading.Event()

    def send(sender: BlobSender, *arguments: object) -> None:
        reading.set()
        may_end.wait(60)
        raise UpstreamUnavailable("given up", upstream="other.example.com")

    monkeypatch.setattr(BlobSender, "send", send)
    client = writer._sender
    sending = asyncio.create_task(_sent(client, content))
    await until(reading.is_set)
    for _ in range(3):
        sending.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    closed_meanwhile = content.closed
    assert not sending.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert (closed_meanwhile, content.closed) == (0, 1)


async def _sent(client: BlobSendingClient, content: _Content) -> None:
    try:
        await client.send("PATCH", "https://other.example.com/v2/", {}, [])
    finally:
        content.close()


async def test_a_blob_that_is_opened_for_nobody_is_closed(writer: RegistryWriter) -> None:
    """Whoever wanted it was cancelled while a thread opened it."""
    content, opening, may_end = _Content(_BLOB), threading.Event(), threading.Event()

    def opened() -> _Content:
        opening.set()
        may_end.wait(60)
        return content

    task = asyncio.create_task(writer._sender.run(opened, unwanted=_Content.close))
    await until(opening.is_set)
    task.cancel()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert content.closed == 1
