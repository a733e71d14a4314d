"""A blob comes from the bucket first, if it may, and at the first trouble from upstream, from the same byte on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest

from mirror.errors import (
    BucketDenied,
    BucketUnavailable,
    DigestMismatch,
    StoreError,
    UpstreamDenied,
    UpstreamNotFound,
    UpstreamUnavailable,
)
from mirror.fills.bucket_source import BucketReads
from mirror.fills.flight import Flight
from mirror.fills.sources import BlobSources, FromUpstream
from mirror.oci.digest import Digest
from mirror.ports import BlobObject, Body
from mirror.repository.answers import GrowingContent, Outcome, UpstreamStream
from tests.support.clock import Clock
from tests.support.following import read_to_end
from tests.support.hangar import CONTENT, DIGEST, HALF, SIZE, GatedBody, GatedUpstream, Hangar, reached
from tests.support.memory_bucket import MemoryBucket
from tests.support.memory_store import MemoryStore
from tests.support.one_object import KEY, OneObject


class Site:
    """A bucket with one blob, an upstream that has it too, and flights."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self.bucket = MemoryBucket()
        self.bucket.write(KEY, CONTENT)
        self.objects = OneObject(DIGEST, SIZE)
        self.clock = Clock()
        self.reads = BucketReads(self.bucket, executor, patience=30.0, clock=self.clock)
        self.upstream = GatedUpstream(is_open=True)
        self.store = MemoryStore()
        self.hangar = Hangar(self.store, executor)
        self.executor = executor

    def cached(self) -> BlobSources:
        """The bucket, then upstream."""
        return BlobSources(self.reads.cached(self.objects, DIGEST), FromUpstream(self.upstream.pull))

    def hosted(self) -> BlobSources:
        """The bucket alone."""
        return BlobSources(self.reads.hosted(self.objects, DIGEST))

    async def fetch(self, sources: BlobSources) -> bytes:
        """The whole blob, which the store does not have afterwards."""
        flight = await self.join(sources)
        content = await read_to_end(flight)
        await flight.over.wait()
        flight.leave()
        self.store.delete(DIGEST)
        return content

    async def join(self, sources: BlobSources, digest: Digest = DIGEST) -> Flight:
        """A follower."""
        return await self.hangar.flights.join(digest, sources, upstream="test")


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """Closed at the end."""
    with ThreadPoolExecutor(8) as executor:
        made = Site(executor)
        try:
            yield made
        finally:
            made.upstream.gate.set()
            await made.hangar.flights.aclose()


async def test_the_bucket_comes_first(site: Site) -> None:
    """What it has is not fetched from upstream, and the flight says where it came from."""
    flight = await site.join(site.cached())
    assert await read_to_end(flight) == CONTENT
    assert flight.source == "bucket"
    assert site.upstream.starts == []


@pytest.mark.parametrize("kind", [BucketUnavailable, BucketDenied, StoreError])
async def test_a_bucket_that_does_not_answer_is_left(site: Site, kind: type[StoreError]) -> None:
    """Whatever is wrong with it, upstream is asked at once (rows 113, 115, 116)."""
    site.bucket.fail("open", error=kind("on purpose"))
    flight = await site.join(site.cached())
    assert await read_to_end(flight) == CONTENT
    assert flight.source == ""
    assert site.upstream.starts == [0]
    assert site.hangar.slept == []


async def test_a_blob_that_the_bucket_does_not_have(site: Site) -> None:
    """The usual case, without a call of the bucket."""
    site.objects.found = None
    assert await read_to_end(await site.join(site.cached())) == CONTENT
    assert not site.bucket.calls["open"]
    assert site.upstream.starts == [0]


async def test_117_cut_in_the_middle_goes_on_upstream(site: Site) -> None:
    """From the same byte, and without a pause."""
    site.bucket.break_bodies(after=HALF)
    flight = await site.join(site.cached())
    assert await read_to_end(flight) == CONTENT
    assert site.upstream.starts == [HALF]
    assert site.hangar.slept == []
    assert flight.source == ""


async def test_117_cut_in_the_middle_of_hosted_content_resumes(site: Site) -> None:
    """There is no other source, so the bucket is asked again for the rest, after a pause."""
    site.bucket.break_bodies(after=HALF)
    assert await read_to_end(await site.join(site.hosted())) == CONTENT
    assert [verb for verb, _ in site.bucket.log if verb == "open"] == ["open", "open"]
    assert site.hangar.slept == [0.2]


async def test_114_a_silent_bucket_costs_one_short_time_and_is_then_left_alone(site: Site) -> None:
    """The next blobs are not even asked for, until the breaker lets one through."""
    reads = BucketReads(site.bucket, site.executor, patience=0.0, clock=site.clock)
    answer = threading.Event()
    site.bucket.before("open", lambda: assert_set(answer))
    try:
        for _ in range(2):
            source = reads.cached(site.objects, DIGEST)
            await site.fetch(BlobSources(source, FromUpstream(site.upstream.pull)))
        assert site.upstream.starts == [0, 0]
        # the thread of the first call may begin late
        await reached(lambda: site.bucket.calls["open"] > 0)
        assert site.bucket.calls["open"] == 1
    finally:
        answer.set()
    site.clock.time += 2.0
    assert reads.breaker.admit() is not None


def assert_set(event: threading.Event) -> None:
    """Wait for a test."""
    assert event.wait(30)


async def test_114_a_bucket_that_stalls_is_left_for_upstream(site: Site) -> None:
    """The body that gives nothing more is aborted, and upstream goes on from there."""
    stalling = GatedUpstream()

    class Stalling(MemoryBucket):
        def open(self, key: str, start: int = 0, stop: int | None = None) -> GatedBody:  # type: ignore[override]
            return GatedBody(stalling, start, stop)

    reads = BucketReads(Stalling(), site.executor, window=0.01)
    source = reads.cached(site.objects, DIGEST)
    flight = await site.join(BlobSources(source, FromUpstream(site.upstream.pull)))
    assert await read_to_end(flight) == CONTENT
    # on a busy machine the body may seem to stall before it does
    assert [start <= HALF for start in site.upstream.starts] == [True]
    assert stalling.aborted


async def test_119_wrong_bytes_of_cached_content(site: Site) -> None:
    """Never sent whole; the object is dropped; the fill begins again from upstream, at once and once."""
    site.bucket.damage(KEY, CONTENT[:-1] + b"\0")
    flight = await site.join(site.cached())
    with pytest.raises(DigestMismatch):
        await read_to_end(flight)
    assert flight.sendable < SIZE
    again = flight.successor
    assert again is not None
    await again.over.wait()
    assert site.store.read(DIGEST, SIZE) == CONTENT
    assert site.objects.found is None
    assert site.upstream.starts == [0]


async def test_119_cached_content_that_was_read_wrong_once_stays(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way was to blame: the next fill comes from upstream, and the object is as it was."""
    opening = site.bucket.open
    wrong = [CONTENT[:-1] + b"\0"]

    def open_object(key: str, start: int = 0, stop: int | None = None) -> Body | None:
        if not wrong:
            return opening(key, start, stop)
        site.bucket.damage(key, wrong.pop())
        body = opening(key, start, stop)
        site.bucket.damage(key, CONTENT)
        return body

    monkeypatch.setattr(site.bucket, "open", open_object)
    flight = await site.join(site.cached())
    with pytest.raises(DigestMismatch):
        await read_to_end(flight)
    assert flight.successor is not None
    await flight.successor.over.wait()
    assert site.store.read(DIGEST, SIZE) == CONTENT
    assert site.objects.found is not None
    assert site.upstream.starts == [0]


async def test_119_wrong_bytes_of_both(site: Site) -> None:
    """Upstream is not asked again and again."""
    site.bucket.damage(KEY, CONTENT[:-1] + b"\0")
    site.upstream.content = CONTENT[:-1] + b"\1"
    flight = await site.join(site.cached())
    with pytest.raises(DigestMismatch):
        await read_to_end(flight)
    assert flight.successor is not None
    await flight.successor.over.wait()
    assert flight.successor.successor is None
    assert site.upstream.starts == [0]


async def test_119_wrong_bytes_of_hosted_content(site: Site) -> None:
    """The object is read a second time before it is called lost."""
    site.bucket.damage(KEY, CONTENT[:-1] + b"\0")
    flight = await site.join(site.hosted())
    with pytest.raises(DigestMismatch):
        await read_to_end(flight)
    assert site.objects.found is None
    assert flight.successor is None
    assert site.bucket.calls["open"] == 2
    with pytest.raises(UpstreamNotFound):
        await site.join(site.hosted())


async def test_119_the_way_to_the_mirror_was_to_blame(site: Site) -> None:
    """An object that is right when it is read again stays, and the fill begins again."""
    site.bucket.damage(KEY, CONTENT[:-1] + b"\0")
    # right again before the second read
    site.bucket.before("open", lambda: None)
    site.bucket.before("open", lambda: site.bucket.damage(KEY, CONTENT))
    flight = await site.join(site.hosted())
    with pytest.raises(DigestMismatch):
        await read_to_end(flight)
    assert flight.successor is not None
    assert await read_to_end(flight.successor) == CONTENT
    assert site.objects.found is not None


async def test_119_a_small_blob_is_answered_all_the_same(site: Site) -> None:
    """A client that was sent nothing does not notice."""
    content = b"config"
    digest = Digest.of(content)
    site.objects.found = BlobObject(digest, KEY, len(content))
    site.bucket.write(KEY, b"CONFIG")
    site.upstream.content, site.upstream.says, site.upstream.gate_at = content, len(content), 0
    sources = BlobSources(site.reads.cached(site.objects, digest), FromUpstream(site.upstream.pull))
    flight = await site.join(sources, digest)
    stream = UpstreamStream(digest, "test", site.cached, site.executor)
    answer = GrowingContent(flight, stream, Outcome.MISS)
    assert await answer.wait_past(0) == len(content)
    assert answer.reader is not None
    assert answer.reader.pread(100, 0) == content
    answer.close()
    assert (flight.followers, flight.successor and flight.successor.followers) == (0, 0)


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"\0"])
async def test_an_object_of_another_size_is_not_read(site: Site, content: bytes) -> None:
    """It is out of service before a byte of it is sent."""
    site.bucket.damage(KEY, content)
    assert await read_to_end(await site.join(site.cached())) == CONTENT
    assert site.objects.found is None
    assert site.upstream.starts == [0]


async def test_120_an_object_that_is_gone_for_a_moment(site: Site) -> None:
    """A store may answer late: nothing is called lost that is there when it is looked at again."""
    site.bucket.lose(KEY)
    site.bucket.before("open", lambda: None)
    site.bucket.before("open", lambda: assert_written(site.bucket))
    assert await read_to_end(await site.join(site.hosted())) == CONTENT
    assert site.objects.reasons == []


def assert_written(bucket: MemoryBucket) -> None:
    """The object appears."""
    bucket.write(KEY, CONTENT)


async def test_120_an_object_that_is_gone(site: Site) -> None:
    """Cached: fetched from upstream. Hosted: unknown, and marked."""
    site.bucket.lose(KEY)
    assert await site.fetch(site.cached()) == CONTENT
    site.objects = OneObject(DIGEST, SIZE)
    with pytest.raises(UpstreamNotFound):
        await site.join(site.hosted())
    assert site.objects.reasons == [f"its object {KEY} is gone"]


async def test_an_object_that_was_replaced_meanwhile(site: Site) -> None:
    """Another generation has it: it is read, and nothing is marked."""
    newer = BlobObject(DIGEST, "hosted/newer", SIZE)
    site.bucket.lose(KEY)

    def replace() -> None:
        site.bucket.write(newer.key, CONTENT)
        site.objects.found = newer

    site.bucket.before("open", replace)
    assert await read_to_end(await site.join(site.hosted())) == CONTENT
    assert site.objects.reasons == []


async def test_113_hosted_content_without_the_bucket(site: Site) -> None:
    """Nobody else has it: an error that says so, and the mirror's credentials are another one."""
    site.bucket.down = True
    with pytest.raises(UpstreamUnavailable, match="down"):
        await site.join(site.hosted())
    site.bucket.down = False
    site.bucket.fail("open", error=BucketDenied("GetObject is not allowed"))
    with pytest.raises(UpstreamDenied, match="GetObject"):
        await site.join(site.hosted())


async def test_113_a_sudden_outage_of_the_bucket_is_waited_for(site: Site) -> None:
    """As one of an upstream is: clients notice a short outage as a pause."""
    await site.fetch(site.hosted())
    site.bucket.fail("open", 2)
    assert await read_to_end(await site.join(site.hosted())) == CONTENT
    assert len(site.hangar.slept) == 2


async def test_past_the_store_the_sources_are_the_same(site: Site) -> None:
    """A stream to one client changes over in the middle as well, and accuses as well."""
    site.bucket.break_bodies(after=HALF)
    stream = UpstreamStream(DIGEST, "test", site.cached, site.executor)
    assert b"".join([piece async for piece in stream.read(None, SIZE)]) == CONTENT
    assert site.upstream.starts == [HALF]
    site.bucket.damage(KEY, CONTENT[:-1] + b"\0")
    with pytest.raises(DigestMismatch):
        assert [piece async for piece in stream.read(None, SIZE)]
    assert site.objects.found is None


async def test_stopping_does_not_wait_for_a_silent_bucket(site: Site) -> None:
    """The thread that still waits gives its body back later."""
    answer = threading.Event()
    site.bucket.before("open", lambda: assert_set(answer))
    joining = asyncio.create_task(site.join(site.hosted()))
    try:
        await reached(lambda: bool(site.bucket.calls["open"]))
        await site.hangar.flights.aclose()
        with pytest.raises(StoreError, match="stopping"):
            await joining
    finally:
        answer.set()


async def test_a_body_that_begins_earlier_is_skipped_to_the_byte(site: Site) -> None:
    """Not every upstream honours a range."""

    @asynccontextmanager
    async def from_the_start(_start: int, _stop: int | None = None) -> AsyncIterator[Body]:
        async with site.upstream.pull(0) as body:
            yield body

    site.bucket.break_bodies(after=HALF)
    source = site.reads.cached(site.objects, DIGEST)
    stream = UpstreamStream(DIGEST, "test", lambda: BlobSources(source, FromUpstream(from_the_start)), site.executor)
    assert b"".join([piece async for piece in stream.read(None, SIZE)]) == CONTENT
