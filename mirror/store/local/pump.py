"""From an upstream body into a file, hashed on the way: the work of a cold pull, off the event loop.

    socket ── splice through a pipe, or receive and write ──> file ──> followers send it
                                                               │
                                                               └────> hashed from the page cache, by a second thread

The calling thread moves the bytes. A second one, started once there is more than one block, hashes behind it what is
in the file. Reading the file again for the hash costs less than handing buffers from thread to thread: those fall out
of the processor's cache between the two. A body that offers its bare socket is spliced, so its bytes are never copied
into this process except for the hash. Other bodies (TLS, chunked) are received into one reused buffer.

Write-back is started every few megabytes, so that the `fsync` before a blob is published finds little left to do.

Bytes may be read by followers before they are hashed. They hold back the end of the blob until the digest is known.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable
from typing import Final

from mirror.errors import BlobDamaged
from mirror.ports import Body, SupportsSplice
from mirror.store.local.durable import store_errors, write_all

__all__ = ["pump"]

#: Measured: larger buffers fall out of the cache, smaller ones cost system calls. Bytes.
_RECEIVE: Final = 512 * 1024
_HASH_BLOCK: Final = 1 << 20
_PIPE: Final = 1 << 20
_WRITE_BACK: Final = 8 << 20

_MOVE: Final = os.SPLICE_F_MOVE


def pump(
    body: Body,
    descriptor: int,
    hashing: hashlib._Hash,
    *,
    start: int,
    limit: int | None,
    grown: Callable[[int], None],
) -> None:
    """Append to the file what the body has beyond `start` bytes, and to `hashing`, up to the body's end.

    `grown` is called after each write with the new size in bytes. Raises what the body raises, `StoreFull`,
    `StoreError`, and `BlobDamaged` where the body has more than `limit` bytes. What `grown` was told before an error
    is in the file and hashed.
    """
    if body.start > start:
        raise BlobDamaged(f"the body begins at {body.start}, beyond the {start} bytes that are here")
    with store_errors("seeking in a partial"):
        # beyond `start` there can be the remains of a write that failed
        os.ftruncate(descriptor, start)
        os.lseek(descriptor, start, os.SEEK_SET)
    behind = _HashBehind(descriptor, hashing, start)
    written_back = start

    def advance(offset: int) -> None:
        nonlocal written_back
        behind.grew(offset)
        grown(offset)
        if offset - written_back >= _WRITE_BACK:
            _start_write_back(descriptor, written_back, offset - written_back)
            written_back = offset

    try:
        offset = _skip(body, start)
        with _Splice() as splice:
            while True:
                moved = splice.move(body, descriptor, offset, limit, advance)
                offset += moved
                received = _receive(body, descriptor, offset, limit)
                if not received:
                    return
                offset += received
                advance(offset)
    finally:
        behind.close()


def _skip(body: Body, start: int) -> int:
    """Read past the bytes that are here already: not every upstream heeds a range."""
    offset = body.start
    buffer = memoryview(bytearray(_RECEIVE)) if offset < start else memoryview(b"")
    while offset < start:
        received = body.readinto(buffer[: start - offset])
        if not received:
            raise BlobDamaged(f"the body ends after {offset} bytes, of which {start} were here already")
        offset += received
    return offset


_buffers = threading.local()


def _receive(body: Body, descriptor: int, offset: int, limit: int | None) -> int:
    """One buffer of the body into the file; returns its size in bytes, 0 at the end."""
    buffer: memoryview | None = getattr(_buffers, "receive", None)
    if buffer is None:
        buffer = _buffers.receive = memoryview(bytearray(_RECEIVE))
    received = body.readinto(buffer)
    if limit is not None and offset + received > limit:
        raise BlobDamaged(f"upstream sent more than the {limit} bytes that it announced")
    with store_errors("writing a partial"):
        write_all(descriptor, buffer[:received])
    return received


class _Splice:
    """Moves bytes from a socket to a file inside the kernel, as long as the body has a socket to offer."""

    def __init__(self) -> None:
        self._pipe: tuple[int, int] | None = None
        self._room = 0

    def __enter__(self) -> _Splice:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pipe:
            os.close(self._pipe[0])
            os.close(self._pipe[1])

    def move(self, body: Body, descriptor: int, offset: int, limit: int | None, advance: Callable[[int], None]) -> int:
        """Move what can be moved; returns how many bytes that were. 0 where the body has nothing to splice.

        The body's own `readinto` goes on after it, and finds the end or tells why there is none.
        """
        if not isinstance(body, SupportsSplice) or limit is None:
            return 0
        moved = 0
        while (offered := body.plain_socket()) and offset + moved < limit:
            socket, there = offered
            count = min(there, limit - offset - moved, _PIPE)
            if not count or not self._open():
                break
            taken = self._take(socket, count)
            if not taken:
                break
            self._put(descriptor, taken)
            body.advance(taken)
            moved += taken
            advance(offset + moved)
        return moved

    def _open(self) -> bool:
        if self._pipe is None:
            try:
                self._pipe = os.pipe2(os.O_CLOEXEC)
            except OSError:
                return False
            with contextlib.suppress(OSError):
                # refused beyond the user's share of pipe memory; a smaller pipe only costs more calls
                fcntl.fcntl(self._pipe[1], fcntl.F_SETPIPE_SZ, _PIPE)
        return True

    def _take(self, socket: int, count: int) -> int:
        """From the socket into the pipe. 0 where the socket has an end or an error that `readinto` should meet."""
        if self._pipe is None:
            return 0
        try:
            # waits for the first bytes, at most as long as the body lets its socket wait
            return os.splice(socket, self._pipe[1], count, flags=_MOVE)
        except OSError:
            return 0

    def _put(self, descriptor: int, count: int) -> None:
        """From the pipe into the file, all of it: what stays in the pipe would be lost."""
        if self._pipe is None:
            return
        with store_errors("writing a partial"):
            while count:
                put = os.splice(self._pipe[0], descriptor, count, flags=_MOVE)
                if not put:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                count -= put


class _HashBehind:
    """Hashes a file up to where it has grown, in a thread of its own from the second block on."""

    def __init__(self, descriptor: int, hashing: hashlib._Hash, start: int) -> None:
        self._descriptor = descriptor
        self._hashing = hashing
        self._start = self._hashed = start
        self._grown = start
        self._changed = threading.Condition()
        self._closed = False
        self._error: OSError | None = None
        self._thread: threading.Thread | None = None

    def grew(self, offset: int) -> None:
        with self._changed:
            self._grown = offset
            # the hash reads whole blocks: waking it for less would cost both threads their turn
            if self._grown - self._hashed >= _HASH_BLOCK:
                self._changed.notify()
        if self._thread is None and offset - self._start > _HASH_BLOCK:
            self._thread = threading.Thread(target=self._run, name="hash", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Everything that has grown is hashed when this returns. Raises `StoreError` where it could not be read."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread:
            self._thread.join()
        else:
            self._run()
        if self._error:
            with store_errors("reading back a partial"):
                raise self._error

    def _run(self) -> None:
        # without a thread there is at most one block: no larger buffer than that
        size = _HASH_BLOCK if self._thread else min(_HASH_BLOCK, max(1, self._grown - self._hashed))
        buffer = memoryview(bytearray(size))
        while True:
            with self._changed:
                while self._grown - self._hashed < _HASH_BLOCK and not self._closed:
                    self._changed.wait()
                ready = self._grown - self._hashed
            if not ready:
                return
            try:
                read = os.preadv(self._descriptor, [buffer[: min(ready, len(buffer))]], self._hashed)
            except OSError as error:
                self._error = error
                return
            if not read:
                self._error = OSError(errno.EIO, os.strerror(errno.EIO))
                return
            self._hashing.update(buffer[:read])
            self._hashed += read


def _start_write_back(descriptor: int, start: int, length: int) -> None:
    """Ask the kernel to begin writing; it is only a hint, so its failure is nobody's."""
    if _sync_file_range is not None:
        _sync_file_range(descriptor, start, length, 2)


def _find_sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """Linux has it, the standard library does not."""
    try:
        found = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return None
    found.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    found.restype = ctypes.c_int
    return found


_sync_file_range = _find_sync_file_range()
