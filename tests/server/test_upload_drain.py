"""What a replica that ends waits for, and what it says of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from structlog.testing import capture_logs

from mirror.app.building import OpenUploads
from mirror.process.worker import wait_for_uploads

_LONG: Final = 1e9


async def _logged(found: list[OpenUploads], longest: float) -> list[Mapping[str, Any]]:
    """The lines of a wait during which each look finds the next of these."""

    async def sleep(_: float) -> None:
        await asyncio.sleep(0)

    with capture_logs() as lines:
        await wait_for_uploads(lambda: found.pop(0), longest, sleep=sleep)
    return [{name: value for name, value in line.items() if name != "worker"} for line in lines]


async def test_it_waits_for_uploads_that_go_on() -> None:
    assert await _logged([OpenUploads(1, 1), OpenUploads(1, 1), OpenUploads()], _LONG) == [
        {"event": "waiting for uploads", "log_level": "info", "uploads": 1, "at_most": _LONG}
    ]


async def test_it_says_what_it_leaves() -> None:
    """Those that nobody goes on with are not waited for, and others no longer than it may."""
    assert await _logged([OpenUploads(2, 0)], _LONG) == [
        {"event": "uploads left open", "log_level": "warning", "uploads": 2, "active": 0}
    ]
    assert await _logged([OpenUploads(3, 2)], 0.0) == [
        {"event": "waiting for uploads", "log_level": "info", "uploads": 2, "at_most": 0.0},
        {"event": "uploads left open", "log_level": "warning", "uploads": 3, "active": 2},
    ]


async def test_without_uploads_it_says_nothing() -> None:
    assert await _logged([OpenUploads()], _LONG) == []
