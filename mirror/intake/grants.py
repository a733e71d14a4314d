"""Which blobs a repository may serve. Repositories share the bytes of blobs, but not the right to serve them: otherwise
a blob of a private image could be pulled through any other repository's name.

A repository has a grant for a blob if one of its manifests names the blob, or if upstream has answered for the blob in
this repository. Grants are looked up in this order:

    memory of this process ──> index ──> manifests of the repository on disk ──> (the caller asks upstream)

A purge takes grants back: once the index has dropped them, each process forgets them.

The disk is read if the index has no answer: the index may be lost, late or down, while the disk is authoritative. First
each manifest is looked at, which is cheap and tells which digests its bytes mention; this is remembered, because the
bytes of a digest never change. Only the manifests that mention the blob are then read in full, with their records: a
mention alone grants nothing. A manifest that cannot be looked at may grant any blob, one that cannot be read in full
any that it mentions; if no other manifest grants the blob, `size` raises.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakValueDictionary

from mirror import telemetry
from mirror.aio.background import BackgroundTasks
from mirror.aio.caches import LruCache
from mirror.aio.closing import close_all
from mirror.aio.singleflight import SingleFlight
from mirror.errors import BlobDamaged, BlobUnknown, IndexUnavailable, RecordDamaged, StoreError
from mirror.graph.manifests import StoredManifest, beginning, mentioned_in, read_stored
from mirror.oci.digest import Digest
from mirror.oci.manifest import CHECKED, Manifest
from mirror.oci.reference import Repo
from mirror.ports import BlobStore, Catalog, ContentIndex

#: (repository, digest) pairs that a process remembers.
_MOST: Final = 200_000

#: Bytes of memory for what the manifests of all repositories mention.
_MEMORY: Final = 64 << 20
#: Seconds for which a manifest that was read in full is believed: its record may change.
_BELIEVED: Final = 2.0
#: Manifests that are looked at before somebody looks whether one of them mentions the blob: at first, and at most. Each
#: step looks at twice as many as the one before it.
_FEW: Final = 256
_MANY: Final = 512
#: Manifests that are read in full for a blob before the index is asked again.
_IN_FULL: Final = 16

#: Seconds that an answer waits for a grant to be written to the index.
_PATIENCE: Final = 0.25


def named_by(manifest: Manifest) -> dict[Digest, int]:
    """Returns the content that a repository may serve because upstream has this manifest in it, with sizes in bytes (-1
    if unknown): the manifest itself and the blobs that it names. Manifests that an index names have links of their own.
    """
    # the manifest itself contains these bytes
    embedded = {blob.digest: blob.size for blob in manifest.blobs if blob.data is not None}
    if manifest.media_type not in CHECKED:
        # some registries accept indexes and unknown media types without checking the content that they name
        return {**embedded, manifest.digest: len(manifest.content)}
    # a registry accepts a manifest only if it has all its blobs, but does not check foreign blobs: to name a foreign
    # blob proves nothing
    named = embedded | {blob.digest: blob.size for blob in manifest.blobs if not blob.foreign}
    named[manifest.digest] = len(manifest.content)
    return named


def granted_by(stored: StoredManifest) -> dict[Digest, int]:
    """Returns the content that a repository may serve because it has this manifest on the disk, with sizes in bytes:
    the grants in the manifest's record if it has any, otherwise those of `named_by`.
    """
    if stored.record.grants is None:
        return named_by(stored.manifest)
    sizes = {blob.digest: blob.size for blob in stored.manifest.blobs}
    granted = {digest: sizes[digest] for digest in stored.record.grants if digest in sizes}
    granted[stored.manifest.digest] = len(stored.manifest.content)
    return granted


class Grants:
    """The grants of all repositories, as this process knows them."""

    def __init__(
        self,
        index: ContentIndex,
        catalog: Catalog,
        store: BlobStore,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` counts seconds."""
        self._index = index
        self._catalog = catalog
        self._store = store
        self._clock = clock
        self._sizes: LruCache[tuple[Repo, Digest], int] = LruCache(_MOST, name="grants")
        #: How often grants were taken back: what was read before may have been among them.
        self._forgotten = 0
        self._once = SingleFlight()
        self._known: LruCache[Repo, _Manifests] = LruCache(
            _MEMORY, lambda known: known.weight(), name="blobs by repository"
        )
        #: Those that are used now, also if they take more memory than there is for all.
        self._in_use: WeakValueDictionary[Repo, _Manifests] = WeakValueDictionary()
        self._background = BackgroundTasks()

    def __repr__(self) -> str:
        return f"<Grants {len(self._sizes)} in memory>"

    async def size(self, repo: Repo, digest: Digest) -> int | None:
        """Returns the size in bytes with which the blob was granted (-1: unknown); None if this repository has no
        grant. Raises `StoreError` if that is not certain.
        """
        key, forgotten = (repo, digest), self._forgotten
        remembered = self._sizes.get(key)
        if remembered is not None and remembered >= 0:
            return remembered
        size = await self._linked(repo, digest)
        if size is None or size < 0:
            # without a size, a truncated blob on the disk looks like a whole one; another process may have fetched a
            # manifest that has the size
            on_disk, error = await self._on_disk(repo, digest)
            size = next((each for each in (on_disk, size, remembered) if each is not None), None)
            if size is None and error is not None:
                raise StoreError(f"it is not certain whether {repo} may serve {digest}: {error}") from error
        if size is not None and forgotten == self._forgotten:
            self._remember(repo, {digest: size})
        return size

    def remembered(self, repo: Repo, digest: Digest) -> int | None:
        """Returns the size that this process remembers (-1: unknown); None if it would have to ask."""
        return self._sizes.get((repo, digest))

    async def known_size(self, repo: Repo, digest: Digest) -> int | None:
        """Like `size`. None also if the grant cannot be read: upstream is then asked, as if there were none."""
        try:
            return await self.size(repo, digest)
        except StoreError as error:
            telemetry.log.warning("grant cannot be read", repository=str(repo), reason=str(error))
            return None

    async def give(self, repo: Repo, blobs: Mapping[Digest, int]) -> None:
        """Grants these blobs to the repository, with their sizes in bytes (-1: unknown)."""
        self._remember(repo, blobs)
        # the index may be busy with a rebuild; an answer must not wait long for that
        await self._background.start_and_wait(self._link(repo, blobs), _PATIENCE)

    def give_later(self, repo: Repo, blobs: Mapping[Digest, int]) -> None:
        """Like `give`, but the index is written in the background: the disk gives other processes the same grants."""
        self._remember(repo, blobs)
        self._background.start(self._link(repo, blobs))

    def forget(self, repo: Repo, digests: Iterable[Digest]) -> None:
        """Takes these grants back: the index no longer has them, or is about to be corrected. Where a manifest that is
        still here, or upstream, gives them, they are found again.
        """
        self._forgotten += 1
        for digest in digests:
            self._sizes.pop((repo, digest), None)
        # what was read of manifests that are gone would be believed for some seconds, and then remembered for good
        self._known.pop(repo, None)
        self._in_use.pop(repo, None)

    async def _link(self, repo: Repo, blobs: Mapping[Digest, int]) -> None:
        # without the index, this process remembers the grant; others find it by the manifest on disk or ask upstream
        with suppress(IndexUnavailable):
            await self._index.link(repo, blobs)

    async def aclose(self) -> None:
        """Waits for pending writes to the index and cancels reads. Repeatable."""
        await close_all(self._background.finish, self._once.aclose)

    def _remember(self, repo: Repo, blobs: Mapping[Digest, int]) -> None:
        for digest, size in blobs.items():
            if size >= 0 or (repo, digest) not in self._sizes:
                self._sizes[repo, digest] = size

    async def _on_disk(self, repo: Repo, digest: Digest) -> tuple[int | None, StoreError | None]:
        """Returns the size that the repository's manifests grant for the blob (None: no grant), and the error if one of
        those that may grant it could not be read.

        What is known answers at once. Otherwise the manifests are listed, and those that are new are looked at, until
        one grants the blob. Clients can ask for any number of invented digests: each costs a list of the manifests, and
        no file is opened for it, unless it is of a manifest that could not be looked at before.
        """
        forgotten = self._forgotten
        known = self._known.get(repo) or self._in_use.get(repo)
        if known is None:
            known = _Manifests(self._store, self._catalog, repo, self._clock)
            self._known[repo] = self._in_use[repo] = known
        began = self._clock()
        with known.asked_for(digest, began):
            # a list that was begun before this call may lack newer manifests
            before = known.lists
            # without a size, it may be named once more, with one
            while (size := known.granted.get(digest)) in (None, -1):
                if is_mentioned := known.want(digest, began):
                    await self._once.run_since((known, "in full"), known.read_wanted)
                elif known.is_looked_through(before, self._clock(), is_named=size is not None):
                    break
                else:
                    await self._once.run(known, known.look)
                if forgotten == self._forgotten:
                    # it weighs more now
                    self._known[repo] = known
                if digest in known.granted or (known.mentions(digest, began) and not is_mentioned):
                    continue
                if (linked := await self._linked(repo, digest)) not in (None, -1):
                    # a rebuild of the index, or another process, was quicker
                    return linked, None
            return size, known.error_for(digest)

    async def _linked(self, repo: Repo, digest: Digest) -> int | None:
        """Returns what the index says; None also if it does not answer."""
        with suppress(IndexUnavailable):
            return await self._index.linked(repo, digest)
        return None


@dataclass(slots=True)
class _InFull:
    """What manifests that were `read` in full have `granted`; and those that could not be read, with the error if they
    may grant something.
    """

    granted: dict[Digest, int] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    failed: dict[str, StoreError | None] = field(default_factory=dict)


class _Manifests:
    """The manifests of a repository, as this process knows them.

    record on the disk ── look: listed ── looked at, in steps ──> mentions known, until nobody asks for the repository
                            ^                  │
                            └── absent, damaged or unreadable: looked at again after the next list

    mentions the blob ── read in full ──> grants known ── some seconds ──> read in full again, if somebody asks
                            ^       │
                            └───────┘ absent, damaged or unreadable: tried again by the next caller

    A look that nobody waits for any more rests, and goes on with the next caller. All callers share each step.
    """

    def __init__(self, store: BlobStore, catalog: Catalog, repo: Repo, clock: Callable[[], float]) -> None:
        #: What the manifests that were read in full grant, with sizes in bytes.
        self.granted: dict[Digest, int] = {}
        #: How many lists were begun.
        self.lists = 0
        self._store = store
        self._catalog = catalog
        self._repo = repo
        self._clock = clock
        #: By the digest of a manifest, the beginnings of the digests that it mentions.
        self._mentioned: dict[str, bytes] = {}
        #: The bytes that these take.
        self._size = 0
        #: Manifests of the last list that wait to be looked at, the next one last.
        self._waiting: list[Digest] = []
        self._most = _FEW
        #: How many lists were looked through, and when the last one was.
        self._ended, self._ended_at = 0, -math.inf
        #: The last error of a look that may hide a grant: of the look under way, and of the one that ended last.
        self._trouble: StoreError | None = None
        self._error: StoreError | None = None
        #: Manifests that were read in full, with the time before that, and those that could not be, with the error if
        #: they may grant something.
        self._read: dict[str, float] = {}
        self._failed: dict[str, StoreError | None] = {}
        #: Blobs that somebody waits for, with the manifests to read.
        self._wanted: dict[Digest, list[str]] = {}
        #: The callers that wait, by blob.
        self._asked: Counter[Digest] = Counter()
        #: Since when what was read in full is believed.
        self._since = -math.inf

    def __repr__(self) -> str:
        return f"<_Manifests {self._repo}: {len(self._mentioned)} known, {len(self._waiting)} waiting>"

    @contextmanager
    def asked_for(self, digest: Digest, now: float) -> Iterator[None]:
        """Around each search, which begins `now`."""
        if not self._asked and now - self._since > _BELIEVED:
            self.granted, self._since = {}, now
            self._read.clear()
            self._failed.clear()
        for name in [name for name in self._failed if self._may_grant(name, digest)]:
            del self._failed[name]
        self._asked[digest] += 1
        try:
            yield
        finally:
            self._asked -= Counter((digest,))

    def weight(self) -> int:
        """Returns how much memory it takes, roughly, in bytes."""
        return 1024 + self._size + 250 * len(self.granted) + 250 * len(self._waiting) + 100 * len(self._read)

    def mentions(self, digest: Digest, began: float) -> bool:
        """Whether there are manifests to read for this blob, in a search that began then."""
        return bool(self._unread(digest, began))

    def want(self, digest: Digest, began: float) -> bool:
        """Notes which manifests are to be read for this blob next, in a search that began then; False if there are
        none.
        """
        unread = self._unread(digest, began)
        if unread:
            self._wanted[digest] = unread[:_IN_FULL]
        return bool(unread)

    def is_looked_through(self, before: int, now: float, *, is_named: bool) -> bool:
        """True if a list that was begun after the first `before` ones is looked through. For a blob that `is_named`
        without a size, one from some seconds ago is enough.
        """
        return self._ended > before or (is_named and now - self._ended_at < _BELIEVED)

    def error_for(self, digest: Digest) -> StoreError | None:
        """The error of a manifest that may grant this blob; None if there was none."""
        errors = (error for name, error in self._failed.items() if error and self._may_grant(name, digest))
        return next(errors, self._error)

    async def read_wanted(self) -> None:
        """Reads in full what is wanted by now."""
        wanted, self._wanted, now = self._wanted, {}, self._clock()
        # one of them may have been read for another blob since
        left = {
            digest: [name for name in names if not self._is_believed(name, now)]
            for digest, names in wanted.items()
            if self.granted.get(digest, -1) < 0
        }
        if not any(left.values()):
            return
        self._take(await asyncio.to_thread(self._in_full, left), now)

    def _take(self, found: _InFull, began: float) -> None:
        _add(self.granted, found.granted)
        self._read |= dict.fromkeys(found.read, began)
        self._failed |= found.failed

    async def look(self) -> None:
        """Lists the manifests if nothing is left of the last list, and looks at the next few. If all callers want the
        same blob, that ends with the first manifest that mentions it, which is read in full at once.
        """
        if not self._waiting:
            self.lists += 1
            self._most, self._trouble = _FEW, None
        only, began = next(iter(self._asked)) if len(self._asked) == 1 else None, self._clock()
        new, gone, found = await asyncio.to_thread(self._look, only)
        for name in gone:
            self._forget(name)
        self._take(found, began)
        for name, mentioned in new.items():
            self._mentioned[name] = mentioned
            self._size += _weight_of(name, mentioned)
        if not self._waiting:
            self._ended, self._ended_at, self._error = self.lists, self._clock(), self._trouble

    def _look(self, only: Digest | None) -> tuple[dict[str, bytes], list[str], _InFull]:
        """Blocking: returns what the next manifests mention, those that the repository has no more, and what was read
        in full: the first that mentions the blob `only`.
        """
        part = beginning(only) if only else None
        new: dict[str, bytes] = {}
        gone: list[str] = []
        try:
            if not self._waiting:
                listed = {str(digest): digest for digest in self._catalog.manifest_digests(self._repo)}
                gone = [name for name in self._mentioned if name not in listed]
                self._waiting = [digest for name, digest in listed.items() if name not in self._mentioned]
        except StoreError as error:
            # not all that there are are known
            self._trouble = error
        for _ in range(min(self._most, len(self._waiting))):
            digest = self._waiting.pop()
            try:
                new[str(digest)] = mentioned = mentioned_in(self._store, digest)
            except (BlobUnknown, BlobDamaged):
                # absent or damaged, it grants nothing
                continue
            except StoreError as error:
                self._trouble = error
            else:
                if only and part and (part in mentioned or digest == only):
                    return new, gone, self._in_full({only: [str(digest)]})
        self._most = min(2 * self._most, _MANY)
        return new, gone, _InFull()

    def _forget(self, name: str) -> None:
        self._size -= _weight_of(name, self._mentioned.pop(name))
        # it may come back
        self._read.pop(name, None)
        self._failed.pop(name, None)

    def _in_full(self, wanted: Mapping[Digest, Sequence[str]]) -> _InFull:
        """Blocking: reads the manifests that are wanted for each blob, until one grants it with its size."""
        found = _InFull()
        granted, read, failed = found.granted, found.read, found.failed
        for digest, names in wanted.items():
            for name in names:
                if granted.get(digest, -1) >= 0:
                    break
                if name in read or name in failed:
                    continue
                try:
                    stored = read_stored(self._store, self._catalog, self._repo, Digest.parse(name))
                except (BlobDamaged, RecordDamaged):
                    # a damaged manifest grants nothing
                    failed[name] = None
                except StoreError as error:
                    failed[name] = error
                else:
                    if stored is None:
                        # evicted, for now
                        failed[name] = None
                    else:
                        read.add(name)
                        _add(granted, granted_by(stored))
        return found

    def _may_grant(self, name: str, digest: Digest) -> bool:
        """Whether the manifest of this name is, or mentions, the blob."""
        return name == str(digest) or beginning(digest) in self._mentioned.get(name, b"")

    def _unread(self, digest: Digest, began: float) -> list[str]:
        """The manifests to read for this blob, in a search that began then."""
        part, text = beginning(digest), str(digest)
        found = [name for name, mentioned in self._mentioned.items() if part in mentioned or name == text]
        return [name for name in found if not self._is_believed(name, began) and name not in self._failed]

    def _is_believed(self, name: str, began: float) -> bool:
        """Whether a manifest was read in full recently enough for a search that began then. Each search has its own
        measure, so that it ends, and so that others, however many, do not keep what is old.
        """
        return self._read.get(name, -math.inf) >= began - _BELIEVED


def _add(granted: dict[Digest, int], more: Mapping[Digest, int]) -> None:
    """Adds grants. A size that is not known replaces no other."""
    for digest, size in more.items():
        if size >= 0 or digest not in granted:
            granted[digest] = size


def _weight_of(name: str, mentioned: bytes) -> int:
    """The bytes that an entry takes, with its objects."""
    return 150 + len(name) + len(mentioned)
