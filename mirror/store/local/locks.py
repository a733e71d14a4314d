"""Locks that processes on one store share: the kernel's, so that a dead holder holds nothing.

A lock file is never removed: another process could then lock a file that has lost its name.
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

__all__ = ["Locks", "is_locked", "open_lock"]

#: Keys share this many files; two keys that meet wait for each other for no reason, which is rare.
_FILES: Final = 1024
_FIRST_WAIT: Final = 0.002
_LAST_WAIT: Final = 0.05


class Locks:
    """Named locks below one root."""

    def __init__(
        self, layout: Layout, *, secret: str = "", sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        """`secret` is the same in all processes: without it a client could choose names that meet another's lock."""
        self._layout = layout
        self._secret = secret.encode()[:64]
        self._sleep = sleep

    def exclusive(self, key: str) -> AbstractAsyncContextManager[None]:
        """Wait for the lock of a key, hold it inside. Not reentrant. Raises `StoreError`.

        For short work and any number of keys, which share files.
        """
        hashed = hashlib.blake2b(key.encode(), digest_size=4, key=self._secret).digest()
        return self._held(f"{int.from_bytes(hashed) % _FILES:03x}")

    def named(self, name: str) -> AbstractAsyncContextManager[None]:
        """The same with a file of its own, for work that may take long: nobody else waits for it."""
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
        """Hold a lock of its own name until the process ends or the descriptor is closed; None: another holds it."""
        descriptor = open_lock(self._layout, name)
        if _try(descriptor):
            return descriptor
        os.close(descriptor)
        return None


def open_lock(layout: Layout, name: str) -> int:
    """The descriptor of a lock's file, not locked yet. Raises `StoreError`."""
    with store_errors("opening a lock"):
        return os.open(layout.locks / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _try(descriptor: int) -> bool:
    with store_errors("locking"):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def is_locked(path: str) -> bool:
    """Whether somebody holds a file for themselves, as who fills a blob does. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
