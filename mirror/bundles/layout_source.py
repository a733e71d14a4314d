"""An image layout opened for reading: a tar file or a folder. Its content is not trusted: names, file types and sizes
are checked when it is opened, digests by `verify` or by the import of the blob.

    LayoutSource(path) ──> files known by name and size ── read, body ──> bytes ── close
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mirror.bundles.oci_layout import BLOBS, MARKER, blob_name
from mirror.bundles.tar_members import MOST_MEMBERS, Member, check_path, scan
from mirror.errors import BundleError, DigestInvalid, reason_of
from mirror.oci.digest import Digest, hasher
from mirror.oci.manifest import LARGEST

#: Called with the number of bytes that were read since the last call. If it raises, the work ends with that error.
OnRead = Callable[[int], None]

_CHUNK: Final = 1 << 20


class FileBody:
    """Part of an open file as a `Body`, to fill a blob from. `on_read` is called with the number of bytes of each read.

    The caller closes the file.
    """

    def __init__(
        self, descriptor: int, place: int, size: int, start: int = 0, on_read: OnRead = lambda _: None
    ) -> None:
        self.start = start
        self.size: int | None = size
        self._descriptor = descriptor
        self._place = place + start
        self._remaining = size - start
        self._on_read = on_read
        self._aborted = False

    def readinto(self, buffer: memoryview) -> int:
        """Read into the buffer; returns the number of bytes, 0 at the end. Raises `BundleError` if the file became
        shorter or cannot be read, or if reading was aborted.
        """
        if self._aborted:
            raise BundleError("stopped")
        if not self._remaining:
            return 0
        try:
            read = os.preadv(self._descriptor, [buffer[: min(len(buffer), self._remaining)]], self._place)
        except OSError as error:
            raise BundleError(f"reading: {reason_of(error)}") from error
        if not read:
            raise BundleError("a file became shorter while it was read")
        self._place += read
        self._remaining -= read
        self._on_read(read)
        return read

    def abort(self) -> None:
        """Make the next `readinto` fail. May be called from any thread."""
        self._aborted = True


@contextmanager
def file_errors(action: str) -> Iterator[None]:
    """Turn an `OSError` within the block into a `BundleError`; `action` says what was being done."""
    try:
        yield
    except OSError as error:
        raise BundleError(f"{action}: {reason_of(error)}") from error


class LayoutSource:
    """An open layout. `blobs` gives the sizes in bytes of all files below `blobs/`, `others` the names of all other
    files. The caller closes it.
    """

    def __init__(self, path: Path) -> None:
        """Open a tar file or a folder. Raises `BundleError` if it contains what does not belong in a layout."""
        self._path = path
        with file_errors("opening it"):
            # O_NONBLOCK: opening a pipe does not wait for a writer; for a regular file the flag changes nothing
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            kind = os.fstat(self._descriptor).st_mode
            self._is_folder = stat.S_ISDIR(kind)
            if not self._is_folder and not stat.S_ISREG(kind):
                raise BundleError("neither a file nor a folder, so it cannot be read twice")
            with file_errors("reading it"):
                self._files = _walk(self._descriptor) if self._is_folder else scan(self._descriptor)
            self.blobs: Mapping[Digest, int] = dict(self._find_blobs())
        except BaseException:
            self.close()
            raise
        self.others = frozenset(name for name in self._files if not name.startswith(f"{BLOBS}/"))

    def __repr__(self) -> str:
        return f"<LayoutSource {self._path}: {len(self.blobs)} blobs>"

    def _find_blobs(self) -> Iterator[tuple[Digest, int]]:
        for name, member in self._files.items():
            first, slash, rest = name.partition("/")
            if first != BLOBS:
                continue
            try:
                if not slash or rest.count("/") != 1:
                    raise DigestInvalid(name)
                yield Digest.parse(rest.replace("/", ":")), member.size
            except DigestInvalid as error:
                raise BundleError(f"{name[:200]!r} lies below {BLOBS}/ and is not named by a digest") from error

    def read(self, name: str, limit: int) -> bytes | None:
        """The content of a small file; None if there is no such file. Raises `BundleError` if it has more than `limit`
        bytes.
        """
        member = self._files.get(name)
        if member is None:
            return None
        if member.size > limit:
            raise BundleError(f"{name} has {member.size} bytes, more than the {limit} allowed")
        with file_errors(f"reading {name}"), self._opened(member) as (descriptor, place):
            content = os.pread(descriptor, member.size, place)
        if len(content) != member.size:
            raise BundleError(f"{name} became shorter while it was read")
        return content

    def size(self, digest: Digest) -> int | None:
        """The blob's size in bytes; None if the layout does not have it."""
        return self.blobs.get(digest)

    def vouches(self, digest: Digest) -> bool:
        """True if the layout has the blob: all images of a layout are trusted alike."""
        return digest in self.blobs

    def manifest(self, digest: Digest) -> bytes | None:
        """The manifest's bytes; None if the layout does not have it. Raises `BundleError` if the bytes do not match the
        digest, or if there are more than any manifest may have.
        """
        content = self.read(blob_name(digest), LARGEST)
        if content is not None and not digest.matches(content):
            raise BundleError(f"{blob_name(digest)} does not match its name, which is its digest")
        return content

    @contextmanager
    def body(self, digest: Digest, start: int, on_read: OnRead = lambda _: None) -> Iterator[FileBody]:
        """The blob's bytes from offset `start`, not verified. Raises `BundleError`."""
        member = self._files[blob_name(digest)]
        with file_errors(f"reading {member.name}"), self._opened(member) as (descriptor, place):
            yield FileBody(descriptor, place, member.size, start, on_read)

    def verify(self, digest: Digest, on_read: OnRead) -> None:
        """Blocking: hash the blob. Raises `BundleError` if its bytes do not match the digest."""
        hashing = hasher(digest)
        buffer = memoryview(bytearray(_CHUNK))
        with self.body(digest, 0, on_read) as body:
            while read := body.readinto(buffer):
                hashing.update(buffer[:read])
        if hashing.hexdigest() != digest.hex:
            raise BundleError(f"{blob_name(digest)} does not match its name, which is its digest")

    @contextmanager
    def _opened(self, member: Member) -> Iterator[tuple[int, int]]:
        """The file descriptor to read a member's bytes from, and their offset in that file."""
        if not self._is_folder:
            yield self._descriptor, member.offset
            return
        descriptor = _open_below(self._descriptor, member.name)
        try:
            if os.fstat(descriptor).st_size != member.size:
                raise BundleError(f"{member.name} changed while it was read")
            yield descriptor, 0
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Close the layout. Repeatable."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> LayoutSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _walk(root: int) -> dict[str, Member]:
    """Every regular file below a folder, by path. Raises `BundleError` for links, devices and anything else that is
    neither a file nor a folder.
    """
    try:
        # first: a folder that was given by mistake may be large, and an error about one of its files would mislead
        os.stat(MARKER, dir_fd=root, follow_symlinks=False)
    except FileNotFoundError:
        raise BundleError(f"not an OCI image layout: it has no {MARKER}") from None

    def fail(error: OSError) -> None:
        raise error

    files: dict[str, Member] = {}
    for folder, _folders, _names, descriptor in os.fwalk(dir_fd=root, onerror=fail):
        with os.scandir(descriptor) as entries:
            for entry in entries:
                name = check_path(os.path.normpath(f"{folder}/{entry.name}"))
                if entry.is_dir(follow_symlinks=False):
                    continue
                if not entry.is_file(follow_symlinks=False):
                    kind = "a symbolic link" if entry.is_symlink() else "a device, pipe or socket"
                    raise BundleError(f"{kind}: {name!r}")
                files[name] = Member(name, 0, entry.stat(follow_symlinks=False).st_size)
                if len(files) > MOST_MEMBERS:
                    raise BundleError(f"more than {MOST_MEMBERS} files")
    return files


def _open_below(root: int, name: str) -> int:
    """Open a file below `root`, folder by folder, so that no symbolic link is followed, even one created meanwhile."""
    *folders, last = name.split("/")
    folder = os.dup(root)
    try:
        for step in folders:
            below = os.open(step, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = below
        return os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)
