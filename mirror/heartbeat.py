"""Whether every worker's event loop turns, seen by the parent and by the other workers: a few bytes that all share.

    cell of a slot: 0 ──(its worker serves)──> when it last beat ──(each turn of its pulse)──> later ...
                    ^                              └── stands still: the loop is blocked, or the process is stopped
                    └──────(it drains, or has ended)───┘

A worker that is blocked answers nothing, so it cannot say so itself; and a probe that is answered by another worker
says nothing about it. The memory has no name: it is inherited, and gone with the last process.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from typing import Final

__all__ = ["Heartbeat", "Heartbeats"]

_CELL: Final = struct.Struct("=q")


class Heartbeats:
    """A cell for each slot. `descriptor` is for workers to inherit."""

    def __init__(self, descriptor: int) -> None:
        """Of memory that is there already. Raises `OSError`."""
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, 0)

    @classmethod
    def of(cls, slots: int) -> Heartbeats:
        """New memory. Raises `OSError`."""
        descriptor = os.memfd_create("mirror-beats")
        os.ftruncate(descriptor, slots * _CELL.size)
        return cls(descriptor)

    def last(self, slot: int) -> int:
        """When this slot's worker last beat, in nanoseconds of the monotonic clock; 0: nobody serves there."""
        return int(_CELL.unpack_from(self._memory, slot * _CELL.size)[0])

    def put(self, slot: int, at: int) -> None:
        """The same, written."""
        _CELL.pack_into(self._memory, slot * _CELL.size, at)

    def silence(self) -> float:
        """Seconds since the slot that has been silent longest last beat; 0 where nobody serves."""
        now = time.monotonic_ns()
        lasts = [self.last(slot) for slot in range(len(self._memory) // _CELL.size)]
        return max((now - last for last in lasts if last), default=0) / 1e9

    def close(self) -> None:
        """Once nobody looks any more."""
        self._memory.close()
        os.close(self.descriptor)


class Heartbeat:
    """One worker's own cell. Once it rests it beats no more: its slot is another's."""

    def __init__(self, beats: Heartbeats, slot: int) -> None:
        self.beats = beats
        self._slot = slot
        self._resting = False

    def beat(self) -> None:
        """The loop turns."""
        if not self._resting:
            self.beats.put(self._slot, time.monotonic_ns())

    def rest(self) -> None:
        """It is told to end. Repeatable."""
        if not self._resting:
            self._resting = True
            self.beats.put(self._slot, 0)
