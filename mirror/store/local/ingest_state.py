"""The few words about a growing blob that its followers in other processes need.

A file of one fixed record beside the blob, written in place by the lock's holder and read by anyone:

    magic and version   8 bytes
    size of the whole   signed 64 bit, -1 while unknown
    flags               unsigned 64 bit: 1 verified
    inode               unsigned 64 bit: which file the words are about; another file of the same name began anew
    boot                16 bytes: which boot of the machine the bytes were written in

One `pwrite` of 48 bytes inside a page is seen whole or not at all by `pread` on Linux's page cache. How far the blob
has grown is the size of the blob's own file.

Why the boot: after a power cut a file can have its size without its bytes. A partial of an earlier boot is therefore
not resumed. (It would be noticed by its digest at the end, but the client would pay for it with a broken pull.)
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final
from uuid import UUID

__all__ = ["GrowthState", "boot_id", "read_state", "write_state"]

_RECORD: Final = struct.Struct("<8sqQQ16s")
_MAGIC: Final = b"mirror\x00\x01"
_VERIFIED: Final = 1


@dataclass(frozen=True, slots=True)
class GrowthState:
    """`size` of the whole blob in bytes, None while unknown; `boot` as `boot_id` gives it."""

    size: int | None
    verified: bool
    inode: int
    boot: bytes


@cache
def boot_id() -> bytes:
    """16 bytes that differ after each start of the machine; zeros where the kernel does not tell."""
    try:
        return UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip()).bytes
    except (OSError, ValueError):
        return bytes(16)


def read_state(descriptor: int) -> GrowthState | None:
    """None where nothing, or something else, is written there."""
    raw = os.pread(descriptor, _RECORD.size, 0)
    if len(raw) != _RECORD.size:
        return None
    magic, size, flags, inode, boot = _RECORD.unpack(raw)
    if magic != _MAGIC:
        return None
    return GrowthState(size if size >= 0 else None, bool(flags & _VERIFIED), inode, boot)


def write_state(descriptor: int, state: GrowthState) -> None:
    """In place. Raises `OSError`."""
    size = -1 if state.size is None else state.size
    flags = _VERIFIED if state.verified else 0
    os.pwrite(descriptor, _RECORD.pack(_MAGIC, size, flags, state.inode, state.boot), 0)
