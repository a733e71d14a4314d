"""Locks that the processes of one store share. They are flocks, so the kernel releases the lock of a dead process.

A lock file is never deleted: otherwise two processes could lock different files, one of them without a name.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

from mirror.store.local.durable import store_errors
from mirror.store.local.layout import Layout

#: Keys share this many files. Two keys that map to one file wait for each other needlessly, which is rare.
_FILES: Final = 1024
_FIRST_WAIT: Final = 0.002
_LAST_WAIT: Final = 0.05


class Locks:
    """Named locks below one root."""

    def __init__(
        self, layout: Layout, *, secret: str = "", sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        """`secret` is mixed into the hash of a key, so that a client cannot choose names that share a lock file with
        another key. It must be the same in all processes.
        """
        self._layout = layout
        self._secret = secret.encode()[:64]
        self._sleep = sleep

    def exclusive(self, key: str) -> AbstractAsyncContextManager[None]:
        """Wait for the lock of a key and hold it inside the context. Not reentrant. Raises `StoreError`.

        For short work and any number of keys; keys share lock files.
        """
        hashed = hashlib.blake2b(key.encode(), digest_size=4, key=self._secret).digest()
        return self._held(f"{int.from_bytes(hashed) % _FILES:03x}")

    def named(self, name: str) -> AbstractAsyncContextManager[None]:
        """Like `exclusive`, but the lock has its own file, so long work does not block other keys."""
        return self._held(name)

    @asynccontextmanager
    async def _held(self, name: str) -> AsyncIterator[None]:
        descriptor = open_lock(self._layout, name)
        try:
            wait = _FIRST_WAIT
            while not _try(descriptor):
                await self._sleep(wait)
                wait = min(wait * 2, _LAST_WAIT)
            yield
        finally:
            os.close(descriptor)

    def try_hold(self, name: str) -> int | None:
        """Take the lock of this name, which has its own file, without waiting. Returns a descriptor that holds the lock
        until it is closed or the process ends; None if the lock is held already. Raises `StoreError`.
        """
        descriptor = open_lock(self._layout, name)
        if _try(descriptor):
            return descriptor
        os.close(descriptor)
        return None


def open_lock(layout: Layout, name: str) -> int:
    """A descriptor of the lock file, which is not locked yet; the caller closes it. Raises `StoreError`."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    with store_errors("opening a lock"):
        try:
            return os.open(layout.locks / name, flags, 0o600)
        except FileNotFoundError:
            # an operator may have deleted the folder
            layout.locks.mkdir(mode=0o700, exist_ok=True)
            return os.open(layout.locks / name, flags, 0o600)


def _try(descriptor: int) -> bool:
    with store_errors("locking"):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def is_locked(path: str) -> bool:
    """True if a process holds an exclusive lock on the file, as the filler of a blob does. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
