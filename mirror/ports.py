"""Read this first: what the mirror is made of, without how.

A request names a repository; a repository gives content; the server sends content. Bytes reach a client only from the
store: a miss starts one *flight* that writes into the store, and every client, the first one too, follows the growing
blob. The disk is the truth; the index is a memory of it that may be lost at any time.

The ports; all but the smallest have two or more implementations:

    BlobStore      content by digest              store/local/blobs.py      store/memory.py
    Catalog        tags and manifest links        store/local/catalog.py    store/memory.py
    Pins           which images must stay         store/local/pins.py
    Freezes        tags that must not move        store/local/freezes.py
    ContentIndex   sizes, last use, names, links  index/embedded.py   index/redis.py     index/memory.py
    SortedTags     tag lists, sorted on disk      index/sorted_tags.py
    Authenticator  who a caller is                access/*.py
    Upstream       one remote registry            upstream/registry.py    upstream/endpoints.py
    Body           bytes that arrive in a thread  upstream/http/blobs.py

The life of a blob in a store:

    absent ── ingest() ──> growing ── commit() ──> present ── delete() ──> absent
                              │  ^                               (who has it open reads on)
                  abort(keep) │  │ ingest() again: hashed anew, resumed at its size
                              v  │
                            partial

A blob is invisible under its final name until `commit` has verified its digest and made it durable. Until then its
bytes belong to the registry that sends them: each has a growing blob, and a partial, of its own. A growing blob may be
followed from any process that shares the store; exactly one process at a time, the *filler*, holds its lock. The kernel
frees that lock when the filler dies, and a follower takes over.
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
from mirror.policy.access import Identity
from mirror.policy.quarantine import QuarantinedBlob
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
from mirror.policy.unread import UnreadNote

__all__ = [
    "Authenticator",
    "BlobInfo",
    "BlobReader",
    "BlobStore",
    "Body",
    "Catalog",
    "ContentIndex",
    "Freezes",
    "Ingest",
    "Pins",
    "SortedTags",
    "SupportsFileno",
    "SupportsReadOnce",
    "SupportsSplice",
    "TagBatch",
    "TagGathering",
    "Upstream",
]


# ------------------------------------------------------------------------------------- 1. bytes that arrive


class Body(Protocol):
    """The body of one upstream answer, read by blocking calls in a thread: bytes never cross the event loop."""

    @property
    def start(self) -> int:
        """Offset within the blob of the first byte that `readinto` gives."""

    @property
    def size(self) -> int | None:
        """Size in bytes of the whole blob, not of what is left of it; None where upstream does not say."""

    def readinto(self, buffer: memoryview) -> int:
        """Blocks for the next bytes and returns how many there are, at least 1; 0 at a proper end only.

        May return less than fits. Raises `UpstreamUnavailable` where the body breaks off, `UpstreamTimeout` where it
        stalls or falls below the lowest rate allowed.
        """

    def abort(self) -> None:
        """From any thread, repeatable: makes a blocked `readinto` fail soon."""


@runtime_checkable
class SupportsSplice(Protocol):
    """A body that can lend its socket, so that the kernel moves its bytes."""

    def plain_socket(self) -> tuple[int, int] | None:
        """A blocking socket's descriptor and how many bytes of the body come from it; None: only `readinto` has them.

        The answer changes while the body is read: first there is what came along with the headers.
        """

    def advance(self, count: int) -> None:
        """`count` bytes were taken from that socket. Raises like `readinto`."""


# ------------------------------------------------------------------------------------ 2. content by digest


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """A blob that is present; `size` in bytes, `used_at` the time of last use known to the disk (epoch seconds)."""

    digest: Digest
    size: int
    used_at: float = 0.0


class BlobReader(Protocol):
    """An open blob, present or growing. It can be read to its end whatever happens to its name."""

    def pread(self, size: int, offset: int) -> bytes:
        """Blocking read of up to `size` bytes; empty past the end. Raises `StoreError`."""

    def close(self) -> None:
        """Repeatable."""


@runtime_checkable
class SupportsFileno(Protocol):
    """A reader that is a plain file, so that the kernel can send it."""

    def fileno(self) -> int:
        """The descriptor; stays the reader's own."""


@runtime_checkable
class SupportsReadOnce(Protocol):
    """A reader for whoever reads everything and must not push out of memory what others will want again."""

    def pread_once(self, size: int, offset: int) -> bytes:
        """Like `pread`, but what was not in the page cache before is not there afterwards. May return less than asked
        for before the end.
        """


class Ingest(Protocol):
    """A growing blob that one registry sends, as this process sees it. Several may exist of it; one holds the lock."""

    @property
    def offset(self) -> int:
        """Bytes that can be read now, in bytes."""

    @property
    def size(self) -> int | None:
        """Expected size of the whole blob, once a filler has learnt it."""

    @property
    def verified(self) -> bool:
        """Whether all bytes are here and are those that the digest names."""

    @property
    def announced(self) -> bool:
        """Whether a filler has had upstream's headers: what can be read may be sent, as far as `verified` allows."""

    @property
    def in_place(self) -> bool:
        """Whether this is still the file that others would find: False once it was committed or begun anew."""

    def refresh(self) -> None:
        """Look at what another process has written since."""

    def try_lock(self) -> bool:
        """Become the filler if nobody is. False while another is, or once the blob has left this place."""

    def resume(self) -> int:
        """Blocking, by the lock's holder: hash what is there already; returns the offset to go on from."""

    def restart(self) -> None:
        """Blocking, by the lock's holder: forget every byte."""

    def expect(self, size: int | None) -> None:
        """By the lock's holder: tell followers the size of the whole."""

    def fill(self, body: Body, progress: Callable[[], None]) -> None:
        """Blocking, by the lock's holder: write and hash a body to its end.

        `progress` is called from this thread after each write: it must be cheap. Raises what `body` raises, `StoreFull`
        and `StoreError`. Bytes written before an error stay and count.
        """

    def verify(self) -> None:
        """Blocking, by the lock's holder: raises `BlobDamaged` unless the hash is the digest's."""

    def commit(self) -> BlobInfo:
        """Blocking, after `verify`: sync, publish under the final name, sync the directory. Releases the lock."""

    def abort(self, *, keep: bool) -> None:
        """Give up the lock; the bytes stay for the next filler if `keep`. Repeatable, harmless after commit."""

    def reader(self) -> BlobReader:
        """The growing bytes; the caller closes it. Raises `StoreError`."""

    def close(self) -> None:
        """Let go of everything; like `abort(keep=True)` where the lock is still held. Repeatable."""


class BlobStore(Protocol):
    """Content by digest."""

    def stat(self, digest: Digest) -> BlobInfo:
        """Raises `BlobUnknown` if it is absent for certain, `StoreError` if that cannot be told. Quick enough for the
        event loop.
        """

    def open(self, digest: Digest) -> tuple[BlobInfo, BlobReader]:
        """An open blob with its size at that moment. Raises like `stat`, of EIO `BlobUnreadable`. Quick enough for the
        event loop.
        """

    def read(self, digest: Digest, limit: int) -> bytes:
        """Blocking: a small blob whole, verified. Raises like `open`, and `BlobDamaged` (also above `limit` bytes)."""

    def put(self, digest: Digest, content: bytes) -> BlobInfo:
        """Blocking: a small blob whole, there for every process when it returns, durable once `settle` has. Raises
        `BlobDamaged` for wrong bytes, `StoreFull`, `StoreError`.
        """

    def settle(self) -> None:
        """Blocking: what this process has `put` so far outlives a power cut when it returns. Raises `StoreError`."""

    def ingest(self, digest: Digest, registry: str) -> Ingest:
        """Join or begin the growing blob that `registry` sends; "" if the bytes come from no registry. What another
        registry has sent of it is never seen here before it is verified and has its final name. Raises `StoreFull`,
        `StoreError`.
        """

    def growing(self) -> Mapping[Digest, int]:
        """Blocking: blobs that hold disk while they grow, with the bytes that each has, or will have if somebody fills
        it; added up if several registries send it.
        """

    def is_filling(self, registry: str, besides: Digest) -> bool:
        """Blocking: whether some process fills a blob that this registry sends, and has bytes of it; the blob `besides`
        does not count. Raises `StoreError`.
        """

    def delete(self, digest: Digest) -> int:
        """Blocking: drop the name; returns the bytes that this frees. Repeatable (0). Open readers read on."""

    def set_aside(self, digest: Digest, seen: BlobReader | None) -> bool:
        """Blocking: take a blob out of service; a later request fetches it again. Repeatable.

        `seen` is the open reader that gave wrong bytes, or could not read them; None if `open` raised
        `BlobUnreadable`. A file that has taken its place since was judged by nobody, and stays. Returns whether the
        blob that was seen left its place by this call. Raises `StoreError`.
        """

    def aside(self) -> Sequence[QuarantinedBlob]:
        """Blocking: what was set aside and is kept, in no order. Raises `StoreError`."""

    def drop_aside(self, digest: Digest) -> int:
        """Blocking: drop what was set aside; returns the bytes that this frees. Repeatable (0). What somebody still
        writes to stays (0). Raises `StoreError`.
        """

    def mark_used(self, seen: Mapping[Digest, float]) -> None:
        """Blocking: note times of last use beside the blobs, so that they outlive the index. Skips unknown ones."""

    def walk(self) -> Iterable[BlobInfo]:
        """Blocking: every blob present, sorted by digest. Foreign files are passed over. Raises `StoreError` rather
        than leave out what cannot be read.
        """

    def free(self) -> tuple[int, int]:
        """Blocking: bytes free for us on this disk, and the disk's size."""


# --------------------------------------------------------------------------- 3. what a repository has: the truth


class Catalog(Protocol):
    """Tags and manifest links of every repository, on disk. All calls block shortly.

    None, or what is not listed, is absent for certain. Every call raises `StoreError` if that cannot be told at this
    moment, and those that read one record `RecordDamaged` if it is there and makes no sense.
    """

    def get_tag(self, repo: Repo, tag: str) -> TagRecord | None:
        """What the tag pointed to when last asked. Raises `StoreError`, `RecordDamaged`."""

    def put_tag(self, repo: Repo, record: TagRecord) -> None:
        """Replace it at once for every reader, durable once `settle` has returned. Raises `StoreError`, `StoreFull`."""

    def drop_tag(self, repo: Repo, tag: str) -> None:
        """Its history stays. Repeatable."""

    def tags(self, repo: Repo) -> list[str]:
        """Sorted."""

    def get_history(self, repo: Repo, tag: str) -> tuple[Sighting, ...]:
        """What the tag has pointed to, oldest first; also of a tag that is no more. A damaged history counts as none.
        Raises `StoreError`.
        """

    def put_history(self, repo: Repo, tag: str, sightings: Sequence[Sighting]) -> None:
        """Replace all of it at once for every reader. Raises `StoreError`, `StoreFull`."""

    def get_manifest(self, repo: Repo, digest: Digest) -> ManifestRecord | None:
        """Whether this repository may serve it, and as what. Raises `StoreError`, `RecordDamaged`."""

    def put_manifest(self, repo: Repo, record: ManifestRecord) -> None:
        """This repository may serve it from now on; durable like a tag. Raises `StoreError`, `StoreFull`."""

    def drop_manifest(self, repo: Repo, digest: Digest) -> None:
        """Repeatable."""

    def manifests(self, repo: Repo) -> Iterable[ManifestRecord]:
        """In no order. Damaged records are passed over: whoever must overlook none goes by `manifest_digests`. Raises
        `StoreError`.
        """

    def manifest_digests(self, repo: Repo) -> Iterable[Digest]:
        """Of every record, damaged ones too, without a look at each. In no order. Raises `StoreError`."""

    def repositories(self) -> Iterable[Repo]:
        """Every repository that has a tag or a manifest."""

    def repositories_added(self) -> int:
        """A count that is higher, for every process, once a repository is among `repositories` that was not before; -1
        if that cannot be told. Quick enough for the event loop.
        """

    def settle(self) -> None:
        """What this process has put so far outlives a power cut when it returns. Raises `StoreError`."""


class Pins(Protocol):
    """Which images must stay, on disk. All calls block shortly."""

    def all(self) -> Iterable[Pin]:
        """In no order; those that are over too. What cannot be read is missing: who drops something asks with `look`.
        Raises `StoreError`.
        """

    def look(self) -> tuple[Sequence[Pin], Sequence[UnreadNote]]:
        """All at one look, and those that are there and cannot be read. Raises `StoreError` where neither is told."""

    def get(self, repo: Repo, reference: Reference) -> Pin | None:
        """The pin of exactly this tag or digest."""

    def put(self, pin: Pin) -> None:
        """Replaces one of the same image. Raises `StoreError`, `StoreFull`."""

    def drop(self, repo: Repo, reference: Reference) -> bool:
        """Whether there was one. Repeatable."""


class Freezes(Protocol):
    """Tags that answer one digest until further notice, on disk. All calls block shortly."""

    def all(self) -> Iterable[Freeze]:
        """In no order. What cannot be read is missing, as with pins. Raises `StoreError`."""

    def look(self) -> tuple[Sequence[Freeze], Sequence[UnreadNote]]:
        """As with pins."""

    def get(self, repo: Repo, tag: str) -> Freeze | None:
        """None: the tag is free to move. Raises `StoreError` where that cannot be told."""

    def put(self, freeze: Freeze) -> None:
        """Replaces one of the same tag. Raises `StoreError`, `StoreFull`."""

    def drop(self, repo: Repo, tag: str) -> bool:
        """Whether there was one. Repeatable."""


# -------------------------------------------------------------------------- 4. what is remembered about content


class ContentIndex(Protocol):
    """The least-recently-used order of images, sizes and links. Every method may raise `IndexUnavailable`.

    Nothing here is asked on the path of a hit that this process has seen before.
    """

    async def put(self, records: Sequence[ContentRecord]) -> None:
        """Remember blobs. Repeatable: the later time of last use stays."""

    async def get(self, digest: Digest) -> ContentRecord | None:
        """What is remembered."""

    async def drop(self, digests: Sequence[Digest]) -> None:
        """Forget blobs, and what those among them that are manifests named; links stay. Repeatable."""

    async def touch(self, seen: Mapping[Digest, float]) -> None:
        """Later times of last use; digests that are not remembered are not added.

        The use of a manifest is one of every index above it as well. It need not be one of what is below it: what a
        manifest names stays for as long as the manifest does.
        """

    async def name(self, manifests: Sequence[References]) -> None:
        """What these manifests name, whether that is remembered or not. Repeatable.

        A manifest whose blob is not remembered is left alone, or what it names would stay for ever.
        """

    async def coldest(self, standing: BlobRole, limit: int) -> list[ContentRecord]:
        """Up to `limit` blobs of this standing, least recently used first (ties by digest)."""

    async def below(self, manifests: Sequence[Digest]) -> dict[Digest, list[ReferencedBlob]]:
        """Of each of these that is a remembered manifest: the remembered blobs that it names, in no order."""

    def recorded(self) -> AsyncIterator[list[Digest]]:
        """Every blob that is remembered, in batches and no order. What comes or goes meanwhile may be missing, and one
        may come twice.
        """

    async def usage(self) -> Usage:
        """Counted as records come and go, not summed up."""

    async def link(self, repo: Repo, blobs: Mapping[Digest, int]) -> None:
        """This repository may serve these blobs; the values are their sizes in bytes, -1 where unknown."""

    async def linked(self, repo: Repo, digest: Digest) -> int | None:
        """The size that was linked (-1 where unknown); None: not linked."""

    async def unlink(self, repo: Repo, digests: Sequence[Digest]) -> None:
        """Repeatable."""

    async def marker(self) -> str | None:
        """The mark set at the end of the last complete rebuild; None after a loss."""

    async def set_marker(self, mark: str) -> None:
        """Set last in a rebuild, so that an interrupted one shows."""

    async def clear(self) -> None:
        """Forget everything of this store, other stores' records in a shared Redis not."""

    async def aclose(self) -> None:
        """Repeatable."""


class TagGathering(Protocol):
    """A tag list that is being sorted. All calls block. Belongs to one task at a time."""

    @property
    def count(self) -> int:
        """Different tags so far."""

    @property
    def size(self) -> int:
        """Bytes on disk so far."""

    def add(self, tags: Sequence[str]) -> None:
        """Tags in any order; those that are there already change nothing. Raises `StoreError`, `StoreFull`."""

    def publish(self, until: float) -> None:
        """Let every process find the list from now on, until `until` (epoch seconds). Raises `StoreError`."""

    def close(self) -> None:
        """Forget what was not published. Repeatable."""


class SortedTags(Protocol):
    """Tag lists of upstreams that do not sort, sorted, on disk. All calls block shortly. May be lost at any time."""

    @property
    def most_bytes(self) -> int:
        """How many bytes all lists together may take on disk."""

    def page(self, key: str, last: str, count: int) -> TagBatch | None:
        """Up to `count` tags behind `last`; None: no such list is here, or its time is over."""

    def gather(self, key: str) -> TagGathering:
        """Begin to sort a list; the caller closes it. Raises `StoreError`."""


# ------------------------------------------------------------------------------------------- 5. a remote registry


@dataclass(frozen=True, slots=True)
class TagBatch:
    """Some tags of a list, and whether there are more."""

    tags: tuple[str, ...]
    more: bool


class Upstream(Protocol):
    """One remote registry. `repo` is always the name within it.

    Every call may raise `UpstreamUnavailable`, `UpstreamTimeout`, `UpstreamDenied`, `UpstreamThrottled`,
    `UpstreamNotFound` and `UpstreamInvalid`, after having tried what is worth trying again.
    """

    @property
    def name(self) -> str:
        """As clients say it: `docker.io`."""

    @property
    def patience(self) -> float:
        """By which factor, at least 1, tags may be believed longer, because upstream has little left to give."""

    async def resolve(self, repo: str, reference: Reference) -> Descriptor:
        """What a reference points to, by HEAD; by GET only where upstream's HEAD does not say it."""

    async def manifest(self, repo: str, reference: Reference) -> Manifest:
        """By GET. The digest is that of the bytes; asked for by digest, it is the one asked for."""

    def blob(self, repo: str, digest: Digest, start: int = 0) -> AbstractAsyncContextManager[Body]:
        """A blob from an offset on; entered once upstream's headers are in. `body.start` may be below `start`."""

    async def blob_size(self, repo: str, digest: Digest) -> int | None:
        """Whether the repository has the blob, and its size in bytes where upstream says it. Never by HEAD."""

    def tags(self, repo: str, after: str = "") -> AsyncGenerator[TagBatch, None]:
        """Tags in upstream's own order, in at least one batch; behind `after`, if upstream knows how to begin there.

        Pages are asked for as batches are taken; a caller that stops before the end closes the generator (`aclose`).
        What is no tag is left out, and a tag may come twice. Raises `UpstreamError`, and `StoreError` for a large page
        that cannot be kept on disk while it is read.
        """

    async def referrers(self, repo: str, digest: Digest) -> list[Descriptor]:
        """Manifests whose subject is `digest`, by the API or by the fallback tag. Empty where there are none."""

    async def aclose(self) -> None:
        """Repeatable."""


# ------------------------------------------------------------------------------------------- 6. who is calling


class Authenticator(Protocol):
    """One way in which callers say who they are."""

    async def identify(self, presented: CallerCredentials) -> Identity | None:
        """Who presents this; None: nobody that this way knows. Must take as long for a wrong secret as for a right one.

        Raises `AccessUnavailable` where it cannot be told now, `TooManyLogins` where too much waits to be told.
        """
