"""The hosted bytes of a bucket, as a migration reads and writes them.

fetch() ──┬── the disk has the blob, as a copy or cached: its file gets another name, and is hashed
          └── it has not, or other bytes: a download
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from mirror.errors import BlobDamaged, BlobUnknown, BucketUnavailable, RecordDamaged, UpstreamError, UpstreamInvalid
from mirror.oci.digest import Digest, hasher
from mirror.ports import BlobObject, ObjectReader
from mirror.store.local.durable import store_errors, write_all
from mirror.store.local.layout import CopiesLayout, Layout
from mirror.store.objects.hosted_blobs import HostedObjects
from mirror.store.objects.state_records import BlobStates

_BLOCK: Final = 1 << 20
#: The file system has no hard links or no more of them, or does not allow one to a file of another user.
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK})
#: How often an object is opened again without a byte in between.
_TRIES: Final = 4


class BucketBytes:
    """`MigratedBytes` of one bucket. May be used from any thread."""

    def __init__(self, objects: HostedObjects, states: BlobStates, bucket: ObjectReader, layout: Layout) -> None:
        """`states` are read as they are remembered: the caller has listed the bucket. Files of `fetch` are made below
        `layout`, in the store that takes them. What that store has of hosted blobs, as copies or cached, is not
        downloaded.
        """
        self._objects = objects
        self._states = states
        self._bucket = bucket
        self._layout = layout
        self._copies = CopiesLayout(layout.root)

    def __repr__(self) -> str:
        return f"<BucketBytes {self._objects!r}>"

    def sizes(self) -> Iterator[tuple[Digest, int]]:
        for state in self._states.after(None):
            if state.is_present and state.queued_at is None:
                yield state.digest, state.size

    def size(self, digest: Digest) -> int | None:
        try:
            state = self._states.find(digest).state
        except RecordDamaged:
            # the bytes are stored anew, as a push would
            return None
        return state.size if state.is_present else None

    @contextmanager
    def fetch(self, digest: Digest, read: Callable[[int], None]) -> Iterator[tuple[Path, int]]:
        found = self._objects.source(digest)
        if found is None:
            raise BlobUnknown(f"{digest} is not hosted")
        file = self._layout.ingests / f"tmp-{secrets.token_hex(16)}"
        try:
            if not self._take_from_disk(found, file, read):
                self._download(found, file, read)
            yield file, found.size
        finally:
            # whoever stored it has moved it
            with suppress(FileNotFoundError):
                file.unlink()

    def store(self, digest: Digest, file: Path, size: int) -> None:
        self._objects.bring(digest, file, size)

    def _take_from_disk(self, found: BlobObject, file: Path, read: Callable[[int], None]) -> bool:
        """Let `file` be what the disk has of a blob. False if that is nothing, or has other bytes: there is no `file`
        then.
        """
        for layout in (self._copies, self._layout):
            try:
                _link_or_copy(layout.blob(found.digest), file)
                if _is_sound(file, found, read):
                    return True
            except OSError:
                # not there, evicted, or not readable: the bucket has it
                pass
            with suppress(FileNotFoundError):
                file.unlink()
        return False

    def _download(self, found: BlobObject, file: Path, read: Callable[[int], None]) -> None:
        """Raises `BlobDamaged`, `BlobUnknown`, `BucketUnavailable`, `StoreFull`."""
        hashing, buffer = hasher(found.digest), memoryview(bytearray(_BLOCK))
        with store_errors(f"writing {found.digest}"), open(file, "xb", buffering=0) as written:
            os.fchmod(written.fileno(), 0o400)
            for count in self._pieces(found, buffer):
                write_all(written.fileno(), buffer[:count])
                hashing.update(buffer[:count])
                read(count)
            os.fsync(written.fileno())
            size = written.tell()
        if size != found.size or hashing.hexdigest() != found.digest.hex:
            raise BlobDamaged(f"the {size} bytes of the object {found.key} do not match the digest")

    def _pieces(self, found: BlobObject, buffer: memoryview) -> Iterator[int]:
        """The sizes of the pieces that were read into the buffer; an object that breaks off is continued."""
        position = tries = 0
        while True:
            try:
                body = self._bucket.open(found.key, position)
                if body is None:
                    raise BlobUnknown(f"{found.key} is not in the bucket")
                try:
                    while count := body.readinto(buffer):
                        yield count
                        position, tries = position + count, 0
                    return
                finally:
                    body.abort()
            except UpstreamInvalid as error:
                raise BlobDamaged(str(error)) from error
            except UpstreamError as error:
                tries += 1
                if tries >= _TRIES:
                    raise BucketUnavailable(f"reading {found.key}: {error}") from error


def _link_or_copy(path: str, file: Path) -> None:
    """Give a file of the store another name, under which it stays when it is evicted. Raises `OSError`."""
    try:
        os.link(path, file, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(path, file)
        file.chmod(0o400)


def _is_sound(file: Path, found: BlobObject, read: Callable[[int], None]) -> bool:
    """Whether a file has the bytes of a blob, which are synced then. Reads all of it. Raises `OSError`."""
    hashing, buffer = hasher(found.digest), memoryview(bytearray(_BLOCK))
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as content:
        if os.fstat(descriptor).st_size != found.size:
            return False
        while count := content.readinto(buffer):
            hashing.update(buffer[:count])
            read(count)
        if hashing.hexdigest() != found.digest.hex:
            return False
        os.fsync(descriptor)
    return True
