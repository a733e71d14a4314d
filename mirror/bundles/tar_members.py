"""Tar files (POSIX.1-2001, "pax"), as far as a bundle needs them: written reproducibly, read strictly.

Reading never unpacks: it lists the members with the offsets of their bytes, and refuses the whole file if it contains
anything that does not belong in a bundle. `tarfile` decodes single headers only; this module walks from header to
header itself, because `tarfile` takes a damaged header in the middle for the end of the file.
"""

from __future__ import annotations

import os
import tarfile
from dataclasses import dataclass
from typing import Final

from mirror.errors import BundleError

_BLOCK: Final = tarfile.BLOCKSIZE

#: The end mark of a tar: two blocks of zeros.
END: Final = bytes(2 * _BLOCK)

#: A tar with more members is refused. A large site has a few hundred thousand blobs.
MOST_MEMBERS: Final = 500_000

#: The longest name of a member, in characters, and the largest extended header, in bytes.
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
    """A regular file: the offset of its bytes in the tar, and its size in bytes."""

    name: str
    offset: int
    size: int


def file_header(name: str, size: int) -> bytes:
    """The header blocks that precede the bytes of a file."""
    return _header(name, tarfile.REGTYPE, 0o644, size)


def folder_header(name: str) -> bytes:
    """The header blocks of a folder."""
    return _header(name, tarfile.DIRTYPE, 0o755, 0)


def _header(name: str, kind: bytes, mode: int, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size, entry.mtime = kind, mode, size, 0
    return entry.tobuf(tarfile.PAX_FORMAT)


def padding(size: int) -> bytes:
    """The zeros that fill the last block after a file of `size` bytes."""
    return bytes(-size % _BLOCK)


def check_path(name: str) -> str:
    """A member's name without a leading `./` or trailing slash; "" for the root folder.

    Raises `BundleError` if the path is absolute, contains `..`, or is not a plain printable path.
    """
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
        raise BundleError(f"an invalid path: {name[:200]!r}")
    return path


def scan(descriptor: int) -> dict[str, Member]:
    """Every regular file of a tar, by name. Only headers are read, so this is quick even for a large tar.

    Raises `BundleError` for a member that is not a plain file or folder, for an unsafe name (`check_path`), for a name
    that occurs twice, and for a tar that is compressed, truncated, damaged, or followed by other bytes.
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
        """The member whose header begins at `offset`: the offset of its bytes, and its header, with name and size from
        the extended headers before it. None at the end mark.
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
            raise BundleError("it ends after the name of a missing member")
        return None

    def _header(self, offset: int) -> tarfile.TarInfo | None:
        block = os.pread(self._descriptor, _BLOCK, offset)
        if len(block) < _BLOCK:
            raise BundleError(f"it is truncated: after {offset} bytes there is neither a member nor the end of a tar")
        if not any(block):
            return None
        try:
            entry = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            raise BundleError(f"not a tar, or a damaged one: {error} at byte {offset}") from error
        if entry.size < 0:
            raise BundleError(f"a member with a size below zero: {entry.name[:200]!r}")
        return entry

    def _extension(self, entry: tarfile.TarInfo, offset: int) -> bytes:
        if entry.size > _LARGEST_EXTENSION:
            raise BundleError(f"a header of {entry.size} bytes, more than the {_LARGEST_EXTENSION} allowed")
        content = os.pread(self._descriptor, entry.size, offset)
        if len(content) < entry.size:
            raise BundleError("it is truncated within a header")
        return content

    def _add(self, entry: tarfile.TarInfo, offset: int) -> int:
        """Check and record a member; returns the offset of the next header."""
        if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
            kind = _KINDS.get(entry.type, f"a member of type {entry.type!r}")
            raise BundleError(f"{kind}: {entry.name[:200]!r}")
        name = check_path(entry.name)
        if name in self._seen:
            raise BundleError(f"two members have the name {name!r}")
        self._seen.add(name)
        if entry.type == tarfile.DIRTYPE:
            if entry.size:
                raise BundleError(f"a folder with content: {name!r}")
            return offset
        after = _next(offset, entry.size)
        if after > self._end:
            raise BundleError(f"it is truncated within {name!r}")
        self._files[name] = Member(name, offset, entry.size)
        return after

    def _expect_end(self, offset: int) -> None:
        """Raise `BundleError` unless only zeros follow, at least two blocks: no part of the file stays unchecked."""
        if self._end - offset < len(END):
            raise BundleError("it is truncated in the end mark")
        while block := os.pread(self._descriptor, 1 << 20, offset):
            if block.count(0) != len(block):
                raise BundleError(f"data follows the end of the tar, at byte {offset}")
            offset += len(block)


def _next(offset: int, size: int) -> int:
    return offset + size + -size % _BLOCK


def _read_pax(content: bytes) -> dict[str, str]:
    """The `path` and `size` records of an extended header, which consists of `<length> <key>=<value>\\n` records."""
    records: dict[str, str] = {}
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
            records[key.decode()] = _text(value[:-1])
    return records


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise BundleError("a name that is not UTF-8") from error


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BundleError("a damaged extended header")
    return int(text)
