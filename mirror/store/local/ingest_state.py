"""The state of a growing blob, for its followers in other processes.

It is a file of one fixed record beside the blob. The holder of the lock writes it in place, and any process reads it:

    magic and version   8 bytes
    size of the whole   signed 64 bit, -1 while unknown
    flags               unsigned 64 bit: 1 verified
    inode               unsigned 64 bit: the file that the state describes; a restarted blob has another inode
    boot                16 bytes: the boot of the machine in which the bytes were written

With Linux's page cache, `pread` sees one `pwrite` of 48 bytes inside a page whole or not at all. The state does not say
how far the blob has grown: that is the size of the blob's file.

The boot is recorded because after a power cut a file can have its size without its bytes. A partial of an earlier boot
is therefore not resumed, and its state does not apply: nobody is sent its bytes. (The digest would reveal the damage at
the end, but only after the client's pull has failed.)

A file without a state that applies is one for which no upstream has answered yet: a new one, or one begun again.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final
from uuid import UUID

_RECORD: Final = struct.Struct("<8sqQQ16s")
_MAGIC: Final = b"mirror\x00\x01"
_VERIFIED: Final = 1


@dataclass(frozen=True, slots=True)
class GrowthState:
    """`size` is that of the whole blob in bytes, None while unknown; `boot` is a value of `boot_id`."""

    size: int | None
    verified: bool
    inode: int
    boot: bytes


@cache
def boot_id() -> bytes:
    """16 bytes that differ after each start of the machine; zeros if the kernel does not provide them."""
    try:
        return UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip()).bytes
    except (OSError, ValueError):
        return bytes(16)


def read_state(descriptor: int) -> GrowthState | None:
    """The state in this file; None if there is no valid record. Raises `OSError`."""
    raw = os.pread(descriptor, _RECORD.size, 0)
    if len(raw) != _RECORD.size:
        return None
    magic, size, flags, inode, boot = _RECORD.unpack(raw)
    if magic != _MAGIC:
        return None
    return GrowthState(size if size >= 0 else None, bool(flags & _VERIFIED), inode, boot)


def write_state(descriptor: int, state: GrowthState) -> None:
    """Write the state in place. Raises `OSError`."""
    size = -1 if state.size is None else state.size
    flags = _VERIFIED if state.verified else 0
    os.pwrite(descriptor, _RECORD.pack(_MAGIC, size, flags, state.inode, state.boot), 0)
