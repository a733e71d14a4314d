"""One replica asks another for cached blobs: what is sent, when, and to whom; and what is not believed."""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from mirror.errors import UpstreamError, UpstreamInvalid, UpstreamNotFound, UpstreamUnavailable
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.peers.peer_blobs import HttpPeerBlobs
from mirror.peers.peer_client import PeerClient
from mirror.peers.peer_health import PeerHealth
from mirror.peers.peer_signer import PeerSigner
from mirror.policy.cluster.blob_requests import BlobRequest, parse_blob_request, range_headers
from mirror.policy.cluster.peer_signatures import SIGNED_HEADERS
from mirror.ports import Body, SaysStop, SupportsSplice
from tests.support.certificates import Certificate
from tests.support.hangar import CONTENT, DIGEST, HALF, SIZE, reached
from tests.support.peer_site import ASKING, REPO, PeerSite
from tests.support.scripted import Close, Scripted, Step, reply


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[PeerSite]:
    """Listening."""
    with ThreadPoolExecutor(16) as executor:
        async with PeerSite(tmp_path, executor).open() as made:
            yield made


async def _read(site: PeerSite, start: int = 0, size: int | None = SIZE, stop: int | None = None) -> bytes:
    async with site.blobs.open(site.member, REPO, DIGEST, start, stop, size=size, hops=1, heard=lambda: None) as body:
        received = await asyncio.to_thread(_all_of, body)
        return received[start - body.start :]


def _all_of(body: Body) -> bytes:
    received, buffer = b"", memoryview(bytearray(1 << 16))
    while count := body.readinto(buffer):
        received += buffer[:count]
    return received


@pytest.mark.parametrize("start", [0, 1, HALF, SIZE - 1])
@pytest.mark.parametrize("size", [SIZE, None])
async def test_a_blob_or_the_rest_of_it(site: PeerSite, start: int, size: int | None) -> None:
    """With its size known or not, also once it is in the store."""
    assert await _read(site, start, size) == CONTENT[start:]
    assert await _read(site, start, size) == CONTENT[start:]
    assert len(site.upstream.starts) == 1
    assert site.given.found[0] == (1, (ASKING,))


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, HALF), (1, HALF), (HALF, SIZE), (HALF, SIZE + 9), (0, SIZE)])
@pytest.mark.parametrize("size", [SIZE, None])
async def test_a_part_of_a_blob(site: PeerSite, start: int, stop: int, size: int | None) -> None:
    """No more than was asked for is sent; that the member fetches the whole does not matter."""
    for _ in range(2):
        assert await _read(site, start, size, stop) == CONTENT[start:stop]
    assert len(site.upstream.starts) == 1


@pytest.mark.parametrize("before", [(1 << 31) - 1, (1 << 32) + 7])
async def test_the_end_of_a_large_blob(site: PeerSite, before: int) -> None:
    """Beyond what 31 and 32 bits count; whether the bytes are right is for the replica that has all of them."""
    digest, size = Digest.of(b"a large blob"), before + SIZE
    _write_end(Path(site.store.layout.blob(digest)), before)
    site.given.size = size
    for start in (before, before + HALF):
        async with site.blobs.open(site.member, REPO, digest, start, size=size, hops=1, heard=lambda: None) as body:
            assert body.start == start
            assert await asyncio.to_thread(_all_of, body) == CONTENT[start - before :]
    assert not site.upstream.starts


def _write_end(file: Path, before: int) -> None:
    """A file of so many zeros, which take no room, and the content."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as large:
        large.seek(before)
        large.write(CONTENT)


async def test_a_member_that_refuses_our_time_is_asked_by_its_own(site: PeerSite) -> None:
    """Nothing else may ever tell this process what time it is there: members that answer are looked at by another."""
    signer = PeerSigner("test", ASKING, site.secrets, now=lambda: time.time() - 3600)
    site.blobs = HttpPeerBlobs(signer, PeerClient(signer, PeerHealth()), site.executor)
    for _ in range(2):
        assert await _read(site) == CONTENT
    assert round(signer.ahead(site.member) / 60) == 60


async def test_130_an_older_member_sends_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 130: a member of a version that knows no parts with an end finds the signature right, and the offset."""

    def older(rest: str, headers: Mapping[str, str]) -> BlobRequest:
        return replace(parse_blob_request(rest, headers), stop=None)

    monkeypatch.setattr("mirror.server.peers.blobs.parse_blob_request", older)
    with ThreadPoolExecutor(16) as executor:
        async with PeerSite(tmp_path, executor).open() as site:
            assert await _read(site, 5, SIZE, HALF) == CONTENT[5:]
            async with site.blobs.open(
                site.member, REPO, DIGEST, 5, HALF, size=SIZE, hops=1, heard=lambda: None
            ) as body:
                assert isinstance(body, SaysStop)
                assert body.stop == SIZE


def test_what_an_older_member_reads_of_a_part() -> None:
    """A `Range` without an end, as it has always been, and nothing else but headers whose names it signs."""
    headers = range_headers(5, 10)
    assert headers["Range"] == "bytes=5-"
    assert {name.lower() for name in headers} <= set(SIGNED_HEADERS)
    assert range_headers(5, None) == {"Range": "bytes=5-"}
    assert range_headers(0, None) == {}


@pytest.mark.parametrize("text", ["bytes 4-9/*", "bytes 5-4/*", "bytes 5-9/10", "5-9", ""])
def test_an_end_that_is_none(text: str) -> None:
    """Neither another beginning nor an end before it."""
    with pytest.raises(ValueError, match="Content-Range"):
        parse_blob_request(f"{REPO}/{DIGEST}", {"Mirror-Hops": "1", "Range": "bytes=5-", "Content-Range": text})


def _asked(result: str) -> float:
    return REGISTRY.get_sample_value("mirror_peer_requests_total", {"verb": "blob", "result": result}) or 0.0


def _timed() -> float:
    return REGISTRY.get_sample_value("mirror_peer_seconds_count", {"verb": "blob"}) or 0.0


async def test_requests_for_blobs_are_counted(site: PeerSite) -> None:
    """By what became of them; only answers are timed."""
    before = {result: _asked(result) for result in ("answered", "failed", "silent")}
    timed = _timed()
    assert await _read(site) == CONTENT
    # what the member says of how far it is, is no request for a blob
    assert await site.blobs.offset(site.member, REPO, DIGEST) == SIZE
    with pytest.raises(UpstreamNotFound):
        async with site.blobs.open(
            site.member, Repo("quay.io", "team/app"), DIGEST, 0, size=SIZE, hops=1, heard=lambda: None
        ):
            raise AssertionError("opened")
    with Scripted() as silent:
        silent.on(f"/peer/v1/blob/{REPO}/{DIGEST}", Close())
        with pytest.raises(UpstreamUnavailable):
            async with site.blobs.open(silent.url, REPO, DIGEST, 0, size=SIZE, hops=1, heard=lambda: None):
                raise AssertionError("opened")
    assert {result: _asked(result) - count for result, count in before.items()} == dict.fromkeys(before, 1.0)
    assert _timed() - timed == 1.0


async def test_a_blob_of_which_upstream_does_not_say_the_size(site: PeerSite) -> None:
    """It is sent in chunks, and whole, since no part of it can be named."""
    site.upstream.says = None
    assert await _read(site, 5, None) == CONTENT[5:]


async def test_the_kernel_moves_the_bytes(site: PeerSite) -> None:
    """After those that came with the head, as from an upstream without TLS."""
    async with site.blobs.open(site.member, REPO, DIGEST, 0, size=SIZE, hops=1, heard=lambda: None) as body:
        buffer = memoryview(bytearray(1 << 16))
        assert isinstance(body, SupportsSplice)
        first = await asyncio.to_thread(body.readinto, buffer)
        offered = await asyncio.to_thread(body.plain_socket)
        while offered is None:
            first += await asyncio.to_thread(body.readinto, buffer)
            offered = await asyncio.to_thread(body.plain_socket)
        assert offered[1] == SIZE - first


async def test_with_the_size_the_head_comes_before_upstream_answers(site: PeerSite) -> None:
    """So the other replica waits for a process, not for a registry; the first byte is that of the blob."""
    answer, heard = asyncio.Event(), asyncio.Event()
    site.before = answer.wait
    task = asyncio.create_task(_opened(site, heard, SIZE))
    async with asyncio.timeout(30):
        await heard.wait()
    assert not task.done()
    answer.set()
    assert await task == CONTENT


async def test_without_the_size_the_head_is_upstream_s(site: PeerSite) -> None:
    """It says that the repository may have the blob, which nobody knows before."""
    answer, heard = asyncio.Event(), asyncio.Event()
    asked = asyncio.Event()

    async def before() -> None:
        asked.set()
        await answer.wait()

    site.before = before
    task = asyncio.create_task(_opened(site, heard, None))
    async with asyncio.timeout(30):
        await asked.wait()
    assert not heard.is_set()
    assert await site.blobs.offset(site.member, REPO, DIGEST) == 0
    answer.set()
    assert await task == CONTENT
    assert heard.is_set()


async def _opened(site: PeerSite, heard: asyncio.Event, size: int | None) -> bytes:
    async with site.blobs.open(site.member, REPO, DIGEST, 0, size=size, hops=1, heard=heard.set) as body:
        return await asyncio.to_thread(_all_of, body)


async def test_bytes_come_while_the_blob_grows(site: PeerSite) -> None:
    """And the member says how far it is: the last bytes are held back until the whole is verified."""
    site.upstream.gate.clear()
    assert await site.blobs.offset(site.member, REPO, DIGEST) is None
    async with site.blobs.open(site.member, REPO, DIGEST, 0, size=SIZE, hops=1, heard=lambda: None) as body:
        first = await asyncio.to_thread(_up_to, body, HALF)
        assert first == CONTENT[:HALF]
        assert await site.blobs.offset(site.member, REPO, DIGEST) == HALF
        site.upstream.gate.set()
        assert first + await asyncio.to_thread(_all_of, body) == CONTENT
    assert await site.blobs.offset(site.member, REPO, DIGEST) == SIZE


def _up_to(body: Body, stop: int) -> bytes:
    received, buffer = b"", memoryview(bytearray(1 << 16))
    while len(received) < stop:
        received += buffer[: body.readinto(buffer)]
    return received


@pytest.mark.parametrize("size", [SIZE, None])
async def test_an_upstream_that_does_not_have_it(site: PeerSite, size: int | None) -> None:
    """404 without the size; with it, the head has left already, and no byte follows."""
    site.upstream.refusals = [UpstreamNotFound("no such blob", upstream="docker.io", status=404)]
    with pytest.raises(UpstreamError) as caught:
        await _read(site, size=size)
    assert isinstance(caught.value, UpstreamNotFound) == (size is None)


async def test_an_upstream_that_is_down(site: PeerSite) -> None:
    """The member's trouble is not a missing blob."""
    site.upstream.refusals = [UpstreamUnavailable("no answer", upstream="docker.io")] * 99
    with pytest.raises(UpstreamUnavailable) as caught:
        await _read(site, size=None)
    assert caught.value.status is not None


async def test_wrong_bytes_of_upstream_are_not_passed_on_whole(site: PeerSite) -> None:
    """The member verifies before it sends the last bytes; whoever asked can go on elsewhere."""
    site.upstream.content = CONTENT[:-1] + b"!"
    with pytest.raises(UpstreamUnavailable, match="broke off"):
        await _read(site)


async def test_a_size_that_differs(site: PeerSite) -> None:
    """A manifest may be wrong; nothing is sent then."""
    with pytest.raises(UpstreamUnavailable):
        await _read(site, size=SIZE + 1)
    with pytest.raises(UpstreamUnavailable, match="Range begins after the end"):
        await _read(site, start=SIZE, size=SIZE)


async def test_repositories_that_are_not_shared(site: PeerSite) -> None:
    """As if there were no such blob."""
    other = Repo("quay.io", "team/app")
    with pytest.raises(UpstreamNotFound):
        async with site.blobs.open(site.member, other, DIGEST, 0, size=SIZE, hops=1, heard=lambda: None):
            raise AssertionError("opened")
    assert await site.blobs.offset(site.member, other, DIGEST) is None


async def test_126_who_would_wait_for_itself_is_told(site: PeerSite) -> None:
    """Row 126: with more than two replicas in a row, or when the member waits for the one that asks, it says 508."""
    with pytest.raises(UpstreamUnavailable) as caught:
        async with site.blobs.open(site.member, REPO, DIGEST, 0, size=SIZE, hops=3, heard=lambda: None):
            raise AssertionError("opened")
    assert caught.value.status == 508
    site.given.waiting_for = ASKING
    with pytest.raises(UpstreamUnavailable) as caught:
        await _read(site)
    assert caught.value.status == 508
    assert site.upstream.starts == []


@pytest.mark.parametrize("size", [SIZE, None])
async def test_who_gives_up_leaves_nothing_behind(site: PeerSite, size: int | None) -> None:
    """Neither a thread nor a connection: before the head, and before the first byte."""
    never, heard = asyncio.Event(), asyncio.Event()
    site.before = never.wait
    before = _connections()
    task = asyncio.create_task(_opened(site, heard, size))
    await reached(heard.is_set if size else lambda: bool(site.given.found))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await reached(lambda: _connections() <= before)
    never.set()


async def test_who_gives_up_before_a_thread_is_free_need_not_wait_for_one(tmp_path: Path) -> None:
    """All threads may wait for members that wait for their upstream."""
    with ThreadPoolExecutor(16) as executor, ThreadPoolExecutor(1) as one:
        async with PeerSite(tmp_path, executor).open() as site:
            signer = PeerSigner("test", ASKING, site.secrets)
            client = PeerClient(signer, PeerHealth())
            blobs = HttpPeerBlobs(signer, client, one)
            busy = threading.Event()
            one.submit(busy.wait)
            heard = asyncio.Event()
            opening = blobs.open(site.member, REPO, DIGEST, 0, size=SIZE, hops=1, heard=heard.set)
            task = asyncio.create_task(opening.__aenter__())
            await asyncio.sleep(0)
            task.cancel()
            try:
                async with asyncio.timeout(30):
                    with pytest.raises(asyncio.CancelledError):
                        await task
            finally:
                busy.set()
                await client.aclose()
            assert not site.given.found


def _connections() -> int:
    """The sockets that this process has."""
    there = 0
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            there += os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
    return there


async def test_a_connection_that_breaks(site: PeerSite) -> None:
    """In the middle: what came is good, and the error says where it ended."""
    site.upstream.gate.clear()
    site.upstream.troubles = [UpstreamUnavailable("reset", upstream="docker.io")] * 99
    async with site.blobs.open(site.member, REPO, DIGEST, 0, size=SIZE, hops=1, heard=lambda: None) as body:
        assert await asyncio.to_thread(_up_to, body, HALF) == CONTENT[:HALF]
        site.upstream.gate.set()
        with pytest.raises(UpstreamUnavailable, match=f"at byte {HALF}"):
            await asyncio.to_thread(_all_of, body)


async def test_over_tls(tmp_path: Path) -> None:
    """Both sides show a certificate of the same authority, with one name for all replicas."""
    certificate = Certificate(tmp_path / "tls", names="DNS:mirror")
    server, client = certificate.server(), certificate.client()
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(certificate.certificate)
    client.load_cert_chain(certificate.certificate, certificate.key)
    with ThreadPoolExecutor(16) as executor:
        async with PeerSite(tmp_path, executor).open(server_tls=server, tls=client, name="mirror") as site:
            assert await _read(site) == CONTENT
            assert await _read(site, HALF, None) == CONTENT[HALF:]
            assert await site.blobs.offset(site.member, REPO, DIGEST) == SIZE


@pytest.mark.parametrize(
    "answer",
    [
        reply(200, CONTENT),
        reply(200, CONTENT, headers={"Mirror-Granted": "yes", "Mirror-Answer-MAC": "0" * 64}),
        reply(307, b"", headers={"Location": "http://127.0.0.1:1/elsewhere"}),
        reply(204, b""),
        # a time is learnt of members alone: somebody else could make this replica sign in advance
        reply(401, b"", headers={"Mirror-Time": "9999999999"}),
        reply(401, b"", headers={"Mirror-Time": "9999999999", "Mirror-Answer-MAC": "0" * 64}),
    ],
    ids=["unsigned", "signed wrongly", "redirect", "no content", "time", "time signed wrongly"],
)
@pytest.mark.parametrize("size", [SIZE, None])
async def test_125_whoever_else_answers_is_not_believed(site: PeerSite, answer: list[Step], size: int | None) -> None:
    """Row 125: only a replica of the cluster can answer for a member."""
    with Scripted() as other:
        other.on(f"/peer/v1/blob/{REPO}/{DIGEST}", *answer, Close())
        with pytest.raises(UpstreamInvalid):
            async with site.blobs.open(other.url, REPO, DIGEST, 0, size=size, hops=1, heard=lambda: None):
                raise AssertionError("opened")
        assert len(other.requests) == 1


async def test_125_a_member_that_is_down(site: PeerSite) -> None:
    """Row 125: no connection, and no answer about how far it is."""
    async with AsyncExitStack() as stack:
        signer = PeerSigner("test", ASKING, site.secrets)
        client = PeerClient(signer, PeerHealth())
        stack.push_async_callback(client.aclose)
        blobs = HttpPeerBlobs(signer, client, site.executor)
        with pytest.raises(UpstreamUnavailable) as caught:
            async with blobs.open(ASKING, REPO, DIGEST, 0, size=SIZE, hops=1, heard=lambda: None):
                raise AssertionError("opened")
        assert caught.value.status is None
        with pytest.raises(UpstreamUnavailable):
            await blobs.offset(ASKING, REPO, DIGEST)
