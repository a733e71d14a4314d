"""A `BlobStore`, a `Catalog` and `Pins` in dicts: the simplest correct implementations. Their content is lost when the
process ends.

One `MemoryStore` stands for a disk. Several ingests of one digest here correspond to several processes on one
`LocalStore`: they share one growing blob, and one ingest at a time is its filler. A growing blob that was committed or
restarted is no longer `in_place`; readers that have it open can still read it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypeAlias, TypeVar

from mirror.errors import BlobDamaged, BlobUnknown, RecordChanged, StoreError, StoreFull
from mirror.oci.digest import Digest, hasher
from mirror.oci.reference import Reference, Repo
from mirror.policy.quarantine_limits import QuarantinedBlob
from mirror.policy.records import ManifestRecord, Pin, Sighting, TagRecord
from mirror.policy.unreadable_records import UnreadableRecord
from mirror.ports import (
    ABSENT,
    BlobInfo,
    BlobReader,
    Body,
    Condition,
    Deleted,
    Growth,
    Prefix,
    Version,
    Versioned,
    in_time,
)

T = TypeVar("T")

#: The size of the receive buffer in bytes.
_RECEIVE: Final = 256 * 1024

#: The registry that sends a growing blob, and the digest of the blob.
_Key: TypeAlias = tuple[str, Digest]


@dataclass(slots=True, eq=False)
class _Blob:
    """The bytes of a growing or present blob. `filler` is the ingest that holds the lock."""

    content: bytearray = field(default_factory=bytearray)
    size: int | None = None
    announced: bool = False
    verified: bool = False
    used_at: float = 0.0
    filler: MemoryIngest | None = None


class MemoryReader:
    """An open blob. It stays readable after the blob is deleted or replaced."""

    def __init__(self, blob: _Blob) -> None:
        self._blob: _Blob | None = blob

    def pread(self, size: int, offset: int) -> bytes:
        if self._blob is None:
            raise StoreError("reading a blob: the reader is closed")
        return bytes(memoryview(self._blob.content)[offset : offset + size])

    def reads(self, blob: _Blob) -> bool:
        """True if this reader has opened exactly this blob."""
        return self._blob is blob

    def close(self) -> None:
        self._blob = None


class MemoryStore:
    """See `mirror.ports.BlobStore`. May be used from any thread."""

    def __init__(self, disk: int = 1 << 40) -> None:
        """`disk` is the capacity of the store in bytes."""
        #: Guards all attributes below. It is notified after every change to a growing blob.
        self.changed = threading.Condition(threading.RLock())
        self.disk = disk
        self._present: dict[Digest, _Blob] = {}
        self._growing: dict[_Key, _Blob] = {}
        self._aside: dict[Digest, tuple[_Blob, float]] = {}

    def stat(self, digest: Digest) -> BlobInfo:
        with self.changed:
            blob = self._find(digest)
            return BlobInfo(digest, len(blob.content), blob.used_at)

    def open(self, digest: Digest) -> tuple[BlobInfo, MemoryReader]:
        with self.changed:
            blob = self._find(digest)
            return BlobInfo(digest, len(blob.content), blob.used_at), MemoryReader(blob)

    def read(self, digest: Digest, limit: int) -> bytes:
        with self.changed:
            content = bytes(self._find(digest).content)
        if len(content) > limit:
            raise BlobDamaged(f"{digest} has {len(content)} bytes, more than the {limit} expected")
        if not digest.matches(content):
            raise BlobDamaged(f"the {len(content)} bytes of {digest} do not match the digest")
        return content

    def put(self, digest: Digest, content: bytes) -> BlobInfo:
        if not digest.matches(content):
            raise BlobDamaged(f"the {len(content)} bytes to store as {digest} do not match the digest")
        with self.changed:
            if digest not in self._present:
                self.claim(len(content))
                self._present[digest] = _Blob(bytearray(content), len(content), announced=True, verified=True)
        return BlobInfo(digest, len(content))

    def flush(self) -> None:
        """Does nothing: the content does not outlive the process."""

    def ingest(self, digest: Digest, registry: str) -> MemoryIngest:
        return MemoryIngest(self, digest, registry)

    def growing(self) -> Mapping[Digest, int]:
        with self.changed:
            sizes: dict[Digest, int] = {}
            for (_, digest), blob in self._growing.items():
                whole = max(len(blob.content), (blob.size or 0) if blob.filler else 0)
                sizes[digest] = sizes.get(digest, 0) + whole
            return sizes

    def spans(self, digest: Digest, registry: str, size: int | None) -> None:
        """There are none: this store keeps no bytes that came out of turn."""

    def drop_growing(self, digests: Collection[Digest]) -> None:
        with self.changed:
            for key, blob in list(self._growing.items()):
                if key[1] in digests and blob.filler is None:
                    del self._growing[key]

    def asked_in_parts(self) -> Sequence[Mapping[str, object]]:
        """None: this store keeps no bytes that came out of turn."""
        return []

    def avoid_parts(self, registry: str, digest: Digest | None) -> None:
        """Remembers nothing: no parts are asked for without spans."""

    def avoids_parts(self, registry: str, digest: Digest, seconds: float) -> bool:
        """See `avoid_parts`."""
        return False

    def filling(self, digest: Digest, registry: str) -> Growth | None:
        with self.changed:
            blob = self._growing.get((registry, digest))
            if blob is None or blob.filler is None:
                return None
            if not blob.announced:
                return Growth(0, None, verified=False)
            return Growth(len(blob.content), blob.size, blob.verified)

    def prefix(self, digest: Digest, registry: str) -> Prefix | None:
        with self.changed:
            blob = self._growing.get((registry, digest))
            if blob is None or not blob.announced:
                return None
            reader = MemoryReader(blob)
            return Prefix(reader, len(blob.content), blob.size, blob.filler is not None)

    def is_filling(self, registry: str, besides: Digest) -> bool:
        with self.changed:
            return any(
                blob.filler is not None and blob.content
                for (whose, digest), blob in self._growing.items()
                if whose == registry and digest != besides
            )

    def delete(self, digest: Digest) -> Deleted:
        with self.changed:
            blob = self._present.pop(digest, None)
            return Deleted(len(blob.content), len(blob.content)) if blob else Deleted()

    def set_aside(self, digest: Digest, seen: BlobReader | None) -> bool:
        with self.changed:
            blob = self._present.get(digest)
            if blob is None or not isinstance(seen, MemoryReader) or not seen.reads(blob):
                return False
            self._aside[digest] = self._present.pop(digest), time.time()
            return True

    def date_quarantined(self, digest: Digest, at: float) -> None:
        """Say when a blob was set aside, in epoch seconds."""
        with self.changed:
            self._aside[digest] = self._aside[digest][0], at

    def quarantined(self) -> Sequence[QuarantinedBlob]:
        with self.changed:
            return [QuarantinedBlob(digest, len(blob.content), at) for digest, (blob, at) in self._aside.items()]

    def drop_quarantined(self, digest: Digest) -> int:
        with self.changed:
            blob = self._aside.pop(digest, None)
            return len(blob[0].content) if blob else 0

    def mark_used(self, seen: Mapping[Digest, float]) -> None:
        with self.changed:
            for digest, used_at in seen.items():
                if digest in self._present:
                    self._present[digest].used_at = used_at

    def walk_part(self, digits: str) -> Iterator[BlobInfo]:
        with self.changed:
            part = sorted(digest for digest in self._present if digest.hex.startswith(digits))
        for digest in part:
            with suppress(BlobUnknown):
                yield self.stat(digest)

    def walk(self) -> Iterator[BlobInfo]:
        with self.changed:
            digests = sorted(self._present)
        for digest in digests:
            try:
                yield self.stat(digest)
            except BlobUnknown:
                continue

    def free(self) -> tuple[int, int]:
        with self.changed:
            aside = (blob for blob, _ in self._aside.values())
            blobs = [*self._present.values(), *self._growing.values(), *aside]
            return max(0, self.disk - sum(len(blob.content) for blob in blobs)), self.disk

    def damage(self, digest: Digest, content: bytes) -> None:
        """Replace the bytes of a blob, as a bad disk would. Raises `BlobUnknown`."""
        with self.changed:
            self._find(digest).content[:] = content

    def claim(self, size: int) -> None:
        """Check that `size` more bytes fit; the caller holds `changed`. Raises `StoreFull`."""
        if size > self.free()[0]:
            raise StoreFull(f"no room for {size} bytes")

    def begin(self, key: _Key, *, anew: bool = False) -> _Blob:
        """The current growing blob of this key. A new one is made if there is none, or if `anew`."""
        with self.changed:
            if anew or key not in self._growing:
                self._growing[key] = _Blob()
            return self._growing[key]

    def is_growing(self, key: _Key, blob: _Blob) -> bool:
        """True if this is the current growing blob of this key."""
        with self.changed:
            return self._growing.get(key) is blob

    def publish(self, key: _Key, blob: _Blob) -> None:
        """Make a growing blob present under its digest; it is no longer growing."""
        with self.changed:
            del self._growing[key]
            self._present[key[1]] = blob

    def forget(self, key: _Key, blob: _Blob) -> None:
        """Drop a growing blob, unless another one has taken its place."""
        with self.changed:
            if self.is_growing(key, blob):
                del self._growing[key]

    def _find(self, digest: Digest) -> _Blob:
        try:
            return self._present[digest]
        except KeyError:
            raise BlobUnknown(f"{digest} is not in the store") from None


class MemoryIngest:
    """See `mirror.ports.Ingest`."""

    def __init__(self, store: MemoryStore, digest: Digest, registry: str) -> None:
        self.digest = digest
        self._key = registry, digest
        self._store = store
        self._blob = store.begin(self._key)
        self._hash = hasher(digest)
        self.refresh()

    @property
    def offset(self) -> int:
        return self._offset

    @property
    def size(self) -> int | None:
        return self._size

    @property
    def verified(self) -> bool:
        return self._verified

    @property
    def announced(self) -> bool:
        return self._announced

    @property
    def in_place(self) -> bool:
        return self._store.is_growing(self._key, self._blob)

    @property
    def _locked(self) -> bool:
        return self._blob.filler is self

    def refresh(self) -> None:
        with self._store.changed:
            blob = self._blob
            self._offset, self._size = len(blob.content), blob.size
            self._verified, self._announced = blob.verified, blob.announced

    def try_lock(self) -> bool:
        with self._store.changed:
            if self._blob.filler is None and self.in_place:
                self._blob.filler = self
            return self._locked

    def resume(self) -> int:
        self._must_hold_the_lock()
        self._hash = hasher(self.digest)
        self._hash.update(self._blob.content)
        self.refresh()
        return self._offset

    def restart(self) -> None:
        self._must_hold_the_lock()
        with self._store.changed:
            # a new blob, so that followers of the old one see it end, and do not see its bytes change under them
            self._blob.filler = None
            self._blob = self._store.begin(self._key, anew=True)
            self._blob.filler = self
            self._store.changed.notify_all()
        self._hash = hasher(self.digest)
        self.refresh()

    def expect(self, size: int | None) -> None:
        self._must_hold_the_lock()
        with self._store.changed:
            self._blob.size, self._blob.announced, self._blob.verified = size, True, False
            self._store.changed.notify_all()
        self.refresh()

    def fill(self, body: Body, progress: Callable[[], None]) -> None:
        self._must_hold_the_lock()
        offset = body.start
        if offset > self._offset:
            raise BlobDamaged(f"the body begins at {offset}, beyond the {self._offset} bytes that are here")
        buffer = memoryview(bytearray(_RECEIVE))
        while received := body.readinto(buffer):
            # not every upstream honours a range request: skip the bytes that are already in the blob
            fresh = buffer[max(0, self._offset - offset) : received]
            offset += received
            self._append(fresh)
            progress()
        if offset < self._offset:
            raise BlobDamaged(f"the body ends after {offset} bytes, of which {self._offset} were here already")

    def _append(self, chunk: memoryview) -> None:
        with self._store.changed:
            if self._size is not None and self._offset + len(chunk) > self._size:
                raise BlobDamaged(f"upstream sent more than the {self._size} bytes that it announced")
            self._store.claim(len(chunk))
            self._blob.content += chunk
            self._hash.update(chunk)
            self._offset += len(chunk)
            self._store.changed.notify_all()

    def verify(self) -> None:
        self._must_hold_the_lock()
        if self._size not in (None, self._offset):
            raise BlobDamaged(f"{self._offset} bytes of {self.digest} instead of the {self._size} announced")
        if self._hash.hexdigest() != self.digest.hex:
            raise BlobDamaged(f"the {self._offset} bytes received do not match {self.digest}")
        with self._store.changed:
            self._blob.size, self._blob.announced, self._blob.verified = self._offset, True, True
            self._store.changed.notify_all()
        self.refresh()

    def commit(self) -> BlobInfo:
        self._must_hold_the_lock()
        if not self._verified:
            raise StoreError(f"publishing {self.digest}: it is not verified")
        with self._store.changed:
            self._store.publish(self._key, self._blob)
            self._blob.filler = None
            self._store.changed.notify_all()
        return BlobInfo(self.digest, self._offset)

    def abort(self, *, keep: bool) -> None:
        with self._store.changed:
            if not self._locked:
                return
            self._blob.filler = None
            if not keep:
                self._store.forget(self._key, self._blob)
            self._store.changed.notify_all()

    def reader(self) -> MemoryReader:
        return MemoryReader(self._blob)

    def close(self) -> None:
        with self._store.changed:
            self.abort(keep=True)
            if not self._blob.content and self._blob.filler is None:
                # an empty blob is useless, and would count as growing for ever
                self._store.forget(self._key, self._blob)

    def _must_hold_the_lock(self) -> None:
        if not self._locked:
            raise StoreError(f"{self.digest} is filled by someone else")


class MemoryCatalog:
    """See `mirror.ports.Catalog`. May be used from any thread."""

    def __init__(self) -> None:
        self._tags: dict[Repo, dict[str, TagRecord]] = {}
        self._manifests: dict[Repo, dict[Digest, ManifestRecord]] = {}
        self._histories: dict[tuple[Repo, str], tuple[Sighting, ...]] = {}
        self._added = 0
        self._changing = threading.Lock()

    def tag(self, repo: Repo, tag: str) -> Versioned[TagRecord] | None:
        return _versioned(self._tags.get(repo, {}).get(tag))

    def get_tag(self, repo: Repo, tag: str) -> TagRecord | None:
        return self._tags.get(repo, {}).get(tag)

    def put_tag(self, repo: Repo, record: TagRecord, *, expect: Condition = None) -> Version:
        with self._changing:
            _expect(self.tag(repo, record.tag), expect)
            self._added += not self._tags.get(repo)
            self._tags.setdefault(repo, {})[record.tag] = record
        return _version(record)

    def drop_tag(self, repo: Repo, tag: str, *, expect: Condition = None) -> None:
        with self._changing:
            _expect(self.tag(repo, tag), expect)
            self._tags.get(repo, {}).pop(tag, None)

    def tags(self, repo: Repo) -> list[str]:
        return sorted(self._tags.get(repo, {}))

    def get_history(self, repo: Repo, tag: str) -> tuple[Sighting, ...]:
        return self._histories.get((repo, tag), ())

    def put_history(self, repo: Repo, tag: str, sightings: Sequence[Sighting]) -> None:
        self._histories[repo, tag] = tuple(sightings)

    def manifest(self, repo: Repo, digest: Digest) -> Versioned[ManifestRecord] | None:
        return _versioned(self._manifests.get(repo, {}).get(digest))

    def get_manifest(self, repo: Repo, digest: Digest) -> ManifestRecord | None:
        return self._manifests.get(repo, {}).get(digest)

    def put_manifest(self, repo: Repo, record: ManifestRecord, *, expect: Condition = None) -> Version:
        with self._changing:
            _expect(_versioned(self._manifests.get(repo, {}).get(record.digest)), expect)
            self._added += not self._manifests.get(repo)
            self._manifests.setdefault(repo, {})[record.digest] = record
        return _version(record)

    def drop_manifest(self, repo: Repo, digest: Digest, *, expect: Condition = None) -> None:
        with self._changing:
            _expect(_versioned(self._manifests.get(repo, {}).get(digest)), expect)
            self._manifests.get(repo, {}).pop(digest, None)

    def manifests(self, repo: Repo) -> Iterable[ManifestRecord]:
        return list(self._manifests.get(repo, {}).values())

    def manifest_digests(self, repo: Repo) -> Iterable[Digest]:
        return list(self._manifests.get(repo, {}))

    def flush(self) -> None:
        """Does nothing: the content does not outlive the process."""

    def repositories_added(self) -> int:
        return self._added

    def repositories(self, after: str = "") -> Iterable[Repo]:
        known = {**self._tags, **self._manifests}
        found = [repo for repo in known if self._tags.get(repo) or self._manifests.get(repo)]
        return sorted((repo for repo in found if str(repo) > after), key=str)


def _version(record: object) -> Version:
    return Version(repr(record))


def _versioned(record: T | None) -> Versioned[T] | None:
    return None if record is None else Versioned(record, _version(record))


def _expect(present: Versioned[object] | None, expect: Condition) -> None:
    expected = in_time(expect)
    if expected is not None and (present.version if present else ABSENT) != expected:
        raise RecordChanged("the record was changed meanwhile")


class MemoryPins:
    """See `mirror.ports.Pins`. May be used from any thread."""

    def __init__(self) -> None:
        self._pins: dict[tuple[Repo, Reference], Pin] = {}

    def all(self) -> Iterable[Pin]:
        return list(self._pins.values())

    def look(self) -> tuple[Sequence[Pin], Sequence[UnreadableRecord]]:
        return list(self._pins.values()), ()

    def get(self, repo: Repo, reference: Reference) -> Pin | None:
        return self._pins.get((repo, reference))

    def put(self, pin: Pin) -> None:
        self._pins[pin.repo, pin.reference] = pin

    def drop(self, repo: Repo, reference: Reference) -> bool:
        return self._pins.pop((repo, reference), None) is not None
