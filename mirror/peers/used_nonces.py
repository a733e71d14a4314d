"""The nonces of requests that were taken, in memory that all workers of this replica share.

    nonce ── the slots of its bucket, locked ──┬── it is there ─────────────────────────> used: refused
                                               ├── a slot is free, or older than 2 min ──> written there: new
                                               └── all are taken by younger ones ────────> refused, and may be repeated

A request counts for a minute before and after the time that it says (`WINDOW`), so nothing older than two minutes could
be taken again. The memory has no name: workers inherit its descriptor, and it disappears with the last process. So that
nothing is taken again after a restart, requests that were signed before the memory was made are refused. When that was
is kept by a clock that nobody sets: a machine whose clock is ahead at its start, until it is corrected, would else
refuse all others for as long as it was ahead.

    header: when it was made, 8 bytes     bucket: 170 slots of 24 bytes: nonce (16), time (8)
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Callable
from typing import Final

from mirror.clock import steady_time
from mirror.policy.cluster.peer_signatures import WINDOW

_HEADER: Final = struct.Struct("=d")
_SLOT: Final = struct.Struct("=16sd")
_BUCKET: Final = 4096
_SLOTS: Final = _BUCKET // _SLOT.size
#: About 700,000 nonces of two minutes: more than 5,000 requests a second. Pages that were never written take no memory.
_BUCKETS: Final = 4096


class NoncesFull(Exception):
    """More requests than can be remembered, or another worker that stands still in the middle of one."""


class UsedNonces:
    """One worker's view of the memory. To be used by one thread: the locks are those of processes."""

    def __init__(self, descriptor: int, *, buckets: int = _BUCKETS, steady: Callable[[], float] = steady_time) -> None:
        """Map memory that exists already. `steady` is the clock by which it was made. Raises `OSError`."""
        self.descriptor = descriptor
        self._buckets = buckets
        self._steady = steady
        self._memory = mmap.mmap(descriptor, 0)

    @classmethod
    def made(cls, *, buckets: int = _BUCKETS, steady: Callable[[], float] = steady_time) -> UsedNonces:
        """Create the memory. `steady` is in seconds, as `steady_time`. Raises `OSError`."""
        descriptor = os.memfd_create("mirror-nonces")
        os.ftruncate(descriptor, (buckets + 1) * _BUCKET)
        found = cls(descriptor, buckets=buckets, steady=steady)
        _HEADER.pack_into(found._memory, 0, steady())
        return found

    def since(self, now: float) -> float:
        """When the memory was made, in epoch seconds by the clock that says `now`: what was signed before may have been
        taken already.
        """
        return now - (self._steady() - float(_HEADER.unpack_from(self._memory)[0]))

    def use(self, nonce: str, now: float) -> bool:
        """True if the nonce (32 hexadecimal digits) was not used within the last two minutes; it is used from now on.
        `now` is in epoch seconds. Raises `NoncesFull`.
        """
        wanted = bytes.fromhex(nonce)
        start = _BUCKET * (1 + int.from_bytes(wanted[:4]) % self._buckets)
        try:
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, _BUCKET, start)
        except OSError as error:
            raise NoncesFull("another worker remembers a request at the same moment") from error
        try:
            bucket = self._memory[start : start + _SLOTS * _SLOT.size]
            found = bucket.find(wanted)
            while found >= 0:
                # bytes that look the same may lie across two slots
                if found % _SLOT.size == 0 and not _is_old(_SLOT.unpack_from(bucket, found)[1], now):
                    return False
                found = bucket.find(wanted, found + 1)
            places = range(0, len(bucket), _SLOT.size)
            free = next((place for place in places if _is_old(_SLOT.unpack_from(bucket, place)[1], now)), None)
            if free is None:
                raise NoncesFull("too many requests of replicas within two minutes")
            _SLOT.pack_into(self._memory, start + free, wanted, now)
            return True
        finally:
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN, _BUCKET, start)

    def close(self) -> None:
        """Unmap the memory and close the descriptor. No other method may be called afterwards."""
        self._memory.close()
        os.close(self.descriptor)


def _is_old(at: float, now: float) -> bool:
    """Whether what was used then cannot be taken any more. A clock that was set back makes nothing old."""
    return now - at > 2 * WINDOW
