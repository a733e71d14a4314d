"""A body that is spliced into a file which takes no more bytes."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
from pathlib import Path

import pytest

from mirror.errors import StoreFull
from mirror.store.local.pump import GrowingEnd


class _Body:
    """The bytes of one end of a socket pair, offered as a plain socket."""

    start = 0

    def __init__(self, content: bytes) -> None:
        self.size = len(content)
        self.left = len(content)
        self._ours, other = socket.socketpair()
        with other:
            other.sendall(content)

    def plain_socket(self) -> tuple[int, int] | None:
        return (self._ours.fileno(), self.left) if self.left else None

    def advance(self, count: int) -> None:
        self.left -= count

    def readinto(self, buffer: memoryview) -> int:
        return 0

    def abort(self) -> None: ...

    def close(self) -> None:
        self._ours.close()


def test_what_left_the_socket_is_counted_though_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client's connection goes on after the refusal: the bytes that were taken are no longer in its socket."""
    real = os.splice

    def splice(source: int, target: int, count: int, **more: int) -> int:
        if target == file.fileno():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(source, target, count, **more)

    monkeypatch.setattr(os, "splice", splice)
    body = _Body(bytes(50_000))
    with (tmp_path / "file").open("w+b") as file:
        end = GrowingEnd(file.fileno(), hashlib.sha256(), size=0, hashed=0)
        with pytest.raises(StoreFull):
            end.append(body, lambda size: None, limit=1 << 30)
        end.stop()
    assert (body.left, end.size) == (0, 0)
    body.close()
