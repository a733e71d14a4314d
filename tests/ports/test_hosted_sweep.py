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
from tests.support.object_site import ObjectSite

#: In epoch seconds. Everything is older.
LATER = 1e12
CONTENT = b"a layer"
DIGEST = Digest.of(CONTENT)


@pytest.fixture
def site(tmp_path: Path) -> ObjectSite:
    """An empty bucket."""
    return ObjectSite(tmp_path)


def swept(site: ObjectSite, *, before: float = LATER, after: str = "", page: int = 1000) -> SweptPage:
    """All that a sweep did."""
    whole = SweptPage(after)
    sweep = HostedSweep(site.bucket, site.views, site.hosted.lost, now=site.now, page=page)
    for each in sweep.pages(after, before):
        for name in SweptPage.__slots__:
            if name != "after":
                setattr(whole, name, getattr(whole, name) + getattr(each, name))
        whole.after = each.after
    return whole


def put(site: ObjectSite, content: bytes = CONTENT) -> Digest:
    """A hosted blob."""
    return site.hosted.put(Digest.of(content), content).digest


def collected(site: ObjectSite) -> None:
    """Put, and collected; the object is still there."""
    put(site)
    site.hosted.collect(DIGEST, site.hosted.queue(QueuedBlob(DIGEST, 1.0)))


def test_what_is_as_it_should_be_costs_a_listing(site: ObjectSite) -> None:
    """No state and no object is read in the bucket."""
    for number in range(5):
        put(site, str(number).encode())
    before = site.bucket.content()
    site.remember()
    site.bucket.log.clear()
    found = swept(site)
    assert (found.objects, found.bytes, found.deleted, found.queued, found.lost) == (5, 5, 0, 0, 0)
    assert {verb for verb, _ in site.bucket.log} == {"list", "delete"}
    assert not [keys for verb, keys in site.bucket.log if verb == "delete" and keys]
    assert site.bucket.content() == before


def test_the_object_of_a_collected_blob_is_deleted(site: ObjectSite) -> None:
    """A crash has left it."""
    collected(site)
    found = swept(site)
    assert (found.deleted, found.deleted_bytes) == (1, len(CONTENT))
    assert not site.keys("hosted/")
    put(site)
    assert site.keys("hosted/") == [hosted_key(DIGEST, 2)]
    assert swept(site).deleted == 0


def test_older_generations_are_deleted(site: ObjectSite) -> None:
    """The current one is not, whatever the order in a listing."""
    for generation in range(1, 12):
        put(site)
        if generation < 11:
            source = site.hosted.source(DIGEST)
            assert source
            site.hosted.lost(source, "a test")
    assert len(site.keys("hosted/")) == 11
    assert swept(site).deleted == 10
    assert site.keys("hosted/") == [hosted_key(DIGEST, 11)]
    assert site.contents.read(DIGEST, 1000) == CONTENT


def test_an_orphan_waits_to_be_collected(site: ObjectSite) -> None:
    """It is of a push that crashed before its state was written, or its state was lost: collection decides."""
    site.bucket.write(hosted_key(DIGEST, 1), CONTENT)
    assert swept(site).queued == 1
    waits = site.hosted.queued(DIGEST)
    assert waits
    assert site.hosted.rescue(DIGEST).size == len(CONTENT)
    assert site.contents.read(DIGEST, 1000) == CONTENT
    assert swept(site).queued == 0


def test_all_states_are_lost(site: ObjectSite) -> None:
    """Nothing is deleted: each blob is there again, and waits until collection has looked who needs it."""
    digests = {put(site, str(number).encode()) for number in range(5)}
    for digest in digests:
        site.bucket.lose(state_key(digest))
    assert swept(site).queued == 5
    assert {record.digest for record in site.hosted.all_queued()} == digests
    for digest in digests:
        site.hosted.rescue(digest)


@pytest.mark.parametrize("text", [b"{", b""])
def test_a_damaged_state_is_made_anew(site: ObjectSite, text: bytes) -> None:
    """The newest object is the blob; the older ones go with the next sweep."""
    put(site)
    site.bucket.write(hosted_key(DIGEST, 7), CONTENT)
    site.bucket.write(state_key(DIGEST), text)
    assert swept(site).queued == 1
    assert site.states.find(DIGEST).state.generation == 7
    assert swept(site).deleted == 1
    assert site.keys("hosted/") == [hosted_key(DIGEST, 7)]


def test_what_is_young_is_left_alone(site: ObjectSite) -> None:
    """An upload may be under way, and its state not written yet."""
    collected(site)
    orphan = Digest.of(b"orphan")
    site.bucket.write(hosted_key(orphan, 1), b"orphan")
    found = swept(site, before=1.0)
    assert (found.objects, found.deleted, found.queued) == (2, 0, 0)


def test_120_a_lost_object_is_found(site: ObjectSite) -> None:
    """Row 120: before anybody pulls it."""
    put(site)
    site.bucket.lose(hosted_key(DIGEST, 1))
    assert swept(site).lost == 1
    assert [blob.digest for blob in site.hosted.damaged()] == [DIGEST]
    assert swept(site).lost == 0
    put(site)
    assert not site.hosted.damaged()


def test_119_an_object_of_another_size_is_found(site: ObjectSite) -> None:
    """Row 119: it stays, because it may be all that is left."""
    put(site)
    site.bucket.damage(hosted_key(DIGEST, 1), b"rubbish!!")
    assert swept(site).lost == 1
    with pytest.raises(BlobUnknown):
        site.hosted.hosted(DIGEST)
    assert swept(site).deleted == 0
    assert site.keys("hosted/") == [hosted_key(DIGEST, 1)]


def test_a_repair_that_crashed_is_finished(site: ObjectSite) -> None:
    """The bytes were pushed again, and the state was not written."""
    put(site)
    source = site.hosted.source(DIGEST)
    assert source
    site.hosted.lost(source, "a test")
    site.bucket.write(hosted_key(DIGEST, 2), CONTENT)
    assert swept(site).repaired == 1
    assert site.hosted.hosted(DIGEST).size == len(CONTENT)
    assert not site.hosted.damaged()


def test_123_a_late_listing_decides_nothing(site: ObjectSite) -> None:
    """Row 123: it shows what was collected since, and lacks what was pushed since."""
    put(site)
    site.bucket.freeze_listings()
    collected(site)
    site.hosted.free_collected()
    put(site)
    new = put(site, b"new")
    site.hosted.free_collected()
    found = swept(site)
    assert (found.lost, found.queued) == (0, 0)
    assert site.contents.read(DIGEST, 1000) == CONTENT
    assert site.contents.read(new, 1000) == b"new"


def test_what_the_mirror_does_not_explain_stays(site: ObjectSite) -> None:
    """A generation that no push can have reached, and keys of others."""
    put(site)
    site.bucket.write(hosted_key(DIGEST, 5), CONTENT)
    for key in (f"{hosted_key(DIGEST, 1)}.x", f"{hosted_key(DIGEST, 1)}.01", "hosted/notes", "hosted/md5/00/00"):
        site.bucket.write(key, b"foreign")
    before = site.bucket.content()
    found = swept(site)
    assert (found.objects, found.unexplained, found.deleted) == (2, 1, 0)
    assert site.bucket.content() == before


def test_a_sweep_goes_on_where_it_was(site: ObjectSite) -> None:
    """Each page says where; what lies before is not looked at again."""
    for number in range(20):
        put(site, str(number).encode())
    for digest in [Digest.of(str(number).encode()) for number in range(0, 20, 4)]:
        site.bucket.lose(hosted_key(digest, 1))
    sweep = HostedSweep(site.bucket, site.views, site.hosted.lost, now=site.now, page=7)
    pages = sweep.pages("", LATER)
    first = next(pages)
    pages.close()
    rest = swept(site, after=first.after, page=3)
    assert first.objects + rest.objects == 15
    assert first.lost + rest.lost == 5


def test_113_the_bucket_fails_in_the_middle(site: ObjectSite) -> None:
    """Row 113: the sweep ends, and does the same again later."""
    collected(site)
    for verb in ("list", "read", "delete"):
        site.bucket.fail(verb)
        with pytest.raises(BucketUnavailable):
            swept(site)
    assert swept(site).deleted == 1


def test_118_leftovers(site: ObjectSite) -> None:
    """Row 118: unfinished uploads and probes go once they are old, and marks that mean nothing."""
    put(site)
    site.bucket.begin_upload("hosted/sha256/00/x", 100.0)
    site.bucket.begin_upload("hosted/sha256/00/y", 300.0)
    for name, at in (("a", 100.0), ("b", 300.0)):
        site.bucket.write(f"probe/{name}", b"x")
        site.bucket.date(f"probe/{name}", at)
    site.states.mark_lost(DIGEST)
    sweep = HostedSweep(site.bucket, site.views, site.hosted.lost, now=site.now)
    left = sweep.leftovers(200.0)
    assert (left.uploads, left.probes) == (1, 1)
    assert site.keys("probe/") == ["probe/b"]
    assert site.bucket.unfinished == ["hosted/sha256/00/y"]
    assert site.bucket.content()[lost_key(DIGEST)] == b""
    site.bucket.fail("abort_uploads", error=BucketDenied("no s3:ListBucketMultipartUploads"))
    assert sweep.leftovers(200.0).uploads is None
