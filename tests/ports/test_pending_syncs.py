"""Folders that wait to be synced, on a disk that fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mirror.store.local.durable import PendingSyncs


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the folders that were synced, in order."""
    names: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        names.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    monkeypatch.setattr(os, "fsync", fsync)
    return names


def test_what_could_not_be_synced_is_synced_by_the_next_call(
    tmp_path: Path, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that fails leaves nothing behind that the next one, perhaps another caller's, takes for durable."""
    pending = PendingSyncs()
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        pending.add(tmp_path / name)
    working = os.fsync

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        pending.sync()
    monkeypatch.setattr(os, "fsync", working)
    assert synced == []
    pending.sync()
    assert sorted(synced) == ["a", "b", "c"]
    pending.sync()
    assert len(synced) == 3


def test_a_folder_that_was_removed_holds_nobody_up(tmp_path: Path, synced: list[str]) -> None:
    """What was added to it has gone with it; the others are synced."""
    pending = PendingSyncs()
    for name in ("gone", "here"):
        (tmp_path / name).mkdir()
        pending.add(tmp_path / name)
    (tmp_path / "gone").rmdir()
    pending.sync()
    assert synced == ["here"]
