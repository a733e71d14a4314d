"""Which blobs a repository may serve. Repositories share the bytes of blobs, but not the right to serve them: otherwise
a blob of a private image could be pulled through any other repository's name.

A repository has a grant for a blob if one of its manifests names the blob, or if upstream has answered for the blob in
this repository. Grants are looked up in this order:

    memory of this process ──> index ──> manifests of the repository on disk ──> (the caller asks upstream)

The disk is read if the index has no answer: the index may be lost, late or down, while the disk is authoritative. The
manifests that were used last are read first, until one grants the blob, or until a rebuild has told the index. A
manifest that cannot be read at the moment may grant any blob, so if no other manifest grants the blob, `size` raises.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Container, Mapping
from contextlib import suppress
from typing import Final

from mirror import telemetry
from mirror.aio.background import BackgroundTasks
from mirror.aio.caches import LruCache
from mirror.aio.singleflight import SingleFlight
from mirror.errors import BlobDamaged, BlobUnknown, IndexUnavailable, RecordDamaged, StoreError
from mirror.graph.manifests import StoredManifest, read_stored
from mirror.oci.digest import Digest
from mirror.oci.manifest import CHECKED, Manifest
from mirror.oci.reference import Repo
from mirror.ports import BlobStore, Catalog, ContentIndex

#: (repository, digest) pairs that a process remembers.
_MOST: Final = 200_000

#: Seconds until all manifests of a repository are read from the disk again.
_READ_EVERY: Final = 2.0
#: Manifests that are read before somebody looks whether one of them grants the blob: at first, and at most. Each step
#: reads twice as many as the one before it.
_FEW: Final = 16
_MANY: Final = 256

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

    def __init__(self, index: ContentIndex, catalog: Catalog, store: BlobStore) -> None:
        self._index = index
        self._catalog = catalog
        self._store = store
        self._sizes: LruCache[tuple[Repo, Digest], int] = LruCache(_MOST, name="grants")
        self._once = SingleFlight()
        self._read: LruCache[Repo, _Reading] = LruCache(
            64 << 20, lambda read: read.weight(), name="blobs by repository"
        )
        self._background = BackgroundTasks()

    def __repr__(self) -> str:
        return f"<Grants {len(self._sizes)} in memory>"

    async def size(self, repo: Repo, digest: Digest) -> int | None:
        """Returns the size in bytes with which the blob was granted (-1: unknown); None if this repository has no
        grant. Raises `StoreError` if that is not certain.
        """
        key = (repo, digest)
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
        if size is not None:
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

    async def _link(self, repo: Repo, blobs: Mapping[Digest, int]) -> None:
        # without the index, this process remembers the grant; others find it by the manifest on disk or ask upstream
        with suppress(IndexUnavailable):
            await self._index.link(repo, blobs)

    async def aclose(self) -> None:
        """Waits for pending writes to the index and cancels reads. Repeatable."""
        await self._background.finish()
        await self._once.aclose()

    def _remember(self, repo: Repo, blobs: Mapping[Digest, int]) -> None:
        for digest, size in blobs.items():
            if size >= 0 or (repo, digest) not in self._sizes:
                self._sizes[repo, digest] = size

    async def _on_disk(self, repo: Repo, digest: Digest) -> tuple[int | None, StoreError | None]:
        """Returns the size that the repository's manifests grant for the blob (None: no grant), and the error if one of
        them could not be read.

        Manifests are read, those used last first, until one grants the blob; the next call goes on from there. All are
        read again only every few seconds, because clients can ask for any number of invented digests. Manifests that
        are new since, or could not be read, are looked for on each call, because another process may have fetched one
        just now.
        """
        reading, ours = self._read.get(repo), False
        if reading is None or reading.is_over(time.monotonic()):
            reading, ours = _Reading(self._store, self._catalog, repo, time.monotonic()), True
            self._read[repo] = reading
        async with reading:
            # without a size, it may be named once more, with one
            while (size := reading.granted.get(digest)) in (None, -1) and not reading.is_done:
                await self._once.run(reading, reading.step)
                # it weighs more now
                self._read[repo] = reading
                if digest not in reading.granted and (linked := await self._linked(repo, digest)) not in (None, -1):
                    # a rebuild of the index, or another process, was quicker
                    return linked, None
        error = reading.error
        if size is None and not ours:
            # a read that began before this call may have missed newer manifests
            added, error = await self._once.run_since((repo, "since"), lambda: self._since(repo, reading.granted))
            reading.granted.update(added)
            size = reading.granted.get(digest)
        return size, error

    async def _linked(self, repo: Repo, digest: Digest) -> int | None:
        """Returns what the index says; None also if it does not answer."""
        with suppress(IndexUnavailable):
            return await self._index.linked(repo, digest)
        return None

    async def _since(self, repo: Repo, known: Mapping[Digest, int]) -> tuple[dict[Digest, int], StoreError | None]:
        """Reads the manifests that are not among the known ones."""
        reading = _Reading(self._store, self._catalog, repo, time.monotonic(), known)
        while not reading.is_done:
            await reading.step()
        return reading.granted, reading.error


class _Reading:
    """Reads the manifests of a repository once, in steps, those used last first.

    begun ── step: listed ── step: some are read ──> … ── all are read ──> done ── some seconds ──> over
                 │  nobody waits for more
                 └──> rests, and goes on with the next caller, or is over some seconds after it began
    """

    def __init__(
        self, store: BlobStore, catalog: Catalog, repo: Repo, began_at: float, skip: Container[Digest] = ()
    ) -> None:
        """`began_at` is in seconds of the monotonic clock. The manifests in `skip` are not read."""
        #: What the manifests that were read so far grant, with sizes in bytes.
        self.granted: dict[Digest, int] = {}
        #: The last error of a manifest that may grant anything.
        self.error: StoreError | None = None
        self.is_done = False
        self._store = store
        self._catalog = catalog
        self._repo = repo
        self._skip = skip
        #: Those that wait to be read, the next one last; None before they are listed.
        self._waiting: list[Digest] | None = None
        self._most = _FEW
        self._callers = 0
        #: When it began, or was done.
        self._at = began_at

    def __repr__(self) -> str:
        waiting = "not listed" if self._waiting is None else f"{len(self._waiting)} waiting"
        return f"<_Reading {self._repo}: {len(self.granted)} granted, {waiting}>"

    async def __aenter__(self) -> _Reading:
        self._callers += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self._callers -= 1

    def is_over(self, now: float) -> bool:
        """True if it must not be believed any more: the manifests may have changed since."""
        return not self._callers and now - self._at > _READ_EVERY

    def weight(self) -> int:
        """Returns how much memory it takes, roughly, in bytes."""
        return 512 + 256 * (len(self.granted) + len(self._waiting or ()))

    async def step(self) -> None:
        """Lists the manifests, or reads the next few."""
        if self.is_done:
            return
        try:
            if self._waiting is None:
                self._waiting = await asyncio.to_thread(self._listed)
            else:
                self.granted.update(await asyncio.to_thread(self._next))
        except StoreError as error:
            # not all that there are are known
            self.error, self._waiting = error, []
        if not self._waiting:
            self.is_done = True
            self._at = time.monotonic()

    def _listed(self) -> list[Digest]:
        """Blocking: the manifests that are to be read, the one used last at the end."""
        digests = [each for each in self._catalog.manifest_digests(self._repo) if each not in self._skip]
        return digests if len(digests) <= _FEW else sorted(digests, key=self._used_at)

    def _used_at(self, digest: Digest) -> float:
        try:
            return self._store.stat(digest).used_at
        except BlobUnknown:
            return 0.0
        except StoreError:
            # to read it gives the error that counts
            return math.inf

    def _next(self) -> dict[Digest, int]:
        """Blocking: reads the next manifests, and returns what they grant."""
        waiting, granted = self._waiting or [], dict[Digest, int]()
        count, self._most = min(self._most, len(waiting)), min(2 * self._most, _MANY)
        for _ in range(count):
            digest = waiting.pop()
            try:
                stored = read_stored(self._store, self._catalog, self._repo, digest)
            except (BlobDamaged, RecordDamaged):
                # a damaged manifest grants nothing
                continue
            except StoreError as error:
                self.error = error
                continue
            if stored is not None:
                granted.update(granted_by(stored))
        return granted
