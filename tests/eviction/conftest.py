"""What the tests of eviction have in common."""

from __future__ import annotations

import pytest

from mirror.eviction.reconcile import MARK
from tests.support.eviction_world import World


@pytest.fixture
async def world() -> World:
    """Whole and empty."""
    world = World()
    await world.index.index.set_marker(MARK)
    return world
