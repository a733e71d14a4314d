"""An image layout opened for reading, be it a tar or a folder. Nothing is believed: names, kinds and sizes are checked
when it is opened, digests by `verify` or by whoever takes a blob in.

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
from mirror.errors import BundleError, DigestInvalid
from mirror.oci.digest import Digest, hasher
from mirror.oci.manifest import LARGEST

__all__ = ["FileBody", "LayoutSource", "file_errors"]

_CHUNK: Final = 1 << 20


class FileBody:
    """Part of an open file as a `Body`: what a blob is filled from. `told` is called with how many bytes were read."""

    def __init__(
        self, descriptor: int, place: int, size: int, start: int = 0, told: Callable[[int], None] = lambda _: None
    ) -> None:
        self.start = start
        self.size: int | None = size
        self._descriptor = descriptor
        self._place = place + start
        self._left = size - start
        self._told = told
        self._aborted = False

    def readinto(self, buffer: memoryview) -> int:
        """Raises `BundleError` where the file has become shorter, cannot be read, or reading was stopped."""
        if self._aborted:
            raise BundleError("stopped")
        if not self._left:
            return 0
        try:
            read = os.preadv(self._descriptor, [buffer[: min(len(buffer), self._left)]], self._place)
        except OSError as error:
            raise BundleError(f"reading: {os.strerror(error.errno or 0)}") from error
        if not read:
            raise BundleError("a file became shorter while it was read")
        self._place += read
        self._left -= read
        self._told(read)
        return read

    def abort(self) -> None:
        """From any thread."""
        self._aborted = True


@contextmanager
def file_errors(what: str) -> Iterator[None]:
    """`OSError` becomes `BundleError`."""
    try:
        yield
    except OSError as error:
        raise BundleError(f"{what}: {os.strerror(error.errno) if error.errno else error}") from error


class LayoutSource:
    """An open layout. `blobs` are the sizes in bytes of all files below `blobs/`, `others` the names of the rest."""

    def __init__(self, path: Path) -> None:
        """A tar or a folder. Raises `BundleError` for whatever a layout does not hold."""
        self._path = path
        with file_errors(f"opening {path}"):
            # not waiting for whoever may write to a pipe; of a file it changes nothing
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            kind = os.fstat(self._descriptor).st_mode
            self._is_folder = stat.S_ISDIR(kind)
            if not self._is_folder and not stat.S_ISREG(kind):
                raise BundleError("not a file or folder: what was checked must stay to be read")
            with file_errors(f"reading {path}"):
                self._files = _walk(self._descriptor) if self._is_folder else scan(self._descriptor)
            self.blobs: Mapping[Digest, int] = dict(self._find_blobs())
        except BaseException:
            self.close()
            raise
        self.others = frozenset(name for name in self._files if not name.startswith(f"{BLOBS}/"))

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
        """A small file; None where there is none. Raises `BundleError` above `limit` bytes."""
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
        """The blob's bytes; None where it is not in here."""
        return self.blobs.get(digest)

    def vouches(self, digest: Digest) -> bool:
        """Whether it is in here: a layout is all of one trust."""
        return digest in self.blobs

    def manifest(self, digest: Digest) -> bytes | None:
        """A small blob, verified; None where it is not in here. Raises `BundleError` for wrong bytes, or too many."""
        content = self.read(blob_name(digest), LARGEST)
        if content is not None and not digest.matches(content):
            raise BundleError(f"{blob_name(digest)} is not what its name says")
        return content

    @contextmanager
    def body(self, digest: Digest, start: int, told: Callable[[int], None] = lambda _: None) -> Iterator[FileBody]:
        """The blob's bytes from `start` on. Raises `BundleError`."""
        member = self._files[blob_name(digest)]
        with file_errors(f"reading {member.name}"), self._opened(member) as (descriptor, place):
            yield FileBody(descriptor, place, member.size, start, told)

    def verify(self, digest: Digest, told: Callable[[int], None]) -> None:
        """Blocking: raises `BundleError` unless the bytes are those that the digest names."""
        hashing = hasher(digest)
        buffer = memoryview(bytearray(_CHUNK))
        with self.body(digest, 0, told) as body:
            while read := body.readinto(buffer):
                hashing.update(buffer[:read])
        if hashing.hexdigest() != digest.hex:
            raise BundleError(f"{blob_name(digest)} is not what its name says")

    @contextmanager
    def _opened(self, member: Member) -> Iterator[tuple[int, int]]:
        """The descriptor that a member's bytes are in, and where."""
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
        """Repeatable."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> LayoutSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _walk(root: int) -> dict[str, Member]:
    """Every regular file below a folder. Raises `BundleError` for links, devices and what else is no file or folder."""
    try:
        # first: a folder that was named by mistake may be large, and what is odd in it is not what is wrong
        os.stat(MARKER, dir_fd=root, follow_symlinks=False)
    except FileNotFoundError:
        raise BundleError(f"no OCI image layout: it has no {MARKER}") from None

    def fail(error: OSError) -> None:
        raise error

    found: dict[str, Member] = {}
    for folder, _folders, _names, descriptor in os.fwalk(dir_fd=root, onerror=fail):
        with os.scandir(descriptor) as entries:
            for entry in entries:
                name = check_path(os.path.normpath(f"{folder}/{entry.name}"))
                if entry.is_dir(follow_symlinks=False):
                    continue
                if not entry.is_file(follow_symlinks=False):
                    kind = "a symbolic link" if entry.is_symlink() else "a device, pipe or socket"
                    raise BundleError(f"{kind}: {name!r}")
                found[name] = Member(name, 0, entry.stat(follow_symlinks=False).st_size)
                if len(found) > MOST_MEMBERS:
                    raise BundleError(f"more than {MOST_MEMBERS} files")
    return found


def _open_below(root: int, name: str) -> int:
    """Open a file step by step, so that no link on the way is followed, whoever puts one there meanwhile."""
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
