"""Heartbeats of all workers in shared memory: the parent and the other workers see whose event loop is blocked.

    cell of a slot: 0 ──(its worker serves)──> time of last beat ──(each beat)──> later time ...
                    ^                              └── stops: the loop is blocked, or the process is stopped
                    └──────(it drains, or has ended)───┘

A blocked worker cannot report that it is blocked, and a health probe may be answered by another worker, which says
nothing about the blocked one. The memory has no name: workers inherit its descriptor, and it disappears with the last
process.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from typing import Final

_CELL: Final = struct.Struct("=q")


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
        os.ftruncate(descriptor, slots * _CELL.size)
        return cls(descriptor)

    def last(self, slot: int) -> int:
        """When this slot's worker last beat, in nanoseconds of the monotonic clock; 0 if no worker serves there."""
        return int(_CELL.unpack_from(self._memory, slot * _CELL.size)[0])

    def put(self, slot: int, at: int) -> None:
        """Set the time of the slot's last beat, in nanoseconds of the monotonic clock; 0 if no worker serves there."""
        _CELL.pack_into(self._memory, slot * _CELL.size, at)

    def silence(self) -> float:
        """Seconds since the last beat of the slot that has been silent longest; 0 if no worker serves."""
        now = time.monotonic_ns()
        times = [self.last(slot) for slot in range(len(self._memory) // _CELL.size)]
        return max((now - last for last in times if last), default=0) / 1e9

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

    def beat(self) -> None:
        """Record that the event loop is running."""
        if not self._resting:
            self.beats.put(self._slot, time.monotonic_ns())

    def rest(self) -> None:
        """Clear the cell, because the worker is about to end. Repeatable."""
        if not self._resting:
            self._resting = True
            self.beats.put(self._slot, 0)
