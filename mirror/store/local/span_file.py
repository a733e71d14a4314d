"""Bytes of a growing blob that came out of turn, in files beside it:

    <name>          the growing blob itself: a prefix of the blob, without holes (`blobs.LocalIngest`)
    <name>.spans    a sparse file of the size of the blob: bytes out of turn, at their own offsets
    <name>.map      which blocks of `.spans` are here: a header, and one byte for each block
    <name>.served   who was given unverified bytes (`beside/served_notes.py`)

The life of a block:

    absent ── its byte in the map is locked ──> claimed ── bytes in `.spans`, then a mark in the map ──> here ──> synced
      ^                                            │                                                       │         │
      ├── released, or the process died ───────────┘                                                       │         │
      └── punched, because the prefix has the bytes: the mark first, then a hole in `.spans` ──────────────┴─────────┘

A claim is a lock on an open file description (fcntl(2), F_OFD_SETLK), so the kernel ends it with its process, and it
also keeps the threads of one process apart. Whoever reads a block has a shared lock on its byte of the map meanwhile:
nobody can punch it then. Whoever reads for a client has a shared lock on the byte behind the map as well, also between
two pieces.

The map says "here" only of bytes that are in `.spans`: nobody is ever given a hole. If the machine stops, what was not
synced may be lost, so after its next boot only synced blocks count; if a sync fails, all are dropped. Whenever the pair
is opened, blocks that are holes for the file system do not count: a power cut may leave the hole on the disk, and not
the byte of the map that was written before it.

The pair of `.map` and `.spans` belongs together by the inode of `.spans`, which is in the header. The kernel gives the
inode of a deleted file to another one. So `.map` is dropped first, and a `.spans` that had to be made gets a new map.
Both are made, and dropped, under a lock of the map's header. A pair that does not fit is never begun anew in place, but
dropped: whoever still has it open writes to files without names.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from mirror.errors import BlobDamaged, StoreError, UpstreamInvalid, UpstreamUnavailable
from mirror.folders import sync_folder
from mirror.oci.span import Span
from mirror.policy.fills.span_blocks import (
    ABSENT,
    BLOCK,
    HERE,
    MOST_BYTES,
    SYNCED,
    block_count,
    blocks_before,
    blocks_of,
    bytes_of,
    cut,
    runs,
    without,
)
from mirror.ports import BlobReader, Body
from mirror.store.local.beside.served_notes import note_served, read_served, sync_served
from mirror.store.local.durable import closed_on_error, is_named, store_errors
from mirror.store.local.ingest_state import boot_id
from mirror.store.local.layout import earlier_of, map_of, served_of, spans_of
from mirror.store.local.pump import place, skip_first

_HEADER: Final = struct.Struct("<8sqQ16s24x")
_MAGIC: Final = b"spans\x00\x00\x01"
#: `struct flock` of 64-bit Linux: type, whence, start, length, process.
_LOCK: Final = struct.Struct("hhqqi4x")
_FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC

#: How often, and with which pause in seconds, a lock of a few system calls is asked for.
_TRIES: Final = 100
_PAUSE: Final = 0.005

#: Bytes that are compared in one go.
_COMPARED: Final = 1 << 20

_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2


def open_spans(ingest: Path, registry: str, size: int | None) -> SpanFile | None:
    """The spans of the growing blob whose file is `ingest`, which `registry` sends; see `BlobIngester.spans`.

    Raises `StoreFull`, `StoreError`.
    """
    if size is not None and not 0 < size <= MOST_BYTES:
        return None
    with store_errors("opening spans"):
        return _open(ingest, registry, size)


def _open(ingest: Path, registry: str, size: int | None) -> SpanFile | None:
    path = map_of(ingest)
    for _ in range(_TRIES):
        try:
            descriptor = os.open(path, _FLAGS | (os.O_CREAT if size is not None else 0), 0o600)
        except FileNotFoundError:
            return None
        data = -1
        try:
            if _lock_pair(descriptor) and is_named(descriptor, path):
                there = _read_header(descriptor)
                if there is not None:
                    data = _open_data(ingest, there)
                    if data >= 0 and size not in (None, there[0]):
                        return None
                if data >= 0 and there is not None:
                    _check_map(descriptor, data, there)
                elif there is None and size is not None and not os.fstat(descriptor).st_size:
                    data = _make(ingest, descriptor, size)
                else:
                    # torn, or without its bytes
                    _unlink(ingest)
                if data >= 0:
                    _unlock_pair(descriptor)
                    whole = size if size is not None else there[0] if there else 0
                    made = SpanFile(ingest, registry, whole, descriptor, data, os.fstat(data).st_ino)
                    descriptor = data = -1
                    return made
        finally:
            for each in (descriptor, data):
                if each >= 0:
                    os.close(each)
    raise StoreError("opening spans: other processes change them again and again")


def _lock_pair(descriptor: int) -> bool:
    """Take the lock of the pair. Raises `StoreError` if another process has it for so long that it must hang."""
    # of the header's bytes: on NFS, a flock would meet the locks of all claims
    wanted = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, _HEADER.size, 0)
    for _ in range(_TRIES):
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)
            return True
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        time.sleep(_PAUSE)
    raise StoreError("opening spans: another process holds their lock")


def _unlock_pair(descriptor: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _LOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, _HEADER.size, 0))


def _read_header(descriptor: int) -> tuple[int, int, bytes] | None:
    """Size of the blob, inode of `.spans` and boot, from a whole map; None if it is not one."""
    raw = os.pread(descriptor, _HEADER.size, 0)
    if len(raw) != _HEADER.size:
        return None
    magic, size, inode, boot = _HEADER.unpack(raw)
    if magic != _MAGIC or not 0 < size <= MOST_BYTES:
        return None
    whole = os.fstat(descriptor).st_size == _HEADER.size + block_count(size)
    return (size, inode, boot) if whole else None


def _open_data(ingest: Path, header: tuple[int, int, bytes]) -> int:
    """A descriptor of the `.spans` that belongs to the map; -1 if there is none."""
    try:
        data = os.open(spans_of(ingest), _FLAGS)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.EISDIR):
            return -1
        raise
    with closed_on_error(data):
        status = os.fstat(data)
    if stat.S_ISREG(status.st_mode) and (status.st_size, status.st_ino) == header[:2]:
        return data
    os.close(data)
    return -1


def _make(ingest: Path, descriptor: int, size: int) -> int:
    """Begin a new pair, whose empty map is open and locked. Returns the descriptor of the new `.spans`."""
    with suppress(FileNotFoundError):
        os.unlink(spans_of(ingest))
    data = os.open(spans_of(ingest), _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.ftruncate(data, size)
        header = _HEADER.pack(_MAGIC, size, os.fstat(data).st_ino, boot_id())
        # every byte is written: a mark that needs a block of the disk could fail later
        _pwrite(descriptor, header + bytes(block_count(size)), 0)
    except BaseException:
        os.close(data)
        with suppress(OSError):
            _unlink(ingest)
        raise
    return data


def _pwrite(descriptor: int, content: bytes, at: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written


def _check_map(descriptor: int, data: int, header: tuple[int, int, bytes]) -> None:
    """Take from a map the blocks that are not on the disk: see the head of this file. Needs the lock of the pair."""
    size, inode, boot = header
    states = os.pread(descriptor, block_count(size), _HEADER.size)
    is_same_boot = boot == boot_id()
    if not is_same_boot:
        # nobody else has it open yet
        states = bytes(state if state == SYNCED else ABSENT for state in states)
        _pwrite(descriptor, states, _HEADER.size)
    for run in runs(states, 0):
        for hole in _holes(data, bytes_of(run, size)):
            missing = blocks_of(hole, size)
            _pwrite(descriptor, bytes(len(missing)), _HEADER.size + missing.start)
    if not is_same_boot:
        _pwrite(descriptor, _HEADER.pack(_MAGIC, size, inode, boot_id()), 0)


def _holes(data: int, within: Span) -> Iterator[Span]:
    """The holes of the file in these bytes."""
    at = within.start
    while at < within.stop:
        hole = os.lseek(data, at, os.SEEK_HOLE)
        if hole >= within.stop:
            return
        try:
            at = os.lseek(data, hole, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            at = within.stop
        yield Span(hole, min(at, within.stop))


def _unlink(ingest: Path) -> None:
    """Drop the pair. The map first: what is left of a crash in between is a `.spans` that nobody believes."""
    for path in (map_of(ingest), spans_of(ingest)):
        with suppress(FileNotFoundError):
            os.unlink(path)


def drop_spans(ingest: Path) -> bool:
    """Drop whatever files of this kind are beside the growing blob. True if there were any. Raises `OSError`."""
    found = False
    for path in (map_of(ingest), spans_of(ingest), served_of(ingest), earlier_of(ingest)):
        with suppress(FileNotFoundError):
            os.unlink(path)
            found = True
    return found


def disk_space(spans: str) -> int:
    """The bytes that a `.spans` takes on the disk, which are fewer than its size; 0 if there is none."""
    try:
        return os.lstat(spans).st_blocks * 512
    except OSError:
        return 0


class _RangeLock:
    """An open file description of a map, and the lock that it has on some blocks."""

    def __init__(self, path: Path) -> None:
        """Not locked yet. Raises `OSError`."""
        self._path = path
        self.descriptor = os.open(path, _FLAGS)

    def __repr__(self) -> str:
        return f"<_RangeLock {self._path.name[:24]} {'open' if self.descriptor >= 0 else 'closed'}>"

    def lock(self, blocks: range, kind: int) -> bool:
        """Lock the blocks, for `fcntl.F_WRLCK` or `F_RDLCK`; or give them back: `F_UNLCK`. False if another one has
        any of them. Raises `OSError`.
        """
        if not blocks:
            return True
        wanted = _LOCK.pack(kind, os.SEEK_SET, _HEADER.size + blocks.start, len(blocks), 0)
        try:
            fcntl.fcntl(self.descriptor, fcntl.F_OFD_SETLK, wanted)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class SpanFile:
    """`Spans` of one growing blob. Made by `open_spans`."""

    def __init__(self, ingest: Path, registry: str, size: int, descriptor: int, data: int, inode: int) -> None:
        """`descriptor` and `data` are those of the map and of the bytes; they are closed by `close`. `inode` is that of
        the bytes.
        """
        self.size: Final = size
        self.registry: Final = registry
        self._ingest = ingest
        self._map = map_of(ingest)
        self._descriptor = descriptor
        self._data = data
        self._inode = inode

    def __repr__(self) -> str:
        return f"<SpanFile {self._ingest.name[:24]} of {self.size} bytes{'' if self._data >= 0 else ', closed'}>"

    @property
    def in_place(self) -> bool:
        try:
            return is_named(self._descriptor, self._map)
        except OSError:
            return False

    def here(self, wanted: Span) -> Sequence[Span]:
        blocks = blocks_of(wanted, self.size)
        with store_errors("reading a map of spans"):
            states = self.states(blocks)
        found = (cut(bytes_of(run, self.size), wanted) for run in runs(states, blocks.start))
        return [span for span in found if span]

    def states(self, blocks: range) -> bytes:
        """The states of these blocks. Raises `OSError`."""
        return os.pread(self._descriptor, len(blocks), _HEADER.size + blocks.start)

    def taken(self, wanted: Span) -> Sequence[Span]:
        blocks = blocks_of(wanted, self.size)
        with store_errors("reading a map of spans"):
            locked = list(self._locked(blocks))
            # in this order: a block that comes in between is not taken, and here
            states = self.states(blocks)
        if not locked:
            return []
        there = list(runs(states, blocks.start))
        found = (
            cut(bytes_of(run, self.size), wanted)
            for each in sorted(locked, key=lambda one: one.start)
            for run in without(each, there)
        )
        return [span for span in found if span]

    def _locked(self, blocks: range) -> Iterator[range]:
        """The blocks that anybody has claimed, in no order."""
        waiting = [blocks]
        while waiting:
            asked = waiting.pop()
            if not asked:
                continue
            question = _LOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, _HEADER.size + asked.start, len(asked), 0)
            kind, _, start, length, _ = _LOCK.unpack(fcntl.fcntl(self._descriptor, fcntl.F_OFD_GETLK, question))
            if kind == fcntl.F_UNLCK:
                continue
            first = max(asked.start, start - _HEADER.size)
            # a length of 0: up to the end
            last = asked.stop if not length else min(asked.stop, start - _HEADER.size + length)
            yield range(first, last)
            waiting += [range(asked.start, first), range(last, asked.stop)]

    def claim(self, wanted: Span) -> SpanClaim | None:
        blocks = blocks_of(wanted, self.size)
        with store_errors("claiming spans"):
            for _ in range(_TRIES):
                free = self._first_free(blocks)
                if not free:
                    return None
                if claim := self._try_claim(free):
                    return claim
        raise StoreError("claiming spans: others claim them again and again")

    def _first_free(self, blocks: range) -> range:
        locked = list(self._locked(blocks))
        states = self.states(blocks)
        for run in runs(states, blocks.start, absent=True):
            for free in without(run, locked):
                return free
        return range(0)

    def _try_claim(self, free: range) -> SpanClaim | None:
        """A claim of the first of these blocks that are free; None if another one was faster."""
        with ExitStack() as stack:
            lock = self._range_lock(stack)
            if not lock.lock(free, fcntl.F_WRLCK):
                return None
            if not self.in_place:
                raise StoreError("claiming spans: they were dropped")
            # somebody may have claimed and filled some of them since they were looked at
            absent = next(runs(self.states(free), free.start, absent=True), range(0))
            if not absent:
                return None
            lock.lock(range(free.start, absent.start), fcntl.F_UNLCK)
            lock.lock(range(absent.stop, free.stop), fcntl.F_UNLCK)
            claim = SpanClaim(self.registry, self.size, lock, self._open_data(), absent)
            stack.pop_all()
            return claim

    def _range_lock(self, stack: ExitStack) -> _RangeLock:
        """Locks of this map, closed at the end of the stack. Raises `StoreError` if the map was dropped."""
        lock = _RangeLock(self._map)
        stack.callback(lock.close)
        if not _is_same(lock.descriptor, self._descriptor):
            raise StoreError("opening spans: they were dropped")
        return lock

    def _open_data(self) -> int:
        """An open file description of `.spans` that nobody shares: splice(2) uses its position."""
        with closed_on_error(os.open(spans_of(self._ingest), _FLAGS)) as data:
            if os.fstat(data).st_ino != self._inode:
                raise StoreError("opening spans: they were dropped")
        return data

    def use(self, *, used: bool) -> None:
        with store_errors("using spans"):
            wanted = _LOCK.pack(fcntl.F_RDLCK if used else fcntl.F_UNLCK, os.SEEK_SET, self._behind_map, 1, 0)
            fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, wanted)

    def is_used(self) -> bool:
        """True if another open pair is in use: see `use`. Raises `StoreError`."""
        question = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, self._behind_map, 1, 0)
        with store_errors("reading a map of spans"):
            answer = fcntl.fcntl(self._descriptor, fcntl.F_OFD_GETLK, question)
        return bool(_LOCK.unpack(answer)[0] != fcntl.F_UNLCK)

    @property
    def _behind_map(self) -> int:
        return _HEADER.size + block_count(self.size)

    def is_idle(self) -> bool:
        """True if nobody has claimed anything. Raises `StoreError`."""
        with store_errors("reading a map of spans"):
            return not any(self._locked(range(block_count(self.size))))

    def are_of(self, blob: BlobReader) -> bool:
        for run in self.here(Span(0, self.size)):
            for at in range(run.start, run.stop, _COMPARED):
                piece = Span(at, min(run.stop, at + _COMPARED))
                reader = self.open(piece)
                if reader is None:
                    continue
                try:
                    if reader.pread(piece.length, at) != blob.pread(piece.length, at):
                        return False
                finally:
                    reader.close()
        return True

    def count(self) -> int:
        return sum(span.length for span in self.here(Span(0, self.size)))

    def open(self, wanted: Span) -> SpanReader | None:
        blocks = blocks_of(wanted, self.size)
        if not blocks:
            return None
        with store_errors("opening spans"), ExitStack() as stack:
            lock = self._range_lock(stack)
            # in this order: once the lock is there, nobody punches what is here
            if not lock.lock(blocks, fcntl.F_RDLCK) or ABSENT in self.states(blocks):
                return None
            reader = SpanReader(self._open_data(), lock)
            stack.pop_all()
            return reader

    def sync(self) -> None:
        with store_errors("syncing spans"), ExitStack() as stack:
            lock = self._range_lock(stack)
            # nobody punches them before they are marked; what is just being punched stays as it is
            fresh = [run for run in self._fresh() if lock.lock(run, fcntl.F_RDLCK)]
            still = [run for run in self._fresh() if any(_is_within(run, locked) for locked in fresh)]
            # the bytes first, which takes the longest, then who was sent some until now, then that they are here
            if still:
                self._sync_data()
            sync_served(self._ingest)
            sync_folder(self._ingest.parent)
            if not still:
                return
            for run in still:
                _pwrite(self._descriptor, bytes([SYNCED]) * len(run), _HEADER.size + run.start)
            os.fdatasync(self._descriptor)

    def _sync_data(self) -> None:
        try:
            os.fdatasync(self._data)
        except OSError:
            # the kernel may have dropped what it could not write: another sync that succeeds would prove nothing
            with suppress(StoreError):
                self.drop()
            raise

    def _fresh(self) -> list[range]:
        """The runs of blocks that are here, and not synced."""
        states = self.states(range(block_count(self.size)))
        return list(runs(bytes(state if state == HERE else ABSENT for state in states), 0))

    def punch(self, done: Span) -> None:
        blocks = blocks_before(done, self.size)
        if not blocks:
            return
        with suppress(OSError, StoreError), ExitStack() as stack:
            if not self._range_lock(stack).lock(blocks, fcntl.F_WRLCK):
                return
            states = self.states(blocks)
            if not any(states):
                return
            _pwrite(self._descriptor, bytes(len(blocks)), _HEADER.size + blocks.start)
            if SYNCED in states:
                # otherwise the hole could reach the disk before the map
                os.fdatasync(self._descriptor)
            _punch(self._data, blocks.start * BLOCK, len(blocks) * BLOCK)

    def note_served(self, line: Mapping[str, object]) -> None:
        note_served(self._ingest, {"upstream": self.registry, **line})

    def served(self) -> Sequence[Mapping[str, object]]:
        return read_served(self._ingest)

    def drop(self) -> None:
        with store_errors("dropping spans"):
            # nobody makes a new pair, or drops this one, meanwhile
            _lock_pair(self._descriptor)
            try:
                if self.in_place:
                    drop_spans(self._ingest)
            finally:
                _unlock_pair(self._descriptor)

    def close(self) -> None:
        descriptors, self._descriptor, self._data = (self._descriptor, self._data), -1, -1
        for descriptor in descriptors:
            if descriptor >= 0:
                os.close(descriptor)

    def __del__(self) -> None:
        self.close()


class SpanClaim:
    """`Claim` of some blocks. One thread fills; any may `cut`."""

    def __init__(self, registry: str, size: int, lock: _RangeLock, data: int, blocks: range) -> None:
        """`lock` holds the blocks; `data` is an own open file description of `.spans`. Both are closed by `release`."""
        self._registry = registry
        self._size = size
        self._lock = lock
        self._data = data
        self._blocks = blocks
        #: The next block that is not whole.
        self._next = blocks.start
        self.offset = bytes_of(blocks, size).start

    def __repr__(self) -> str:
        return f"<SpanClaim {self.span.start}-{self.span.stop} at {self.offset}>"

    @property
    def span(self) -> Span:
        return bytes_of(self._blocks, self._size)

    def fill(self, body: Body, grown: Callable[[int], None]) -> None:
        if body.size not in (None, self._size):
            raise UpstreamInvalid(
                f"upstream says that the blob has {body.size} bytes, not {self._size}", upstream=self._registry
            )
        if body.start > self.offset:
            raise BlobDamaged(f"the body begins at {body.start}, beyond byte {self.offset}, which was asked for")

        def received(offset: int) -> None:
            self.offset = offset
            self._mark(offset)
            grown(offset)

        if self.offset < self.span.stop:
            skip_first(body, self.offset - body.start)
            place(body, self._data, self.offset, lambda: self.span.stop, received)
        if self.offset < self.span.stop:
            raise UpstreamUnavailable(
                f"the body broke off at byte {self.offset} of {self._size}: {self.span.stop} was asked for",
                upstream=self._registry,
            )

    def _mark(self, offset: int) -> None:
        # a block behind a cut is not ours any more, even if it has come
        whole = min(block_count(offset) if offset == self._size else offset // BLOCK, self._blocks.stop)
        if whole > self._next:
            with store_errors("marking a span"):
                _pwrite(self._lock.descriptor, bytes([HERE]) * (whole - self._next), _HEADER.size + self._next)
                # in this order: at every moment the block is claimed or here
                self._lock.lock(range(self._next, whole), fcntl.F_UNLCK)
            self._next = whole

    def cut(self) -> None:
        start, stop = self._blocks.start, self._blocks.stop
        end = max(start, min(stop, block_count(self.offset)))
        self._blocks = range(start, end)
        if self._lock.descriptor >= 0:
            with suppress(OSError):
                self._lock.lock(range(end, stop), fcntl.F_UNLCK)

    def release(self) -> None:
        data, self._data = self._data, -1
        if data >= 0:
            os.close(data)
        self._lock.close()

    def __del__(self) -> None:
        self.release()


class SpanReader:
    """Reads bytes that are here, and keeps them there until it is closed."""

    def __init__(self, data: int, lock: _RangeLock) -> None:
        self._data = data
        self._lock = lock

    def __repr__(self) -> str:
        return f"<SpanReader {self._data}>"

    def fileno(self) -> int:
        return self._data

    def pread(self, size: int, offset: int) -> bytes:
        with store_errors("reading spans"):
            return os.pread(self._data, size, offset)

    def close(self) -> None:
        data, self._data = self._data, -1
        if data >= 0:
            os.close(data)
        self._lock.close()

    def __del__(self) -> None:
        self.close()


def _is_same(one: int, other: int) -> bool:
    """True if both descriptors are of one file."""
    first, second = os.fstat(one), os.fstat(other)
    return (first.st_ino, first.st_dev) == (second.st_ino, second.st_dev)


def _is_within(run: range, other: range) -> bool:
    return other.start <= run.start and run.stop <= other.stop


def _punch(descriptor: int, start: int, length: int) -> None:
    """Give this range of a file back to the disk, if the file system can do that."""
    if _fallocate is not None:
        _fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, start, length)


def _find_fallocate() -> Callable[[int, int, int, int], int] | None:
    """The C library's `fallocate`, of which Python has only the POSIX part; None if there is none."""
    try:
        function = ctypes.CDLL(None).fallocate
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    function.restype = ctypes.c_int
    return function


_fallocate = _find_fallocate()
