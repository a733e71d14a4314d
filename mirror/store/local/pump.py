"""Copies an upstream body into a file and hashes it: the work of a cold pull, off the event loop.

    socket ── splice through a pipe, or receive and write ──> file ──> followers send it
                                                               │
                                                               └────> hashed from the page cache, by a second thread

The calling thread moves the bytes. A second thread, started once there is more than one block, hashes the bytes that
are already in the file. Reading the file again for the hash costs less than passing buffers between the threads: such
buffers fall out of the processor's cache in between. A body that offers its plain socket is spliced, so its bytes
are copied into this process only for the hash. Other bodies (TLS, chunked) are received into one reused buffer.

The body of a push comes in pieces, as its bytes arrive (`GrowingEnd`). No thread waits while none arrive. While a
process receives many bodies at once (`Crowd`), a second thread for each gains nothing, and what it would read back has
left the processor's cache: then the receiving thread hashes what it has in its buffer. Sixteen pushes at once take a
quarter less of the processor like this; a single one takes as much, and longer.

Every few megabytes write-back is started, so that the `fsync` before a blob is published has little left to write; and
blocks of the disk are allocated for the bytes that come next, if the size of the whole is known. Otherwise the file
system counts and looks up blocks for each page on its own, which takes 0.1 s of the processor for each GiB. The size of
the file remains what has been written: followers rely on it. Blocks beyond the end go when the file goes on, or is
left or dropped.

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
from functools import cache
from typing import Final, cast

from mirror.errors import BlobDamaged, StoreError
from mirror.ports import Body, SupportsSplice
from mirror.store.local.durable import store_errors, write_all

#: Bytes. Measured: larger buffers fall out of the cache, smaller ones cost more system calls.
_RECEIVE: Final = 512 * 1024
_HASH_BLOCK: Final = 1 << 20
_PIPE: Final = 1 << 20
#: A piece that is received, written and hashed by one thread stays in the cache of its processor meanwhile.
_PIECE: Final = 256 << 10
#: Bodies that arrive at once in a process, up to which each has a thread of its own for the hash.
_FEW: Final = 2
#: After how many bytes write-back is started, and how many more blocks are allocated.
_STEP: Final = 8 << 20
#: FALLOC_FL_KEEP_SIZE, see fallocate(2).
_KEEP_SIZE: Final = 1

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
    end = GrowingEnd(descriptor, hashing, size=start, hashed=start, whole=limit)
    try:
        end.append(body, grown, limit=limit, skip=start - body.start)
    finally:
        end.finish()


def place(body: Body, descriptor: int, at: int, stop: Callable[[], int], grown: Callable[[int], None]) -> None:
    """Write the bytes of the body from its beginning on into the file, from offset `at` up to `stop()`, without a hash.

    The position of the descriptor is used: nobody else may share it. `grown` is called after each write with the
    offset behind it. Returns at `stop()`, which may become less meanwhile, or at the end of the body. Raises what the
    body raises, `StoreFull`, `StoreError`.
    """
    with store_errors("seeking in spans"):
        os.lseek(descriptor, at, os.SEEK_SET)

    def advance(offset: int) -> None:
        nonlocal at
        at = offset
        grown(offset)

    with _Splice() as splice:
        while at < stop():
            before = at
            # not more at once: `stop()` may become less
            splice.move(body, descriptor, at, min(stop(), at + _PIPE), advance)
            if at > before:
                continue
            received = _receive(body, at, None, min(_RECEIVE, stop() - at))
            if not received:
                break
            with store_errors("writing spans"):
                write_all(descriptor, received)
            advance(at + len(received))


class Crowd:
    """How many bodies a process receives at the moment. For any thread."""

    def __init__(self) -> None:
        self._count = 0
        self._changing = threading.Lock()

    def __repr__(self) -> str:
        return f"<Crowd of {self._count}>"

    @property
    def is_large(self) -> bool:
        """True while a second thread for each body would only wait for a processor."""
        return self._count > _FEW

    def __enter__(self) -> None:
        with self._changing:
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._changing:
            self._count -= 1


class GrowingEnd:
    """The end of a file to which bodies are appended, one after another or one in several pieces. The bytes are hashed
    behind. Not for several threads at once.

    append() … ──> finish(): all is hashed, and append() again
               └─> stop(): the bytes up to `hashed` are hashed, and no more
    """

    def __init__(
        self,
        descriptor: int,
        hashing: hashlib._Hash,
        *,
        size: int,
        hashed: int,
        whole: int | None = None,
        crowd: Crowd | None = None,
    ) -> None:
        """`size` bytes are in the file, of which `hashing` has had the first `hashed`. The rest is read from it. In
        the end it will have `whole` bytes; None: that is not known.

        `crowd` counts the bodies of all ends that share it. Without one, each body has a second thread.
        """
        self._descriptor = descriptor
        self._crowd = crowd or Crowd()
        self._behind = _HashBehind(descriptor, hashing, size, hashed)
        self._whole = whole
        self._written_back = size
        #: True if the file may be longer, because a write failed, or its position may be elsewhere.
        self._unsure = True
        #: Bytes that the body has given and that could not be written.
        self._unwritten = b""
        #: The size of the file in bytes.
        self.size = size

    def __repr__(self) -> str:
        return f"<GrowingEnd {self.size} B, {self.hashed} hashed>"

    @property
    def hashed(self) -> int:
        """How many bytes are hashed."""
        return self._behind.hashed

    def append(self, body: Body, grown: Callable[[int], None], *, limit: int | None, skip: int = 0) -> None:
        """Append the body without its first `skip` bytes, until it has no more. `limit` is the most bytes that the file
        may have; None if that is not known: then no byte is spliced.

        Raises what the body and `grown` raise, `StoreFull`, `StoreError`, and `BlobDamaged` beyond the limit and if the
        body ends before `skip`. After an error, the file may have more than `size` bytes. After `StoreFull`, call it
        again with the same body once there is room: what could not be written is in memory, and written first.
        """
        if self._unsure:
            with store_errors("seeking in a partial"):
                os.ftruncate(self._descriptor, self.size)
                os.lseek(self._descriptor, self.size, os.SEEK_SET)
        self._unsure = True
        self._allocate()

        def advance(offset: int, piece: bytes | memoryview | None = None) -> None:
            self.size = offset
            if piece is None:
                self._behind.grew(offset)
            else:
                self._behind.hash_now(piece, offset)
            grown(offset)
            if offset - self._written_back >= _STEP:
                _start_write_back(self._descriptor, self._written_back, offset - self._written_back)
                self._written_back = offset
                self._allocate()

        try:
            if self._unwritten:
                piece, self._unwritten = self._unwritten, b""
                self._write(piece, advance)
            skip_first(body, skip)
            with self._crowd, _Splice() as splice:
                try:
                    while True:
                        if alone := not self._crowd.is_large:
                            splice.move(body, self._descriptor, self.size, limit, advance)
                        elif splices := _spliceable(body):
                            # for a moment this waits for bytes, as `move` does
                            splices.plain_socket()
                        received = _receive(body, self.size, limit, _RECEIVE if alone else _PIECE)
                        if not received:
                            break
                        self._write(received, advance, hashed=not alone)
                finally:
                    self._unwritten += splice.unwritten
            self._unsure = False
        finally:
            self._behind.pause()

    def _write(self, piece: bytes | memoryview, advance: Callable[..., None], *, hashed: bool = False) -> None:
        try:
            with store_errors("writing a partial"):
                write_all(self._descriptor, piece)
        except StoreError:
            self._unwritten = bytes(piece)
            raise
        advance(self.size + len(piece), piece if hashed else None)

    def _allocate(self) -> None:
        """Allocate blocks for the bytes of the next step. Not for less than a step: small blobs would not gain."""
        # a step ends with a whole write, so it is longer than that
        ahead = min((self._whole or 0) - self.size, 2 * _STEP)
        if ahead >= _STEP:
            _allocate(self._descriptor, self.size, ahead)

    def finish(self) -> None:
        """Hash what is not hashed yet. Blocks as long as that takes. Raises `StoreError` if it cannot be read back."""
        self._behind.finish()

    def stop(self) -> None:
        """Hash nothing more; nothing can be appended any more. Raises nothing."""
        self._behind.stop()


def skip_first(body: Body, count: int) -> None:
    """Skip the first bytes of the body, because not every upstream honours a range request."""
    buffer = memoryview(bytearray(_RECEIVE)) if count else memoryview(b"")
    skipped = 0
    while skipped < count:
        received = body.readinto(buffer[: count - skipped])
        if not received:
            end = body.start + skipped
            raise BlobDamaged(f"the body ends after {end} bytes, of which {body.start + count} were here already")
        skipped += received


_buffers = threading.local()


def _receive(body: Body, offset: int, limit: int | None, most: int) -> memoryview:
    """Up to `most` bytes of the body, valid until the next call; empty at the end of the body."""
    buffer: memoryview | None = getattr(_buffers, "receive", None)
    if buffer is None:
        buffer = _buffers.receive = memoryview(bytearray(_RECEIVE))
    received = body.readinto(buffer[:most])
    if limit is not None and offset + received > limit:
        raise BlobDamaged(f"upstream sent more than the {limit} bytes that it announced")
    return buffer[:received]


@cache
def _may_splice(kind: type) -> bool:
    # once for each class: to compare an object with a protocol takes longer than to receive a small body
    return issubclass(kind, SupportsSplice)


def _spliceable(body: Body) -> SupportsSplice | None:
    return cast(SupportsSplice, body) if _may_splice(type(body)) else None


class _Splice:
    """Moves bytes from a socket to a file inside the kernel, as long as the body offers a socket."""

    def __init__(self) -> None:
        self._pipe: tuple[int, int] | None = None
        #: Bytes that were taken from the socket, and could not be written to the file.
        self.unwritten = b""

    def __enter__(self) -> _Splice:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pipe:
            os.close(self._pipe[0])
            os.close(self._pipe[1])

    def move(self, body: Body, descriptor: int, offset: int, limit: int | None, advance: Callable[[int], None]) -> None:
        """Splice as many bytes as possible, from `offset` of the file on; none if the body has nothing to splice.

        The caller continues with the body's `readinto`, which finds the end of the body or raises its error.
        """
        splices = _spliceable(body)
        if splices is None or limit is None:
            return
        while (offered := splices.plain_socket()) and offset < limit:
            socket, there = offered
            count = min(there, limit - offset, _PIPE)
            if not count or not self._open():
                return
            taken = self._take(socket, count)
            if not taken:
                return
            put, error = self._put(descriptor, taken)
            if error:
                self._save(taken - put)
            # also if the disk has failed: a connection that goes on after that has to know where the body ends
            splices.advance(taken)
            if put:
                offset += put
                advance(offset)
            if error:
                with store_errors("writing a partial"):
                    raise error

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

    def _put(self, descriptor: int, count: int) -> tuple[int, OSError | None]:
        """Splice all `count` bytes from the pipe into the file. Returns how many are there, and why no more."""
        done = 0
        while self._pipe and done < count:
            try:
                put = os.splice(self._pipe[0], descriptor, count - done, flags=_MOVE)
            except OSError as error:
                return done, error
            if not put:
                return done, OSError(errno.EIO, os.strerror(errno.EIO))
            done += put
        return done, None

    def _save(self, count: int) -> None:
        """Take the `count` bytes that are left in the pipe, which would be lost with it."""
        with store_errors("reading back a pipe"):
            while self._pipe and len(self.unwritten) < count:
                self.unwritten += os.read(self._pipe[0], count - len(self.unwritten))


class _HashBehind:
    """Hashes a growing file up to its current size: in a thread of its own while it is more than a block behind.

    The thread ends when it has caught up while nothing is appended, so that a slow upload costs no thread. What it
    leaves, less than a block, is hashed by `finish`, or by the next thread.
    """

    def __init__(self, descriptor: int, hashing: hashlib._Hash, size: int, hashed: int) -> None:
        self._descriptor = descriptor
        self._hashing = hashing
        self._grown = size
        #: How many bytes are hashed.
        self.hashed = hashed
        #: Guards the attributes below, and is notified when the thread has something to do.
        self._changed = threading.Condition()
        self._growing = False
        self._stopped = False
        self._error: OSError | None = None
        self._thread: threading.Thread | None = None

    def grew(self, size: int) -> None:
        """The file has `size` bytes now, and grows on."""
        with self._changed:
            self._growing = True
            self._grown = size
            behind = size - self.hashed
            # the thread hashes whole blocks; waking it for less would only cost context switches
            if behind >= _HASH_BLOCK:
                self._changed.notify()
            if behind <= _HASH_BLOCK or self._thread or self._error or self._stopped:
                return
            self._thread = threading.Thread(target=self._run, name="hash", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            # the process may have no more threads: this one hashes at the end, or another is begun later
            with self._changed:
                self._thread = None

    def hash_now(self, piece: bytes | memoryview, size: int) -> None:
        """The file has `size` bytes now, of which `piece` are the last: hashes them in this thread. Raises `StoreError`
        like `finish`.
        """
        self.finish()
        self._hashing.update(piece)
        self._grown = self.hashed = size

    def pause(self) -> None:
        """The file does not grow for now. Does not wait for the thread."""
        with self._changed:
            self._growing = False
            self._changed.notify()

    def finish(self) -> None:
        """Hash the rest of the file. Raises `StoreError` if the file could not be read back."""
        self.pause()
        self._join()
        rest = self._grown - self.hashed
        if rest and not self._error:
            buffer = memoryview(bytearray(min(_HASH_BLOCK, rest)))
            while self.hashed < self._grown and self._hash_block(buffer):
                pass
        if self._error:
            with store_errors("reading back a partial"):
                raise self._error

    def stop(self) -> None:
        """Hash no more."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._join()

    def _join(self) -> None:
        with self._changed:
            thread = self._thread
        if thread:
            thread.join()

    def _run(self) -> None:
        buffer = memoryview(bytearray(_HASH_BLOCK))
        while self._has_block() and self._hash_block(buffer):
            pass

    def _has_block(self) -> bool:
        """Wait for a whole block to hash. False if there will be none: the thread ends."""
        with self._changed:
            while self._growing and not self._stopped and self._grown - self.hashed < _HASH_BLOCK:
                self._changed.wait()
            if not self._stopped and self._grown - self.hashed >= _HASH_BLOCK:
                return True
            self._thread = None
            return False

    def _hash_block(self, buffer: memoryview) -> bool:
        """False if the bytes could not be read back."""
        try:
            read = os.preadv(self._descriptor, [buffer[: self._grown - self.hashed]], self.hashed)
        except OSError as error:
            self._error = error
            return False
        if not read:
            self._error = OSError(errno.EIO, os.strerror(errno.EIO))
            return False
        self._hashing.update(buffer[:read])
        self.hashed += read
        return True


def _start_write_back(descriptor: int, start: int, length: int) -> None:
    """Ask the kernel to start writing this range to disk. This is only a hint, so a failure is ignored."""
    if _sync_file_range is not None:
        _sync_file_range(descriptor, start, length, 2)


def _allocate(descriptor: int, start: int, length: int) -> None:
    """Allocate blocks for this range, and keep the size of the file. A failure is ignored: not every file system can do
    it, and a full disk shows when the bytes are written.
    """
    if _fallocate is not None:
        _fallocate(descriptor, _KEEP_SIZE, start, length)


def _of_the_c_library(name: str, *arguments: type[ctypes._SimpleCData[int]]) -> Callable[..., int] | None:
    """A function that Python's standard library does not offer; None if there is none."""
    try:
        function = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
    function.argtypes = arguments
    function.restype = ctypes.c_int
    return cast(Callable[..., int], function)


_sync_file_range = _of_the_c_library("sync_file_range", ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
# not Python's `posix_fallocate`: that changes the size, and writes zeros where the file system cannot do it
_fallocate = _of_the_c_library("fallocate64", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
