"""Upload sessions as files. A session is one file below `uploads/`, and nothing else: its offset is the file's size.

    begin() ──> uploads/<boot>-<owner>-<random>, empty
                   │  open(): its flock makes this request the writer; the kernel releases it if the worker dies
                   │  fill(): bytes are appended, and hashed behind
                   ├── publish() ──> a hosted blob
                   └── discard(), or sweep() once no byte has come for long ──> absent

What a crash or a power cut leaves of `publish`:

    1 the digest is compared with the hash                      the session; after a power cut it is over
    2 the file is synced                                        the same
    3 it becomes a hosted blob (`FileTaker`)                    the session, or the whole blob
    4 the file is made read-only                                the blob; without this step it is only less protected

If the sync fails, the file is discarded: afterwards the kernel may have dropped the dirty pages, and a second sync that
succeeds proves nothing.

After a power cut a file can have its size without its bytes, so a session of an earlier boot of the machine does not
exist: its name says in which boot it began. The sweep deletes its file.

The lock is on the file, not on its name, so it is valid only while the name leads to the file that is locked.

The hash of what has arrived is remembered in this process between the requests of a session, as long as the file is
exactly as this process left it. Otherwise the file is hashed again from its beginning, while more is appended.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Protocol

from mirror.errors import BlobDamaged, StoreError, UploadBusy
from mirror.oci.digest import Digest, hasher
from mirror.ports import BlobInfo, Body, Expired, UploadSession
from mirror.store.local.durable import ABSENT_ERRNOS, AnyPath, make_folder, store_errors
from mirror.store.local.ingest_state import boot_id
from mirror.store.local.layout import Layout
from mirror.store.local.pump import Crowd, GrowingEnd

_NAME: Final = re.compile(r"(?P<boot>[0-9a-f]{32})-(?P<owner>[A-Za-z0-9_]{0,128})-[0-9a-f]{32}")
_OWNER: Final = re.compile(r"[A-Za-z0-9_]{0,128}")
#: The algorithm by which bytes are hashed while they arrive. Clients name the digest only at the end.
_EXPECTED: Final = "sha256"
#: The sessions whose hash is remembered, some hundred bytes for each.
_MOST_HASHES: Final = 4096
_BLOCK: Final = 1 << 20
#: More bytes than any file has: the body of a request says itself where it ends.
_NO_LIMIT: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class _Hashed:
    """The hash of a file's first `size` bytes, and how the file looked when this process closed it."""

    hashing: hashlib._Hash
    size: int
    looked: tuple[int, ...]


class FileTaker(Protocol):
    """Hosted blobs that are made of files."""

    def take_in(self, digest: Digest, file: AnyPath, size: int) -> BlobInfo:
        """Make a hosted blob of a file of `size` bytes, and take it out of the queue. Durable on return.

        The caller has checked that the bytes match the digest, and synced them. The file is moved or deleted. Raises
        `StoreFull`, `StoreError`: whether the file is in its old place is then uncertain.
        """


class LocalUploads:
    """`Uploads` on one directory, shared by any number of processes. May be used from any thread."""

    def __init__(self, layout: Layout, blobs: FileTaker, *, most_hashes: int = _MOST_HASHES) -> None:
        self._layout = layout
        self._blobs = blobs
        self._most_hashes = most_hashes
        self._hashes: OrderedDict[str, _Hashed] = OrderedDict()
        self._changing = threading.Lock()
        self.crowd: Final = Crowd()

    def __repr__(self) -> str:
        return f"<LocalUploads {self._layout.uploads}>"

    def begin(self, owner: str) -> str:
        if not _OWNER.fullmatch(owner):
            raise ValueError(f"not the owner of an upload session: {owner!r}")
        name = f"{boot_id().hex()}-{owner}-{secrets.token_hex(16)}"
        with store_errors("beginning an upload"):
            make_folder(self._layout.uploads, below=self._layout.root)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(self._layout.upload(name), flags, 0o600))
        return name

    def open(self, session: str) -> LocalUpload | None:
        if _owner_of(session) is None:
            return None
        path = self._layout.upload(session)
        with store_errors("opening an upload"), _locked_file(path, os.O_RDWR) as descriptor:
            if descriptor is None:
                return None
            size = os.fstat(descriptor).st_size
            hashed = self._recall(session, descriptor)
            return LocalUpload(self, self._blobs, path, os.dup(descriptor), size, hashed)

    def session(self, session: str) -> UploadSession | None:
        owner = _owner_of(session)
        if owner is None:
            return None
        with store_errors("looking at an upload"):
            try:
                status = os.lstat(self._layout.upload(session))
            except OSError as error:
                if error.errno in ABSENT_ERRNOS:
                    return None
                raise
        return UploadSession(session, owner, status.st_size, status.st_mtime)

    def sessions(self) -> Sequence[UploadSession]:
        return [found for name in self._names() if (found := self.session(name)) is not None]

    def sweep(self, before: float) -> Expired:
        sessions = size = 0
        for name in self._names():
            path = self._layout.upload(name)
            # one that cannot be examined does not keep the others; a writer has it, or the next sweep tries again
            with suppress(OSError, UploadBusy), _locked_file(path, os.O_RDONLY) as descriptor:
                if descriptor is None:
                    continue
                status = os.fstat(descriptor)
                if _owner_of(name) is None or status.st_mtime < before:
                    os.unlink(path)
                    sessions, size = sessions + 1, size + status.st_size
                    self.forget(name)
        return Expired(sessions, size)

    def _names(self) -> list[str]:
        """The names of all sessions, also of earlier boots. Other files are foreign. Raises `StoreError`."""
        with store_errors("listing uploads"):
            try:
                names = os.listdir(self._layout.uploads)
            except OSError as error:
                if error.errno in ABSENT_ERRNOS:
                    return []
                raise
        return [name for name in names if _NAME.fullmatch(name)]

    # -------------------------------------------------------------------------------------------- running hashes

    def remember(self, session: str, hashing: hashlib._Hash, size: int, descriptor: int) -> None:
        """Remember the hash of a session's first `size` bytes, until the file changes."""
        with suppress(OSError), self._changing:
            self._hashes[session] = _Hashed(hashing, size, _look(descriptor))
            while len(self._hashes) > self._most_hashes:
                self._hashes.popitem(last=False)

    def forget(self, session: str) -> None:
        """Forget the hash of a session. Repeatable."""
        with self._changing:
            self._hashes.pop(session, None)

    def _recall(self, session: str, descriptor: int) -> _Hashed | None:
        """The hash of a session's first bytes, if the file is as this process left it. Raises `OSError`."""
        with self._changing:
            hashed = self._hashes.pop(session, None)
        return hashed if hashed and hashed.looked == _look(descriptor) else None


class LocalUpload:
    """`UploadFile` of the session that this object has locked. Not for several threads at once."""

    def __init__(
        self,
        uploads: LocalUploads,
        blobs: FileTaker,
        path: str,
        descriptor: int,
        size: int,
        hashed: _Hashed | None,
    ) -> None:
        """`descriptor` has the lock, and is closed by this object. `hashed` is what is known of its `size` bytes."""
        self._uploads = uploads
        self._blobs = blobs
        self._path = path
        self._session = os.path.basename(path)
        self._descriptor = descriptor
        self._over = False
        self._hash = hashed.hashing if hashed else hashlib.new(_EXPECTED)
        known = hashed.size if hashed else 0
        self._end = GrowingEnd(descriptor, self._hash, size=size, hashed=known, crowd=uploads.crowd)

    def __repr__(self) -> str:
        return f"<LocalUpload {self._session} {self._end}{' over' if self._over else ''}>"

    @property
    def offset(self) -> int:
        return self._end.size

    def fill(self, body: Body, grown: Callable[[int], None]) -> None:
        self._must_be_open()
        try:
            self._end.append(body, grown, limit=_NO_LIMIT)
        except BaseException:
            # a write that failed may have left a part of its bytes, which this request has not counted
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._end.size)
            raise

    def publish(self, digest: Digest) -> BlobInfo:
        self._must_be_open()
        if (hexadecimal := self._hash_all(digest)) != digest.hex:
            raise BlobDamaged(f"the {self.offset} bytes are {digest.algorithm}:{hexadecimal}, and not {digest}")
        try:
            with store_errors(f"syncing the upload of {digest}"):
                os.fsync(self._descriptor)
        except BaseException:
            with suppress(StoreError):
                self.discard()
            raise
        info = self._blobs.take_in(digest, self._path, self.offset)
        with suppress(OSError):
            os.fchmod(self._descriptor, 0o400)
        self._finish()
        return info

    def _hash_all(self, digest: Digest) -> str:
        if digest.algorithm == _EXPECTED:
            self._end.finish()
            return self._hash.hexdigest()
        hashing, hashed = hasher(digest), 0
        with store_errors("reading back an upload"):
            while block := os.pread(self._descriptor, _BLOCK, hashed):
                hashing.update(block)
                hashed += len(block)
        return hashing.hexdigest()

    def discard(self) -> None:
        if self._descriptor < 0:
            return
        with store_errors("deleting an upload"), suppress(FileNotFoundError):
            os.unlink(self._path)
        self._finish()

    def _finish(self) -> None:
        self._over = True
        self.close()

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        self._end.stop()
        if self._over:
            self._uploads.forget(self._session)
        else:
            self._uploads.remember(self._session, self._hash, self._end.hashed, descriptor)
        os.close(descriptor)

    def __del__(self) -> None:
        # not `close`, which takes a lock that this thread may have
        if self._descriptor >= 0:
            self._end.stop()
            os.close(self._descriptor)

    def _must_be_open(self) -> None:
        if self._descriptor < 0:
            raise StoreError("the upload session is closed")


def _owner_of(session: str) -> str | None:
    """The owner of a session of this boot; None for any other text."""
    match = _NAME.fullmatch(session)
    return match["owner"] if match and match["boot"] == boot_id().hex() else None


@contextmanager
def _locked_file(path: str, flags: int) -> Iterator[int | None]:
    """A descriptor of the file, locked; None if there is certainly no such file. A duplicate of the descriptor keeps
    the lock. Raises `UploadBusy`, `OSError`.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in ABSENT_ERRNOS:
            raise
        yield None
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UploadBusy("another request writes to this upload") from error
        yield descriptor if _leads_to(path, descriptor) else None
    finally:
        os.close(descriptor)


def _leads_to(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _look(descriptor: int) -> tuple[int, ...]:
    """What differs once another process has changed the file. Raises `OSError`."""
    status = os.fstat(descriptor)
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
