"""What the scenarios have in common: the loop that the mirror runs on, a registry, and a mirror of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest
import uvloop

from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import LiveMirror, live_mirror


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that serves in earnest: it differs from the stock one where sockets are concerned."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    """The upstream."""
    with FakeRegistry() as running:
        yield running


@pytest.fixture
async def mirror(registry: FakeRegistry, tmp_path: Path) -> AsyncIterator[LiveMirror]:
    """A mirror of `registry`, which it knows as docker.io."""
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}) as running:
        yield running
