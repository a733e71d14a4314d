"""Hosted blobs whose bytes are in a bucket, as clients read them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mirror.aio.background import BackgroundTasks
from mirror.aio.singleflight import SingleFlight
from mirror.errors import BlobUnknown, BucketDenied, BucketUnavailable, StoreError, StoreFull
from mirror.fills.bucket_source import BucketReads
from mirror.intake.integrity import Integrity
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted_records import BlobLink, LinkState
from mirror.repository.answers import BlobContent, GrowingContent, Outcome, StoredContent, UncachedContent
from mirror.repository.copied_blobs import CopiedBlobs
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from tests.support.hangar import CONTENT, DIGEST, SIZE, Hangar
from tests.support.memory_bucket import MemoryBucket
from tests.support.one_object import KEY, OneObject

REPO = Repo("corp", "app")
LINK = BlobLink(DIGEST, SIZE, LinkState.LINKED, 0.0)


class Served:
    """A hosted blob in a bucket, and a disk that may have a copy."""

    def __init__(self, root: Path, executor: ThreadPoolExecutor) -> None:
        self.cache = LocalStore(Layout(root))
        self.bucket = MemoryBucket()
        self.bucket.write(KEY, CONTENT)
        self.objects = OneObject(DIGEST, SIZE)
        self.hangar = Hangar(self.cache, executor)
        self.background = BackgroundTasks()
        self.touched: list[Digest] = []
        self.failures: list[StoreError] = []
        self.blobs = CopiedBlobs(
            self.cache,
            self.objects,
            BucketReads(self.bucket, executor),
            self.hangar.flights,
            Integrity(self.cache, SingleFlight(), self.background),
            touch=self.touched.append,
            named=lambda manifest: None,
            failed=lambda error, _: self.failures.append(error),
        )

    def cut_copy(self) -> None:
        """Take the last bytes of the copy on the disk."""
        path = Path(self.cache.layout.blob(DIGEST))
        path.chmod(0o600)
        path.write_bytes(CONTENT[:-5])

    async def read(self) -> tuple[BlobContent, bytes]:
        """The answer to a client, and all that it is sent."""
        content = await self.blobs.content(REPO, LINK)
        try:
            if content.reader is None:
                return content, b"".join([piece async for piece in content.from_upstream(None)])
            sent = b""
            while (limit := await content.wait_past(len(sent))) > len(sent):
                sent += content.reader.pread(limit - len(sent), len(sent))
            if isinstance(content, GrowingContent):
                await content.wait_for_end()
            return content, sent
        finally:
            content.close()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """Without a copy on the disk."""
    with ThreadPoolExecutor(8) as executor:
        made = Served(tmp_path, executor)
        yield made
        await made.hangar.flights.aclose()
        await made.background.finish()


async def test_from_the_bucket_first_and_from_the_disk_then(served: Served) -> None:
    """The copy is a cached file whose uses are noted; the client is told where the bytes came from."""
    content, sent = await served.read()
    assert (content.outcome, content.source, sent) == (Outcome.MISS, "bucket", CONTENT)
    content, sent = await served.read()
    assert isinstance(content, StoredContent)
    assert (content.outcome, content.source, sent) == (Outcome.HIT, "", CONTENT)
    assert served.touched == [DIGEST]
    assert served.bucket.calls["open"] == 1


async def test_head_downloads_nothing(served: Served) -> None:
    """It says what the state says; what is lost is unknown."""
    stat = await served.blobs.stat(REPO, LINK)
    assert (stat.size, stat.outcome) == (SIZE, Outcome.DESCRIBED)
    assert not served.bucket.calls["open"]
    served.objects.found = None
    with pytest.raises(BlobUnknown):
        await served.blobs.stat(REPO, LINK)
    served.cache.put(DIGEST, CONTENT)
    assert (await served.blobs.stat(REPO, LINK)).outcome is Outcome.HIT


async def test_a_damaged_copy_is_fetched_again(served: Served) -> None:
    """The client does not notice."""
    served.cache.put(DIGEST, CONTENT)
    served.cut_copy()
    _, sent = await served.read()
    assert sent == CONTENT
    assert [blob.digest for blob in served.cache.quarantined()] == [DIGEST]


async def test_a_disk_that_takes_nothing_is_passed_by(served: Served) -> None:
    """The client is sent the bytes of the bucket, verified."""
    served.hangar.room.full = True
    content, sent = await served.read()
    assert isinstance(content, UncachedContent)
    assert sent == CONTENT
    assert isinstance(served.failures[0], StoreFull)


async def test_113_115_errors_are_those_of_the_bucket(served: Served) -> None:
    """503, with the reason for the operator; a hit needs no bucket."""
    served.bucket.fail("open", error=BucketDenied("GetObject is not allowed"))
    with pytest.raises(BucketDenied, match="GetObject"):
        await served.read()
    served.bucket.down = True
    with pytest.raises(BucketUnavailable, match="down"):
        await served.read()
    served.cache.put(DIGEST, CONTENT)
    assert (await served.read())[1] == CONTENT
    assert served.failures == []


async def test_120_what_the_bucket_has_lost_is_named_as_lost(served: Served) -> None:
    """404, and a push repairs it."""
    served.bucket.lose(KEY)
    with pytest.raises(BlobUnknown, match="lost, until it is pushed again"):
        await served.read()
    assert len(served.objects.reasons) == 1
