"""Content by digest. `BlobStore` is the sum of small protocols; a function asks for those that it needs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from mirror.oci.digest import Digest
from mirror.oci.span import Span
from mirror.policy.quarantine_limits import QuarantinedBlob
from mirror.ports.streams import Body


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """A blob that is present: its `size` in bytes, and `used_at`, the last use recorded on disk (epoch seconds)."""

    digest: Digest
    size: int
    used_at: float = 0.0


class BlobReader(Protocol):
    """An open blob, present or growing. It stays readable if its file is renamed or deleted."""

    def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset` on; empty past the end. Blocks. Raises `StoreError`."""

    def close(self) -> None:
        """Close the blob. Repeatable."""


@runtime_checkable
class SupportsFileno(Protocol):
    """A reader that is a plain file, so that the kernel can send it."""

    def fileno(self) -> int:
        """The file descriptor. The reader still owns it and closes it."""


@runtime_checkable
class SupportsReadOnce(Protocol):
    """A reader that can read whole blobs without evicting other files from the page cache."""

    def pread_once(self, size: int, offset: int) -> bytes:
        """Like `pread`, but pages that were not in the page cache before are dropped from it again.

        May return fewer than `size` bytes before the end of the blob.
        """


@dataclass(frozen=True, slots=True)
class Growth:
    """How far a growing blob is: `offset` bytes of `size` (None: not known yet)."""

    offset: int
    size: int | None
    verified: bool


@dataclass(frozen=True, slots=True)
class Prefix:
    """The beginning of a growing blob: `offset` bytes of `size` (None: not known yet), which `reader` reads. `filled`:
    a process fills the blob now.
    """

    reader: BlobReader
    offset: int
    size: int | None
    filled: bool


class Ingest(Protocol):
    """A growing blob that one registry sends, as seen by this process.

    Several `Ingest` objects may exist for the same blob. At most one holds the lock: its process is the filler.
    """

    @property
    def offset(self) -> int:
        """How many bytes can be read now."""

    @property
    def size(self) -> int | None:
        """Expected size of the whole blob in bytes; None until a filler knows it."""

    @property
    def verified(self) -> bool:
        """Whether the blob is complete and its bytes match the digest."""

    @property
    def announced(self) -> bool:
        """Whether a filler has received upstream's headers.

        From then on the bytes that can be read may be sent; `verified` decides whether the last ones may be, too.
        """

    @property
    def in_place(self) -> bool:
        """Whether the growing blob's path still leads to this file. False after a commit or a restart."""

    def refresh(self) -> None:
        """Read again what other processes have written."""

    def try_lock(self) -> bool:
        """Become the filler if there is none. False if another process is, or if the file is no longer in place."""

    def resume(self) -> int:
        """Hash the bytes that are already there and return the offset to continue from. Blocks; needs the lock."""

    def restart(self) -> None:
        """Discard every byte and begin again. Blocks; needs the lock."""

    def expect(self, size: int | None) -> None:
        """Tell followers the size of the whole blob in bytes. Needs the lock."""

    def fill(self, body: Body, progress: Callable[[], None]) -> None:
        """Write and hash a body to its end. Blocks; needs the lock.

        `progress` is called in this thread after each write, so it must be cheap. Raises what `body` raises,
        `StoreFull` and `StoreError`. Bytes written before an error are kept, and the next attempt resumes after them.
        """

    def verify(self) -> None:
        """Check the hash. Raises `BlobDamaged` if it does not match the digest. Blocks; needs the lock."""

    def commit(self) -> BlobInfo:
        """Sync the file, publish it under the final name, and sync the directory. Releases the lock.

        Blocks. May be called only after `verify`.
        """

    def abort(self, *, keep: bool) -> None:
        """Release the lock. With `keep`, the bytes stay for the next filler. Repeatable; no effect after `commit`."""

    def reader(self) -> BlobReader:
        """A reader of the growing bytes. The caller closes it. Raises `StoreError`."""

    def close(self) -> None:
        """Close all files. Acts like `abort(keep=True)` if the lock is still held. Repeatable."""


class Claim(Protocol):
    """Some blocks that this object alone may fetch, over all threads and processes. It ends with its process."""

    @property
    def span(self) -> Span:
        """The bytes of the blocks that are claimed."""

    @property
    def offset(self) -> int:
        """How far it has come: the bytes from `span.start` up to here are received. Others see whole blocks only."""

    def fill(self, body: Body, grown: Callable[[int], None]) -> None:
        """Receive the bytes from `offset` up to `span.stop`. What the body has before and behind them is left out.

        `grown` is called in this thread with the new offset after each write, so it must be cheap. May be called again
        with another body after an error. Blocks. Raises what the body raises, `UpstreamUnavailable` if the body is
        shorter, `UpstreamInvalid` if its blob has another size, `BlobDamaged` if it begins after `offset`, `StoreFull`
        and `StoreError`.
        """

    def cut(self) -> None:
        """Receive the block under way and no more: `span` ends there, and the rest is given back at once. From any
        thread. A body that blocks must be aborted by the caller.
        """

    def release(self) -> None:
        """Give the blocks back. The whole blocks that were received stay here. Repeatable."""


class Spans(Protocol):
    """The bytes of one growing blob that came out of turn: in blocks of 64 KiB, each absent, claimed or here.

    Nothing of them is verified, and all may be lost at any moment: the blob's `Ingest` fetches what is not here. For
    any thread. Every method blocks, but is quick: none waits for an upstream.
    """

    @property
    def size(self) -> int:
        """The size of the whole blob in bytes."""

    @property
    def in_place(self) -> bool:
        """False once they were dropped, by any process: what is written to them then reaches nobody."""

    def here(self, wanted: Span) -> Sequence[Span]:
        """The runs of bytes within `wanted` that are here, ascending. Raises `StoreError`."""

    def taken(self, wanted: Span) -> Sequence[Span]:
        """The runs of bytes within `wanted` that are claimed and not here, ascending. Raises `StoreError`.

        Ask for `taken` first, then for `here`, and look at the prefix (the blob's `Ingest`) last: blocks go from
        claimed to here, and from here to the prefix, so in any other order one of them could be in none. After each
        successful `claim`, look at the prefix once more.
        """

    def claim(self, wanted: Span) -> Claim | None:
        """Claim the first run of blocks within `wanted` that are neither here nor claimed; None if there is none.

        Raises `StoreError`, also if the spans are no longer in place.
        """

    def are_of(self, blob: BlobReader) -> bool:
        """True if the bytes that are here are those of the verified blob. Takes as long as reading them. Raises
        `StoreError`.
        """

    def count(self) -> int:
        """How many bytes are here. Raises `StoreError`."""

    def open(self, wanted: Span) -> BlobReader | None:
        """A reader of these bytes, by their offsets in the blob; None unless all are here. The caller closes it.

        Until then the bytes stay where they are. Those that the growing blob itself has are dropped from the spans
        (`punch`): ask the growing blob again if this gives None. The reader `SupportsFileno`. Raises `StoreError`.
        """

    def sync(self) -> None:
        """Make the bytes that are here survive a power cut. Waits for the disk. Raises `StoreError`."""

    def punch(self, done: Span) -> None:
        """Drop the blocks of these bytes, which the growing blob has now; blocks that somebody reads stay. Raises
        nothing.
        """

    def note_served(self, line: Mapping[str, object]) -> None:
        """Remember who was given unverified bytes. The note also gets the registry, as `upstream`. What is too long of
        it is cut. The latest notes are kept, 50 at the least. Raises `StoreFull`, `StoreError`.
        """

    def served(self) -> Sequence[Mapping[str, object]]:
        """What was noted, the oldest first. Raises `StoreError`."""

    def drop(self) -> None:
        """Drop all bytes and notes, for every process. Repeatable. Raises `StoreError`."""

    def use(self, *, used: bool) -> None:
        """Clients read these bytes from now on, or none does any more, also after `close`: while they are `used`,
        nothing but a purge drops them, unless nothing else makes room. Repeatable. Raises `StoreError`.
        """

    def close(self) -> None:
        """Close the files. Claims and readers stay open. Repeatable."""


class Blobs(Protocol):
    """Read blobs. They may be far away."""

    def stat(self, digest: Digest) -> BlobInfo:
        """Size and time of last use of a blob. Blocks.

        Raises `BlobUnknown` if the blob is certainly absent, and `StoreError` if that cannot be determined.
        """

    def open(self, digest: Digest) -> tuple[BlobInfo, BlobReader]:
        """Open a blob: its size at that moment, and a reader that the caller closes. Blocks.

        Raises like `stat`, and `BlobUnreadable` on EIO.
        """

    def read(self, digest: Digest, limit: int) -> bytes:
        """The verified content of a small blob. Blocks.

        Raises like `open`, and `BlobDamaged` if the bytes do not match the digest or are more than `limit`.
        """

    def walk(self) -> Iterable[BlobInfo]:
        """Every blob present, sorted by digest. Foreign files are skipped. Blocks.

        Raises `StoreError` if a folder or file cannot be read, rather than leaving it out.
        """


class PartedBlobs(Blobs, Protocol):
    """Blobs that several processes can walk over, each over a part of them."""

    def walk_part(self, digits: str) -> Iterable[BlobInfo]:
        """Like `walk`, but only the blobs whose hexadecimal digits begin with these two. Blocks."""


class BlobWriter(Protocol):
    """Store small blobs."""

    def put(self, digest: Digest, content: bytes) -> BlobInfo:
        """Store a small blob. Blocks.

        On return every process can read it. It is durable once `flush` has returned. Raises `BlobDamaged` if the
        bytes do not match the digest, `StoreFull`, `StoreError`.
        """

    def flush(self) -> None:
        """Make everything that this process has `put` so far survive a power cut. Blocks. Raises `StoreError`."""


class BlobIngester(Protocol):
    """Store blobs while they arrive."""

    def ingest(self, digest: Digest, registry: str) -> Ingest:
        """Join or begin the growing blob that `registry` sends; "" if the bytes come from no registry.

        Bytes that another registry sends for the same digest are visible only after they are verified and published
        under the final name. Raises `StoreFull`, `StoreError`.
        """

    def spans(self, digest: Digest, registry: str, size: int | None) -> Spans | None:
        """The bytes of this growing blob that came out of turn; the caller closes them. Blocks.

        `size` is that of the whole blob in bytes. None: only if there are some already, of whatever size. Returns None
        if there are none, if those that are here are of another size (the filler decides which is right), or if the
        blob is too large to have any. Raises `StoreFull`, `StoreError`.
        """

    def drop_growing(self, digests: Collection[Digest]) -> None:
        """Drop what is here of these growing blobs, whichever registry sends them, except prefixes that are filled now.
        Blocks. Raises `StoreError`.
        """

    def asked_in_parts(self) -> Sequence[Mapping[str, object]]:
        """The last note (`Spans.note_served`) about each growing blob that has spans and notes, in no order. Blocks.
        Raises `StoreError`.
        """

    def avoid_parts(self, registry: str, digest: Digest | None) -> None:
        """Remember, for every process, that small parts of the blob (None: of any blob) that `registry` sends must not
        be asked for now. Repeatable. Blocks. Raises `StoreFull`, `StoreError`.
        """

    def avoids_parts(self, registry: str, digest: Digest, seconds: float) -> bool:
        """True if that was said of the blob, or of any blob of `registry`, in the last `seconds`. Blocks. Raises
        `StoreError`.
        """

    def filling(self, digest: Digest, registry: str) -> Growth | None:
        """How far the growing blob is that `registry` sends; None if no process fills it. Blocks. Raises
        `StoreError`.
        """

    def prefix(self, digest: Digest, registry: str) -> Prefix | None:
        """The beginning of the growing blob, or of the partial, that `registry` has sent; None if there is none that
        could be resumed. Makes no file. The caller closes its reader, which goes on to read the same file if the fill
        begins again with a new one. Blocks. Raises `StoreError`.
        """

    def is_filling(self, registry: str, besides: Digest) -> bool:
        """Whether any process is filling a blob from this registry and has received bytes of it. Blocks.

        The blob `besides` does not count. Raises `StoreError`.
        """


@dataclass(frozen=True, slots=True)
class Deleted:
    """What a deletion has done, in bytes: the `size` of the blob, 0 if there was none, and how much of it was `freed`
    on the disk: nothing if the blob has a hosted name as well.
    """

    size: int = 0
    freed: int = 0


class BlobDeleter(Protocol):
    """Delete blobs."""

    def delete(self, digest: Digest) -> Deleted:
        """Delete a blob. Repeatable. Blocks. Readers that are open can read on."""


class Repairs(Protocol):
    """Take damaged blobs out of service."""

    def set_aside(self, digest: Digest, seen: BlobReader | None) -> bool:
        """Take a damaged blob out of service, so that a later request fetches it again. Repeatable. Blocks.

        `seen` is the open reader that gave wrong bytes or failed to read; None if `open` raised `BlobUnreadable`. If
        another file has replaced the damaged one since, that file stays: nothing is known against it. Returns True if
        this call removed the damaged blob from its place. Raises `StoreError`.
        """


class Quarantine(Repairs, Protocol):
    """Damaged blobs that were set aside."""

    def quarantined(self) -> Sequence[QuarantinedBlob]:
        """The blobs that were set aside and are still kept, in no order. Blocks. Raises `StoreError`."""

    def drop_quarantined(self, digest: Digest) -> int:
        """Delete a blob that was set aside and return the number of bytes freed. Repeatable. Blocks.

        Returns 0 if there is none, or if a process still writes to it, in which case it stays. Raises `StoreError`.
        """


class RepairableBlobs(Blobs, Repairs, Protocol):
    """Blobs that are read, and taken out of service if they are damaged."""


class DiskUsage(Protocol):
    """The disk of a local store, and the times of last use on it."""

    def free(self) -> tuple[int, int]:
        """The bytes of this disk that the mirror may still use, and the size of the disk. Blocks."""

    def growing(self) -> Mapping[Digest, int]:
        """The growing blobs and the disk space that each takes, in bytes. Blocks.

        A blob that is being filled counts with its expected size if that is known, any other with the bytes it has.
        The sizes are added up if several registries send the same blob.
        """

    def mark_used(self, seen: Mapping[Digest, float]) -> None:
        """Record times of last use on disk, so that they survive the loss of the index. Skips unknown blobs. Blocks."""


class BlobStore(RepairableBlobs, PartedBlobs, BlobWriter, BlobIngester, BlobDeleter, Quarantine, DiskUsage, Protocol):
    """All that a store of blobs on a local disk does. `stat` and `open` are quick enough for the event loop."""
