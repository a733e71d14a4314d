"""Hosted blobs whose bytes are in a bucket. The disk has copies of some of them, which eviction may drop.

    uploads/<session> ── take_in() ──┐                                 ┌── queue() ──> waits ── collect() ──┐
    content in memory ── put() ──────┼── bytes, then the state ──> present    <── rescue() ──┘              v
    a copy on the disk ── adopt() ───┘                                 └── lost() ──> lost ── collect() ──> gone

`policy/hosted/blob_state.py` draws the states. Every change of a state is a compare-and-set in the bucket, which
excludes all other processes and machines. What a crash leaves at each step:

    take_in(), adopt(), put()
        1 the bytes are written under a key of their own    an object that no state names: the sweep finds it
        2 their size is compared (put(): not needed)        the same
        3 the state names that key                          the blob, which does not wait to be collected
        4 a local file becomes a copy on the disk           a file of an upload session, which is swept
    rescue(), queue()
        1 the state is changed                              the old state or the new one
    lost()
        1 the mark is written                               a mark that means nothing
        2 the state is changed                              the blob is lost, and `damaged` lists it
    collect()
        1 the state is changed                              the blob is gone; the sweep deletes the object
        2 the key is deleted, together with others          nothing

Of two that push the same blob, on two machines, one changes the state; the other one finds the blob present, and
deletes what it has written. On one machine, the second waits for the first.

The sweep deletes an object that no state names once it is a day old. So an attempt that has lasted half a day fails: it
must not let a state name a key that may be deleted.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mirror import telemetry
from mirror.clock import steady_time
from mirror.errors import BlobDamaged, BlobUnknown, BucketUnavailable, RecordChanged, RecordDamaged, StoreError
from mirror.oci.digest import Digest
from mirror.policy.hosted.blob_state import BlobState, Condition, no_blob
from mirror.policy.hosted.large_blobs import is_large
from mirror.policy.hosted.sweep_steps import LONGEST_ATTEMPT
from mirror.policy.hosted_records import QueuedBlob
from mirror.policy.quarantine_limits import QuarantinedBlob
from mirror.ports import BlobInfo, BlobObject, Bucket, StoredObject, Version, Versioned
from mirror.store.local.durable import AnyPath
from mirror.store.objects.adoptions import Adoptions
from mirror.store.objects.collected_keys import CollectedKeys
from mirror.store.objects.digest_locks import DigestLocks
from mirror.store.objects.local_copies import LocalCopies
from mirror.store.objects.object_keys import hosted_key, new_attempt
from mirror.store.objects.state_records import BlobStates, FoundState, StateViews

#: Times that a change is tried again because another process has changed the state meanwhile.
_TRIES: Final = 100
#: Seconds for which a push waits while another one stores the same blob.
_PATIENCE: Final = 60.0
#: Objects of small blobs that this process has written or compared lately, and does not read again.
_MOST_COMPARED: Final = 1000


@dataclass(frozen=True, slots=True)
class _Bytes:
    """The bytes of a blob: how they are written under a key, and whether a key has them. Both raise `StoreError`."""

    size: int
    write: Callable[[str], None]
    are_at: Callable[[str], bool]


class HostedObjects:
    """`HostedBlobs` in a bucket, shared by any number of processes. May be used from any thread."""

    def __init__(
        self,
        bucket: Bucket,
        states: StateViews,
        copies: LocalCopies,
        locks: DigestLocks,
        collected: CollectedKeys,
        *,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = steady_time,
    ) -> None:
        """`now` is the time that states record, in epoch seconds; `clock` cannot be set, and goes on while the machine
        sleeps.
        """
        self._bucket = bucket
        self._states = states.asked
        self._remembered = states.remembered
        self._copies = copies
        self._locks = locks
        self._collected = collected
        self._now = now
        self._clock = clock
        self._adoptions = Adoptions(self._adopt)
        self._compared: OrderedDict[str, None] = OrderedDict()
        self._comparing = threading.Lock()

    def __repr__(self) -> str:
        return f"<HostedObjects in {self._bucket!r}>"

    def hosted(self, digest: Digest) -> BlobInfo:
        state = self._find(digest).state
        if not state.is_present:
            raise BlobUnknown(f"{digest} is not hosted")
        return _info(state)

    # -------------------------------------------------------------------------------------------- storing

    def take_in(self, digest: Digest, file: AnyPath, size: int) -> BlobInfo:
        """Store a blob from a file of `size` bytes, and take it out of the queue. If the bucket has the blob already,
        no byte moves. Durable on return. The file becomes a copy on the disk, or is deleted.

        The caller has checked that the bytes match the digest, and synced them. Raises `StoreError`; then the file is
        in its old place.
        """
        info = self.bring(digest, file, size)
        self._copies.take(info, file)
        return info

    def bring(self, digest: Digest, file: AnyPath, size: int) -> BlobInfo:
        """Like `take_in`, but the file stays as it is."""
        path = Path(file)
        content = _Bytes(size, lambda key: self._upload(key, path, size), lambda key: self._is_whole(key, size))
        found = self._find(digest)
        with suppress(RecordChanged):
            if present := self._present(found, content):
                return present
        # whoever pushes the same blob at the same time, or again because the answer took long, waits for this
        group = "large" if is_large(size) else ""
        with self._locks.hold(digest, _PATIENCE, group) as has_waited:
            return self._store(digest, content, None if has_waited else found)

    def adopt(self, digest: Digest, patience: float | None = None) -> BlobInfo:
        with suppress(BlobUnknown):
            present = self.hosted(digest)
            if self._copies.size(digest) in (None, present.size):
                return self.rescue(digest)
        return self._adopt(digest) if patience is None else self._adoptions.wait(digest, patience)

    def _adopt(self, digest: Digest) -> BlobInfo:
        with self._copies.sound(digest) as (file, size):
            return self.bring(digest, file, size)

    def put(self, digest: Digest, content: bytes) -> BlobInfo:
        if not digest.matches(content):
            raise BlobDamaged(f"the {len(content)} bytes to store as {digest} do not match the digest")
        info = self._store(
            digest,
            _Bytes(len(content), lambda key: self._write(key, content), lambda key: self._has(key, content)),
        )
        self._copies.put(info, content)
        return info

    def _upload(self, key: str, file: Path, size: int) -> None:
        self._bucket.upload(key, file, size)
        if not self._is_whole(key, size):
            raise StoreError(f"the bucket does not have the {size} bytes that were uploaded")

    def _is_whole(self, key: str, size: int) -> bool:
        found = self._bucket.head(key)
        return found is not None and found.size == size

    def _write(self, key: str, content: bytes) -> None:
        self._bucket.write(key, content)
        self._note_compared(key)

    def _has(self, key: str, content: bytes) -> bool:
        with self._comparing:
            if key in self._compared:
                return True
        try:
            found = self._bucket.read(key, len(content))
        except BlobDamaged:
            return False
        if not isinstance(found, StoredObject) or found.content != content:
            return False
        self._note_compared(key)
        return True

    def _note_compared(self, key: str) -> None:
        with self._comparing:
            self._compared[key] = None
            if len(self._compared) > _MOST_COMPARED:
                self._compared.popitem(last=False)

    def _store(self, digest: Digest, content: _Bytes, found: FoundState | None = None) -> BlobInfo:
        """Let the blob be present. `found` is its state, if that was read just now. Raises `StoreError`."""
        given_up: list[str] = []
        for _ in range(_TRIES):
            found = found or self._find(digest)
            with suppress(RecordChanged):
                info = self._present(found, content) or self._store_anew(found, content, given_up)
                for key in given_up:
                    self._collected.add(key)
                return info
            found = None
        raise _never_still(digest)

    def _present(self, found: FoundState, content: _Bytes) -> BlobInfo | None:
        """Take the blob out of the queue if the bucket has its bytes; None if it has not. Raises `RecordChanged`."""
        state = found.state
        if not state.is_present or state.size != content.size or not content.are_at(_key(state)):
            return None
        return self._rescue(found)

    def _store_anew(self, found: FoundState, content: _Bytes, given_up: list[str]) -> BlobInfo:
        """Write the bytes under a new key, which the state then names. Raises `RecordChanged`; then no state will name
        that key, which is added to `given_up`.
        """
        digest, attempt, begun_at = found.state.digest, new_attempt(), self._clock()
        key = hosted_key(digest, attempt)
        content.write(key)
        if self._clock() - begun_at > LONGEST_ATTEMPT:
            raise BucketUnavailable(f"the upload of {digest} took too long")
        state = found.state.stored(attempt, content.size, self._now())
        try:
            self._states.write(state, found.expect)
        except RecordChanged:
            if self._find(digest).state.attempt != attempt:
                given_up.append(key)
            raise
        if found.is_damaged or found.state.condition is not Condition.GONE:
            telemetry.log.info("damaged blob repaired", digest=str(digest))
            self._drop_mark(digest)
        return _info(state)

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
        # mostly what is remembered is true, and costs no read
        with suppress(RecordChanged, RecordDamaged):
            return self._queue(self._remembered.find(record.digest), record.queued_at)
        return self._queue(self._find(record.digest), record.queued_at)

    def _queue(self, found: FoundState, at: float) -> Version:
        if found.is_damaged or found.state.queued_at is not None:
            raise RecordChanged(f"{found.state.digest} waits already, or its state is damaged")
        return self._states.write(found.state.queued(at), found.expect)

    def collect(self, digest: Digest, expect: Version) -> int:
        found = self._remembered.find(digest)
        if found.version != expect:
            found = self._find(digest)
        state = found.state
        if found.version != expect or state.queued_at is None:
            raise RecordChanged(f"{digest} was changed meanwhile")
        self._states.write(state.collected(self._now()), expect)
        if state.attempt:
            self._collected.add(_key(state))
        if state.condition is Condition.LOST:
            self._drop_mark(digest)
        return state.size if state.is_present else 0

    def free_collected(self, *, at_once: bool = False) -> int:
        return self._collected.free(at_once=at_once)

    def queued_pages(self) -> Iterator[Sequence[QueuedBlob]]:
        for page in self._remembered.queued_pages():
            yield [QueuedBlob(state.digest, state.queued_at) for state in page if state.queued_at is not None]

    # ------------------------------------------------------------------------------------------------ damage

    def source(self, digest: Digest) -> BlobObject | None:
        """See `BlobObjects`. Asks the bucket in every call."""
        return _source(self._find(digest).state)

    def lost(self, found: BlobObject, reason: str) -> bool:
        """See `BlobObjects`. From then on the blob is damaged: a push of it repairs it, or a sound copy on the disk."""
        for _ in range(_TRIES):
            now = self._find(found.digest)
            if not now.state.is_present or _key(now.state) != found.key:
                return False
            with suppress(RecordChanged):
                self._states.mark_lost(found.digest)
                self._states.write(now.state.lost(self._now()), now.expect)
                telemetry.log.error("hosted blob lost in the bucket", digest=str(found.digest), reason=reason)
                telemetry.notice(telemetry.Notice.BLOB_DAMAGED, digest=str(found.digest), reason=reason)
                return True
        raise _never_still(found.digest)

    def _drop_mark(self, digest: Digest) -> None:
        # a mark without a lost blob does no harm, and the sweep drops it
        with suppress(StoreError):
            self._states.drop_mark(digest)

    def damaged(self) -> Sequence[QuarantinedBlob]:
        lost = []
        for digest in self._remembered.marked():
            try:
                state = self._remembered.find(digest).state
            except RecordDamaged:
                lost.append(QuarantinedBlob(digest, 0, 0.0))
                continue
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


class PulledObjects:
    """`BlobObjects` for the pulls of clients, which go on while the bucket is down: it is the memory that then says
    which object has a blob.
    """

    def __init__(self, states: BlobStates, objects: HostedObjects) -> None:
        """`states` answers from memory while the bucket is down."""
        self._states = states
        self._objects = objects

    def __repr__(self) -> str:
        return f"<PulledObjects {self._objects!r}>"

    def source(self, digest: Digest) -> BlobObject | None:
        """See `BlobObjects`."""
        try:
            return _source(self._states.find(digest).state)
        except RecordDamaged:
            return None

    def lost(self, found: BlobObject, reason: str) -> bool:
        """See `BlobObjects`."""
        return self._objects.lost(found, reason)


def _key(state: BlobState) -> str:
    return hosted_key(state.digest, state.attempt)


def _source(state: BlobState) -> BlobObject | None:
    return BlobObject(state.digest, _key(state), state.size) if state.is_present else None


def _info(state: BlobState) -> BlobInfo:
    return BlobInfo(state.digest, state.size, state.since)


def _never_still(digest: Digest) -> StoreError:
    return StoreError(f"the state of the hosted blob {digest} was changed all the time")
