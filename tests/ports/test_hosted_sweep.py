"""The sweep of hosted blobs in a bucket: what it finds, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.errors import BlobUnknown, BucketDenied, BucketUnavailable
from mirror.oci.digest import Digest
from mirror.policy.hosted_records import QueuedBlob
from mirror.ports import SweptPage
from mirror.store.objects.hosted_sweep import HostedSweep
from mirror.store.objects.object_keys import hosted_key, lost_key, state_key
from tests.support.hosted_blobs_suite import all_queued
from tests.support.object_site import ObjectSite

DAY = 86400.0
CONTENT = b"a layer"
DIGEST = Digest.of(CONTENT)
ATTEMPT = "0123456789abcdef"


@pytest.fixture
def site(tmp_path: Path) -> ObjectSite:
    """An empty bucket."""
    return ObjectSite(tmp_path)


def sweep_of(site: ObjectSite, page: int = 1000) -> HostedSweep:
    """By the machine of this site."""
    return HostedSweep(site.bucket, site.views, site.hosted.lost, now=site.now, page=page)


def swept(site: ObjectSite, *, after: str = "", page: int = 1000, days: float = 2) -> SweptPage:
    """All that a sweep did some days later."""
    site.bucket.time += days * DAY
    whole = SweptPage(after)
    for each in sweep_of(site, page).pages(after):
        for name in SweptPage.__slots__:
            if name != "after":
                setattr(whole, name, getattr(whole, name) + getattr(each, name))
        whole.after = each.after
    assert not site.keys("probe/")
    return whole


def put(site: ObjectSite, content: bytes = CONTENT) -> Digest:
    """A hosted blob."""
    return site.hosted.put(Digest.of(content), content).digest


def collected(site: ObjectSite) -> None:
    """Put, and collected; the object is still there."""
    put(site)
    site.hosted.collect(DIGEST, site.hosted.queue(QueuedBlob(DIGEST, 1.0)))


def lose(site: ObjectSite) -> None:
    """Find the object damaged."""
    source = site.hosted.source(DIGEST)
    assert source
    assert site.hosted.lost(source, "a test")


def test_what_is_as_it_should_be_costs_a_listing(site: ObjectSite) -> None:
    """No state and no object is read in the bucket."""
    for number in range(5):
        put(site, str(number).encode())
    before = site.bucket.content()
    site.bucket.calls.clear()
    found = swept(site)
    assert (found.objects, found.bytes, found.deleted, found.queued, found.lost) == (5, 5, 0, 0, 0)
    assert site.bucket.content() == before
    # the clock of the store is read by a probe
    assert site.bucket.calls == {"list": 1, "write": 1, "head": 1, "delete": 1}


def test_an_object_that_was_collected_lately_stays(site: ObjectSite) -> None:
    """Clients may be reading it, by a URL that they were given before. The next sweep deletes it."""
    put(site)
    site.bucket.time += 5 * DAY
    site.hosted.collect(DIGEST, site.hosted.queue(QueuedBlob(DIGEST, 1.0)))
    site.clock += 3000
    sweep = HostedSweep(site.bucket, site.views, site.hosted.lost, now=site.now, life=3600)
    assert [page.deleted for page in sweep.pages("")] == [0]
    site.clock += 3000
    assert [page.deleted for page in sweep.pages("")] == [1]
    assert site.keys() == []


def test_the_object_of_a_collected_blob_is_deleted(site: ObjectSite) -> None:
    """A crash has left it."""
    collected(site)
    found = swept(site)
    assert (found.deleted, found.deleted_bytes) == (1, len(CONTENT))
    assert not site.keys()
    put(site)
    assert swept(site).deleted == 0
    assert site.contents.read(DIGEST, 1000) == CONTENT


def test_objects_that_no_state_names_are_deleted(site: ObjectSite) -> None:
    """Those of lost blobs that were pushed again, and of pushes that crashed."""
    for _ in range(5):
        put(site)
        lose(site)
    put(site)
    site.bucket.write(hosted_key(DIGEST, ATTEMPT), CONTENT)
    assert len(site.keys()) == 7
    assert swept(site).deleted == 6
    assert site.keys() == [site.key(DIGEST)]
    assert site.contents.read(DIGEST, 1000) == CONTENT


def test_an_object_without_a_state_waits_to_be_collected(site: ObjectSite) -> None:
    """It is of a push that crashed before its state was written, or its state was lost: collection decides."""
    site.bucket.write(hosted_key(DIGEST, ATTEMPT), CONTENT)
    assert swept(site).queued == 1
    assert site.hosted.queued(DIGEST)
    assert site.hosted.rescue(DIGEST).size == len(CONTENT)
    assert site.contents.read(DIGEST, 1000) == CONTENT
    assert swept(site).queued == 0


def test_all_states_are_lost(site: ObjectSite, tmp_path: Path) -> None:
    """Nothing is deleted: each blob is there again, and waits until collection has looked who needs it."""
    digests = {put(site, str(number).encode()) for number in range(5)}
    for digest in digests:
        site.bucket.lose(state_key(digest))
    # what was remembered of them went with the disk
    site = ObjectSite(tmp_path / "another disk", site.bucket)
    assert swept(site).queued == 5
    assert {record.digest for record in all_queued(site.hosted)} == digests
    for digest in digests:
        site.hosted.rescue(digest)
    assert len(site.keys()) == 5


def test_states_that_a_new_disk_has_not_read(site: ObjectSite, tmp_path: Path) -> None:
    """They are read several at once, and come in order."""
    digests = sorted(put(site, str(number).encode()) for number in range(40))
    other = ObjectSite(tmp_path / "another disk", site.bucket)
    assert [info.digest for info in other.hosted.blobs(None, 100)] == digests
    assert [info.digest for info in other.hosted.blobs(digests[9], 5)] == digests[10:15]
    calls = site.bucket.calls["read"]
    assert not all_queued(other.hosted)
    assert site.bucket.calls["read"] == calls


def test_the_newest_of_several_objects_without_a_state_counts(site: ObjectSite) -> None:
    """The others go with the next sweep."""
    for number in range(3):
        site.bucket.time += 1
        site.bucket.write(hosted_key(DIGEST, f"{number}" * 16), CONTENT)
    assert swept(site).deleted == 0
    assert site.key(DIGEST) == hosted_key(DIGEST, "2" * 16)
    assert swept(site).deleted == 2


def test_nothing_is_deleted_beside_a_damaged_state(site: ObjectSite) -> None:
    """Which of the objects counts is unknown. It is shown as damaged, and a push writes the state anew."""
    put(site)
    site.bucket.write(hosted_key(DIGEST, ATTEMPT), CONTENT)
    site.bucket.write(state_key(DIGEST), b"{")
    found = swept(site)
    assert (found.deleted, found.queued, found.lost) == (0, 0, 1)
    assert len(site.keys()) == 2
    assert [blob.digest for blob in site.hosted.damaged()] == [DIGEST]
    put(site)
    assert not site.hosted.damaged()
    assert swept(site).deleted == 2
    assert site.contents.read(DIGEST, 1000) == CONTENT


def test_what_is_young_is_left_alone(site: ObjectSite) -> None:
    """An upload may be under way, and its state not written yet."""
    collected(site)
    site.bucket.write(hosted_key(Digest.of(b"orphan"), ATTEMPT), b"orphan")
    found = swept(site, days=0.9)
    assert (found.objects, found.deleted, found.queued) == (2, 0, 0)


@pytest.mark.parametrize("years", [-20, 20])
def test_124_the_clock_of_the_machine_does_not_matter(site: ObjectSite, years: int) -> None:
    """Row 124: ages are those that the clock of the store gives."""
    site.clock += years * 365 * DAY
    collected(site)
    site.bucket.write(hosted_key(Digest.of(b"orphan"), ATTEMPT), b"orphan")
    found = swept(site, days=0.9)
    assert (found.deleted, found.queued) == (0, 0)
    found = swept(site, days=0.2)
    assert (found.deleted, found.queued) == (1, 1)


def test_120_a_lost_object_is_found(site: ObjectSite) -> None:
    """Row 120: before anybody pulls it."""
    put(site)
    site.bucket.lose(site.key(DIGEST))
    assert swept(site).lost == 1
    assert [blob.digest for blob in site.hosted.damaged()] == [DIGEST]
    assert swept(site).lost == 0
    put(site)
    assert not site.hosted.damaged()


def test_120_a_lost_object_is_marked_again(site: ObjectSite) -> None:
    """Row 120: another process has repaired the blob before, and dropped the new mark in place of the old one."""
    put(site)
    site.bucket.lose(site.key(DIGEST))
    lose(site)
    site.states.drop_mark(DIGEST)
    assert not site.hosted.damaged()
    swept(site)
    assert [blob.digest for blob in site.hosted.damaged()] == [DIGEST]


def test_119_an_object_of_another_size_is_found(site: ObjectSite) -> None:
    """Row 119: it stays, because it may be all that is left."""
    put(site)
    site.bucket.damage(site.key(DIGEST), b"rubbish!!")
    assert swept(site).lost == 1
    with pytest.raises(BlobUnknown):
        site.hosted.hosted(DIGEST)
    assert swept(site).deleted == 0
    assert site.keys() == [site.key(DIGEST)]


def test_123_a_late_listing_decides_nothing(site: ObjectSite) -> None:
    """Row 123: it shows what was collected since, and lacks what was pushed since."""
    put(site)
    site.bucket.freeze_listings()
    collected(site)
    site.hosted.free_collected()
    put(site)
    new = put(site, b"new")
    found = swept(site)
    assert (found.lost, found.queued) == (0, 0)
    assert site.contents.read(DIGEST, 1000) == CONTENT
    assert site.contents.read(new, 1000) == b"new"


def test_keys_of_others_stay(site: ObjectSite) -> None:
    """What the mirror would not have written."""
    put(site)
    place = f"hosted/sha256/{DIGEST.hex[:2]}/{DIGEST.hex}"
    for key in (place, f"{place}.x", f"{place}.{ATTEMPT}0", "hosted/notes", f"hosted/md5/00/00.{ATTEMPT}"):
        site.bucket.write(key, b"foreign")
    before = site.bucket.content()
    found = swept(site)
    assert (found.objects, found.deleted) == (1, 0)
    assert site.bucket.content() == before


def test_a_sweep_goes_on_where_it_was(site: ObjectSite) -> None:
    """Each page says where; what lies before is not looked at again."""
    digests = [put(site, str(number).encode()) for number in range(20)]
    for digest in digests[::4]:
        site.bucket.lose(site.key(digest))
    pages = sweep_of(site, 7).pages("")
    first = next(pages)
    pages.close()
    rest = swept(site, after=first.after, page=3)
    assert first.objects + rest.objects == 15
    assert first.lost + rest.lost == 5


def test_113_the_bucket_fails_in_the_middle(site: ObjectSite) -> None:
    """Row 113: the sweep ends, and does the same again later."""
    collected(site)
    for verb in ("list", "read", "write", "head", "delete"):
        site.bucket.fail(verb)
        with pytest.raises(BucketUnavailable):
            list(sweep_of(site).pages(""))
        site.bucket.delete(site.keys("probe/"))
    assert swept(site).deleted == 1


def test_118_leftovers(site: ObjectSite) -> None:
    """Row 118: unfinished uploads and probes go once they are a day old, and marks that mean nothing."""
    put(site)
    now = site.bucket.time
    site.bucket.begin_upload("hosted/sha256/00/x", now - 1.5 * DAY)
    site.bucket.begin_upload("hosted/sha256/00/y", now - 0.5 * DAY)
    for name, days in (("a", 1.5), ("b", 0.5)):
        site.bucket.write(f"probe/{name}", b"x")
        site.bucket.date(f"probe/{name}", now - days * DAY)
    site.states.mark_lost(DIGEST)
    left = sweep_of(site).leftovers()
    assert (left.uploads, left.probes) == (1, 1)
    assert site.keys("probe/") == ["probe/b"]
    assert site.bucket.unfinished == ["hosted/sha256/00/y"]
    assert site.bucket.content()[lost_key(DIGEST)].startswith(b"\0")
    site.bucket.fail("abort_uploads", error=BucketDenied("no s3:ListBucketMultipartUploads"))
    assert sweep_of(site).leftovers().uploads is None
