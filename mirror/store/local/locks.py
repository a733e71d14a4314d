"""Locks that the processes of one store share. They are flocks, so the kernel releases the lock of a dead process.

A lock file is never deleted: otherwise two processes could lock different files, one of them without a name.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from types import TracebackType
from typing import Final

from mirror.ports import Records
from mirror.store.local.durable import store_errors
from mirror.store.local.layout import Layout

#: A lock of such a name has a file of its own, so long work under it does not block other names.
_PLAIN: Final = re.compile(r"[a-z]+(-[0-9a-z]+)?")
#: Other names, of which there may be any number, share so many files. Two that share one wait for each other.
_FILES: Final = 1024
_FIRST_WAIT: Final = 0.002
_LAST_WAIT: Final = 0.05


class FileLease:
    """A `Lease` of the kernel: it ends when its file is closed, at the latest by the death of the process."""

    def __init__(self, name: str, descriptor: int) -> None:
        self._name = name
        self._descriptor = descriptor
        self.lost: Final = asyncio.Event()

    def fileno(self) -> int:
        """The descriptor of the lock file."""
        return self._descriptor

    def fence(self, records: Records) -> Records:
        """The records themselves: this lock ends with its process."""
        return records

    def release(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> FileLease:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<FileLease {self._name} {'held' if self._descriptor >= 0 else 'released'}>"


class FileLocks:
    """`Locks` below one root. A name such as `evict` or `job-1` has a file of its own; any other name, such as
    `tag docker.io/library/alpine:latest`, shares one, and must be held for short work only.
    """

    def __init__(
        self, layout: Layout, *, secret: str = "", sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        """`secret` is mixed into the hash of a name, so that a client cannot choose names that share a file with
        another one. It must be the same in all processes.
        """
        self._layout = layout
        self._secret = secret.encode()[:64]
        self._sleep = sleep

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[FileLease]:
        with FileLease(name, _open(self._layout, self._file(name))) as lease:
            wait = _FIRST_WAIT
            while not _try(lease):
                await self._sleep(wait)
                wait = min(wait * 2, _LAST_WAIT)
            yield lease

    async def try_hold(self, name: str) -> FileLease | None:
        return self.try_hold_now(name)

    def try_hold_now(self, name: str) -> FileLease | None:
        """Like `try_hold`, for code in threads. Quick enough for the event loop."""
        lease = FileLease(name, _open(self._layout, self._file(name)))
        try:
            if _try(lease):
                return lease
        except BaseException:
            lease.release()
            raise
        lease.release()
        return None

    async def is_held(self, name: str) -> bool:
        lease = self.try_hold_now(name)
        if lease is None:
            return True
        lease.release()
        return False

    def _file(self, name: str) -> str:
        if _PLAIN.fullmatch(name):
            return name
        hashed = hashlib.blake2b(name.encode(), digest_size=4, key=self._secret).digest()
        return f"{int.from_bytes(hashed) % _FILES:03x}"


class RunLock:
    """Shared by all processes of a server for as long as they live. `run` is the same for all of them, and another one
    at each start of the server.
    """

    def __init__(self, layout: Layout, name: str) -> None:
        self._lease = FileLease(name, _open(layout, name))
        with store_errors("locking"):
            if _try(self._lease):
                os.pwrite(self._lease.fileno(), secrets.token_hex(8).encode(), 0)
            # gives up the exclusive lock, if it was got; another process may get it meanwhile, and the id is its own
            fcntl.flock(self._lease.fileno(), fcntl.LOCK_SH)
            self.run = os.pread(self._lease.fileno(), 16, 0).decode("ascii", "replace")

    def __repr__(self) -> str:
        return f"<RunLock {self._lease!r}>"

    def is_last(self) -> bool:
        """Whether no other process of the server lives. To be asked at the end: a process that begins meanwhile may be
        overlooked. Raises `StoreError`.
        """
        return _try(self._lease)

    def close(self) -> None:
        """Repeatable."""
        self._lease.release()


def locked(layout: Layout, name: str) -> AbstractContextManager[None]:
    """Hold a lock for a few system calls. Blocks until it is free. Raises `StoreError`, `OSError`."""
    return ShortLock(layout, name)


class ShortLock:
    """See `locked`. A class, because a push takes twenty locks, and a generator would take three times as long."""

    __slots__ = ("_descriptor", "_layout", "_name")

    def __init__(self, layout: Layout, name: str) -> None:
        self._layout = layout
        self._name = name
        self._descriptor = -1

    def __repr__(self) -> str:
        return f"<ShortLock {self._name} {'held' if self._descriptor >= 0 else 'free'}>"

    def __enter__(self) -> None:
        self._descriptor = _open(self._layout, self._name)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        except BaseException:
            self.release()
            raise

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Repeatable."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _open(layout: Layout, name: str) -> int:
    """A descriptor of the lock file, which is not locked yet; the caller closes it. Raises `StoreError`."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    with store_errors("opening a lock"):
        try:
            return os.open(layout.lock(name), flags, 0o600)
        except FileNotFoundError:
            # an operator may have deleted the folder
            layout.locks.mkdir(mode=0o700, exist_ok=True)
            return os.open(layout.lock(name), flags, 0o600)


def _try(lease: FileLease) -> bool:
    with store_errors("locking"):
        try:
            fcntl.flock(lease.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
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
