"""Hosted blobs whose bytes are in a bucket. The disk has copies of some of them, which eviction may drop.

    uploads/<session> ── take_in() ──┐                                 ┌── queue() ──> waits ── collect() ──┐
    content in memory ── put() ──────┼── bytes, then the state ──> present    <── rescue() ──┘              v
    a copy on the disk ── adopt() ───┘                                 └── lost() ──> lost ── collect() ──> gone

`policy/hosted/blob_state.py` draws the states. Every change of a state is a compare-and-set in the bucket, which
excludes all other processes and machines. What a crash leaves at each step:

    take_in(), adopt(), put()
        1 the bytes are written under a key that no         an object that no state names: the sweep lets it wait to be
          state names, and no deletion can hit              collected
        2 their size is compared (put(): not needed)        the same
        3 the state is changed                              the blob, which does not wait to be collected
        4 a local file becomes a copy on the disk           a file of an upload session, which is swept
    rescue(), queue()
        1 the state is changed                              the old state or the new one
    lost()
        1 the mark is written                               a mark that means nothing
        2 the state is changed                              the blob is lost, and `damaged` lists it
    collect()
        1 the state is changed                              the blob is gone; the sweep deletes the object
        2 the key is deleted, together with others          nothing

Two that push the same blob at the same time write the same bytes under the same key, and one of them changes the state.
The other one finds the blob present. A process that was frozen for long writes under a key that is perhaps deleted by
now; its change of the state then fails, and it writes the bytes once more under the next key.

What the remembered states say is changed only by the version that was seen: a change fails if it is not true any more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from mirror import telemetry
from mirror.errors import BlobDamaged, BlobUnknown, RecordChanged, RecordDamaged, StoreError
from mirror.oci.digest import Digest
from mirror.policy.hosted.blob_state import BlobState, Condition, no_blob, stored
from mirror.policy.hosted_records import QueuedBlob
from mirror.policy.quarantine_limits import QuarantinedBlob
from mirror.ports import BlobInfo, BlobObject, Bucket, Version, Versioned
from mirror.store.local.durable import AnyPath
from mirror.store.objects.local_copies import LocalCopies
from mirror.store.objects.object_keys import hosted_key
from mirror.store.objects.state_records import FoundState, StateViews

#: Times that a change is tried again because another process has changed the state meanwhile.
_TRIES: Final = 100
#: Keys that are deleted at once.
_AT_ONCE: Final = 1000
#: Keys that wait at most while the bucket cannot delete. The sweep finds the others.
_MOST_WAITING: Final = 20_000


class HostedObjects:
    """`HostedBlobs` in a bucket, shared by any number of processes. May be used from any thread."""

    def __init__(
        self,
        bucket: Bucket,
        states: StateViews,
        copies: LocalCopies,
        *,
        now: Callable[[], float] = time.time,
        at_once: int = _AT_ONCE,
    ) -> None:
        """`now` is the time that states record, in epoch seconds. `at_once` objects are deleted together."""
        self._bucket = bucket
        self._states = states.asked
        self._lenient = states.lenient
        self._remembered = states.remembered
        self._copies = copies
        self._now = now
        self._at_once = at_once
        self._collected: list[str] = []
        self._changing = threading.Lock()

    def __repr__(self) -> str:
        return f"<HostedObjects {self._bucket!r}, {len(self._collected)} keys to delete>"

    def hosted(self, digest: Digest) -> BlobInfo:
        state = self._find(digest).state
        if not state.is_present:
            raise BlobUnknown(f"{digest} is not hosted")
        return _info(state)

    # -------------------------------------------------------------------------------------------- storing

    def take_in(self, digest: Digest, file: AnyPath, size: int) -> BlobInfo:
        """Store a blob from a file of `size` bytes, and take it out of the queue. If the blob is hosted already, no
        byte moves. Durable on return. The file becomes a copy on the disk, or is deleted.

        The caller has checked that the bytes match the digest, and synced them. Raises `StoreError`; then the file is
        in its old place.
        """
        info = self._store(digest, size, lambda key: self._upload(key, Path(file), size))
        self._copies.take(digest, file)
        return info

    def adopt(self, digest: Digest) -> BlobInfo:
        with suppress(BlobUnknown):
            present = self.hosted(digest)
            if self._copies.size(digest) in (None, present.size):
                return self.rescue(digest)
        with self._copies.sound(digest) as (file, size):
            return self._store(digest, size, lambda key: self._upload(key, file, size))

    def put(self, digest: Digest, content: bytes) -> BlobInfo:
        if not digest.matches(content):
            raise BlobDamaged(f"the {len(content)} bytes to store as {digest} do not match the digest")
        info = self._store(digest, len(content), lambda key: self._write(key, content))
        self._copies.put(digest, content)
        return info

    def _upload(self, key: str, file: Path, size: int) -> None:
        self._bucket.upload(key, file, size)
        found = self._bucket.head(key)
        if found is None or found.size != size:
            has = "nothing" if found is None else f"{found.size} bytes"
            raise StoreError(f"the bucket has {has} of the {size} bytes that were uploaded")

    def _write(self, key: str, content: bytes) -> None:
        self._bucket.write(key, content)

    def _store(self, digest: Digest, size: int, write: Callable[[str], None]) -> BlobInfo:
        """Let the blob be present. `write` writes its bytes under a key. Raises `StoreError`."""
        written = 0
        for _ in range(_TRIES):
            found = self._find(digest)
            try:
                if found.state.is_present and found.state.size == size:
                    return self._rescue(found)
                if found.state.is_present:
                    self._lose(found, f"it has {found.state.size} bytes, not {size}")
                    continue
                generation = self._next_generation(found)
                if generation != written:
                    write(hosted_key(digest, generation))
                    written = generation
                state = stored(found.state, generation, size, self._now())
                self._states.write(state, found.expect)
            except RecordChanged:
                continue
            if found.state.condition is Condition.LOST:
                self._repaired(digest)
            return _info(state)
        raise _never_still(digest)

    def _next_generation(self, found: FoundState) -> int:
        """A generation whose key was never used, or whose object was never named by a state."""
        if found.is_damaged:
            # what was used is unknown, and is less than this
            return int(self._now())
        return found.state.generation + 1

    def _find(self, digest: Digest) -> FoundState:
        """The state in the bucket. A damaged record says nothing of the blob, which a push then stores anew."""
        try:
            return self._states.find(digest)
        except RecordDamaged as damaged:
            return FoundState(no_blob(digest), Version(damaged.version), is_damaged=True)

    # ------------------------------------------------------------------------------------------------ the queue

    def rescue(self, digest: Digest) -> BlobInfo:
        for _ in range(_TRIES):
            found = self._find(digest)
            if not found.state.is_present:
                raise BlobUnknown(f"{digest} is not hosted")
            with suppress(RecordChanged):
                return self._rescue(found)
        raise _never_still(digest)

    def _rescue(self, found: FoundState) -> BlobInfo:
        """Take a blob that is present out of the queue. Raises `RecordChanged`."""
        if found.state.queued_at is not None:
            self._states.write(found.state.rescued(), found.expect)
        return _info(found.state)

    def queued(self, digest: Digest) -> Versioned[QueuedBlob] | None:
        found = self._remembered.find(digest)
        if found.state.queued_at is None or found.version is None:
            return None
        return Versioned(QueuedBlob(digest, found.state.queued_at), found.version)

    def queue(self, record: QueuedBlob) -> Version:
        found = self._states.find(record.digest)
        if found.state.queued_at is not None:
            raise RecordChanged(f"{record.digest} waits already")
        return self._states.write(found.state.queued(record.queued_at), found.expect)

    def collect(self, digest: Digest, expect: Version) -> int:
        found = self._remembered.find(digest)
        if found.version != expect:
            found = self._states.find(digest)
        state = found.state
        if found.version != expect or state.queued_at is None:
            raise RecordChanged(f"{digest} was changed meanwhile")
        self._states.write(state.collected(self._now()), expect)
        if state.condition is not Condition.GONE:
            self._delete_later(hosted_key(digest, state.generation))
        if state.condition is Condition.LOST:
            self._drop_mark(digest)
        return state.size if state.is_present else 0

    def all_queued(self) -> Iterator[QueuedBlob]:
        for state in self._remembered.queued():
            if state.queued_at is not None:
                yield QueuedBlob(state.digest, state.queued_at)

    def free_collected(self) -> int:
        with self._changing:
            keys, self._collected = self._collected, []
        try:
            if keys:
                self._bucket.delete(keys)
        except StoreError as error:
            telemetry.log.warning("collected objects not deleted", objects=len(keys), reason=str(error))
            with self._changing:
                self._collected = (self._collected + keys)[:_MOST_WAITING]
            return len(keys)
        return 0

    def _delete_later(self, key: str) -> None:
        with self._changing:
            self._collected.append(key)
            enough = len(self._collected) % self._at_once == 0
        if enough:
            self.free_collected()

    # ------------------------------------------------------------------------------------------------ damage

    def source(self, digest: Digest) -> BlobObject | None:
        """See `BlobObjects`."""
        try:
            state = self._lenient.find(digest).state
        except RecordDamaged:
            return None
        if not state.is_present:
            return None
        return BlobObject(digest, hosted_key(digest, state.generation), state.size)

    def lost(self, found: BlobObject, reason: str) -> bool:
        """See `BlobObjects`. From then on the blob is damaged: a push of it repairs it, or a sound copy on the disk."""
        for _ in range(_TRIES):
            now = self._find(found.digest)
            if not now.state.is_present or hosted_key(found.digest, now.state.generation) != found.key:
                return False
            with suppress(RecordChanged):
                self._lose(now, reason)
                return True
        raise _never_still(found.digest)

    def _lose(self, found: FoundState, reason: str) -> None:
        """Let a blob that is present be lost. Raises `RecordChanged`."""
        digest = str(found.state.digest)
        self._states.mark_lost(found.state.digest)
        self._states.write(found.state.lost(self._now()), found.expect)
        telemetry.log.error("hosted blob lost in the bucket", digest=digest, reason=reason)
        telemetry.notice(telemetry.Notice.BLOB_DAMAGED, digest=digest, reason=reason)

    def _repaired(self, digest: Digest) -> None:
        telemetry.log.info("damaged blob repaired", digest=str(digest))
        self._drop_mark(digest)

    def _drop_mark(self, digest: Digest) -> None:
        # a mark without a lost blob does no harm, and the sweep drops it
        with suppress(StoreError):
            self._states.drop_mark(digest)

    def damaged(self) -> Sequence[QuarantinedBlob]:
        lost = []
        for digest in self._remembered.marked():
            with suppress(RecordDamaged):
                state = self._remembered.find(digest).state
                if state.condition is Condition.LOST:
                    lost.append(QuarantinedBlob(digest, state.size, state.since))
        return lost

    # -------------------------------------------------------------------------------------------- all of them

    def blobs(self, after: Digest | None, count: int) -> Sequence[BlobInfo]:
        page: list[BlobInfo] = []
        for state in self._remembered.after(after):
            if len(page) >= count:
                break
            if state.is_present:
                page.append(_info(state))
        return page

    def flush(self) -> None:
        self._states.flush()


def _info(state: BlobState) -> BlobInfo:
    return BlobInfo(state.digest, state.size, state.since)


def _never_still(digest: Digest) -> StoreError:
    return StoreError(f"the state of the hosted blob {digest} was changed all the time")
