"""A body that is spliced into a file which takes no more bytes."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from mirror.errors import StoreFull
from mirror.store.local.pump import Crowd, GrowingEnd


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
        if not self.left:
            return 0
        count = self._ours.recv_into(buffer[: self.left])
        self.left -= count
        return count

    def abort(self) -> None: ...

    def close(self) -> None:
        self._ours.close()


class _Sending(_Body):
    """More than fits into the buffer of a socket: a thread sends it."""

    def __init__(self, content: bytes) -> None:
        super().__init__(b"")
        self.size = self.left = len(content)
        self._ours.close()
        self._ours, other = socket.socketpair()

        def send() -> None:
            with other:
                if content:
                    other.sendall(content)

        self._thread = threading.Thread(target=send)
        self._thread.start()

    def close(self) -> None:
        super().close()
        self._thread.join()


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


@pytest.mark.parametrize("before", [0, 1, 1_500_000])
def test_one_of_many_bodies_is_hashed_by_the_thread_that_receives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """No byte is spliced or read back then. The hash goes on where another thread has stopped, and the other way
    round.
    """
    content = os.urandom(4_000_000)
    crowd, hashing = Crowd(), hashlib.sha256()
    spliced: list[int] = []
    real = os.splice

    def splice(source: int, target: int, count: int, **more: int) -> int:
        spliced.append(source)
        return real(source, target, count, **more)

    monkeypatch.setattr(os, "splice", splice)
    with (tmp_path / "file").open("w+b") as file:
        end = GrowingEnd(file.fileno(), hashing, size=0, hashed=0, crowd=crowd)
        for start, stop, others in ((0, before, 0), (before, 3_000_000, 5), (3_000_000, 4_000_000, 0)):
            spliced.clear()
            with ExitStack() as stack:
                for _ in range(others):
                    stack.enter_context(crowd)
                sending = _Sending(content[start:stop])
                end.append(sending, lambda size: None, limit=1 << 30)
                sending.close()
            assert end.size == stop
            assert bool(spliced) == (start < stop and not others)
            assert not others or end.hashed == stop
        end.finish()
        assert (tmp_path / "file").read_bytes() == content
    assert hashing.hexdigest() == hashlib.sha256(content).hexdigest()


def test_one_of_many_bodies_meets_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be written is in memory, and is written and hashed once when there is room."""
    content, crowd, hashing = os.urandom(1_000_000), Crowd(), hashlib.sha256()
    real, written = os.write, 0

    def write(descriptor: int, data: memoryview) -> int:
        nonlocal written
        if 0 <= written > 400_000:
            written = -1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = real(descriptor, data[:100_000])
        written += count if written >= 0 else 0
        return count

    monkeypatch.setattr(os, "write", write)
    body = _Sending(content)
    with crowd, crowd, (tmp_path / "file").open("w+b") as file:
        end = GrowingEnd(file.fileno(), hashing, size=0, hashed=0, crowd=crowd)
        with pytest.raises(StoreFull):
            end.append(body, lambda size: None, limit=1 << 30)
        assert end.hashed <= end.size < len(content)
        end.append(body, lambda size: None, limit=1 << 30)
        end.finish()
        body.close()
        assert (tmp_path / "file").read_bytes() == content
    assert hashing.hexdigest() == hashlib.sha256(content).hexdigest()


def test_a_process_without_another_thread_hashes_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of threads slows the blob down, and does not end it."""
    content = os.urandom(3 << 20)
    body, hashing = _Sending(content), hashlib.sha256()

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with (tmp_path / "file").open("w+b") as file:
        end = GrowingEnd(file.fileno(), hashing, size=0, hashed=0)
        end.append(body, lambda size: None, limit=len(content))
        end.finish()
        assert os.pread(file.fileno(), len(content) + 1, 0) == content
    body.close()
    assert hashing.digest() == hashlib.sha256(content).digest()
