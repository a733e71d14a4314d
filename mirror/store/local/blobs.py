"""Blobs on the local disk. The life of a blob, and what a crash leaves at each step:

    ingest()   opens ingest/<name>                      nothing, or an empty file: swept
    try_lock() flocks it: this process is the filler    the kernel releases the lock
    resume()   hashes the bytes that are there
    fill()     writes and hashes                        a partial: resumed in the same boot, else swept
    verify()   compares the hash with the digest        a partial; without a match it is never published
    commit()   1 fsync the file                         a partial
               2 make it read-only
               3 rename to blobs/<…>                    either name, with all bytes (without step 1: maybe zeros)
               4 fsync the folder                       the blob
               5 drop the state file                    a stray state file: swept

A blob gets a name under `blobs/` only after it was verified, so start-up trusts every file there. If an fsync or the
rename fails, the file is discarded: after a failed fsync the kernel may have dropped the dirty pages, and a second
fsync that succeeds proves nothing.

Each registry has its own growing file for a digest, so that no registry can corrupt the bytes of another. The final
name is shared: the first file that is verified is published, and a later one replaces it with the same bytes.

The lock is on the file, not on its name. After `commit` or `restart` the name no longer leads to the locked file, so a
lock is valid only while the name leads to the file that is locked; `try_lock` checks that.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import secrets
import stat as modes
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from mirror.errors import BlobDamaged, BlobUnknown, BlobUnreadable, StoreError, reason_of
from mirror.folders import sync_folder, whose
from mirror.oci.digest import HEX_LENGTHS, Digest, hasher
from mirror.policy.quarantine_limits import QuarantinedBlob
from mirror.ports import BlobInfo, BlobReader, Body, Deleted, Growth, Prefix, SupportsFileno
from mirror.store.local import quarantine
from mirror.store.local.beside.served_notes import read_served
from mirror.store.local.durable import (
    ABSENT_ERRNOS,
    PendingSyncs,
    StoreErrors,
    make_folder,
    store_errors,
    write_whole,
)
from mirror.store.local.ingest_state import GrowthState, boot_id, read_state, write_state
from mirror.store.local.layout import LAYOUT, Layout, avoided_of, digest_of_ingest, map_of, state_of
from mirror.store.local.locks import is_locked, locked
from mirror.store.local.pump import pump
from mirror.store.local.span_file import SpanFile, disk_space, drop_spans, open_spans
from mirror.store.records.record_keys import digest_from

_BLOCK: Final = 1 << 20
_SPANS: Final = ".spans"
#: A digest, where only the registry of a growing blob is of interest.
_ANY: Final = Digest.of(b"")
#: Not every C library has preadv2.
_NOWAIT: Final[int] = getattr(os, "RWF_NOWAIT", 0)


class LocalReader:
    """The open file of a blob. Several senders may share it, because every read gives its own offset."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def pread(self, size: int, offset: int) -> bytes:
        with _reading("reading a blob"):
            return os.pread(self._descriptor, size, offset)

    def pread_once(self, size: int, offset: int) -> bytes:
        with _reading("reading a blob"):
            # no read-ahead: its pages would stay in the cache, and look like pages that other readers asked for
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            cached = _pread_cached(self._descriptor, size, offset)
            if cached:
                return cached
            piece = os.pread(self._descriptor, size, offset)
            os.posix_fadvise(self._descriptor, offset, len(piece), os.POSIX_FADV_DONTNEED)
        return piece

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()


class _reading(StoreErrors):
    """Raises `BlobUnreadable` if the disk fails to read (EIO), `StoreFull` or `StoreError` for any other `OSError`."""

    __slots__ = ()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, OSError) and error.errno == errno.EIO:
            raise BlobUnreadable(f"{self._what}: {reason_of(error)}") from error
        super().__exit__(kind, error, traceback)


def _pread_cached(descriptor: int, size: int, offset: int) -> bytes:
    """The bytes from `offset` on that are in the page cache; empty if there are none or preadv2(2) is not supported."""
    if not _NOWAIT:
        return b""
    buffer = bytearray(size)
    try:
        return bytes(memoryview(buffer)[: os.preadv(descriptor, [buffer], offset, _NOWAIT)])
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
            return b""
        raise


class LocalStore:
    """`BlobStore` on one directory, shared by any number of processes."""

    def __init__(self, layout: Layout) -> None:
        """Raises `StoreError` if the root cannot be used or has another layout."""
        self.layout = layout
        self._unsynced = PendingSyncs()
        self._quarantined: tuple[int | None, Sequence[QuarantinedBlob]] = None, ()
        try:
            with store_errors(f"opening the store at {layout.root}"):
                layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
                for folder in (layout.blobs, layout.ingests, layout.quarantine, layout.locks, layout.repositories):
                    folder.mkdir(mode=0o700, exist_ok=True)
                for algorithm in HEX_LENGTHS:
                    (layout.blobs / algorithm).mkdir(mode=0o700, exist_ok=True)
        except StoreError as error:
            if not isinstance(error.__cause__, PermissionError):
                raise
            raise StoreError(f"{error}{whose(layout.root)}") from error.__cause__
        self.id: Final = self._identify()

    def _identify(self) -> str:
        """The store's id from `store.json`; it separates the stores that share one Redis. Raises `StoreError`."""
        with store_errors(f"reading {self.layout.marker}"):
            if not self.layout.marker.exists():
                self._mark()
            text = self.layout.marker.read_bytes()
        try:
            marker = json.loads(text)
            version = marker["layout"]
            # first: a marker of another layout may have other names
            if isinstance(version, int) and version != LAYOUT:
                hint = "run the version that made it, or set store.root to an empty folder"
                raise StoreError(f"{self.layout.root} has layout {version}, this version knows layout {LAYOUT}: {hint}")
            if version != LAYOUT:
                raise ValueError(version)
            return str(marker["id"])
        except (ValueError, KeyError, TypeError) as error:
            hint = "delete it if the folders beside it are a store's"
            raise StoreError(f"{self.layout.marker} is not the marker of a store; {hint}") from error

    def _mark(self) -> None:
        """Write the marker of a new tree with a new id. If several workers start together on it, only one writes.

        With two ids, the workers would not share the locks whose names depend on the id, nor the keys in Redis.
        """
        with locked(self.layout, "marker"):
            if not self.layout.marker.exists():
                text = json.dumps({"layout": LAYOUT, "id": secrets.token_hex(8)}).encode()
                write_whole(self.layout.marker, text, through=self.layout.ingests)

    def __repr__(self) -> str:
        return f"<LocalStore {self.layout.root}>"

    def stat(self, digest: Digest) -> BlobInfo:
        return stat_file(digest, self.layout.blob(digest))

    def open(self, digest: Digest) -> tuple[BlobInfo, LocalReader]:
        return open_file(digest, self.layout.blob(digest))

    def read(self, digest: Digest, limit: int) -> bytes:
        return read_file(*self.open(digest), limit)

    def put(self, digest: Digest, content: bytes) -> BlobInfo:
        if not digest.matches(content):
            raise BlobDamaged(f"the {len(content)} bytes to store as {digest} do not match the digest")
        path = Path(self.layout.blob(digest))
        with store_errors(f"writing {digest}"):
            make_folder(path.parent, below=self.layout.blobs, sync=self._unsynced.add)
            write_whole(path, content, through=self.layout.ingests, mode=0o400, sync=self._unsynced.add)
        return BlobInfo(digest, len(content))

    def flush(self) -> None:
        with store_errors("making names of blobs durable"):
            self._unsynced.sync()

    def ingest(self, digest: Digest, registry: str) -> LocalIngest:
        return LocalIngest(self.layout, digest, registry)

    def spans(self, digest: Digest, registry: str, size: int | None) -> SpanFile | None:
        return open_spans(self.layout.ingest(digest, registry), registry, size)

    def growing(self) -> Mapping[Digest, int]:
        sizes: dict[Digest, int] = {}
        #: What is here out of turn, by the name of the partial.
        beside: dict[str, int] = {}
        expected: dict[str, int] = {}
        with store_errors("listing growing blobs"):
            for entry in os.scandir(self.layout.ingests):
                digest = digest_of_ingest(entry.name)
                if digest is None:
                    if entry.name.endswith(_SPANS):
                        beside[entry.name.removesuffix(_SPANS)] = disk_space(entry.path)
                    continue
                with suppress(OSError):
                    size = entry.stat(follow_symlinks=False).st_size
                    # the announced size counts only while a filler holds the lock: announcing costs an upstream nothing
                    whole = max(size, _expected(Path(entry.path))) if is_locked(entry.path) else size
                    sizes[digest] = sizes.get(digest, 0) + whole
                    expected[entry.name] = whole - size
        for name, size in beside.items():
            # the bytes that a filler expects are here in part
            if digest := digest_of_ingest(name):
                sizes[digest] = sizes.get(digest, 0) + max(0, size - expected.get(name, 0))
        return sizes

    def drop_growing(self, digests: Collection[Digest]) -> None:
        partials = set()
        with store_errors("listing growing blobs"):
            for entry in os.scandir(self.layout.ingests):
                name = entry.name if digest_of_ingest(entry.name) else entry.name.rpartition(".")[0]
                if digest_of_ingest(name) in digests:
                    partials.add(self.layout.ingests / name)
            for partial in partials:
                drop_spans(partial)
                with suppress(FileNotFoundError):
                    drop_partial(partial, oldest=math.inf)

    def asked_in_parts(self) -> Sequence[Mapping[str, object]]:
        with store_errors("listing growing blobs"):
            names = {entry.name for entry in os.scandir(self.layout.ingests)}
        ingests = [self.layout.ingests / name.removesuffix(".served") for name in names if name.endswith(".served")]
        notes = [read_served(ingest)[-1:] for ingest in ingests if map_of(ingest).name in names]
        return [note for last in notes for note in last]

    def avoid_parts(self, registry: str, digest: Digest | None) -> None:
        with store_errors("noting that parts must not be asked for"):
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self._avoided(registry, digest), flags, 0o600)
            try:
                os.utime(descriptor)
            finally:
                os.close(descriptor)

    def avoids_parts(self, registry: str, digest: Digest, seconds: float) -> bool:
        with store_errors("looking whether parts may be asked for"):
            for each in (digest, None):
                with suppress(FileNotFoundError):
                    age = time.time() - os.lstat(self._avoided(registry, each)).st_mtime
                    # a clock that was set back must not make it last for ever
                    if -seconds < age < seconds:
                        return True
        return False

    def _avoided(self, registry: str, digest: Digest | None) -> Path:
        if digest is not None:
            return avoided_of(self.layout.ingest(digest, registry))
        of_registry = self.layout.ingest(_ANY, registry)
        return avoided_of(of_registry.with_name(of_registry.name.partition("-")[0]))

    def filling(self, digest: Digest, registry: str) -> Growth | None:
        path = self.layout.ingest(digest, registry)
        with store_errors(f"looking at the partial of {digest}"):
            try:
                if not is_locked(str(path)):
                    return None
                # in this order, as in `LocalIngest.refresh`
                state = _state_at(path)
                file = path.lstat()
            except FileNotFoundError:
                return None
        if state is None or state.inode != file.st_ino or state.boot != boot_id():
            return Growth(0, None, verified=False)
        return Growth(file.st_size, state.size, state.verified)

    def prefix(self, digest: Digest, registry: str) -> Prefix | None:
        path = self.layout.ingest(digest, registry)
        with store_errors(f"looking at the partial of {digest}"):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            reader = LocalReader(descriptor)
            try:
                state, file = _state_at(path), os.fstat(descriptor)
                if state is None or state.inode != file.st_ino or state.boot != boot_id():
                    reader.close()
                    return None
                return Prefix(reader, file.st_size, state.size, is_locked(str(path)))
            except FileNotFoundError:
                # it was published, or dropped, in this moment
                reader.close()
                return None
            except BaseException:
                reader.close()
                raise

    def is_filling(self, registry: str, besides: Digest) -> bool:
        own = self.layout.ingest(besides, registry).name
        of_registry = own.partition("-")[0]
        with store_errors("listing growing blobs"), os.scandir(self.layout.ingests) as entries:
            for entry in entries:
                if not entry.name.startswith(of_registry) or entry.name == own or not digest_of_ingest(entry.name):
                    continue
                with suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_size and is_locked(entry.path):
                        return True
        return False

    def delete(self, digest: Digest) -> Deleted:
        path = self.layout.blob(digest)
        with store_errors(f"deleting {digest}"):
            try:
                status = os.lstat(path)
                os.unlink(path)
            except FileNotFoundError:
                return Deleted()
        # a hosted name keeps the file
        return Deleted(status.st_size, status.st_size if status.st_nlink == 1 else 0)

    def set_aside(self, digest: Digest, seen: BlobReader | None) -> bool:
        return quarantine.put(self.layout, digest, seen.fileno() if isinstance(seen, SupportsFileno) else None)

    def quarantined(self) -> Sequence[QuarantinedBlob]:
        # every worker calls this each second: the folder is listed again only if it changed, or may have
        changed = quarantine.changed(self.layout)
        if changed is not None and changed == self._quarantined[0]:
            return self._quarantined[1]
        blobs = quarantine.blobs(self.layout.quarantine)
        self._quarantined = changed, blobs
        return blobs

    def drop_quarantined(self, digest: Digest) -> int:
        return quarantine.drop(self.layout, digest)

    def mark_used(self, seen: Mapping[Digest, float]) -> None:
        for digest, used_at in seen.items():
            path = self.layout.blob(digest)
            with suppress(OSError):
                os.utime(path, (used_at, os.lstat(path).st_mtime), follow_symlinks=False)

    def walk(self) -> Iterator[BlobInfo]:
        return walk_files(self.layout.blobs)

    def walk_part(self, digits: str) -> Iterator[BlobInfo]:
        return walk_files(self.layout.blobs, digits)

    def free(self) -> tuple[int, int]:
        with store_errors("asking for free space"):
            disk = os.statvfs(self.layout.root)
        return disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize


def stat_file(digest: Digest, path: str) -> BlobInfo:
    """The blob in this file. Raises `BlobUnknown` if there certainly is none, `StoreError`."""
    try:
        status = os.lstat(path)
    except OSError as error:
        raise _not_found(digest, error) from error
    if not modes.S_ISREG(status.st_mode):
        raise BlobUnknown(f"{digest} is not in the store")
    return _info(digest, status)


def open_file(digest: Digest, path: str) -> tuple[BlobInfo, LocalReader]:
    """The blob in this file, and a reader that the caller closes. Raises like `stat_file`, and `BlobUnreadable`."""
    try:
        descriptor = _open_quietly(path)
    except OSError as error:
        raise _not_found(digest, error) from error
    reader = LocalReader(descriptor)
    try:
        with _reading(f"opening {digest}"):
            status = os.fstat(descriptor)
        if not modes.S_ISREG(status.st_mode):
            raise BlobUnknown(f"{digest} is not in the store")
    except BaseException:
        reader.close()
        raise
    return _info(digest, status), reader


def read_file(info: BlobInfo, reader: LocalReader, limit: int) -> bytes:
    """The content of an open blob, which is closed. Raises `BlobDamaged` if it does not match, `StoreError`."""
    try:
        if info.size > limit:
            raise BlobDamaged(f"{info.digest} has {info.size} bytes, more than the {limit} expected")
        # not up to the limit: memory of that size would be taken from the kernel, and given back, for each small blob
        content = reader.pread(info.size + 1, 0)
    finally:
        reader.close()
    if not info.digest.matches(content):
        raise BlobDamaged(f"the {len(content)} bytes of {info.digest} do not match the digest")
    return content


def walk_files(root: Path, digits: str | None = None) -> Iterator[BlobInfo]:
    """The blobs below `<root>/<algorithm>/<ab>/`, sorted by digest; all of them, or those below `<ab>` = `digits`.
    Raises `StoreError`.
    """
    for algorithm, length in HEX_LENGTHS.items():
        for folder in sorted(_folders(root / algorithm), key=lambda entry: entry.name):
            if digits is not None and folder.name != digits:
                continue
            with store_errors("listing blobs"):
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            for entry in entries:
                digest = digest_from(f"{algorithm}-{entry.name}") if len(entry.name) == length else None
                if digest is None or digest.hex[:2] != folder.name:
                    continue
                with store_errors("listing blobs"), suppress(FileNotFoundError):
                    if entry.is_file(follow_symlinks=False):
                        yield _info(digest, entry.stat(follow_symlinks=False))


def _info(digest: Digest, status: os.stat_result) -> BlobInfo:
    return BlobInfo(digest, status.st_size, max(status.st_atime, status.st_mtime))


def _not_found(digest: Digest, error: OSError) -> BlobUnknown | StoreError:
    """The error to raise: `BlobUnknown` if the blob is absent for certain, `BlobUnreadable` on EIO, or `StoreError`."""
    # ELOOP: O_NOFOLLOW refused a symbolic link in place of the blob; the store never makes one
    if error.errno in ABSENT_ERRNOS or error.errno == errno.ELOOP:
        return BlobUnknown(f"{digest} is not in the store")
    kind = BlobUnreadable if error.errno == errno.EIO else StoreError
    return kind(f"opening {digest}: {reason_of(error)}")


def _open_quietly(path: str) -> int:
    """A descriptor for reading, opened without an update of the access time. Raises `OSError`.

    Only `mark_used` writes the access time; otherwise each internal read of a manifest would count as a use and delay
    its eviction.
    """
    # O_NOFOLLOW: a link planted in the cache must not make us serve another file
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_NOATIME)
    except PermissionError:
        # O_NOATIME needs a file of our own user (open(2)); without it the file system decides on the access time
        return os.open(path, flags)


def _expected(ingest: Path) -> int:
    """The expected size of a growing blob in bytes; 0 if its state file does not give one."""
    state = _state_at(ingest)
    return (state.size or 0) if state else 0


def _state_at(ingest: Path) -> GrowthState | None:
    """What the state file of a growing blob says; None if it says nothing."""
    try:
        descriptor = os.open(state_of(ingest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return read_state(descriptor)
    finally:
        os.close(descriptor)


def drop_partial(path: Path, *, oldest: float) -> bool:
    """Drop a partial and its state file, under its lock; False if a filler holds the lock or the partial is kept.

    A partial of this boot is kept if it was modified at `oldest` (epoch seconds) or later. Raises `OSError`.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        status = os.fstat(descriptor)
        if os.lstat(path).st_ino != status.st_ino:
            return False
        if status.st_mtime >= oldest and _is_of_this_boot(path, status.st_ino):
            return False
        path.unlink()
        with suppress(FileNotFoundError):
            state_of(path).unlink()
        return True
    finally:
        os.close(descriptor)


def _is_of_this_boot(path: Path, inode: int) -> bool:
    try:
        descriptor = os.open(state_of(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        # without a state file: the filler has just begun and writes it next
        return True
    try:
        state = read_state(descriptor)
    finally:
        os.close(descriptor)
    return state is None or state.inode != inode or state.boot == boot_id()


def _folders(folder: Path) -> list[os.DirEntry[str]]:
    with store_errors("listing blobs"):
        try:
            return [entry for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []


class LocalIngest:
    """A growing blob. Only one flight calls its methods, and only one method at a time."""

    def __init__(self, layout: Layout, digest: Digest, registry: str) -> None:
        """Raises `StoreFull`, `StoreError`."""
        self.digest = digest
        self._layout = layout
        self._path = layout.ingest(digest, registry)
        self._state_path = state_of(self._path)
        self._locked = False
        #: True if blocks may be allocated beyond the end of the file.
        self._is_ahead = False
        self._hash = hasher(digest)
        with store_errors(f"opening the partial of {digest}"):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, 0o600)
            try:
                self._state_descriptor = os.open(self._state_path, flags, 0o600)
            except OSError:
                os.close(self._descriptor)
                raise
        try:
            self.refresh()
        except BaseException:
            os.close(self._descriptor)
            os.close(self._state_descriptor)
            raise

    def __repr__(self) -> str:
        role = "filler" if self._locked else "follower"
        return f"<LocalIngest {self.digest} {self._offset}/{self.size} {role}{' verified' if self.verified else ''}>"

    @property
    def offset(self) -> int:
        return self._offset

    @property
    def size(self) -> int | None:
        return self._state.size if self._state else None

    @property
    def verified(self) -> bool:
        return self._state is not None and self._state.verified

    def refresh(self) -> None:
        with store_errors(f"looking at the partial of {self.digest}"):
            # in this order: the verified flag is written after the last byte, so a size read later is the full size
            state = read_state(self._state_descriptor)
            file = os.fstat(self._descriptor)
        self._inode = file.st_ino
        self._offset = file.st_size
        # a state that was written for another inode does not apply to this file, nor one of an earlier boot, after
        # which bytes may be missing: above all not the verified flag
        applies = state is not None and state.inode == file.st_ino and state.boot == boot_id()
        self._state = state if applies else None

    @property
    def announced(self) -> bool:
        return self._state is not None

    @property
    def in_place(self) -> bool:
        try:
            named = os.lstat(self._path)
        except OSError:
            return False
        return named.st_ino == self._inode

    def try_lock(self) -> bool:
        if self._locked:
            return True
        with store_errors(f"locking the partial of {self.digest}"):
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if not self.in_place:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
                return False
        self._locked = True
        return True

    def resume(self) -> int:
        self.refresh()
        if self._offset and not self.announced:
            # after a power cut a file can have its size without its bytes
            self.restart()
        self._hash = hasher(self.digest)
        with _reading(f"hashing the partial of {self.digest}"):
            hashed = 0
            while block := os.pread(self._descriptor, _BLOCK, hashed):
                self._hash.update(block)
                hashed += len(block)
        self._offset = hashed
        return hashed

    def restart(self) -> None:
        # a new file, so that followers of the old one see it end, and do not see its bytes change under them
        temporary = self._layout.ingests / f"tmp-{secrets.token_hex(16)}"
        with store_errors(f"dropping the partial of {self.digest}"):
            fresh = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fresh, fcntl.LOCK_EX | fcntl.LOCK_NB)
                temporary.rename(self._path)
            except OSError:
                os.close(fresh)
                with suppress(OSError):
                    temporary.unlink()
                raise
            os.close(self._descriptor)
            self._descriptor = fresh
            self._inode = os.fstat(fresh).st_ino
            # the new file has no state until upstream has answered for it, and the old file's followers keep none
            os.ftruncate(self._state_descriptor, 0)
        self._hash = hasher(self.digest)
        self._offset = 0
        self._state = None

    def expect(self, size: int | None) -> None:
        self._write_state(size=size, verified=False)

    def _write_state(self, *, size: int | None, verified: bool) -> None:
        self._state = GrowthState(size, verified, self._inode, boot_id())
        with store_errors(f"writing the state of {self.digest}"):
            write_state(self._state_descriptor, self._state)

    def fill(self, body: Body, progress: Callable[[], None]) -> None:
        def grown(offset: int) -> None:
            self._offset = offset
            progress()

        self._is_ahead = True
        pump(body, self._descriptor, self._hash, start=self._offset, limit=self.size, grown=grown)

    def verify(self) -> None:
        if self.size not in (None, self._offset):
            raise BlobDamaged(f"{self._offset} bytes of {self.digest} instead of the {self.size} announced")
        if self._hash.hexdigest() != self.digest.hex:
            raise BlobDamaged(f"the {self._offset} bytes received do not match {self.digest}")
        self._write_state(size=self._offset, verified=True)

    def commit(self) -> BlobInfo:
        final = Path(self._layout.blob(self.digest))
        try:
            with store_errors(f"publishing {self.digest}"):
                make_folder(final.parent, below=self._layout.blobs)
                os.fsync(self._descriptor)
                os.fchmod(self._descriptor, 0o400)
                self._path.rename(final)
                sync_folder(final.parent)
        except BaseException:
            self.abort(keep=False)
            with suppress(OSError):
                # remove only our own file: a blob that another registry's ingest has published is still valid
                if final.lstat().st_ino == self._inode:
                    final.unlink()
            raise
        with suppress(OSError):
            self._state_path.unlink()
        self._unlock()
        return BlobInfo(self.digest, self._offset)

    def abort(self, *, keep: bool) -> None:
        if not self._locked:
            return
        if not keep or not self._offset:
            with suppress(OSError):
                if self.in_place:
                    self._path.unlink()
            with suppress(OSError):
                self._state_path.unlink()
        elif self._is_ahead:
            with suppress(OSError):
                # the size stays: followers rely on it
                os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size)
        self._unlock()

    def _unlock(self) -> None:
        self._locked = False
        with suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def reader(self) -> LocalReader:
        with store_errors(f"reading the partial of {self.digest}"):
            return LocalReader(os.dup(self._descriptor))

    def close(self) -> None:
        if self._descriptor < 0:
            return
        self.abort(keep=True)
        os.close(self._descriptor)
        os.close(self._state_descriptor)
        self._descriptor = self._state_descriptor = -1
