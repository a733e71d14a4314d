"""The blocks that are allocated ahead of a growing file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from mirror.errors import UpstreamUnavailable
from mirror.oci.digest import Digest
from mirror.store.local import pump as pumping
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from mirror.store.local.pump import pump

_MIB = 1 << 20
_WHOLE = 40 * _MIB + 12_345
_CONTENT = os.urandom(_WHOLE)


class _Body:
    """The bytes from `start` on. Breaks off at `breaks`."""

    stop = None

    def __init__(self, start: int = 0, breaks: int = _WHOLE) -> None:
        self.start = start
        self.size = _WHOLE
        self._at = start
        self._breaks = breaks

    def readinto(self, buffer: memoryview) -> int:
        piece = _CONTENT[self._at : min(self._breaks, self._at + len(buffer))]
        if not piece and self._breaks < _WHOLE:
            raise UpstreamUnavailable("broke off", upstream="somewhere")
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def abort(self) -> None: ...


class _Calls:
    """Takes the place of fallocate(2), which may fail."""

    def __init__(self, answer: int = 0) -> None:
        self.ranges: list[tuple[int, int]] = []
        self._answer = answer

    def __call__(self, descriptor: int, mode: int, start: int, length: int) -> int:
        assert mode == 1, "followers take the size for the bytes that are here"
        self.ranges.append((start, start + length))
        return self._answer


def test_blocks_are_allocated_ahead_of_the_bytes_and_none_beyond_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = _Calls()
    monkeypatch.setattr(pumping, "_fallocate", calls)
    ahead: list[bool] = []

    def grown(offset: int) -> None:
        ahead.append(any(start <= offset <= stop for start, stop in calls.ranges))

    with (tmp_path / "file").open("w+b") as file:
        pump(_Body(), file.fileno(), hashlib.sha256(), start=0, limit=_WHOLE, grown=grown)
    assert all(ahead[: len(ahead) * 3 // 4])
    assert all(stop <= _WHOLE for _, stop in calls.ranges)


@pytest.mark.parametrize("limit", [None, 8 * _MIB - 1])
def test_none_are_allocated_for_a_small_blob_or_one_of_unknown_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    calls = _Calls()
    monkeypatch.setattr(pumping, "_fallocate", calls)
    with (tmp_path / "file").open("w+b") as file, pytest.raises(UpstreamUnavailable):
        pump(_Body(breaks=_MIB), file.fileno(), hashlib.sha256(), start=0, limit=limit, grown=lambda _: None)
    assert not calls.ranges


def test_the_size_stays_that_of_the_bytes_and_the_file_goes_on(tmp_path: Path) -> None:
    """With the file system's own allocation, if it has one."""
    hashing, sizes = hashlib.sha256(), []

    def grown(offset: int) -> None:
        sizes.append((offset, os.fstat(file.fileno()).st_size))

    with (tmp_path / "file").open("w+b") as file:
        with pytest.raises(UpstreamUnavailable):
            pump(_Body(breaks=9 * _MIB + 1), file.fileno(), hashing, start=0, limit=_WHOLE, grown=grown)
        assert os.fstat(file.fileno()).st_size == 9 * _MIB + 1
        pump(_Body(9 * _MIB + 1), file.fileno(), hashing, start=9 * _MIB + 1, limit=_WHOLE, grown=grown)
    assert all(offset == size for offset, size in sizes)
    assert hashing.digest() == hashlib.sha256(_CONTENT).digest()
    assert (tmp_path / "file").read_bytes() == _CONTENT


def test_a_partial_that_is_left_gives_back_what_was_allocated_ahead(tmp_path: Path) -> None:
    """Only its bytes count towards the capacity of the store, and it may lie there for long."""
    store, digest = LocalStore(Layout(tmp_path)), Digest.of(_CONTENT)
    ingest = store.ingest(digest, "somewhere")
    assert ingest.try_lock()
    ingest.resume()
    ingest.expect(_WHOLE)
    with pytest.raises(UpstreamUnavailable):
        ingest.fill(_Body(breaks=_MIB), lambda: None)
    ingest.close()
    status = store.layout.ingest(digest, "somewhere").stat()
    assert status.st_size == _MIB
    assert status.st_blocks * 512 < 2 * _MIB
    assert store.growing() == {digest: _MIB}


def test_a_partial_to_which_nothing_came_stays_as_old_as_it_is(tmp_path: Path) -> None:
    """The sweep drops it some time after its last byte."""
    store, digest = LocalStore(Layout(tmp_path)), Digest.of(_CONTENT)
    for breaks in (_MIB, None):
        ingest = store.ingest(digest, "somewhere")
        assert ingest.try_lock()
        ingest.resume()
        if breaks is not None:
            ingest.expect(_WHOLE)
            with pytest.raises(UpstreamUnavailable):
                ingest.fill(_Body(breaks=breaks), lambda: None)
        ingest.close()
        path = store.layout.ingest(digest, "somewhere")
        if breaks is not None:
            os.utime(path, (1000.0, 1000.0))
    assert path.stat().st_mtime == 1000.0


@pytest.mark.parametrize("function", [None, _Calls(-1)])
def test_a_system_that_cannot_allocate_stores_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: _Calls | None
) -> None:
    monkeypatch.setattr(pumping, "_fallocate", function)
    with (tmp_path / "file").open("w+b") as file:
        pump(_Body(), file.fileno(), hashlib.sha256(), start=0, limit=_WHOLE, grown=lambda _: None)
    assert (tmp_path / "file").read_bytes() == _CONTENT
