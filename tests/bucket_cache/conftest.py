"""What the tests of the bucket's cache have in common."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.cache_world import CacheWorld


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[CacheWorld]:
    """Empty."""
    world = CacheWorld(tmp_path / "store")
    yield world
    await world.aclose()
