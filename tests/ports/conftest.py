"""What several tests of ports start with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import pytest

from mirror.aio.memo import Memo
from mirror.upstream.credentials.source import CredentialSource
from mirror.upstream.registry import RegistryUpstream
from tests.support.clock import Clock
from tests.support.fake_registry import FakeRegistry
from tests.support.registry_upstream import registry_upstream

#: An upstream with these credentials; closed at the end of the test.
Pulling: TypeAlias = Callable[[FakeRegistry, CredentialSource], RegistryUpstream]


@pytest.fixture
def clock() -> Clock:
    """Of a test without a time of its own."""
    return Clock()


@pytest.fixture
async def pulling(clock: Clock) -> AsyncIterator[Pulling]:
    """All by one clock."""
    opened: list[RegistryUpstream] = []
    executor, memo = ThreadPoolExecutor(2), Memo(now=clock)

    def make(registry: FakeRegistry, credentials: CredentialSource) -> RegistryUpstream:
        opened.append(
            registry_upstream(
                "a.test", registry.url, executor=executor, memo=memo, credentials=credentials, clock=clock
            )
        )
        return opened[-1]

    yield make
    for one in opened:
        await one.aclose()
    await memo.aclose()
    executor.shutdown()
