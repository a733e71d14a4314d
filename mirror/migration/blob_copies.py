"""Brings bytes from one side of a migration to the other, each blob once, however many records name it.

unknown ── bring(): the first caller copies, others wait for it ──> there
              └── the source has no sound bytes ──> missing, with a reason
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

from mirror.errors import BlobDamaged, BlobUnknown, BlobUnreadable
from mirror.migration.progress import MigrationProgress
from mirror.oci.digest import Digest
from mirror.ports import MigratedBytes


class BlobCopies:
    """The blobs of one pass. May be used from any thread."""

    def __init__(
        self,
        source: MigratedBytes,
        target: MigratedBytes,
        progress: MigrationProgress,
        read: Callable[[int], None],
        *,
        dry_run: bool,
    ) -> None:
        """`read` is called with the size of each piece that was read of the source."""
        self._source = source
        self._target = target
        self._progress = progress
        self._read = read
        self._dry_run = dry_run
        self._lock = threading.Lock()
        #: Half of each digest that is there: there may be millions.
        self._there: set[int] = set()
        self._missing: dict[Digest, str] = {}
        self._copying: dict[Digest, Future[None]] = {}

    def __repr__(self) -> str:
        return f"<BlobCopies {len(self._there)} there, {len(self._missing)} missing, {len(self._copying)} on their way>"

    def bring(self, digest: Digest) -> bool:
        """Let the target have a blob. False if the source has no sound bytes of it. Raises `StoreError`."""
        with self._lock:
            if _short(digest) in self._there:
                return True
            if digest in self._missing:
                return False
            copying = self._copying.get(digest)
            if copying is None:
                mine = self._copying[digest] = Future()
        if copying is not None:
            copying.result()
            return _short(digest) in self._there
        try:
            self._bring(digest)
        except BaseException as error:
            mine.set_exception(error)
            raise
        else:
            mine.set_result(None)
        finally:
            with self._lock:
                del self._copying[digest]
        return _short(digest) in self._there

    def reason(self, digest: Digest) -> str:
        """Why a blob is missing."""
        return self._missing.get(digest, "")

    def _bring(self, digest: Digest) -> None:
        here, there = self._source.size(digest), self._target.size(digest)
        if there is not None and here in (None, there):
            self._progress.present()
        elif here is None:
            self._missing[digest] = "has no bytes in the source"
            return
        elif self._dry_run:
            self._progress.copied(here)
        else:
            try:
                with self._source.fetch(digest, self._read) as (file, size):
                    self._target.store(digest, file, size)
            except BlobUnknown:
                self._missing[digest] = "has no bytes in the source"
                return
            except (BlobDamaged, BlobUnreadable) as error:
                self._missing[digest] = f"cannot be read in the source: {error}"
                return
            self._progress.copied(size)
        self._there.add(_short(digest))


def _short(digest: Digest) -> int:
    return int(digest.hex[:32], 16)
