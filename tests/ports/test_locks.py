"""Locks that processes on one store share."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from mirror.store.local.locks import FileLocks
from tests.support.locks_suite import LocksSuite, take_and_leave


@pytest.fixture
def process(tmp_path: Path) -> Callable[[], FileLocks]:
    """Makes the view that each of several processes has: they share nothing but files."""
    layout = LocalStore(Layout(tmp_path)).layout
    return lambda: FileLocks(layout)


class TestFileLocks(LocksSuite):
    """Locks of the kernel."""


async def test_long_work_blocks_no_key(process: Callable[[], FileLocks]) -> None:
    """A plain name has a file of its own, which is none of those that the names of tags share."""
    async with process().hold("rebuild"), asyncio.timeout(60):
        for number in range(3000):
            await take_and_leave(process(), f"tag {number}")


async def test_plain_names_share_no_file(process: Callable[[], FileLocks]) -> None:
    """All of them can be held at the same time."""
    names = [*("evict", "rebuild", "misses", "scrub", "house", "sync", "traffic", "jobs", "sync-0123456789abcdef")]
    names += [f"{kind}-{number}" for kind in ("job", "board", "recent") for number in range(50)]
    leases = [process().try_hold_now(name) for name in names]
    assert None not in leases


async def test_a_deleted_folder_is_made_again(process: Callable[[], FileLocks], tmp_path: Path) -> None:
    """An operator who empties the folder of locks does not stop the mirror."""
    shutil.rmtree(tmp_path / "locks")
    assert process().try_hold_now("house") is not None
    assert process().try_hold_now("house") is None
