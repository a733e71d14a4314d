"""Hosted blobs and upload sessions over a bucket."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import pytest

from mirror.errors import BlobUnknown, BucketUnavailable, RecordChanged, StoreError
from mirror.graph.damage import restore_hosted
from mirror.graph.manifests import has_blob
from mirror.oci.digest import Digest
from mirror.policy.hosted.blob_state import no_blob
from mirror.policy.hosted_records import QueuedBlob
from mirror.ports import ABSENT, BlobInfo, BlobObject, ObjectInfo, Version
from mirror.store.hosted.upload_files import LocalUploads
from mirror.store.local.blobs import LocalStore
from mirror.store.objects.collected_keys import CollectedKeys
from mirror.store.objects.digest_locks import DigestLocks
from mirror.store.objects.hosted_blobs import HostedObjects, PulledObjects
from mirror.store.objects.object_keys import state_key
from mirror.store.objects.record_tree import Reads
from mirror.store.objects.state_records import BlobStates
from tests.support.hosted_blobs_suite import ABSENT_DIGEST, CONTENT, DIGEST, HostedBlobsSuite
from tests.support.object_site import ObjectSite, PlainContents
from tests.support.stepping_bucket import Killed
from tests.support.uploads_suite import UploadsSuite, opened, pushed


class _OverBucket:
    """The fixtures of both suites."""

    @pytest.fixture
    def site(self, tmp_path: Path) -> ObjectSite:
        """Its disk has no room for copies: what is read comes from the bucket."""
        return ObjectSite(tmp_path / "one", copies=False)

    @pytest.fixture
    def other(self, site: ObjectSite, tmp_path: Path) -> ObjectSite:
        """Another process of the same machine."""
        return ObjectSite(tmp_path / "one", site.bucket, copies=False)

    @pytest.fixture
    def hosted(self, site: ObjectSite) -> HostedObjects:
        """None yet."""
        return site.hosted

    @pytest.fixture
    def contents(self, site: ObjectSite) -> PlainContents:
        """Reads the bucket and the cache."""
        return site.contents


class TestHostedObjects(_OverBucket, HostedBlobsSuite):
    """The bucket behaves like the model in memory."""

    @pytest.fixture
    def cache(self, site: ObjectSite) -> LocalStore:
        """Empty."""
        return site.cache

    @pytest.fixture
    def another(self, other: ObjectSite) -> HostedObjects:
        """Another process's view: it shares nothing but files and the bucket."""
        return other.hosted


class TestUploadsToBucket(_OverBucket, UploadsSuite):
    """Sessions are files of this machine; what is published is in the bucket."""

    @pytest.fixture
    def uploads(self, site: ObjectSite) -> LocalUploads:
        """None yet."""
        return site.uploads

    @pytest.fixture
    def another(self, site: ObjectSite) -> LocalUploads:
        """Another process's view: it shares nothing but files and the bucket."""
        return LocalUploads(site.layout, site.hosted)


def test_what_waits_is_found_in_short_steps(tmp_path: Path) -> None:
    """Among many blobs that do not wait: each page of them is a page of its own, with no record."""
    site = ObjectSite(tmp_path / "one")
    digests = sorted(site.hosted.put(Digest.of(content), content).digest for content in (b"a", b"b", b"c", b"d", b"e"))
    last = QueuedBlob(digests[-1], 100.0)
    site.hosted.queue(last)
    with patch("mirror.store.objects.state_records._PAGE", 2):
        assert [list(page) for page in site.hosted.queued_pages()] == [[], [], [last]]


# ------------------------------------------------------------------------------------------------- copies on the disk


@pytest.fixture
def site(tmp_path: Path) -> ObjectSite:
    """Its disk takes copies."""
    return ObjectSite(tmp_path / "one")


def pushed_to(site: ObjectSite) -> BlobInfo:
    """By an upload session."""
    upload = opened(site.uploads, pushed(site.uploads, CONTENT))
    try:
        return upload.publish(DIGEST)
    finally:
        upload.close()


def ignoring(_result: object) -> None:
    """The result of what happens meanwhile."""


def test_a_push_leaves_a_copy_that_eviction_may_drop(site: ObjectSite) -> None:
    """No byte is copied for it, nobody writes to it by mistake, and whoever keeps the index is informed."""
    pushed_to(site)
    assert site.files.read(DIGEST, 1000) == CONTENT
    assert not has_blob(site.cache, DIGEST)
    assert Path(site.files.copies.layout.blob(DIGEST)).stat().st_mode & 0o777 == 0o400
    assert site.added == [BlobInfo(DIGEST, len(CONTENT))]
    site.files.delete(DIGEST)
    assert site.hosted.hosted(DIGEST).size == len(CONTENT)
    assert site.contents.read(DIGEST, 1000) == CONTENT
    assert not list(site.layout.uploads.iterdir())


def test_a_manifest_leaves_one_copy(site: ObjectSite) -> None:
    """A push puts it twice."""
    site.hosted.put(DIGEST, CONTENT)
    site.hosted.put(DIGEST, CONTENT)
    assert site.files.read(DIGEST, 1000) == CONTENT
    assert not has_blob(site.cache, DIGEST)
    assert site.added == [BlobInfo(DIGEST, len(CONTENT))]


def test_a_push_succeeds_without_a_copy(site: ObjectSite) -> None:
    """The bucket has it; the disk need not."""
    folder = site.files.copies.layout.blobs
    shutil.rmtree(folder)
    folder.write_text("no folder")
    assert pushed_to(site).size == len(CONTENT)
    assert not site.added
    assert not list(site.layout.uploads.iterdir())
    site.hosted.put(Digest.of(b"{}"), b"{}")
    assert site.contents.read(DIGEST, 1000) == CONTENT


def test_what_is_hosted_already_is_not_uploaded_again(site: ObjectSite, tmp_path: Path) -> None:
    """Whoever pushes it; also after an answer that was lost."""
    pushed_to(site)
    site.bucket.log.clear()
    other = ObjectSite(tmp_path / "other", site.bucket)
    for pusher in (site, other):
        pushed_to(pusher)
        pusher.hosted.put(DIGEST, CONTENT)
        pusher.hosted.adopt(DIGEST)
    assert not [verb for verb, _ in site.bucket.log if verb in ("write", "upload")]


def test_a_damaged_copy_is_not_adopted(site: ObjectSite) -> None:
    """The bucket gets no wrong bytes, and the copy is set aside."""
    site.cache.put(DIGEST, CONTENT)
    path = Path(site.layout.blob(DIGEST))
    path.chmod(0o600)
    path.write_bytes(CONTENT[::-1])
    with pytest.raises(BlobUnknown):
        site.hosted.adopt(DIGEST)
    assert not site.bucket.content()
    assert [blob.digest for blob in site.cache.quarantined()] == [DIGEST]


def test_a_copy_that_is_evicted_while_it_is_adopted(site: ObjectSite) -> None:
    """Its bytes stay readable until they are in the bucket."""
    site.cache.put(DIGEST, CONTENT)
    site.bucket.before("upload", lambda: ignoring(site.cache.delete(DIGEST)))
    site.hosted.adopt(DIGEST)
    assert site.contents.read(DIGEST, 1000) == CONTENT


# ------------------------------------------------------------------------------------------------------------ damage


def lose(site: ObjectSite) -> bool:
    """Find the object damaged."""
    found = site.hosted.source(DIGEST)
    return found is not None and site.hosted.lost(found, "wrong bytes")


def test_120_an_object_that_is_gone(site: ObjectSite) -> None:
    """Row 120: the blob is damaged, not absent, and a push repairs it under another key."""
    pushed_to(site)
    found = site.hosted.source(DIGEST)
    assert found == BlobObject(DIGEST, site.key(DIGEST), len(CONTENT))
    site.bucket.lose(found.key)
    assert site.hosted.lost(found, "the object is gone")
    assert not site.hosted.lost(found, "the object is gone")
    assert site.hosted.source(DIGEST) is None
    for look in (site.hosted.hosted, site.hosted.rescue):
        with pytest.raises(BlobUnknown):
            look(DIGEST)
    assert [(blob.digest, blob.size) for blob in site.hosted.damaged()] == [(DIGEST, len(CONTENT))]
    assert not site.hosted.blobs(None, 10)
    pushed_to(site)
    assert not site.hosted.damaged()
    assert site.keys() == [site.key(DIGEST)]
    assert found.key != site.key(DIGEST)
    assert not site.hosted.lost(found, "found late")
    assert site.hosted.hosted(DIGEST).size == len(CONTENT)


@pytest.mark.parametrize("how", ["push", "put", "adopt"])
def test_120_a_push_looks_at_the_object_itself(site: ObjectSite, tmp_path: Path, how: str) -> None:
    """Row 120: nobody has noticed yet that it is gone. The push that would repair it is not thrown away."""
    pushed_to(site)
    site.bucket.lose(site.key(DIGEST))
    other = ObjectSite(tmp_path / "other", site.bucket)
    if how == "adopt":
        lose(site)
        assert restore_hosted(site.files, site.hosted) == 0
    else:
        RELYING[how](other)
    assert holds(site)


def test_119_a_manifest_is_compared(site: ObjectSite, tmp_path: Path) -> None:
    """Row 119: its object has the right size and other bytes. What this process has written it does not read again."""
    site.hosted.put(DIGEST, CONTENT)
    calls = site.bucket.calls["read"]
    site.hosted.put(DIGEST, CONTENT)
    assert site.bucket.calls["read"] == calls + 1
    site.bucket.damage(site.key(DIGEST), CONTENT[::-1])
    ObjectSite(tmp_path / "other", site.bucket).hosted.put(DIGEST, CONTENT)
    assert holds(site)
    assert len(site.keys()) == 2


def test_pulls_go_on_from_memory(site: ObjectSite, tmp_path: Path) -> None:
    """While the bucket is down, what is remembered says where a blob is; nothing else believes it."""
    pushed_to(site)
    pulled = PulledObjects(BlobStates(site.tree.view(Reads.LENIENT)), site.hosted)
    site.bucket.down = True
    found = pulled.source(DIGEST)
    assert found
    with pytest.raises(BucketUnavailable):
        site.hosted.source(DIGEST)
    with pytest.raises(BucketUnavailable):
        pulled.lost(found, "a test")
    site.bucket.down = False
    assert pulled.lost(found, "a test")
    assert pulled.source(ABSENT_DIGEST) is None


def test_a_sound_copy_repairs_a_lost_blob(site: ObjectSite) -> None:
    """Before anybody pushes it again."""
    pushed_to(site)
    lose(site)
    assert restore_hosted(site.files, site.hosted) == 0
    assert not site.hosted.damaged()
    assert site.contents.read(DIGEST, 1000) == CONTENT


def test_a_lost_blob_that_nothing_needs_is_collected(site: ObjectSite) -> None:
    """Its object may have wrong bytes, and goes with it."""
    pushed_to(site)
    lose(site)
    version = site.hosted.queue(QueuedBlob(DIGEST, 1.0))
    assert site.hosted.collect(DIGEST, version) == 0
    site.hosted.free_collected()
    assert not site.hosted.damaged()
    assert not site.keys()
    pushed_to(site)
    assert holds(site)


def test_119_an_upload_of_the_wrong_size(site: ObjectSite) -> None:
    """Row 119: what the bucket has is compared before anything names it."""
    wrong = ObjectInfo("key", 5, 0.0, Version("v"))
    with patch.object(site.bucket, "head", lambda _key: wrong), pytest.raises(StoreError, match="does not have the"):
        pushed_to(site)
    with pytest.raises(BlobUnknown):
        site.hosted.hosted(DIGEST)
    pushed_to(site)
    assert site.contents.read(DIGEST, 1000) == CONTENT


def test_a_state_of_another_size(site: ObjectSite) -> None:
    """Whoever pushes the blob has checked its bytes: the state is wrong."""
    site.states.write(no_blob(DIGEST).stored("0" * 16, 5, 1.0), ABSENT)
    site.bucket.write(site.key(DIGEST), b"wrong")
    pushed_to(site)
    assert site.contents.read(DIGEST, 1000) == CONTENT
    assert len(site.keys()) == 2


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"[]",
        b"",
        b'{"condition": "present", "size": 1, "since": 1}',
        b'{"condition": "present", "size": 1, "since": 1, "attempt": "../../pins"}',
        b'{"condition": "gone", "size": 1, "since": 1, "attempt": "0123456789abcdef"}',
        b'{"condition": "lost", "size": -1, "since": 1, "attempt": "0123456789abcdef"}',
    ],
)
def test_a_damaged_state_is_written_anew_by_a_push(site: ObjectSite, text: bytes) -> None:
    """It names no object, and nothing is deleted on its account."""
    pushed_to(site)
    site.bucket.write(state_key(DIGEST), text)
    with pytest.raises(BlobUnknown):
        site.hosted.hosted(DIGEST)
    assert site.hosted.source(DIGEST) is None
    assert not site.hosted.blobs(None, 10)
    if text:
        with pytest.raises(RecordChanged):
            site.hosted.queue(QueuedBlob(DIGEST, 1.0))
    pushed_to(site)
    assert site.contents.read(DIGEST, 1000) == CONTENT
    assert len(site.keys()) == 2


# ------------------------------------------------------------------------- faults at each step, and races at each step


def holds(site: ObjectSite) -> bool:
    """Whether the blob is present. Fails if a state names an object that is absent, wrong, or that a late deletion may
    hit.
    """
    state = site.states.find(DIGEST).state
    if not state.is_present:
        return False
    assert site.bucket.content()[site.key(DIGEST)] == CONTENT
    assert site.key(DIGEST) not in site.bucket.deleted
    return True


def queue(site: ObjectSite) -> Version | None:
    """Let it wait; None if it waits already."""
    with suppress(RecordChanged):
        return site.hosted.queue(QueuedBlob(DIGEST, site.now()))
    return None


def collect(site: ObjectSite) -> None:
    """As the second pass of a collection does."""
    if waits := site.hosted.queued(DIGEST):
        with suppress(RecordChanged):
            site.hosted.collect(DIGEST, waits.version)
    site.hosted.free_collected()


def rescue(site: ObjectSite) -> bool:
    """True if it could be."""
    with suppress(BlobUnknown):
        return bool(site.hosted.rescue(DIGEST))
    return False


def adopt(site: ObjectSite) -> bool:
    """From a copy that is there."""
    site.cache.put(DIGEST, CONTENT)
    return bool(site.hosted.adopt(DIGEST))


def gone(site: ObjectSite) -> None:
    """Pushed, and collected again."""
    pushed_to(site)
    queue(site)
    collect(site)


def lost(site: ObjectSite) -> None:
    """Pushed, and found damaged."""
    pushed_to(site)
    site.bucket.damage(site.key(DIGEST), b"rubbish")
    lose(site)


def waiting(site: ObjectSite) -> None:
    """Pushed, and queued."""
    pushed_to(site)
    queue(site)


#: What there was before, by name.
BEFORE: dict[str, Callable[[ObjectSite], object]] = {
    "nothing": lambda site: None,
    "present": pushed_to,
    "waiting": waiting,
    "gone": gone,
    "lost": lost,
}
#: What relies on the blob once it has returned something true, by name.
RELYING: dict[str, Callable[[ObjectSite], object]] = {
    "push": pushed_to,
    "put": lambda site: site.hosted.put(DIGEST, CONTENT),
    "adopt": adopt,
    "rescue": rescue,
}
#: What does not, by name.
OTHER: dict[str, Callable[[ObjectSite], object]] = {
    "queue": queue,
    "collect": collect,
    "lose": lose,
}


@pytest.fixture
def quick() -> Iterator[Path]:
    """A folder in memory: no power is cut here."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("change", RELYING | OTHER)
@pytest.mark.parametrize("kind", [BucketUnavailable, Killed], ids=["unavailable", "killed"])
def test_113_118_122_each_call_of_a_change_fails(
    quick: Path, change: str, before: str, kind: type[BaseException]
) -> None:
    """Rows 113, 118 and 122: the bucket does not answer, or the process ends, before or after the n-th call. Nothing is
    half-done: the same change, made again, succeeds, and so does a push.
    """
    make = {**RELYING, **OTHER}[change]
    for done, number in itertools.product((False, True), range(1, 30)):
        site = ObjectSite(quick / f"{done}-{number}")
        BEFORE[before](site)
        had = holds(site)
        site.bucket.stop_at(number, kind("on purpose"), done=done)
        with suppress(StoreError, Killed):
            if make(site) and change in RELYING:
                assert holds(site)
        reached = site.bucket.reached
        if had and change in RELYING:
            assert holds(site)
        # the machine starts again, with what the bucket has
        site = ObjectSite(quick / f"{done}-{number}", site.bucket)
        holds(site)
        if make(site) and change in RELYING:
            assert holds(site)
        assert pushed_to(site)
        assert holds(site)
        assert not site.hosted.damaged()
        if not reached:
            break
    else:
        pytest.fail("it has no end")


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("meanwhile", RELYING | OTHER)
@pytest.mark.parametrize("change", RELYING | OTHER)
def test_121_two_changes_at_once(quick: Path, change: str, meanwhile: str, before: str) -> None:
    """Row 121: another machine makes a whole change before the n-th call of this one. Who relies on the blob has it,
    unless it was found damaged since; and no object that is named can be hit by a deletion, however late.
    """
    everything = {**RELYING, **OTHER}
    for number in range(1, 30):
        site = ObjectSite(quick / f"{number}-1")
        other = ObjectSite(quick / f"{number}-2", site.bucket)
        BEFORE[before](site)
        relied: list[object] = []

        def act(other: ObjectSite = other, relied: list[object] = relied) -> None:
            relied.append(everything[meanwhile](other) if meanwhile in RELYING else None)

        site.bucket.act_at(number, act)
        first = everything[change](site)
        reached = site.bucket.reached
        second = relied and relied[0]
        if (change in RELYING and first) or (second and change != "lose"):
            assert holds(site)
        holds(site)
        if not reached:
            break
    else:
        pytest.fail("it has no end")


def test_a_collector_that_was_frozen_after_its_change(site: ObjectSite, tmp_path: Path) -> None:
    """The blob is pushed again before the frozen one sends its deletion, which hits a key that nobody uses."""
    other = ObjectSite(tmp_path / "other", site.bucket)
    waiting(site)
    site.bucket.before("delete", lambda: ignoring(pushed_to(other)))
    collect(site)
    assert site.bucket.calls["delete"] == 1
    assert holds(other)
    assert other.contents.read(DIGEST, 1000) == CONTENT


def test_a_pusher_that_was_frozen_before_its_upload(site: ObjectSite, tmp_path: Path) -> None:
    """Meanwhile the blob was pushed, collected and deleted by others."""
    other = ObjectSite(tmp_path / "other", site.bucket)
    site.bucket.before("upload", lambda: gone(other))
    pushed_to(site)
    assert holds(site)


def test_a_pusher_that_was_frozen_for_long_fails(site: ObjectSite) -> None:
    """The sweep may have judged its object by now: no state may name it. The client pushes again."""

    def freeze() -> None:
        site.steady += 50_000

    site.bucket.before("upload", freeze)
    with pytest.raises(BucketUnavailable, match="too long"):
        pushed_to(site)
    assert not holds(site)
    pushed_to(site)
    assert holds(site)


def test_a_push_waits_for_another_of_the_same_blob(site: ObjectSite) -> None:
    """Of a client that sends it again because the answer took long: it is uploaded once."""
    both = threading.Barrier(2)

    def push() -> int:
        both.wait(60)
        return pushed_to(site).size

    with ThreadPoolExecutor(2) as threads:
        sizes = [threads.submit(push) for _ in range(2)]
        assert [size.result() for size in sizes] == [len(CONTENT)] * 2
    assert site.bucket.calls["upload"] == 1
    locks = DigestLocks(site.layout, "push")
    with locks.hold(DIGEST, 0), pytest.raises(BucketUnavailable), locks.hold(DIGEST, 0):
        pass


def test_a_copy_that_takes_long_to_upload(site: ObjectSite) -> None:
    """The request that wants to rely on it does not wait: the client uploads it. The work goes on."""
    goes_on, done = threading.Event(), threading.Event()
    site.cache.put(DIGEST, CONTENT)
    site.bucket.before("upload", lambda: ignoring(goes_on.wait(60)))
    for _ in range(2):
        with pytest.raises(BlobUnknown, match="on its way"):
            site.hosted.adopt(DIGEST, 0.0)
    site.bucket.before("head", done.set)
    goes_on.set()
    done.wait(60)
    assert site.hosted.adopt(DIGEST, 60.0).size == len(CONTENT)
    assert site.bucket.calls["upload"] == 1
    with pytest.raises(BlobUnknown):
        site.hosted.adopt(ABSENT_DIGEST, 60.0)


def test_deletions_wait_for_the_clients_that_were_redirected(tmp_path: Path) -> None:
    """They have URLs for a while. What is erased goes at once."""
    site = ObjectSite(tmp_path, life=100.0)
    waiting(site)
    collect(site)
    assert site.keys()
    site.steady += 101
    site.hosted.free_collected()
    assert not site.keys()
    waiting(site)
    collect(site)
    assert site.hosted.free_collected(at_once=True) == 0
    assert not site.keys()


def test_deletions_are_sent_together(tmp_path: Path) -> None:
    """One call for many; what the bucket cannot delete now is deleted later."""
    site = ObjectSite(tmp_path, at_once=10)
    blobs = [f"blob {number}".encode() for number in range(15)]
    for content in blobs:
        site.hosted.put(Digest.of(content), content)
    for content in blobs:
        digest = Digest.of(content)
        site.hosted.collect(digest, site.hosted.queue(QueuedBlob(digest, 1.0)))
    assert site.bucket.calls["delete"] == 1
    assert len(site.keys("hosted/")) == 5
    site.bucket.fail("delete")
    assert site.hosted.free_collected() == 5
    assert len(site.keys("hosted/")) == 5
    site.hosted.free_collected()
    assert not site.keys("hosted/")
    site.hosted.free_collected()
    assert site.bucket.calls["delete"] == 3


def test_an_attempt_grows_old_while_the_machine_sleeps(tmp_path: Path) -> None:
    site = ObjectSite(tmp_path)
    locks = DigestLocks(site.layout, "push")
    hosted = HostedObjects(site.bucket, site.views, site.copies, locks, CollectedKeys(site.bucket, life=0.0))
    ticks = itertools.count(0, 50_000)
    with (
        patch("mirror.store.objects.hosted_blobs.time.clock_gettime", side_effect=lambda clock: next(ticks)) as clock,
        pytest.raises(BucketUnavailable, match="took too long"),
    ):
        hosted.put(DIGEST, CONTENT)
    assert {call.args for call in clock.call_args_list} == {(time.CLOCK_BOOTTIME,)}
