"""The hosted names of blobs. A blob may have two names on one file: the cache's, and its hosted one.

    uploads/<session> ── take_in(): a rename ──┐
    content in memory ── put() ────────────────┼──> hosted/<…> ── queue() ──> and hosted-queue/<…> ── collect() ──┐
    blobs/<…> ── adopt(): a hard link ─────────┘        ^                                  │                      v
                                                        └──────────── rescue() ────────────┘                   absent
    damaged ──> hosted-damaged/<…> (`local/quarantine.py`) ── take_in(), put(), adopt() ──> hosted/<…> again

Only `collect` deletes a hosted name. The evictor, the purge and everything else of the cache know `blobs/` alone.

Whatever gives, keeps or takes away a hosted name does so under the lock of the blob's record in `hosted-queue/`, which
excludes all other processes. What a crash or a power cut leaves at each step:

    take_in(), adopt(), put()
        1 the bytes are synced (before, by whoever wrote them)  no hosted name
        2 rename or link, under the lock                        no hosted name, or the whole blob
        3 the record is dropped, and its folder synced          the blob, which perhaps still waits
        4 the lock is released, the folder of the name synced   the blob (`put`: at the latest by `flush`)
    rescue()
        1 the name is there, the record is dropped, under the lock
        2 the folder of the record is synced, under the lock    the blob, which does not wait
    collect()
        1 the record is in the expected version, under the lock
        2 the name is deleted                                   the record alone: `collect` can be repeated
        3 the record and a damaged file are deleted             nothing, or all as before: collected later

A file below `hosted/` has all its bytes on the disk, because step 1 comes before step 2. A record that was dropped must
not come back: the version of it that a collector remembers would then still be right, although a client has been
answered meanwhile. Therefore its folder is synced before the lock is released. Few blobs have a record, so this costs
nothing as a rule.

A blob that is uploaded though it is hosted gets the new file: its bytes were verified just now, those of the old file
long ago. So whoever pushes an image again repairs it, also where nobody has found the damage. If the cache's name led
to the old file, it still does; the scrub reads both.

Blobs that are pushed at the same time share the work of making names durable: whoever syncs first, syncs for all.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat as modes
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from mirror import telemetry
from mirror.errors import BlobDamaged, BlobUnknown, RecordDamaged
from mirror.folders import sync_folder
from mirror.oci.digest import HEX_LENGTHS, Digest, hasher
from mirror.policy.hosted_records import QueuedBlob
from mirror.policy.quarantine_limits import QuarantinedBlob
from mirror.ports import ABSENT, BlobInfo, Version, Versioned
from mirror.store.local import quarantine
from mirror.store.local.blobs import open_file
from mirror.store.local.durable import (
    ABSENT_ERRNOS,
    AnyPath,
    PendingSyncs,
    make_folder,
    read_whole,
    store_errors,
    write_whole,
)
from mirror.store.local.layout import Layout
from mirror.store.local.record_versions import only_writer, version_of
from mirror.store.records.record_keys import digest_from, file_name

_BLOCK: Final = 1 << 20
#: Records of blobs that wait in one page.
_PAGE: Final = 50


class HostedNames:
    """`HostedBlobs` on one directory, shared by any number of processes."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._unsynced = PendingSyncs()

    def __repr__(self) -> str:
        return f"<HostedNames {self._layout.hosted}>"

    def hosted(self, digest: Digest) -> BlobInfo:
        with store_errors(f"looking at the hosted blob {digest}"):
            status = _status(self._layout.hosted_blob(digest))
        if status is None:
            raise BlobUnknown(f"{digest} is not hosted")
        return _info(digest, status)

    # ------------------------------------------------------------------------------------------------ giving a name

    def adopt(self, digest: Digest, patience: float | None = None) -> BlobInfo:
        cached, path = self._layout.blob(digest), self._layout.hosted_blob(digest)
        folder = os.path.dirname(path)
        with store_errors(f"giving {digest} its hosted name"):
            self._make_folder(folder)
            with self._naming(digest):
                named = _status(cached)
                status = self._sound(digest, named.st_size if named else None)
                if status is None:
                    status = named
                    if status is None or not self._link(digest, path):
                        raise BlobUnknown(f"{digest} is not in the store")
            self._make_durable(folder)
            self._drop_damaged(digest)
        return _info(digest, status)

    def _link(self, digest: Digest, name: str) -> bool:
        """Give the cache's file this name as well. False if there is no such file, because it was evicted meanwhile.

        Raises `OSError`, `StoreError`.
        """
        try:
            os.link(self._layout.blob(digest), name, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as error:
            # the file system has no hard links, or does not allow one to a file of another user
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
                raise
            self._copy(digest, name)
        return True

    def _copy(self, digest: Digest, name: str) -> None:
        """Give a copy of the cache's file this name. Raises `BlobUnknown`, `BlobDamaged`, `OSError`, `StoreError`."""
        temporary = self._layout.ingests / f"tmp-{secrets.token_hex(16)}"
        hashing = hasher(digest)
        _, reader = open_file(digest, self._layout.blob(digest))
        try:
            with closing(reader), temporary.open("xb") as file:
                os.fchmod(file.fileno(), 0o400)
                while block := reader.pread(_BLOCK, file.tell()):
                    hashing.update(block)
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            if hashing.hexdigest() != digest.hex:
                raise BlobDamaged(f"the bytes in the cache do not match {digest}")
            temporary.rename(name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def take_in(self, digest: Digest, file: AnyPath, size: int) -> BlobInfo:
        """Give a file of `size` bytes the hosted name, and take the blob out of the queue. If the blob is hosted
        already, this file takes the place of the one before it, which may be damaged without anybody knowing. Durable
        on return.

        The caller has checked that the bytes match the digest, and synced them. Raises `StoreFull`, `StoreError`; then
        the file is in its old place, or has the hosted name, which may not be durable.
        """
        path = self._layout.hosted_blob(digest)
        folder = os.path.dirname(path)
        with store_errors(f"publishing {digest}"):
            self._make_folder(folder)
            with self._naming(digest):
                # only to say so if it had another size
                self._sound(digest, size)
                os.rename(file, path)
            # also if the blob was there: whoever published it may not have come to this point yet
            self._make_durable(folder)
            self._drop_damaged(digest)
        return BlobInfo(digest, size)

    def put(self, digest: Digest, content: bytes) -> BlobInfo:
        if not digest.matches(content):
            raise BlobDamaged(f"the {len(content)} bytes to store as {digest} do not match the digest")
        path = self._layout.hosted_blob(digest)
        folder = os.path.dirname(path)
        with store_errors(f"writing {digest}"):
            if self._has(digest, content):
                # also if the content was there: whoever wrote it may not have synced its name yet
                self._unsynced.add(folder)
                self._drop_damaged(digest)
                return BlobInfo(digest, len(content))
            self._make_folder(folder)
            guard = self._naming(digest)
            write_whole(path, content, through=self._layout.ingests, mode=0o400, sync=self._unsynced.add, guard=guard)
            self._drop_damaged(digest)
        return BlobInfo(digest, len(content))

    def _has(self, digest: Digest, content: bytes) -> bool:
        """True if exactly this content has the hosted name; it is taken out of the queue then. Raises `OSError`,
        `StoreError`.
        """
        try:
            with self._naming(digest):
                return read_whole(self._layout.hosted_blob(digest)) == content
        except OSError as error:
            # what the disk cannot read is replaced, like what is damaged
            if error.errno in ABSENT_ERRNOS or error.errno == errno.EIO:
                return False
            raise

    def _sound(self, digest: Digest, size: int | None) -> os.stat_result | None:
        """The file under the hosted name; None if there is none, or if it had not `size` bytes and was set aside."""
        status = _status(self._layout.hosted_blob(digest))
        if status is None or size is None or status.st_size == size:
            return status
        telemetry.log.error("damaged blob set aside", digest=str(digest), reason=f"{status.st_size} bytes, not {size}")
        quarantine.put_hosted(self._layout, digest)
        return None

    # ------------------------------------------------------------------------------------------------ the queue

    def rescue(self, digest: Digest) -> BlobInfo:
        with store_errors(f"taking {digest} out of the queue"), self._naming(digest):
            status = _status(self._layout.hosted_blob(digest))
            if status is None:
                raise BlobUnknown(f"{digest} is not hosted")
        return _info(digest, status)

    def queued(self, digest: Digest) -> Versioned[QueuedBlob] | None:
        with store_errors(f"reading the record of the queued blob {digest}"):
            try:
                content = read_whole(self._layout.queued_blob(digest))
            except OSError as error:
                if error.errno in ABSENT_ERRNOS:
                    return None
                raise
        record = QueuedBlob.from_json(digest, content)
        if record is None:
            raise RecordDamaged(f"the record of the queued blob {digest} is damaged", version_of(content))
        return Versioned(record, version_of(content))

    def queue(self, record: QueuedBlob) -> Version:
        path, content = self._layout.queued_blob(record.digest), record.to_json()
        with store_errors(f"queueing {record.digest}"):
            self._make_folder(os.path.dirname(path))
            guard = only_writer(self._layout, path, ABSENT)
            write_whole(path, content, through=self._layout.ingests, sync=self._unsynced.add, guard=guard)
        return version_of(content)

    def collect(self, digest: Digest, expect: Version) -> int:
        record, path = self._layout.queued_blob(digest), self._layout.hosted_blob(digest)
        with store_errors(f"collecting {digest}"), only_writer(self._layout, record, expect):
            status = _status(path)
            if status is not None:
                os.unlink(path)
            with suppress(FileNotFoundError):
                os.unlink(record)
            # nobody will push it again to repair it
            self._drop_damaged(digest)
        return status.st_size if status else 0

    def free_collected(self, *, at_once: bool = False) -> int:
        return 0

    def queued_pages(self) -> Iterator[Sequence[QueuedBlob]]:
        """See `HostedBlobs`. A record that is damaged is left out: `queued` raises for it, and `rescue` drops it."""
        page: list[QueuedBlob] = []
        for digest, _ in _files(self._layout.hosted_queue):
            with suppress(RecordDamaged):
                versioned = self.queued(digest)
                if versioned:
                    page.append(versioned.record)
            if len(page) >= _PAGE:
                yield page
                page = []
        yield page

    # ------------------------------------------------------------------------------------------------ all of them

    def damaged(self) -> Sequence[QuarantinedBlob]:
        blobs = quarantine.blobs(self._layout.hosted_damaged)
        with store_errors("looking at hosted blobs"):
            # one that was named a moment ago may not have been dropped yet
            return [blob for blob in blobs if _status(self._layout.hosted_blob(blob.digest)) is None]

    def blobs(self, after: Digest | None, count: int) -> Sequence[BlobInfo]:
        page: list[BlobInfo] = []
        for digest, path in _files(self._layout.hosted, after):
            if len(page) >= count:
                break
            with store_errors("listing hosted blobs"):
                status = _status(path)
            if status is not None:
                page.append(_info(digest, status))
        return page

    def flush(self) -> None:
        with store_errors("making names of hosted blobs durable"):
            self._unsynced.sync()

    # ------------------------------------------------------------------------------------------------ common steps

    @contextmanager
    def _naming(self, digest: Digest) -> Iterator[None]:
        """Exclude everything else that concerns the blob's hosted name. After the block, if it raises nothing, the blob
        does not wait to be collected, not even after a power cut.
        """
        record = self._layout.queued_blob(digest)
        with only_writer(self._layout, record):
            yield
            try:
                os.unlink(record)
            except OSError as error:
                if error.errno not in ABSENT_ERRNOS:
                    raise
            else:
                sync_folder(os.path.dirname(record))

    def _drop_damaged(self, digest: Digest) -> None:
        """Forget the damaged file of a blob that has its name again."""
        # a file that stays takes room, and does no other harm
        with suppress(OSError):
            os.unlink(f"{self._layout.hosted_damaged}/{file_name(digest)}")

    def _make_folder(self, folder: str) -> None:
        make_folder(folder, below=self._layout.root, sync=self._unsynced.add)

    def _make_durable(self, folder: str) -> None:
        self._unsynced.add(folder)
        self._unsynced.sync()


def _status(path: str) -> os.stat_result | None:
    """Of a regular file; None if there is certainly none. Raises `OSError`."""
    try:
        status = os.lstat(path)
    except OSError as error:
        if error.errno in ABSENT_ERRNOS:
            return None
        raise
    return status if modes.S_ISREG(status.st_mode) else None


def _info(digest: Digest, status: os.stat_result) -> BlobInfo:
    return BlobInfo(digest, status.st_size, max(status.st_atime, status.st_mtime))


def _files(root: Path, after: Digest | None = None) -> Iterator[tuple[Digest, str]]:
    """The files below `<root>/<algorithm>/<ab>/` that are named by a digest after `after`, sorted, with their paths.

    Raises `StoreError`.
    """
    for algorithm in sorted(HEX_LENGTHS):
        if after and algorithm < after.algorithm:
            continue
        beyond = after.hex if after and after.algorithm == algorithm else ""
        for prefix in _names(f"{root}/{algorithm}"):
            if len(prefix) != 2 or prefix < beyond[:2]:
                continue
            for name in _names(f"{root}/{algorithm}/{prefix}"):
                # what a former page had is not parsed: a folder may have thousands of names
                if name <= beyond or not name.startswith(prefix):
                    continue
                if digest := digest_from(f"{algorithm}-{name}"):
                    yield digest, f"{root}/{algorithm}/{prefix}/{name}"


def _names(folder: str) -> list[str]:
    """The names in a folder, sorted; empty if there is certainly no such folder. Raises `StoreError`."""
    with store_errors("listing hosted blobs"):
        try:
            return sorted(os.listdir(folder))
        except OSError as error:
            if error.errno in ABSENT_ERRNOS:
                return []
            raise
