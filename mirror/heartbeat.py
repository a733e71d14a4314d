"""Heartbeats of all workers in shared memory: the parent and the other workers see whose event loop is blocked, and
when each has served a client.

    beat of a slot: 0 ──(its worker serves)──> time of last beat ──(each beat)──> later time ...
                    ^                              └── stops: the loop is blocked, or the process is stopped
                    └──────(it drains, or has ended)───┘

A blocked worker cannot report that it is blocked, and a health probe may be answered by another worker, which says
nothing about the blocked one. The memory has no name: workers inherit its descriptor, and it disappears with the last
process.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
import time
from typing import Final

_TIME: Final = struct.Struct("=q")
#: Of each slot: the time of the last beat, and that of the last one before which a client was served.
_CELL: Final = 2 * _TIME.size


class Heartbeats:
    """A cell for each worker slot. Workers inherit `descriptor`."""

    def __init__(self, descriptor: int) -> None:
        """Map memory that exists already. Raises `OSError`."""
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, 0)

    @classmethod
    def of(cls, slots: int) -> Heartbeats:
        """Create the memory for this number of slots. Raises `OSError`."""
        descriptor = os.memfd_create("mirror-beats")
        os.ftruncate(descriptor, slots * _CELL)
        return cls(descriptor)

    def last(self, slot: int) -> int:
        """When this slot's worker last beat, in nanoseconds of the monotonic clock; 0 if no worker serves there."""
        return int(_TIME.unpack_from(self._memory, slot * _CELL)[0])

    def put(self, slot: int, at: int) -> None:
        """Set the time of the slot's last beat, in nanoseconds of the monotonic clock; 0 if no worker serves there."""
        _TIME.pack_into(self._memory, slot * _CELL, at)

    def silence(self) -> float:
        """Seconds since the last beat of the slot that has been silent longest; 0 if no worker serves."""
        now = time.monotonic_ns()
        times = [self.last(slot) for slot in range(len(self._memory) // _CELL)]
        return max((now - last for last in times if last), default=0) / 1e9

    def idle(self) -> float:
        """Seconds since a client was served at any worker, as their beats have said; infinite if none was. For any
        thread.
        """
        cells = range(_TIME.size, len(self._memory), _CELL)
        last = max(int(_TIME.unpack_from(self._memory, cell)[0]) for cell in cells)
        return (time.monotonic_ns() - last) / 1e9 if last else math.inf

    def put_use(self, slot: int, at: int) -> None:
        """Set when the worker of this slot has served a client, in nanoseconds of the monotonic clock."""
        _TIME.pack_into(self._memory, slot * _CELL + _TIME.size, at)

    def close(self) -> None:
        """Unmap the memory and close the descriptor. No other method may be called afterwards."""
        self._memory.close()
        os.close(self.descriptor)


class Heartbeat:
    """One worker's own cell. After `rest` it never writes again, because another worker may have taken the slot."""

    def __init__(self, beats: Heartbeats, slot: int) -> None:
        self.beats = beats
        self._slot = slot
        self._resting = False
        self._used_at = -math.inf

    def beat(self, used_at: float = -math.inf) -> None:
        """Record that the event loop is running, and that a client was served since the last beat if `used_at`, the
        time of the last use by any clock, is another one.
        """
        if not self._resting:
            now = time.monotonic_ns()
            self.beats.put(self._slot, now)
            if used_at != self._used_at:
                self._used_at = used_at
                self.beats.put_use(self._slot, now)

    def rest(self) -> None:
        """Clear the cell, because the worker is about to end. Repeatable."""
        if not self._resting:
            self._resting = True
            self.beats.put(self._slot, 0)
