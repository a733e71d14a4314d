"""What the tests of hosted repositories have in common."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mirror.intake.grants import Grants
from tests.support.bucket_records import Machine
from tests.support.hosted_world import HostedWorld


@pytest.fixture(params=["memory", "bucket"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[HostedWorld]:
    """The registry `corp`: in memory, and with records that are in a bucket."""
    with HostedWorld() as world, ThreadPoolExecutor(4, "records") as pool:
        if request.param == "bucket":
            machine = Machine(tmp_path / "machine")
            machine.list_all()
            world.catalog, world.records = machine.catalog(), machine.records()
            world.at_once = lambda work, things: pool.map(work, things)
            world.grants = Grants(world.index, world.catalog, world.cache)
        yield world
