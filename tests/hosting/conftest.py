"""What the tests of hosted repositories have in common."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.hosted_world import HostedWorld


@pytest.fixture
def world() -> Iterator[HostedWorld]:
    """The registry `corp`, in memory."""
    with HostedWorld() as world:
        yield world
