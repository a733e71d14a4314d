"""Brings single blobs of an import into the store.

    absent ── the lock is free ──> filled from the source, from where an earlier fill stopped ──> written
           └─ another process fills it: waits, and looks again ──> here

A running mirror may fill the same blobs at the same time: the store's lock decides which process fills a blob. A blob
for a hosted repository is received like the upload of a push instead, so that the cache does not have it:

    absent ── received whole, verified ──> hosted, and linked to no repository yet
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from mirror.aio.threads import uninterrupted
from mirror.bundles.import_plan import ImportSource, size_here
from mirror.bundles.layout_source import OnRead
from mirror.errors import BlobDamaged, BundleError, StoreError
from mirror.graph.damage import set_aside
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.oci.reference import Repo
from mirror.ports import BlobStore, Body, Ingest

#: Seconds between two looks at a blob that another process fills, and seconds that such a blob may stop growing.
_LOOK: Final = 0.05
_STUCK: Final = 120.0


@dataclass(slots=True)
class ImportedBlobs:
    """The blobs and manifests that an import has `written` and those that were `here` already, with sizes in bytes.

    `damaged` are blobs that are wrong or unreadable in the source, with the reason.
    """

    written: dict[Digest, int] = field(default_factory=dict)
    here: dict[Digest, int] = field(default_factory=dict)
    damaged: dict[Digest, str] = field(default_factory=dict)

    def size(self, digest: Digest) -> int | None:
        """The size of a blob that is here now; None if it is not."""
        return self.written.get(digest, self.here.get(digest))


class HostedTarget(Protocol):
    """How images come into hosted repositories. All calls block, and raise `StoreError`."""

    def is_hosted(self, repo: Repo) -> bool:
        """True if the repository is hosted here."""

    def size(self, digest: Digest) -> int | None:
        """The size of a blob in bytes, hosted or cached; None if it is certainly absent."""

    def receive(self, digest: Digest, body: Body) -> None:
        """Make a hosted blob of a body, which no repository has yet. Durable on return. Raises what the body raises,
        `BlobDamaged` if the bytes do not match the digest, `StoreFull`.
        """

    def put(self, digest: Digest, content: bytes) -> None:
        """Like `receive`, for small content. Durable once an image is taken in."""

    def take(
        self, repo: Repo, blobs: Sequence[Digest], manifests: Sequence[Manifest], tag: str | None
    ) -> Digest | None:
        """Link blobs that are here, and store manifests, children first; the tag points to the last. Returns what the
        tag pointed to before, if that was something else. All is durable on return. Raises `RequestError` with the
        reason if the image is refused.
        """


class ImportProgress:
    """What the blobs of one import have in common: the result, the bytes that were read, and that it was stopped."""

    def __init__(self, result: ImportedBlobs, on_read: OnRead, skip_damaged: bool) -> None:
        """`on_read` also counts bytes that need not be read because they are here already. With `skip_damaged`, a blob
        that is wrong or unreadable in the source is noted and left out.
        """
        self.result = result
        self._on_read = on_read
        self._skip_damaged = skip_damaged
        self._stopped = False

    def __repr__(self) -> str:
        return f"<ImportProgress {len(self.result.written)} written, {len(self.result.here)} here>"

    def count(self, count: int) -> None:
        """Count bytes. May be called from any thread. Raises `BundleError` if the import was stopped."""
        if self._stopped:
            raise BundleError("stopped")
        self._on_read(count)

    async def bring(self, digest: Digest, size: int, fill: Callable[[], Awaitable[bool]]) -> None:
        """Note the result of `fill`, which writes a blob of `size` bytes, or returns False if it was here. Raises
        `BundleError`, `StoreError`.
        """
        try:
            is_written = await fill()
        except (BlobDamaged, BundleError) as error:
            if self._stopped or not self._skip_damaged:
                raise BundleError(f"importing {digest}: {error}") from error
            self.result.damaged[digest] = str(error)
        else:
            self.put(digest, size, is_here=not is_written)

    def put(self, digest: Digest, size: int, *, is_here: bool) -> None:
        """Note a blob of `size` bytes that is here now. `is_here`: it was here before."""
        (self.result.here if is_here else self.result.written)[digest] = size

    async def in_thread(self, work: Callable[..., bool], *arguments: object) -> bool:
        """Run blocking work in a thread. If cancelled, stop the work and wait for its end, because it uses open files
        that belong to this import.
        """
        return await uninterrupted(asyncio.to_thread(work, *arguments), stop=self._stop)

    def _stop(self) -> None:
        self._stopped = True


class BlobImport:
    """The blobs of the images of cached repositories."""

    def __init__(self, store: BlobStore, progress: ImportProgress) -> None:
        self._store = store
        self._progress = progress
        self._added: set[Digest] = set()

    def __repr__(self) -> str:
        return f"<BlobImport {len(self._added)} looked at>"

    async def add(self, source: ImportSource, digest: Digest) -> None:
        """Bring a blob into the store, unless the source does not have it. Raises `BundleError`, `StoreError`."""
        progress, size = self._progress, source.size(digest)
        if digest in self._added or digest in progress.result.damaged:
            return
        here = await asyncio.to_thread(size_here, self._store, digest)
        if here is not None and size not in (None, here):
            # only the bytes show whether the stored blob or the source's is wrong
            await asyncio.to_thread(set_aside, self._store, digest)
            here = await asyncio.to_thread(size_here, self._store, digest)
        if here is not None:
            progress.result.here[digest] = here
            progress.count(size or 0)
        elif size is not None:
            await progress.bring(digest, size, lambda: self._fill(source, digest, size))
        else:
            # another source of the import may have it
            return
        self._added.add(digest)

    def put_embedded(self, digest: Digest, content: bytes) -> None:
        """Blocking: store a blob whose bytes are in its manifest. Raises `StoreError`."""
        if digest in self._added:
            return
        is_here = size_here(self._store, digest) is not None
        self._store.put(digest, content)
        self._progress.put(digest, len(content), is_here=is_here)
        self._added.add(digest)

    async def _fill(self, source: ImportSource, digest: Digest, size: int) -> bool:
        """Get the blob into the store. False if another process stored it meanwhile."""
        loop = asyncio.get_running_loop()
        grown_at, seen = loop.time(), -1
        while await asyncio.to_thread(size_here, self._store, digest) is None:
            ingest = await asyncio.to_thread(self._store.ingest, digest, "")
            try:
                if ingest.try_lock():
                    return await self._progress.in_thread(self._fill_locked, ingest, source, digest, size)
                offset = ingest.offset
            finally:
                ingest.close()
            if offset != seen:
                grown_at, seen = loop.time(), offset
            elif loop.time() - grown_at > _STUCK:
                raise StoreError(f"another process downloads {digest} and makes no progress")
            await asyncio.sleep(_LOOK)
        return False

    def _fill_locked(self, ingest: Ingest, source: ImportSource, digest: Digest, size: int) -> bool:
        """Blocking, under the ingest's lock: fill the blob, from where an earlier fill stopped. False if it is stored
        already.
        """
        if size_here(self._store, digest) is not None:
            # between the look and the lock another process may have published it
            ingest.abort(keep=False)
            return False
        start = ingest.resume()
        if start > size:
            ingest.restart()
            start = 0
        self._progress.count(start)
        try:
            try:
                self._receive(ingest, source, digest, start)
            except BlobDamaged:
                if not start:
                    raise
                # the bytes of the earlier fill may have been wrong: read the whole blob
                ingest.restart()
                self._receive(ingest, source, digest, 0)
        except BlobDamaged:
            ingest.abort(keep=False)
            raise
        ingest.commit()
        return True

    def _receive(self, ingest: Ingest, source: ImportSource, digest: Digest, start: int) -> None:
        with source.body(digest, start, self._progress.count) as body:
            ingest.expect(body.size)
            ingest.fill(body, lambda: None)
        ingest.verify()


class HostedBlobImport:
    """The blobs of the images of hosted repositories. They get no name in the cache: there, whoever knows a digest and
    controls an upstream repository could have them served.
    """

    def __init__(self, hosted: HostedTarget, progress: ImportProgress) -> None:
        self._hosted = hosted
        self._progress = progress
        self._added: set[Digest] = set()

    def __repr__(self) -> str:
        return f"<HostedBlobImport {len(self._added)} looked at>"

    async def add(self, source: ImportSource, digest: Digest) -> None:
        """Make a blob a hosted one, unless the source does not have it. Raises `BundleError`, `StoreError`."""
        progress, size = self._progress, source.size(digest)
        if digest in self._added or digest in progress.result.damaged:
            return
        here = await asyncio.to_thread(self._hosted.size, digest)
        if here is not None and size in (None, here):
            progress.result.here[digest] = here
            progress.count(size or 0)
        elif size is not None:
            # a blob here that has another size is damaged, and replaced
            await progress.bring(digest, size, lambda: progress.in_thread(self._receive, source, digest))
        else:
            return
        self._added.add(digest)

    def put_embedded(self, digest: Digest, content: bytes) -> None:
        """Blocking: store a blob whose bytes are in its manifest. Raises `StoreError`."""
        if digest in self._added:
            return
        is_here = self._hosted.size(digest) is not None
        self._hosted.put(digest, content)
        self._progress.put(digest, len(content), is_here=is_here)
        self._added.add(digest)

    def _receive(self, source: ImportSource, digest: Digest) -> bool:
        with source.body(digest, 0, self._progress.count) as body:
            self._hosted.receive(digest, body)
        return True
