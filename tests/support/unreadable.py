"""Files that the disk does not give: every read of a store on disk can be made to fail, one at a time or file by file.

with refusing(root, nth(3), errno.EMFILE): ...   # the fourth read fails
with refusing(root, every(path), errno.EIO): ... # each read of this file does

Reads are those of blobs, of records of tags and manifests, and of pins and freezes: opened, listed or looked at.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

#: Whether a read fails, by its number, counted from 0, and its path.
Refuse = Callable[[int, str], bool]

_KINDS = ("blobs", "repositories", "pins", "freezes")


def nth(number: int) -> Refuse:
    """The read of this number, counted from 0."""
    return lambda count, _path: count == number


def every(path: str) -> Refuse:
    """All reads of this file or folder."""
    return lambda _count, read: read == path


@contextmanager
def refusing(root: Path, refuse: Refuse, number: int) -> Iterator[list[str]]:
    """Reads below `root` that `refuse` chooses fail with this `errno`. Gives the paths that were read, as they come."""
    reads: list[str] = []
    changing = threading.Lock()
    folders = tuple(str(root / kind) for kind in _KINDS)

    def read(path: object) -> None:
        if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(folders):
            return
        text = str(os.fspath(path))
        with changing:
            count = len(reads)
            reads.append(text)
        if refuse(count, text):
            raise OSError(number, os.strerror(number), text)

    def checked(call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(path: Any = ".", *more: Any, **named: Any) -> Any:
            read(path)
            return call(path, *more, **named)

        return instead

    def opened(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_DIRECTORY:
            read(path)
        return real_open(path, flags, *more, **named)

    def whole(path: Path) -> bytes:
        read(path)
        return real_read_bytes(path)

    real_open, real_read_bytes = os.open, Path.read_bytes
    with (
        mock.patch.object(os, "open", opened),
        mock.patch.object(os, "lstat", checked(os.lstat)),
        mock.patch.object(os, "listdir", checked(os.listdir)),
        mock.patch.object(os, "scandir", checked(os.scandir)),
        mock.patch.object(Path, "read_bytes", whole),
    ):
        yield reads
