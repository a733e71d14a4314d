"""Brings single blobs of an import into the store.

    absent ── the lock is free ──> filled from the source, from where an earlier fill stopped ──> written
           └─ another process fills it: waits, and looks again ──> here

A running mirror may fill the same blobs at the same time: the store's lock decides which process fills a blob.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from mirror.aio.threads import uninterrupted
from mirror.bundles.import_plan import ImportSource, size_here
from mirror.bundles.layout_source import OnRead
from mirror.errors import BlobDamaged, BundleError, StoreError
from mirror.graph.damage import set_aside
from mirror.oci.digest import Digest
from mirror.ports import BlobStore, Ingest

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


class BlobImport:
    """The blobs of one import."""

    def __init__(self, store: BlobStore, result: ImportedBlobs, on_read: OnRead, skip_damaged: bool) -> None:
        """Adds to `result`. `on_read` also counts bytes that need not be read because they are here already. With
        `skip_damaged`, a blob that is wrong or unreadable in the source is noted and left out.
        """
        self._store = store
        self._result = result
        self._on_read = on_read
        self._skip_damaged = skip_damaged
        self._stopped = False

    def __repr__(self) -> str:
        return f"<BlobImport {len(self._result.written)} written, {len(self._result.here)} here>"

    def count(self, count: int) -> None:
        """Count bytes. May be called from any thread. Raises `BundleError` if the import was stopped."""
        if self._stopped:
            raise BundleError("stopped")
        self._on_read(count)

    async def add(self, source: ImportSource, digest: Digest) -> None:
        """Bring a blob into the store, unless the source does not have it. Raises `BundleError`, `StoreError`."""
        done = self._result
        size = source.size(digest)
        if digest in done.written or digest in done.here or digest in done.damaged:
            return
        here = await asyncio.to_thread(size_here, self._store, digest)
        if here is not None and size not in (None, here):
            # only the bytes show whether the stored blob or the source's is wrong
            await asyncio.to_thread(set_aside, self._store, digest)
            here = await asyncio.to_thread(size_here, self._store, digest)
        if here is not None:
            done.here[digest] = here
            self.count(size or 0)
        elif size is not None:
            await self._add_absent(source, digest, size)

    def put_embedded(self, digest: Digest, content: bytes) -> None:
        """Blocking: store a blob whose bytes are in its manifest. Raises `StoreError`."""
        if digest in self._result.written or digest in self._result.here:
            return
        done = self._result.written if size_here(self._store, digest) is None else self._result.here
        self._store.put(digest, content)
        done[digest] = len(content)

    async def _add_absent(self, source: ImportSource, digest: Digest, size: int) -> None:
        try:
            is_written = await self._fill(source, digest, size)
        except (BlobDamaged, BundleError) as error:
            if self._stopped or not self._skip_damaged:
                raise BundleError(f"importing {digest}: {error}") from error
            self._result.damaged[digest] = str(error)
        else:
            (self._result.written if is_written else self._result.here)[digest] = size

    async def _fill(self, source: ImportSource, digest: Digest, size: int) -> bool:
        """Get the blob into the store. False if another process stored it meanwhile."""
        loop = asyncio.get_running_loop()
        grown_at, seen = loop.time(), -1
        while await asyncio.to_thread(size_here, self._store, digest) is None:
            ingest = await asyncio.to_thread(self._store.ingest, digest, "")
            try:
                if ingest.try_lock():
                    return await self._in_thread(self._fill_locked, ingest, source, digest, size)
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
        self.count(start)
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
        with source.body(digest, start, self.count) as body:
            ingest.expect(body.size)
            ingest.fill(body, lambda: None)
        ingest.verify()

    async def _in_thread(self, work: Callable[..., bool], *arguments: object) -> bool:
        """Run blocking work in a thread. If cancelled, stop the work and wait for its end, because it uses open files
        that belong to this import.
        """
        return await uninterrupted(asyncio.to_thread(work, *arguments), stop=self._stop)

    def _stop(self) -> None:
        self._stopped = True
