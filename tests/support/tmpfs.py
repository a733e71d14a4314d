"""A disk small enough to be full. Needs the right to mount; the tests run as root."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MNT_DETACH = 2
_MS_RDONLY = 1
_MS_REMOUNT = 32
_MS_BIND = 4096


@contextmanager
def tmpfs(parent: Path, options: str) -> Iterator[Path]:
    """A mounted tmpfs below `parent`, with mount options such as `size=1m,nr_inodes=50`; unmounted at the end."""
    point = parent / "tmpfs"
    point.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", bytes(point), b"tmpfs", 0, options.encode()) != 0:
        raise OSError(ctypes.get_errno(), f"cannot mount a tmpfs: {os.strerror(ctypes.get_errno())}")
    try:
        yield point
    finally:
        libc.umount2(bytes(point), _MNT_DETACH)


def remount_read_only(point: Path) -> None:
    """From now on nothing can be written there. Raises `OSError`."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(None, bytes(point), None, _MS_REMOUNT | _MS_RDONLY, None) != 0:
        raise OSError(ctypes.get_errno(), f"cannot remount: {os.strerror(ctypes.get_errno())}")


@contextmanager
def read_only(point: Path) -> Iterator[None]:
    """Whatever is opened or renamed below `point` meanwhile meets a read-only disk, by a second mount of it above the
    first one: the kernel refuses to make the first one read-only while a file is open for writing.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(bytes(point), bytes(point), None, _MS_BIND, None) != 0:
        raise OSError(ctypes.get_errno(), f"cannot bind: {os.strerror(ctypes.get_errno())}")
    try:
        if libc.mount(None, bytes(point), None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY, None) != 0:
            raise OSError(ctypes.get_errno(), f"cannot remount: {os.strerror(ctypes.get_errno())}")
        yield
    finally:
        libc.umount2(bytes(point), _MNT_DETACH)
