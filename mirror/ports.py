"""Read this first: the parts of the mirror and what each must do, not how.

A request names a repository, the repository provides content, and the server sends it. Bytes reach a client only from
the store: a cache miss starts one *flight* that writes into the store, and every client, including the first, reads the
growing blob from there. The disk is the source of truth. The index is derived from it and may be lost at any time.

The ports, and what implements them (the tests have implementations in memory, in `tests/support`):

    BlobStore      content by digest              store/local/blobs.py
    Catalog        tags and manifest links        store/local/catalog.py
    Pins           which images must stay         store/local/pin_files.py
    Freezes        tags held at one digest        store/local/freezes.py
    ContentIndex   sizes, last use, names, links  index/embedded.py   index/redis.py
    SortedTags     tag lists, sorted on disk      index/sorted_tags.py
    Authenticator  who the caller is              access/*.py
    Upstream       one remote registry            upstream/registry.py    upstream/endpoints.py
    Body           an upstream answer's bytes     upstream/http/download.py

The life cycle of a blob in a store:

    absent ── ingest() ──> growing ── commit() ──> present ── delete() ──> absent
                              │  ^                               (open readers read on)
                  abort(keep) │  │ ingest() again: hashed again, resumed at its size
                              v  │
                            partial

A blob appears under its final name only after `verify` has checked its digest and `commit` has made it durable. Until
then its bytes belong to the registry that sends them: each registry has its own growing blob, and its own partial, for
the same digest. Any process that shares the store may follow a growing blob. One process at a time, the *filler*, holds
its lock. The kernel releases the lock when the filler dies, and a follower takes over.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from mirror.oci.authorization import CallerCredentials
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, Manifest
from mirror.oci.reference import Reference, Repo
from mirror.policy.access_rules import Identity
from mirror.policy.quarantine_limits import QuarantinedBlob
from mirror.policy.records import (
    BlobRole,
    ContentRecord,
    Freeze,
    ManifestRecord,
    Pin,
    ReferencedBlob,
    References,
    Sighting,
    TagRecord,
    Usage,
)
from mirror.policy.unread_notes import UnreadNote

# ----------------------------------------------------------------------------------- 1. bytes from upstream


class Body(Protocol):
    """The body of one upstream answer, read by blocking calls in a thread, never in the event loop."""

    @property
    def start(self) -> int:
        """Offset within the blob of the first byte that `readinto` gives."""

    @property
    def size(self) -> int | None:
        """Size in bytes of the whole blob, not of the rest from `start` on; None if upstream does not state it."""

    def readinto(self, buffer: memoryview) -> int:
        """Block until bytes arrive, write them to `buffer` and return their number: at least 1, or 0 at a proper end.

        May fill only a part of the buffer. Raises `UpstreamUnavailable` if the body breaks off, and `UpstreamTimeout`
        if it stalls or falls below the lowest rate allowed.
        """

    def abort(self) -> None:
        """Make a blocked `readinto` fail soon. May be called from any thread, and repeatedly."""


@runtime_checkable
class SupportsSplice(Protocol):
    """A body that can lend its socket, so that the kernel moves its bytes."""

    def plain_socket(self) -> tuple[int, int] | None:
        """The descriptor of a blocking socket, and how many bytes of the body to take from it.

        None if the next bytes are available from `readinto` alone. The answer changes while the body is read: the bytes
        that arrived together with the headers come first, by `readinto`.
        """

    def advance(self, count: int) -> None:
        """Record that `count` bytes were taken from the socket. Raises like `readinto`."""


# ------------------------------------------------------------------------------------ 2. content by digest


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


class BlobStore(Protocol):
    """Content by digest."""

    def stat(self, digest: Digest) -> BlobInfo:
        """Size and time of last use of a blob. Quick enough for the event loop.

        Raises `BlobUnknown` if the blob is certainly absent, and `StoreError` if that cannot be determined.
        """

    def open(self, digest: Digest) -> tuple[BlobInfo, BlobReader]:
        """Open a blob: its size at that moment, and a reader that the caller closes. Quick enough for the event loop.

        Raises like `stat`, and `BlobUnreadable` on EIO.
        """

    def read(self, digest: Digest, limit: int) -> bytes:
        """The verified content of a small blob. Blocks.

        Raises like `open`, and `BlobDamaged` if the bytes do not match the digest or are more than `limit`.
        """

    def put(self, digest: Digest, content: bytes) -> BlobInfo:
        """Store a small blob. Blocks.

        On return every process can read it. It is durable once `settle` has returned. Raises `BlobDamaged` if the
        bytes do not match the digest, `StoreFull`, `StoreError`.
        """

    def settle(self) -> None:
        """Make everything that this process has `put` so far survive a power cut. Blocks. Raises `StoreError`."""

    def ingest(self, digest: Digest, registry: str) -> Ingest:
        """Join or begin the growing blob that `registry` sends; "" if the bytes come from no registry.

        Bytes that another registry sends for the same digest are visible only after they are verified and published
        under the final name. Raises `StoreFull`, `StoreError`.
        """

    def growing(self) -> Mapping[Digest, int]:
        """The growing blobs and the disk space that each takes, in bytes. Blocks.

        A blob that is being filled counts with its expected size if that is known, any other with the bytes it has.
        The sizes are added up if several registries send the same blob.
        """

    def is_filling(self, registry: str, besides: Digest) -> bool:
        """Whether any process is filling a blob from this registry and has received bytes of it. Blocks.

        The blob `besides` does not count. Raises `StoreError`.
        """

    def delete(self, digest: Digest) -> int:
        """Delete a blob and return the number of bytes freed; 0 if there is none. Repeatable. Blocks.

        Readers that are open can read on.
        """

    def set_aside(self, digest: Digest, seen: BlobReader | None) -> bool:
        """Take a damaged blob out of service, so that a later request fetches it again. Repeatable. Blocks.

        `seen` is the open reader that gave wrong bytes or failed to read; None if `open` raised `BlobUnreadable`. If
        another file has replaced the damaged one since, that file stays: nothing is known against it. Returns True if
        this call removed the damaged blob from its place. Raises `StoreError`.
        """

    def aside(self) -> Sequence[QuarantinedBlob]:
        """The blobs that were set aside and are still kept, in no order. Blocks. Raises `StoreError`."""

    def drop_aside(self, digest: Digest) -> int:
        """Delete a blob that was set aside and return the number of bytes freed. Repeatable. Blocks.

        Returns 0 if there is none, or if a process still writes to it, in which case it stays. Raises `StoreError`.
        """

    def mark_used(self, seen: Mapping[Digest, float]) -> None:
        """Record times of last use on disk, so that they survive the loss of the index. Skips unknown blobs. Blocks."""

    def walk(self) -> Iterable[BlobInfo]:
        """Every blob present, sorted by digest. Foreign files are skipped. Blocks.

        Raises `StoreError` if a folder or file cannot be read, rather than leaving it out.
        """

    def free(self) -> tuple[int, int]:
        """The bytes of this disk that the mirror may still use, and the size of the disk. Blocks."""


# ----------------------------------------------------- 3. tags, manifests, pins and freezes: the source of truth


class Catalog(Protocol):
    """Tags and manifest links of every repository, on disk. All calls block for a short time.

    A record that is returned as None, or not listed, is certainly absent. Every call raises `StoreError` if that cannot
    be determined. Calls that read one record raise `RecordDamaged` if it exists but cannot be parsed.
    """

    def get_tag(self, repo: Repo, tag: str) -> TagRecord | None:
        """What the tag pointed to when upstream was last asked. Raises `StoreError`, `RecordDamaged`."""

    def put_tag(self, repo: Repo, record: TagRecord) -> None:
        """Write the record of a tag. Raises `StoreError`, `StoreFull`.

        Every reader sees it at once. It is durable once `settle` has returned.
        """

    def drop_tag(self, repo: Repo, tag: str) -> None:
        """Delete the record of a tag, but not its history. Repeatable."""

    def tags(self, repo: Repo) -> list[str]:
        """The repository's tags, sorted."""

    def get_history(self, repo: Repo, tag: str) -> tuple[Sighting, ...]:
        """What the tag has pointed to, oldest first, even if the tag itself was deleted. Raises `StoreError`.

        A damaged history counts as empty.
        """

    def put_history(self, repo: Repo, tag: str, sightings: Sequence[Sighting]) -> None:
        """Replace the whole history. Every reader sees it at once. Raises `StoreError`, `StoreFull`."""

    def get_manifest(self, repo: Repo, digest: Digest) -> ManifestRecord | None:
        """The record that lets this repository serve the manifest; None if it may not.

        Raises `StoreError`, `RecordDamaged`.
        """

    def put_manifest(self, repo: Repo, record: ManifestRecord) -> None:
        """Let this repository serve the manifest from now on. Raises `StoreError`, `StoreFull`.

        The record is durable once `settle` has returned.
        """

    def drop_manifest(self, repo: Repo, digest: Digest) -> None:
        """Delete the record of a manifest. Repeatable."""

    def manifests(self, repo: Repo) -> Iterable[ManifestRecord]:
        """The repository's manifest records, in no order. Raises `StoreError`.

        Damaged records are skipped. A caller that must not miss any uses `manifest_digests`.
        """

    def manifest_digests(self, repo: Repo) -> Iterable[Digest]:
        """The digest of every manifest record, in no order. Raises `StoreError`.

        The records are not opened, so damaged ones are included.
        """

    def repositories(self) -> Iterable[Repo]:
        """Every repository that has a tag or a manifest."""

    def repositories_added(self) -> int:
        """A counter that increases, for every process, whenever a new repository appears in `repositories`.

        -1 if it cannot be read. Quick enough for the event loop.
        """

    def settle(self) -> None:
        """Make everything that this process has put so far survive a power cut. Raises `StoreError`."""


class Pins(Protocol):
    """The images that must stay, on disk. All calls block for a short time."""

    def all(self) -> Iterable[Pin]:
        """All pins, including expired ones, in no order. Raises `StoreError`.

        Unreadable pins are missing, so a caller that is about to delete content must use `look`.
        """

    def look(self) -> tuple[Sequence[Pin], Sequence[UnreadNote]]:
        """All pins, and the files of those that exist but cannot be read, from one listing.

        Raises `StoreError` if that cannot be determined now.
        """

    def get(self, repo: Repo, reference: Reference) -> Pin | None:
        """The pin of exactly this tag or digest; None if there is none."""

    def put(self, pin: Pin) -> None:
        """Write a pin; it replaces an earlier one of the same image. Raises `StoreError`, `StoreFull`."""

    def drop(self, repo: Repo, reference: Reference) -> bool:
        """Delete a pin. True if there was one. Repeatable."""


class Freezes(Protocol):
    """The tags that answer with one digest until they are released, on disk. All calls block for a short time."""

    def all(self) -> Iterable[Freeze]:
        """All freezes, in no order. Unreadable ones are missing. Raises `StoreError`."""

    def look(self) -> tuple[Sequence[Freeze], Sequence[UnreadNote]]:
        """All freezes, and the files of those that exist but cannot be read, from one listing.

        Raises `StoreError` if that cannot be determined now.
        """

    def get(self, repo: Repo, tag: str) -> Freeze | None:
        """The freeze of a tag; None if the tag may move. Raises `StoreError` if that cannot be determined."""

    def put(self, freeze: Freeze) -> None:
        """Write a freeze; it replaces an earlier one of the same tag. Raises `StoreError`, `StoreFull`."""

    def drop(self, repo: Repo, tag: str) -> bool:
        """Delete a freeze. True if there was one. Repeatable."""


# -------------------------------------------------------------------------- 4. the index and other derived data


class ContentIndex(Protocol):
    """The least-recently-used order of images, the sizes of blobs, and the links of repositories.

    Every method may raise `IndexUnavailable`. The index is not called for a hit that this process has seen before.
    """

    async def put(self, records: Sequence[ContentRecord]) -> None:
        """Add blobs. Repeatable: the later time of last use is kept."""

    async def get(self, digest: Digest) -> ContentRecord | None:
        """The record of a blob; None if it is not in the index."""

    async def drop(self, digests: Sequence[Digest]) -> None:
        """Remove blobs, and the references of those that are manifests. Links stay. Repeatable."""

    async def touch(self, seen: Mapping[Digest, float]) -> None:
        """Raise times of last use (epoch seconds). Digests that are not in the index are not added.

        Using a manifest also uses every index above it. It does not touch what is below it: the content that a
        manifest names stays for as long as the manifest does.
        """

    async def name(self, manifests: Sequence[References]) -> None:
        """Record what these manifests name, whether or not the named blobs are in the index. Repeatable.

        A manifest whose own blob is not in the index is skipped: otherwise the content that it names would never be
        evicted.
        """

    async def coldest(self, standing: BlobRole, limit: int) -> list[ContentRecord]:
        """Up to `limit` blobs of this role, least recently used first (ties by digest)."""

    async def below(self, manifests: Sequence[Digest]) -> dict[Digest, list[ReferencedBlob]]:
        """For each of the digests that is a manifest in the index: the indexed blobs that it names, in no order."""

    def recorded(self) -> AsyncIterator[list[Digest]]:
        """The digests of all blobs in the index, in batches and in no order.

        Blobs that are added or removed meanwhile may be missing, and a digest may come twice.
        """

    async def usage(self) -> Usage:
        """The number of blobs and their bytes. The totals are kept up to date, not summed up at each call."""

    async def link(self, repo: Repo, blobs: Mapping[Digest, int]) -> None:
        """Let this repository serve these blobs. The values are their sizes in bytes, -1 if unknown."""

    async def linked(self, repo: Repo, digest: Digest) -> int | None:
        """The size of a blob that this repository may serve (-1 if unknown); None if the blob is not linked."""

    async def unlink(self, repo: Repo, digests: Sequence[Digest]) -> None:
        """Remove the links of these blobs. Repeatable."""

    async def marker(self) -> str | None:
        """The mark set at the end of the last complete rebuild; None if the index was lost since."""

    async def set_marker(self, mark: str) -> None:
        """Set the mark. A rebuild does so last, so that an interrupted rebuild is recognised."""

    async def clear(self) -> None:
        """Remove all records of this store. Records of other stores in a shared Redis stay."""

    async def aclose(self) -> None:
        """Close the connections or files of the index. Repeatable."""


class TagGathering(Protocol):
    """A tag list that is being sorted. All calls block. Used by one task at a time."""

    @property
    def count(self) -> int:
        """The number of different tags so far."""

    @property
    def size(self) -> int:
        """The bytes on disk so far."""

    def add(self, tags: Sequence[str]) -> None:
        """Add tags, in any order. Duplicates are ignored. Raises `StoreError`, `StoreFull`."""

    def publish(self, until: float) -> None:
        """Make the list visible to every process until `until` (epoch seconds). Raises `StoreError`."""

    def close(self) -> None:
        """Discard the list if it was not published. Repeatable."""


class SortedTags(Protocol):
    """Sorted copies, on disk, of the tag lists of upstreams that do not sort. They may be lost at any time.

    All calls block for a short time.
    """

    @property
    def most_bytes(self) -> int:
        """How many bytes all lists together may take on disk."""

    def page(self, key: str, last: str, count: int) -> TagBatch | None:
        """Up to `count` tags after `last`; None if there is no such list or it has expired."""

    def gather(self, key: str) -> TagGathering:
        """Begin to sort a list. The caller closes the result. Raises `StoreError`."""


# ------------------------------------------------------------------------------------------- 5. a remote registry


@dataclass(frozen=True, slots=True)
class TagBatch:
    """Some tags of a list, and whether more follow."""

    tags: tuple[str, ...]
    more: bool


class Upstream(Protocol):
    """One remote registry. `repo` is always the repository's name within that registry.

    Every call may raise `UpstreamUnavailable`, `UpstreamTimeout`, `UpstreamDenied`, `UpstreamThrottled`,
    `UpstreamNotFound` and `UpstreamInvalid`. Calls that are worth retrying have been retried before.
    """

    @property
    def name(self) -> str:
        """The registry's name as clients write it: `docker.io`."""

    @property
    def patience(self) -> float:
        """The factor, at least 1, by which a tag's answer is trusted longer because upstream's pull quota runs low."""

    async def resolve(self, repo: str, reference: Reference) -> Descriptor:
        """The descriptor that a reference points to, by HEAD; by GET only if upstream's answer to HEAD is unusable."""

    async def manifest(self, repo: str, reference: Reference) -> Manifest:
        """The manifest, by GET. Its digest is computed from its bytes (from the payload if it is a signed manifest).

        If `reference` is a digest, the manifest has that digest.
        """

    def blob(self, repo: str, digest: Digest, start: int = 0) -> AbstractAsyncContextManager[Body]:
        """A blob from offset `start` on; `body.start` may be lower. Entered once upstream's headers have arrived."""

    async def blob_size(self, repo: str, digest: Digest) -> int | None:
        """The size of a blob in bytes; None if the repository has it but upstream does not state its size.

        Raises `UpstreamNotFound` if the repository does not have the blob. Never uses HEAD.
        """

    def tags(self, repo: str, after: str = "") -> AsyncGenerator[TagBatch, None]:
        """The tags in upstream's own order, in at least one batch; only those after `after`, if upstream supports that.

        A page is requested when the caller takes its batch. A caller that stops before the end closes the generator
        (`aclose`). Strings that are not valid tags are left out, and a tag may come twice. Raises `UpstreamError`, and
        `StoreError` if a large page cannot be kept on disk while it is read.
        """

    async def referrers(self, repo: str, digest: Digest) -> list[Descriptor]:
        """Manifests whose subject is `digest`, by the API or by the fallback tag. Empty if there are none."""

    async def aclose(self) -> None:
        """Close all connections. Repeatable."""


# -------------------------------------------------------------------------------- 6. authentication of callers


class Authenticator(Protocol):
    """One method of authenticating callers."""

    async def identify(self, presented: CallerCredentials) -> Identity | None:
        """The identity that these credentials prove; None if this method does not accept them.

        Must take as long for a wrong secret as for a right one. Raises `AccessUnavailable` if the credentials cannot be
        checked now, and `TooManyLogins` if too many checks are waiting.
        """
