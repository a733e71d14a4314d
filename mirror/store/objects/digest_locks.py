"""Locks by digest, between all workers of a machine, for work that may take minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from mirror.errors import BucketUnavailable
from mirror.oci.digest import Digest
from mirror.store.local.layout import Layout
from mirror.store.local.locks import FileLocks

#: Digests share so many lock files: a lock file is never deleted.
_FILES: Final = 4096
_FIRST_WAIT: Final = 0.01
_LAST_WAIT: Final = 0.25


class DigestLocks:
    """The locks of one purpose. May be used from any thread."""

    def __init__(
        self,
        layout: Layout,
        purpose: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`purpose` consists of lower-case letters."""
        self._locks = FileLocks(layout)
        self._purpose = purpose
        self._clock = clock
        self._sleep = sleep

    def __repr__(self) -> str:
        return f"<DigestLocks {self._purpose}>"

    @contextmanager
    def hold(self, digest: Digest, patience: float, group: str = "") -> Iterator[bool]:
        """Be the only one that works on this blob; gives whether another one had the lock. Blobs of different groups
        (lower-case letters) share no lock. Blocks. Raises `BucketUnavailable` if others have it for `patience` seconds,
        `StoreError`.
        """
        name = f"{self._purpose}{group}-{int(digest.hex[:8], 16) % _FILES:03x}"
        until, wait = self._clock() + patience, 0.0
        while (lease := self._locks.try_hold_now(name)) is None:
            if self._clock() >= until:
                raise BucketUnavailable(f"another request stores {digest} at the moment")
            wait = min(wait * 2, _LAST_WAIT) or _FIRST_WAIT
            self._sleep(wait)
        with lease:
            yield wait > 0
