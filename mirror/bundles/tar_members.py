"""Tar files (POSIX.1-2001, "pax"), as far as a bundle needs them: written always alike, read strictly.

Reading never unpacks: it lists the members with where their bytes lie, and refuses the whole file for anything that a
bundle does not have. Headers are decoded by `tarfile`; what is allowed to stand there is decided here, because
`tarfile` takes a damaged header in the middle for the end.
"""

from __future__ import annotations

import os
import tarfile
from dataclasses import dataclass
from typing import Final

from mirror.errors import BundleError

__all__ = ["END", "MOST_MEMBERS", "Member", "check_path", "file_header", "folder_header", "padding", "scan"]

_BLOCK: Final = tarfile.BLOCKSIZE

#: What a tar ends with.
END: Final = bytes(2 * _BLOCK)

#: More members than this are refused: a large site has some hundred thousand blobs.
MOST_MEMBERS: Final = 500_000

#: Bytes of a name, and of the header that brings a long one.
_LONGEST_NAME: Final = 1024
_LARGEST_EXTENSION: Final = 64 * 1024

_MAGICS: Final = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"LZIP": "lzip",
}

_KINDS: Final = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file: where its bytes begin in the tar, and how many they are."""

    name: str
    offset: int
    size: int


def file_header(name: str, size: int) -> bytes:
    """What stands before the bytes of a file."""
    return _header(name, tarfile.REGTYPE, 0o644, size)


def folder_header(name: str) -> bytes:
    """A folder's entry."""
    return _header(name, tarfile.DIRTYPE, 0o755, 0)


def _header(name: str, kind: bytes, mode: int, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size, entry.mtime = kind, mode, size, 0
    return entry.tobuf(tarfile.PAX_FORMAT)


def padding(size: int) -> bytes:
    """What stands after a file of `size` bytes."""
    return bytes(-size % _BLOCK)


def check_path(name: str) -> str:
    """A member's name without a leading `./` or trailing slash. Raises `BundleError` for one that leads elsewhere."""
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise BundleError(f"a name that is empty, too long or not printable: {name[:80]!r}")
    if name.startswith("/"):
        raise BundleError(f"an absolute path: {name[:200]!r}")
    path = name.removeprefix("./").removesuffix("/")
    if path in ("", "."):
        return ""
    parts = path.split("/")
    if ".." in parts:
        raise BundleError(f"a path with `..`: {name[:200]!r}")
    if "" in parts or "." in parts or "\\" in path:
        raise BundleError(f"an odd path: {name[:200]!r}")
    return path


def scan(descriptor: int) -> dict[str, Member]:
    """Every regular file of a tar by name. Reads headers only, so it is quick however large the tar is.

    Raises `BundleError` for whatever is not a plain file or folder with an innocent name, for names that come twice,
    and for a tar that is compressed, cut, damaged, or followed by something.
    """
    return _Scan(descriptor).members()


class _Scan:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._end = os.fstat(descriptor).st_size
        self._files: dict[str, Member] = {}
        self._seen: set[str] = set()

    def members(self) -> dict[str, Member]:
        self._refuse_compressed()
        offset = 0
        count = 0
        while (read := self._entry(offset)) is not None:
            offset, entry = read
            count += 1
            if count > MOST_MEMBERS:
                raise BundleError(f"more than {MOST_MEMBERS} members")
            offset = self._add(entry, offset)
        self._expect_end(offset)
        return self._files

    def _refuse_compressed(self) -> None:
        begin = os.pread(self._descriptor, 8, 0)
        for magic, kind in _MAGICS.items():
            if begin.startswith(magic):
                raise BundleError(f"it is compressed by {kind}; decompress it first, layers are compressed already")

    def _entry(self, offset: int) -> tuple[int, tarfile.TarInfo] | None:
        """The member whose header begins at `offset`, with what extensions before it say, and where its bytes begin.

        None where the end begins.
        """
        extended: dict[str, str] = {}
        while (entry := self._header(offset)) is not None:
            offset += _BLOCK
            if entry.type == tarfile.XHDTYPE:
                extended.update(_read_pax(self._extension(entry, offset)))
            elif entry.type == tarfile.GNUTYPE_LONGNAME:
                extended["path"] = _text(self._extension(entry, offset).rstrip(b"\0"))
            else:
                entry.name = extended.get("path", entry.name)
                entry.size = _number(extended["size"]) if "size" in extended else entry.size
                return offset, entry
            offset = _next(offset, entry.size)
        if extended:
            raise BundleError("it ends after the name of a member that does not come")
        return None

    def _header(self, offset: int) -> tarfile.TarInfo | None:
        block = os.pread(self._descriptor, _BLOCK, offset)
        if len(block) < _BLOCK:
            raise BundleError(f"it is cut: after {offset} bytes there is neither a member nor the end of a tar")
        if not any(block):
            return None
        try:
            entry = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            raise BundleError(f"no tar, or a damaged one: {error} at byte {offset}") from error
        if entry.size < 0:
            raise BundleError(f"a member with a size below zero: {entry.name[:200]!r}")
        return entry

    def _extension(self, entry: tarfile.TarInfo, offset: int) -> bytes:
        if entry.size > _LARGEST_EXTENSION:
            raise BundleError(f"a header of {entry.size} bytes, more than the {_LARGEST_EXTENSION} allowed")
        content = os.pread(self._descriptor, entry.size, offset)
        if len(content) < entry.size:
            raise BundleError("it is cut within a header")
        return content

    def _add(self, entry: tarfile.TarInfo, offset: int) -> int:
        """Take note of a member; returns where the next header is."""
        if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
            kind = _KINDS.get(entry.type, f"a member of type {entry.type!r}")
            raise BundleError(f"{kind}: {entry.name[:200]!r}")
        name = check_path(entry.name)
        if name in self._seen:
            raise BundleError(f"two members are called {name!r}")
        self._seen.add(name)
        if entry.type == tarfile.DIRTYPE:
            if entry.size:
                raise BundleError(f"a folder with content: {name!r}")
            return offset
        after = _next(offset, entry.size)
        if after > self._end:
            raise BundleError(f"it is cut within {name!r}")
        self._files[name] = Member(name, offset, entry.size)
        return after

    def _expect_end(self, offset: int) -> None:
        """Two empty blocks, and nothing but zeros after them: what nobody reads, nobody has checked."""
        if self._end - offset < len(END):
            raise BundleError("it is cut in the end mark")
        while block := os.pread(self._descriptor, 1 << 20, offset):
            if block.count(0) != len(block):
                raise BundleError(f"something follows the end of the tar, at byte {offset}")
            offset += len(block)


def _next(offset: int, size: int) -> int:
    return offset + size + -size % _BLOCK


def _read_pax(content: bytes) -> dict[str, str]:
    """The records that matter out of `<length> <key>=<value>\\n …`."""
    found: dict[str, str] = {}
    while content:
        digits, space, _ = content.partition(b" ")
        length = _number(digits.decode("latin-1"))
        record, content = content[len(digits) + 1 : length], content[length:]
        key, equals, value = record.partition(b"=")
        if not space or len(digits) + 1 + len(record) != length or not equals or not value.endswith(b"\n"):
            raise BundleError("a damaged extended header")
        if key.startswith(b"GNU.sparse"):
            raise BundleError("a sparse file")
        if key in (b"path", b"size"):
            found[key.decode()] = _text(value[:-1])
    return found


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise BundleError("a name that is not UTF-8") from error


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BundleError("a damaged extended header")
    return int(text)
