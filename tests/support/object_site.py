"""The hosted blobs of a site with a bucket, without the rest of a mirror: the bucket, the cache, and what uses them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mirror.errors import BlobUnknown
from mirror.index.record_memory import SqliteRecordMemory
from mirror.oci.digest import Digest
from mirror.ports import BlobInfo, BlobReader, Blobs, Bucket, StoredObject
from mirror.store.hosted.upload_files import LocalUploads
from mirror.store.local.layout import Layout
from mirror.store.objects.collected_keys import CollectedKeys
from mirror.store.objects.copied_files import CacheBesideCopies, CopiedFiles
from mirror.store.objects.digest_locks import DigestLocks
from mirror.store.objects.hosted_blobs import HostedObjects
from mirror.store.objects.local_copies import LocalCopies
from mirror.store.objects.object_keys import hosted_key
from mirror.store.objects.record_listing import RecordListing
from mirror.store.objects.record_tree import BucketTree, Reads
from mirror.store.objects.state_records import BlobStates, StateViews
from tests.support.stepping_bucket import SteppingBucket


class NoCopies(LocalCopies):
    """Of a disk that has no room for copies of what is pushed."""

    def take(self, info: BlobInfo, file: object) -> None:
        """Deletes the file."""
        Path(str(file)).unlink()

    def put(self, info: BlobInfo, content: bytes) -> None:
        """Does nothing."""


class BucketProcess:
    """A process that uses a bucket; those with one `root` are on one machine. `clock` is the time that states record;
    each look at it moves it.
    """

    def __init__(
        self, root: Path, bucket: Bucket, *, copies: bool = True, at_once: int = 1000, life: float = 0.0
    ) -> None:
        self.cache = CacheBesideCopies(Layout(root))
        self.files = CopiedFiles(self.cache)
        self.layout = self.cache.layout
        self.clock = 1_000_000.0
        #: What was copied to the disk.
        self.added: list[BlobInfo] = []
        self.copies = (LocalCopies if copies else NoCopies)(self.files, self.added.append)
        self.memory = SqliteRecordMemory(root / "bucket.sqlite", "boot")
        if not self.memory.is_complete():
            for _ in RecordListing(bucket, self.memory).steps():
                pass
        self.tree = BucketTree(bucket, self.memory)
        self.states = BlobStates(self.tree)
        self.views = StateViews(self.states, BlobStates(self.tree.view(Reads.REMEMBERED)))
        #: Seconds of a clock that nobody sets.
        self.steady = 0.0
        self.hosted = HostedObjects(
            bucket,
            self.views,
            self.copies,
            DigestLocks(self.layout, "push"),
            CollectedKeys(bucket, life=life, at_once=at_once, clock=lambda: self.steady),
            now=self.now,
            clock=lambda: self.steady,
        )
        self.uploads = LocalUploads(self.layout, self.hosted)
        self.contents = PlainContents(bucket, self.states, self.files)

    def now(self) -> float:
        """The time, in epoch seconds."""
        self.clock += 1
        return self.clock

    def key(self, digest: Digest) -> str:
        """The key that the state of a blob names."""
        return hosted_key(digest, self.states.find(digest).state.attempt)


class ObjectSite(BucketProcess):
    """With a bucket in memory."""

    def __init__(
        self,
        root: Path,
        bucket: SteppingBucket | None = None,
        *,
        copies: bool = True,
        at_once: int = 1000,
        life: float = 0.0,
    ) -> None:
        self.bucket = SteppingBucket() if bucket is None else bucket
        super().__init__(root, self.bucket, copies=copies, at_once=at_once, life=life)

    def keys(self, prefix: str = "hosted/") -> list[str]:
        """The keys in the bucket below a prefix."""
        return [key for key in self.bucket.content() if key.startswith(prefix)]


class PlainContents:
    """See `mirror.ports.Blobs`: hosted blobs, from the bucket, and those of a cache."""

    def __init__(self, bucket: Bucket, states: BlobStates, cache: Blobs) -> None:
        self._bucket = bucket
        self._states = states
        self._cache = cache

    def stat(self, digest: Digest) -> BlobInfo:
        state = self._states.find(digest).state
        return BlobInfo(digest, state.size) if state.is_present else self._cache.stat(digest)

    def open(self, digest: Digest) -> tuple[BlobInfo, BlobReader]:
        state = self._states.find(digest).state
        if not state.is_present:
            return self._cache.open(digest)
        found = self._bucket.read(hosted_key(digest, state.attempt), state.size)
        if not isinstance(found, StoredObject):
            raise BlobUnknown(f"{digest} is not in the bucket")
        return BlobInfo(digest, len(found.content)), _Bytes(found.content)

    def read(self, digest: Digest, limit: int) -> bytes:
        info, reader = self.open(digest)
        content = reader.pread(limit, 0)
        reader.close()
        assert info.size == len(content)
        assert digest.matches(content)
        return content

    def walk(self) -> Iterable[BlobInfo]:
        states = (BlobInfo(state.digest, state.size) for state in self._states.after(None) if state.is_present)
        cached = {info.digest: info for info in self._cache.walk()}
        return sorted({**cached, **{info.digest: info for info in states}}.values(), key=lambda info: info.digest)


class _Bytes:
    """See `mirror.ports.BlobReader`."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def pread(self, size: int, offset: int) -> bytes:
        return self._content[offset : offset + size]

    def close(self) -> None:
        """Nothing is open."""
