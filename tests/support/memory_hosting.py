"""The hosted content of a disk in dicts: the simplest correct implementations. It is lost when the process ends.

One `MemoryHostedBlobs` stands for the hosted names of the disk whose cache is a `MemoryStore`; `MemoryContents` finds
blobs of both.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from mirror.errors import BlobDamaged, BlobUnknown, RecordChanged, StoreError, StoreFull, UploadBusy
from mirror.oci.digest import Digest
from mirror.policy.hosted_records import QueuedBlob
from mirror.policy.quarantine_limits import QuarantinedBlob
from mirror.ports import BlobInfo, BlobReader, Body, Expired, UploadSession, Version, Versioned
from tests.support.memory_store import MemoryReader, MemoryStore

_RECEIVE: Final = 64 * 1024


class MemoryHostedBlobs:
    """See `mirror.ports.HostedBlobs`. May be used from any thread."""

    def __init__(self, cache: MemoryStore) -> None:
        self.cache = cache
        #: The blobs under their hosted names.
        self.names: Final = MemoryStore()
        self._queue: dict[Digest, Versioned[QueuedBlob]] = {}
        self._versions = itertools.count(1)
        self._changing = threading.RLock()
        #: How often `flush` was called.
        self.flushes = 0

    def hosted(self, digest: Digest) -> BlobInfo:
        return self.names.stat(digest)

    def adopt(self, digest: Digest, patience: float | None = None) -> BlobInfo:
        with self._changing:
            with suppress(BlobUnknown):
                return self.rescue(digest)
            info, reader = self.cache.open(digest)
            return self.put(digest, reader.pread(info.size, 0))

    def put(self, digest: Digest, content: bytes) -> BlobInfo:
        with self._changing:
            info = self.names.put(digest, content)
            self.names.drop_quarantined(digest)
            self._queue.pop(digest, None)
            return info

    def rescue(self, digest: Digest) -> BlobInfo:
        with self._changing:
            info = self.names.stat(digest)
            self._queue.pop(digest, None)
            return info

    def queued(self, digest: Digest) -> Versioned[QueuedBlob] | None:
        return self._queue.get(digest)

    def queue(self, record: QueuedBlob) -> Version:
        with self._changing:
            if record.digest in self._queue:
                raise RecordChanged("the record was changed meanwhile")
            version = Version(str(next(self._versions)))
            self._queue[record.digest] = Versioned(record, version)
            return version

    def collect(self, digest: Digest, expect: Version) -> int:
        with self._changing:
            found = self._queue.get(digest)
            if found is None or found.version != expect:
                raise RecordChanged("the record was changed meanwhile")
            del self._queue[digest]
            self.names.drop_quarantined(digest)
            return self.names.delete(digest).size

    def free_collected(self, *, at_once: bool = False) -> int:
        return 0

    def queued_pages(self) -> Iterable[Sequence[QueuedBlob]]:
        with self._changing:
            return [[versioned.record for versioned in self._queue.values()]]

    def damaged(self) -> Sequence[QuarantinedBlob]:
        return self.names.quarantined()

    def blobs(self, after: Digest | None, count: int) -> Sequence[BlobInfo]:
        later = (info for info in self.names.walk() if after is None or info.digest > after)
        return list(itertools.islice(later, count))

    def flush(self) -> None:
        self.flushes += 1


class MemoryContents:
    """See `mirror.ports.Blobs`: the blobs of a cache, and the hosted ones."""

    def __init__(self, cache: MemoryStore, hosted: MemoryHostedBlobs) -> None:
        self._cache = cache
        self._hosted = hosted

    def stat(self, digest: Digest) -> BlobInfo:
        return self._having(digest).stat(digest)

    def open(self, digest: Digest) -> tuple[BlobInfo, MemoryReader]:
        return self._having(digest).open(digest)

    def read(self, digest: Digest, limit: int) -> bytes:
        return self._having(digest).read(digest, limit)

    def walk(self) -> Iterable[BlobInfo]:
        return [self.stat(digest) for digest in sorted({info.digest for info in self._all()})]

    def set_aside(self, digest: Digest, seen: BlobReader | None) -> bool:
        """Like that of a `LocalStore`, which sets hosted blobs aside as well."""
        moved = [store.set_aside(digest, seen) for store in (self._cache, self._hosted.names)]
        return any(moved)

    def _all(self) -> Iterable[BlobInfo]:
        return itertools.chain(self._cache.walk(), self._hosted.names.walk())

    def _having(self, digest: Digest) -> MemoryStore:
        try:
            self._hosted.names.stat(digest)
        except BlobUnknown:
            return self._cache
        return self._hosted.names


@dataclass(slots=True, eq=False)
class _Session:
    """An upload session; `writer` is what has it open."""

    owner: str
    changed_at: float
    content: bytearray = field(default_factory=bytearray)
    writer: MemoryUpload | None = None


class MemoryUploads:
    """See `mirror.ports.Uploads`. May be used from any thread. Times are those of `now`, in epoch seconds."""

    def __init__(self, blobs: MemoryHostedBlobs, *, now: Callable[[], float] = lambda: 0.0) -> None:
        self.blobs = blobs
        self.now = now
        #: Bytes that the disk still has room for.
        self.room = 1 << 60
        self.open_sessions: Final[dict[str, _Session]] = {}
        self._numbers = itertools.count(1)
        self._changing = threading.Lock()

    def begin(self, owner: str) -> str:
        if not owner.replace("_", "0").isalnum() or not owner.isascii() or len(owner) > 128:
            raise ValueError(f"not the owner of an upload session: {owner!r}")
        session = f"{next(self._numbers)}-{owner}"
        self.open_sessions[session] = _Session(owner, self.now())
        return session

    def open(self, session: str) -> MemoryUpload | None:
        with self._changing:
            found = self.open_sessions.get(session)
            if found is None:
                return None
            if found.writer is not None:
                raise UploadBusy("another request writes to this upload")
            found.writer = MemoryUpload(self, session, found)
            return found.writer

    def session(self, session: str) -> UploadSession | None:
        found = self.open_sessions.get(session)
        return UploadSession(session, found.owner, len(found.content), found.changed_at) if found else None

    def sessions(self) -> Sequence[UploadSession]:
        return [found for name in list(self.open_sessions) if (found := self.session(name)) is not None]

    def sweep(self, before: float) -> Expired:
        with self._changing:
            old = [
                name
                for name, session in self.open_sessions.items()
                if session.writer is None and session.changed_at < before
            ]
            return Expired(len(old), sum(len(self.open_sessions.pop(name).content) for name in old))


class MemoryUpload:
    """See `mirror.ports.UploadFile`."""

    def __init__(self, uploads: MemoryUploads, name: str, session: _Session) -> None:
        self._uploads = uploads
        self._name = name
        self._session = session
        self._unwritten = b""

    @property
    def offset(self) -> int:
        return len(self._session.content)

    def fill(self, body: Body, grown: Callable[[int], None]) -> None:
        self._must_be_open()
        buffer = memoryview(bytearray(_RECEIVE))
        while piece := self._unwritten or bytes(buffer[: body.readinto(buffer)]):
            self._unwritten = piece
            if len(piece) > self._uploads.room:
                raise StoreFull("the disk is full")
            self._uploads.room -= len(piece)
            self._session.content += piece
            self._unwritten = b""
            self._session.changed_at = self._uploads.now()
            grown(self.offset)

    def publish(self, digest: Digest) -> BlobInfo:
        self._must_be_open()
        content = bytes(self._session.content)
        if not digest.matches(content):
            raise BlobDamaged(f"the {len(content)} bytes are not {digest}")
        info = self._uploads.blobs.put(digest, content)
        self.discard()
        return info

    def discard(self) -> None:
        self._uploads.open_sessions.pop(self._name, None)
        self.close()

    def close(self) -> None:
        if self._session.writer is self:
            self._session.writer = None

    def _must_be_open(self) -> None:
        if self._session.writer is not self:
            raise StoreError("the upload session is closed")
