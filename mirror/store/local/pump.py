"""Copies an upstream body into a file and hashes it: the work of a cold pull, off the event loop.

    socket ── splice through a pipe, or receive and write ──> file ──> followers send it
                                                               │
                                                               └────> hashed from the page cache, by a second thread

The calling thread moves the bytes. A second thread, started once there is more than one block, hashes the bytes that
are already in the file. Reading the file again for the hash costs less than passing buffers between the threads: such
buffers fall out of the processor's cache in between. A body that offers its plain socket is spliced, so its bytes
are copied into this process only for the hash. Other bodies (TLS, chunked) are received into one reused buffer.

Write-back is started every few megabytes, so that the `fsync` before a blob is published has little left to write.

Followers may read bytes before they are hashed. They withhold the end of the blob until the digest is verified.
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

#: Bytes. Measured: larger buffers fall out of the cache, smaller ones cost more system calls.
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
    """Append to the file all bytes of the body beyond offset `start`, and hash them, until the body ends.

    `grown` is called after each write with the new size in bytes. Raises what the body raises, `StoreFull`,
    `StoreError`, and `BlobDamaged` if the body begins after `start`, ends before it, or has more than `limit` bytes.
    After an error, all bytes up to the last size passed to `grown` are in the file and hashed.
    """
    if body.start > start:
        raise BlobDamaged(f"the body begins at {body.start}, beyond the {start} bytes that are here")
    with store_errors("seeking in a partial"):
        # a failed write may have left bytes beyond `start`
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
    """Skip the body's bytes before `start`, because not every upstream honours a range request; returns `start`."""
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
    """Write one buffer of the body to the file; returns its size in bytes, 0 at the end of the body."""
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
    """Moves bytes from a socket to a file inside the kernel, as long as the body offers a socket."""

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
        """Splice as many bytes as possible; returns their number, 0 if the body has nothing to splice.

        The caller continues with the body's `readinto`, which finds the end of the body or raises its error.
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
                # the kernel refuses if the user's limit of pipe memory is reached; a smaller pipe only costs more calls
                fcntl.fcntl(self._pipe[1], fcntl.F_SETPIPE_SZ, _PIPE)
        return True

    def _take(self, socket: int, count: int) -> int:
        """Splice from the socket into the pipe; returns the number of bytes, 0 at the end of the socket or on an error.

        The body's `readinto` then meets the same end or error.
        """
        if self._pipe is None:
            return 0
        try:
            # blocks until the first bytes arrive, at most for the socket's timeout, which the body sets
            return os.splice(socket, self._pipe[1], count, flags=_MOVE)
        except OSError:
            return 0

    def _put(self, descriptor: int, count: int) -> None:
        """Splice all `count` bytes from the pipe into the file; bytes left in the pipe would be lost."""
        if self._pipe is None:
            return
        with store_errors("writing a partial"):
            while count:
                put = os.splice(self._pipe[0], descriptor, count, flags=_MOVE)
                if not put:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                count -= put


class _HashBehind:
    """Hashes a growing file up to its current size. A file of more than one block is hashed in a separate thread."""

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
            # the thread hashes whole blocks; waking it for less would only cost context switches
            if self._grown - self._hashed >= _HASH_BLOCK:
                self._changed.notify()
        if self._thread is None and offset - self._start > _HASH_BLOCK:
            self._thread = threading.Thread(target=self._run, name="hash", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Hash the rest of the file and end the thread. Raises `StoreError` if the file could not be read back."""
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
        # without a thread there is at most one block to hash: the buffer need not be larger
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
    """Ask the kernel to start writing this range to disk. This is only a hint, so a failure is ignored."""
    if _sync_file_range is not None:
        _sync_file_range(descriptor, start, length, 2)


def _find_sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """The C library's `sync_file_range`, which Python's standard library does not offer; None if there is none."""
    try:
        function = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    function.restype = ctypes.c_int
    return function


_sync_file_range = _find_sync_file_range()
