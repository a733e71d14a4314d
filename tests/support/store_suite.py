"""What every `BlobStore` and its `Ingest` do. A test class inherits `StoreSuite` and supplies the fixtures.

`store` is empty; `another` is a second one on the same disk, as another process has it; `damage` changes the bytes of a
blob behind the store's back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from mirror.errors import BlobDamaged, BlobUnknown, UpstreamUnavailable
from mirror.oci.digest import HEX_LENGTHS, Digest
from mirror.ports import BlobInfo, BlobStore, Deleted, Growth, Ingest

CONTENT = bytes(range(256)) * 3000
DIGEST = Digest.of(CONTENT)
#: The registry that sends a growing blob, unless a test gives another.
REGISTRY = "docker.io"
#: Later than any file of a test was written, in seconds since the epoch.
LATER = 2_000_000_000.0

Damage = Callable[[Digest, bytes], None]


class Pieces:
    """A `Body` that gives `content` from `start` on, `step` bytes at a time, and breaks at `breaks_at` if given."""

    def __init__(self, content: bytes, *, start: int = 0, step: int = 10_000, breaks_at: int | None = None) -> None:
        self._content = content
        self._position = start
        self._step = step
        self._breaks_at = breaks_at
        self.start = start
        self.size: int | None = len(content)

    def readinto(self, buffer: memoryview) -> int:
        """The next piece. Raises `UpstreamUnavailable` where it breaks."""
        if self._breaks_at is not None and self._position >= self._breaks_at:
            raise UpstreamUnavailable("broke off", upstream="test")
        end = len(self._content) if self._breaks_at is None else self._breaks_at
        piece = self._content[self._position : min(end, self._position + min(self._step, len(buffer)))]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def abort(self) -> None:
        """Nothing blocks here."""


def quiet() -> None:
    """A `progress` that does nothing."""


def filled(store: BlobStore, content: bytes, *, upto: int | None = None, registry: str = REGISTRY) -> Ingest:
    """The lock's holder of a growing blob that has `content`, or its first bytes `upto`; sizes are known."""
    ingest = store.ingest(Digest.of(content), registry)
    assert ingest.try_lock()
    assert ingest.resume() == 0
    ingest.expect(len(content))
    if upto is None:
        ingest.fill(Pieces(content), quiet)
    else:
        with pytest.raises(UpstreamUnavailable):
            ingest.fill(Pieces(content, breaks_at=upto), quiet)
    return ingest


def committed(store: BlobStore, content: bytes) -> BlobInfo:
    """A blob that arrived in pieces."""
    ingest = filled(store, content)
    try:
        ingest.verify()
        return ingest.commit()
    finally:
        ingest.close()


def put_aside(store: BlobStore, digest: Digest) -> bool:
    """Sets a blob aside like a caller that has read it and found it damaged."""
    _, reader = store.open(digest)
    try:
        return store.set_aside(digest, reader)
    finally:
        reader.close()


class StoreSuite:
    """Fixtures to supply: `store`, `another`, `damage`."""

    # ------------------------------------------------------------------------------------------- present or not

    def test_an_empty_store_has_nothing(self, store: BlobStore) -> None:
        """A blob that was never put is unknown, frees nothing and is not listed."""
        for ask in (store.stat, store.open, lambda digest: store.read(digest, 10)):
            with pytest.raises(BlobUnknown):
                ask(DIGEST)
        assert store.delete(DIGEST) == Deleted()
        assert not store.set_aside(DIGEST, None)
        store.mark_used({DIGEST: LATER})
        assert dict(store.growing()) == {}
        assert list(store.walk()) == []

    @pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
    @pytest.mark.parametrize("content", [b"", b"small", CONTENT], ids=["empty", "small", "large"])
    def test_put(self, store: BlobStore, another: BlobStore, algorithm: str, content: bytes) -> None:
        """A small blob put whole is there for everyone, byte by byte; again is harmless."""
        digest = Digest.of(content, algorithm)
        for _ in range(2):
            assert store.put(digest, content).size == len(content)
        for each in (store, another):
            assert each.stat(digest).size == len(content)
            assert each.read(digest, len(content)) == content
            assert [(info.digest, info.size) for info in each.walk()] == [(digest, len(content))]
        info, reader = another.open(digest)
        assert info.size == len(content)
        assert reader.pread(len(content) + 10, 0) == content
        assert reader.pread(3, 1) == content[1:4]
        assert reader.pread(10, len(content)) == b""
        reader.close()
        reader.close()

    def test_put_of_wrong_bytes(self, store: BlobStore) -> None:
        """Bytes that the digest does not name are refused, and leave nothing."""
        with pytest.raises(BlobDamaged):
            store.put(DIGEST, b"something else")
        with pytest.raises(BlobUnknown):
            store.stat(DIGEST)
        assert dict(store.growing()) == {}

    def test_delete(self, store: BlobStore, another: BlobStore) -> None:
        """A deleted blob is unknown to every process and freed its size once; a reader that has it open reads on."""
        store.put(DIGEST, CONTENT)
        _, reader = another.open(DIGEST)
        assert store.delete(DIGEST) == Deleted(len(CONTENT), len(CONTENT))
        assert store.delete(DIGEST) == Deleted()
        with pytest.raises(BlobUnknown):
            another.stat(DIGEST)
        assert reader.pread(len(CONTENT), 0) == CONTENT
        reader.close()
        store.put(DIGEST, CONTENT)
        assert another.stat(DIGEST).size == len(CONTENT)

    def test_damaged_bytes_are_not_read(self, store: BlobStore, damage: Damage) -> None:
        """A blob whose bytes changed, or that is larger than expected, is `BlobDamaged`, never content."""
        store.put(DIGEST, CONTENT)
        with pytest.raises(BlobDamaged):
            store.read(DIGEST, len(CONTENT) - 1)
        damage(DIGEST, CONTENT[:-1] + b"!")
        with pytest.raises(BlobDamaged):
            store.read(DIGEST, len(CONTENT))

    def test_set_aside(self, store: BlobStore, damage: Damage) -> None:
        """A damaged blob can be taken out of service and fetched again; repeatable."""
        store.put(DIGEST, CONTENT)
        damage(DIGEST, b"rubbish")
        _, reader = store.open(DIGEST)
        for first in (True, False):
            assert store.set_aside(DIGEST, reader) is first
            with pytest.raises(BlobUnknown):
                store.open(DIGEST)
        reader.close()
        committed(store, CONTENT)
        assert store.read(DIGEST, len(CONTENT)) == CONTENT

    def test_what_has_come_since_is_not_set_aside(self, store: BlobStore, another: BlobStore, damage: Damage) -> None:
        """Two find the same damaged blob; the first sets it aside and fetches it again before the second is done. The
        good blob that is there now was not what the second has read: it stays.
        """
        committed(store, CONTENT)
        damage(DIGEST, b"rubbish")
        _, first = store.open(DIGEST)
        _, second = another.open(DIGEST)
        assert store.set_aside(DIGEST, first)
        committed(store, CONTENT)
        assert not another.set_aside(DIGEST, second)
        assert not another.set_aside(DIGEST, None)
        assert store.read(DIGEST, len(CONTENT)) == CONTENT
        assert [blob.size for blob in store.quarantined()] == [len(b"rubbish")]
        for reader in (first, second):
            reader.close()

    def test_what_was_set_aside(self, store: BlobStore, another: BlobStore, damage: Damage) -> None:
        """Every process lists it, with its size and the time; it takes room until it is dropped, and the blob that was
        fetched again stays."""
        assert list(store.quarantined()) == []
        assert store.drop_quarantined(DIGEST) == 0
        before = time.time()
        for content in (b"rubbish", b"more rubbish"):
            committed(store, CONTENT)
            damage(DIGEST, content)
            assert put_aside(store, DIGEST)
        committed(store, CONTENT)
        [blob] = another.quarantined()
        assert (blob.digest, blob.size) == (DIGEST, len(b"more rubbish"))
        assert before - 1 <= blob.at <= time.time() + 1
        assert another.drop_quarantined(DIGEST) == len(b"more rubbish")
        assert another.drop_quarantined(DIGEST) == 0
        assert list(store.quarantined()) == []
        assert store.read(DIGEST, len(CONTENT)) == CONTENT

    def test_times_of_use(self, store: BlobStore, another: BlobStore) -> None:
        """Every process sees the time, in `stat`, `open` and `walk`; unknown digests are skipped."""
        store.put(DIGEST, CONTENT)
        store.put(Digest.of(b"other"), b"other")
        store.mark_used({Digest.of(b"unknown"): LATER, DIGEST: LATER})
        assert another.stat(DIGEST).used_at == LATER
        info, reader = another.open(DIGEST)
        reader.close()
        assert info.used_at == LATER
        assert {info.digest: info.used_at == LATER for info in another.walk()} == {
            DIGEST: True,
            Digest.of(b"other"): False,
        }

    def test_walk_in_order(self, store: BlobStore) -> None:
        """Sorted by digest, so that an interrupted walk can go on after the last one."""
        digests = {Digest.of(bytes([number]), algorithm) for number in range(40) for algorithm in HEX_LENGTHS}
        for number in range(40):
            for algorithm in HEX_LENGTHS:
                store.put(Digest.of(bytes([number]), algorithm), bytes([number]))
        assert [info.digest for info in store.walk()] == sorted(digests)

    def test_walk_while_blobs_go(self, store: BlobStore) -> None:
        """Blobs deleted during a walk are not an error."""
        contents = [str(number).encode() for number in range(50)]
        for content in contents:
            store.put(Digest.of(content), content)
        walk = iter(store.walk())
        first = next(walk)
        for content in contents:
            store.delete(Digest.of(content))
        assert first.digest not in [info.digest for info in walk]
        assert list(store.walk()) == []

    def test_free(self, store: BlobStore) -> None:
        """Free space is part of the disk."""
        free, disk = store.free()
        assert 0 < free <= disk

    # -------------------------------------------------------------------------------------------- growing

    @pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
    @pytest.mark.parametrize("content", [b"", b"small", CONTENT], ids=["empty", "small", "large"])
    def test_a_blob_grows_and_is_committed(
        self, store: BlobStore, another: BlobStore, algorithm: str, content: bytes
    ) -> None:
        """From absent to present: invisible until `commit`, then there for everyone, and no longer growing."""
        digest = Digest.of(content, algorithm)
        ingest = store.ingest(digest, REGISTRY)
        assert (ingest.offset, ingest.size, ingest.verified, ingest.announced) == (0, None, False, False)
        assert ingest.in_place
        assert ingest.try_lock()
        assert ingest.try_lock()
        assert ingest.resume() == 0
        ingest.expect(len(content))
        assert (ingest.size, ingest.verified, ingest.announced) == (len(content), False, True)
        ingest.fill(Pieces(content), quiet)
        assert ingest.offset == len(content)
        assert not ingest.verified
        ingest.verify()
        assert ingest.verified
        with pytest.raises(BlobUnknown):
            another.stat(digest)
        info = ingest.commit()
        assert (info.digest, info.size) == (digest, len(content))
        assert another.read(digest, len(content)) == content
        assert dict(another.growing()) == {}
        assert not ingest.in_place
        ingest.abort(keep=False)
        ingest.close()
        ingest.close()
        assert another.read(digest, len(content)) == content

    def test_an_unknown_size(self, store: BlobStore) -> None:
        """Without a size the digest alone decides."""
        ingest = store.ingest(DIGEST, REGISTRY)
        assert ingest.try_lock()
        ingest.resume()
        ingest.expect(None)
        assert (ingest.size, ingest.announced) == (None, True)
        ingest.fill(Pieces(CONTENT), quiet)
        ingest.verify()
        assert ingest.size == len(CONTENT)
        assert ingest.commit().size == len(CONTENT)
        ingest.close()

    def test_progress_is_told(self, store: BlobStore) -> None:
        """`progress` is called during or after a fill, when the new bytes can be read already."""
        ingest = store.ingest(DIGEST, REGISTRY)
        reader = ingest.reader()
        assert ingest.try_lock()
        ingest.resume()
        ingest.expect(len(CONTENT))
        seen: list[bool] = []
        ingest.fill(Pieces(CONTENT), lambda: seen.append(len(reader.pread(1 << 20, 0)) >= ingest.offset > 0))
        assert seen
        assert all(seen)
        reader.close()
        ingest.close()

    def test_wrong_bytes_are_never_published(self, store: BlobStore) -> None:
        """Bytes of another digest fail `verify`; after `abort` without `keep` none of them stays."""
        wrong = b"!" + CONTENT[1:]
        ingest = store.ingest(DIGEST, REGISTRY)
        assert ingest.try_lock()
        ingest.resume()
        ingest.expect(len(wrong))
        ingest.fill(Pieces(wrong), quiet)
        with pytest.raises(BlobDamaged):
            ingest.verify()
        assert not ingest.verified
        for _ in range(2):
            ingest.abort(keep=False)
        ingest.close()
        assert dict(store.growing()) == {}
        with pytest.raises(BlobUnknown):
            store.stat(DIGEST)
        assert committed(store, CONTENT).size == len(CONTENT)

    @pytest.mark.parametrize("announced", [len(CONTENT) - 1, len(CONTENT) + 1])
    def test_a_wrong_size_is_noticed(self, store: BlobStore, announced: int) -> None:
        """More or fewer bytes than were announced are `BlobDamaged`, in `fill` or in `verify`."""
        ingest = store.ingest(DIGEST, REGISTRY)
        assert ingest.try_lock()
        ingest.resume()
        ingest.expect(announced)

        def fill_and_verify() -> None:
            ingest.fill(Pieces(CONTENT), quiet)
            ingest.verify()

        with pytest.raises(BlobDamaged):
            fill_and_verify()
        ingest.abort(keep=False)
        ingest.close()

    def test_a_broken_body_is_resumed_in_place(self, store: BlobStore) -> None:
        """Bytes before a break stay and count: the same ingest goes on at its offset."""
        ingest = filled(store, CONTENT, upto=123_456)
        assert ingest.offset == 123_456
        ingest.fill(Pieces(CONTENT, start=123_456), quiet)
        ingest.verify()
        ingest.commit()
        ingest.close()
        assert store.read(DIGEST, len(CONTENT)) == CONTENT

    @pytest.mark.parametrize("start", [123_456, 100_000, 0])
    def test_a_kept_partial_is_resumed_later(self, store: BlobStore, another: BlobStore, start: int) -> None:
        """A partial waits for the next filler, who hashes it again; an upstream that starts earlier is skipped."""
        first = filled(store, CONTENT, upto=123_456)
        first.abort(keep=True)
        first.abort(keep=False)
        first.close()
        second = another.ingest(DIGEST, REGISTRY)
        assert second.offset == 123_456
        assert second.try_lock()
        assert second.resume() == 123_456
        second.expect(len(CONTENT))
        second.fill(Pieces(CONTENT, start=start), quiet)
        second.verify()
        second.commit()
        second.close()
        assert store.read(DIGEST, len(CONTENT)) == CONTENT

    def test_closing_keeps_what_has_come(self, store: BlobStore) -> None:
        """`close` by the lock's holder frees the lock and leaves a partial."""
        filled(store, CONTENT, upto=50_000).close()
        again = store.ingest(DIGEST, REGISTRY)
        assert again.offset == 50_000
        assert again.try_lock()
        again.abort(keep=False)
        again.close()
        assert dict(store.growing()) == {}

    def test_a_body_that_begins_too_late(self, store: BlobStore) -> None:
        """Bytes with a gap before them are refused."""
        ingest = filled(store, CONTENT, upto=1000)
        with pytest.raises(BlobDamaged):
            ingest.fill(Pieces(CONTENT, start=2000), quiet)
        ingest.abort(keep=False)
        ingest.close()

    def test_a_body_that_ends_before_what_is_here(self, store: BlobStore) -> None:
        """An upstream that starts at 0 and has less than the partial is refused."""
        ingest = filled(store, CONTENT, upto=100_000)
        with pytest.raises(BlobDamaged):
            ingest.fill(Pieces(CONTENT[:60_000]), quiet)
        ingest.abort(keep=False)
        ingest.close()

    def test_restart_forgets_every_byte(self, store: BlobStore, another: BlobStore) -> None:
        """The filler begins at 0; followers of the old bytes see that theirs is not the file any more, and read on."""
        ingest = filled(store, CONTENT, upto=70_000)
        follower = another.ingest(DIGEST, REGISTRY)
        reader = follower.reader()
        ingest.restart()
        assert (ingest.offset, ingest.size, ingest.verified) == (0, None, False)
        assert ingest.in_place
        fresh = another.ingest(DIGEST, REGISTRY)
        assert not ingest.announced, "upstream has not answered for the new file yet"
        assert not fresh.announced, "nor do its followers believe that"
        fresh.close()
        assert not follower.in_place
        assert not follower.try_lock()
        follower.refresh()
        assert not follower.verified
        assert reader.pread(1 << 20, 0) == CONTENT[:70_000]
        ingest.expect(len(CONTENT))
        ingest.fill(Pieces(CONTENT), quiet)
        ingest.verify()
        ingest.commit()
        follower.refresh()
        assert not follower.verified
        for each in (ingest, follower, reader):
            each.close()
        assert another.read(DIGEST, len(CONTENT)) == CONTENT

    # ------------------------------------------------------------------------------------------ several at once

    def test_one_of_two_fills(self, store: BlobStore, another: BlobStore) -> None:
        """The second cannot lock, follows, sees size, growth and verification, and reads what was published."""
        filler = filled(store, CONTENT, upto=80_000)
        follower = another.ingest(DIGEST, REGISTRY)
        assert not follower.try_lock()
        follower.refresh()
        assert (follower.offset, follower.size) == (80_000, len(CONTENT))
        assert follower.announced
        assert not follower.verified
        reader = follower.reader()
        assert reader.pread(1 << 20, 0) == CONTENT[:80_000]
        filler.fill(Pieces(CONTENT, start=80_000), quiet)
        follower.refresh()
        assert follower.offset == len(CONTENT)
        filler.verify()
        follower.refresh()
        assert follower.verified
        filler.commit()
        filler.close()
        assert not follower.try_lock()
        assert not follower.in_place
        follower.refresh()
        assert follower.verified
        assert reader.pread(1 << 20, 0) == CONTENT
        store.delete(DIGEST)
        assert reader.pread(1 << 20, 0) == CONTENT
        reader.close()
        follower.close()
        with pytest.raises(BlobUnknown):
            another.stat(DIGEST)

    def test_a_follower_takes_over(self, store: BlobStore, another: BlobStore) -> None:
        """When the filler lets go and keeps the bytes, a follower becomes the filler and goes on at the offset."""
        filler = filled(store, CONTENT, upto=80_000)
        follower = another.ingest(DIGEST, REGISTRY)
        assert not follower.try_lock()
        filler.abort(keep=True)
        assert follower.try_lock()
        assert not filler.try_lock()
        assert follower.resume() == 80_000
        follower.expect(len(CONTENT))
        follower.fill(Pieces(CONTENT, start=80_000), quiet)
        follower.verify()
        follower.commit()
        follower.close()
        filler.close()
        assert store.read(DIGEST, len(CONTENT)) == CONTENT

    def test_a_follower_sees_that_all_was_thrown_away(self, store: BlobStore, another: BlobStore) -> None:
        """When the filler gives up and keeps nothing, its file is not the place any more; a new ingest begins at 0."""
        filler = filled(store, CONTENT, upto=80_000)
        follower = another.ingest(DIGEST, REGISTRY)
        filler.abort(keep=False)
        assert not follower.in_place
        assert not follower.try_lock()
        follower.refresh()
        assert not follower.verified
        follower.close()
        filler.close()
        fresh = another.ingest(DIGEST, REGISTRY)
        assert fresh.offset == 0
        assert not fresh.announced
        assert fresh.try_lock()
        fresh.close()

    def test_a_reader_is_independent(self, store: BlobStore) -> None:
        """A reader of a growing blob outlives the ingest, the commit and the delete."""
        ingest = filled(store, CONTENT)
        reader = ingest.reader()
        ingest.verify()
        ingest.commit()
        ingest.close()
        store.delete(DIGEST)
        assert reader.pread(1 << 20, 0) == CONTENT
        reader.close()

    def test_growing_tells_what_will_be_taken(self, store: BlobStore, another: BlobStore) -> None:
        """A growing blob counts with the size it will have, or has; a partial too; a committed one does not."""
        large = filled(store, CONTENT, upto=1000)
        unknown = store.ingest(Digest.of(b"unknown"), REGISTRY)
        assert unknown.try_lock()
        unknown.resume()
        unknown.expect(None)
        unknown.fill(Pieces(b"unknown"), quiet)
        assert dict(another.growing()) == {DIGEST: len(CONTENT), Digest.of(b"unknown"): 7}
        large.abort(keep=True)
        assert another.growing()[DIGEST] >= 1000
        unknown.verify()
        unknown.commit()
        assert set(another.growing()) == {DIGEST}
        for each in (large, unknown):
            each.close()

    def test_a_blob_that_is_there_may_come_again(self, store: BlobStore) -> None:
        """A second commit, or a put, of a present blob is harmless."""
        committed(store, CONTENT)
        committed(store, CONTENT)
        store.put(DIGEST, CONTENT)
        assert store.read(DIGEST, len(CONTENT)) == CONTENT
        assert len(list(store.walk())) == 1

    def test_registries_do_not_share_a_growing_blob(self, store: BlobStore, another: BlobStore) -> None:
        """Bytes that one registry sends are not visible to another, not locked by it, and do not end with it."""
        first = filled(store, CONTENT, upto=1000)
        second = another.ingest(DIGEST, "quay.io")
        assert (second.offset, second.size, second.announced) == (0, None, False)
        assert second.try_lock()
        assert second.resume() == 0
        second.expect(5)
        first.refresh()
        assert (first.offset, first.size) == (1000, len(CONTENT))
        assert dict(another.growing()) == {DIGEST: len(CONTENT) + 5}
        second.abort(keep=False)
        second.close()
        assert first.in_place
        first.close()
        assert another.growing()[DIGEST] == 1000

    def test_whether_a_registry_is_sending(self, store: BlobStore, another: BlobStore) -> None:
        """Only what somebody fills, and has bytes of, counts; a blob that is left out does not."""
        other = Digest.of(b"other")
        begun = store.ingest(DIGEST, REGISTRY)
        assert begun.try_lock()
        assert not another.is_filling(REGISTRY, other)
        begun.close()
        ingest = filled(store, CONTENT, upto=1000)
        assert another.is_filling(REGISTRY, other)
        assert not another.is_filling(REGISTRY, DIGEST)
        assert not another.is_filling("quay.io", other)
        ingest.close()
        assert not another.is_filling(REGISTRY, other)

    def test_how_far_a_growing_blob_is(self, store: BlobStore, another: BlobStore) -> None:
        """Other processes see it while somebody fills it, and not afterwards."""
        assert another.filling(DIGEST, REGISTRY) is None
        begun = store.ingest(DIGEST, REGISTRY)
        assert begun.try_lock()
        assert another.filling(DIGEST, REGISTRY) == Growth(0, None, verified=False)
        begun.close()
        ingest = filled(store, CONTENT, upto=1000)
        assert another.filling(DIGEST, REGISTRY) == Growth(1000, len(CONTENT), verified=False)
        assert another.filling(DIGEST, "quay.io") is None
        ingest.close()
        assert another.filling(DIGEST, REGISTRY) is None

    def test_the_beginning_of_a_growing_blob(self, store: BlobStore, another: BlobStore) -> None:
        """It can be read while somebody fills the blob, and as a partial afterwards; to look makes no file."""
        assert another.prefix(DIGEST, REGISTRY) is None
        assert another.growing() == {}
        ingest = filled(store, CONTENT, upto=1000)
        for is_filled in (True, False):
            prefix = another.prefix(DIGEST, REGISTRY)
            assert prefix is not None
            assert (prefix.offset, prefix.size, prefix.filled) == (1000, len(CONTENT), is_filled)
            assert prefix.reader.pread(10, 990) == CONTENT[990:1000]
            prefix.reader.close()
            ingest.close()
        assert another.prefix(DIGEST, "quay.io") is None

    def test_a_partial_that_cannot_be_resumed_is_no_beginning(self, store: BlobStore, another: BlobStore) -> None:
        """Nobody has said yet how large the blob is."""
        with closing(store.ingest(DIGEST, REGISTRY)) as begun:
            assert begun.try_lock()
            assert another.prefix(DIGEST, REGISTRY) is None

    def test_registries_meet_under_the_final_name(self, store: BlobStore, another: BlobStore) -> None:
        """The first to be verified is published; the second is as welcome, and neither leaves anything behind."""
        first, second = filled(store, CONTENT), filled(another, CONTENT, registry="quay.io")
        reader = first.reader()
        for each in (first, second):
            each.verify()
        assert first.commit() == second.commit() == BlobInfo(DIGEST, len(CONTENT))
        for each in (first, second):
            each.close()
        assert reader.pread(len(CONTENT), 0) == store.read(DIGEST, len(CONTENT)) == CONTENT
        assert len(list(store.walk())) == 1
        assert dict(store.growing()) == {}

    def test_many_threads_and_one_filler(self, store: BlobStore, another: BlobStore) -> None:
        """Of many that want to fill one digest at once exactly one may, each time, and the blob is right."""
        together = threading.Barrier(8)

        def contend(each: BlobStore) -> bool:
            ingest = each.ingest(DIGEST, REGISTRY)
            try:
                together.wait(30)
                won = ingest.try_lock()
                together.wait(30)
                if won:
                    ingest.resume()
                    ingest.expect(len(CONTENT))
                    ingest.fill(Pieces(CONTENT), quiet)
                    ingest.verify()
                    ingest.commit()
                together.wait(30)
                return won
            finally:
                ingest.close()

        with ThreadPoolExecutor(8) as threads:
            for _ in range(5):
                assert sum(threads.map(contend, [store, another] * 4)) == 1
                assert store.read(DIGEST, len(CONTENT)) == CONTENT
                store.delete(DIGEST)
        assert dict(store.growing()) == {}
