"""Everything at once, by dice (`tests/support/storm.py`).

`MIRROR_FAULTS_STORMS` says how many seeds are tried, `MIRROR_FAULTS_SEED` which is the first.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest

from tests.faults.conftest import Tally
from tests.support.redis_server import RedisServer
from tests.support.storm import Storm

_FIRST: Final = int(os.environ.get("MIRROR_FAULTS_SEED", "0"))
_SEEDS: Final = int(os.environ.get("MIRROR_FAULTS_STORMS", "1"))
_ROUNDS: Final = 2


def _told(storm: Storm) -> dict[str, int]:
    return {name.replace(" ", "_"): count for name, count in sorted(storm.counted.items())}


@pytest.mark.parametrize("seed", range(_FIRST, _FIRST + _SEEDS))
@pytest.mark.parametrize("mirrors", [1, 2])
async def test_the_index_in_the_store(seed: int, mirrors: int, tmp_path: Path, tally: Tally) -> None:
    """One process, or two on one store."""
    storm = Storm(seed, tmp_path / "store", mirrors=mirrors)
    await storm.run(_ROUNDS)
    tally(**_told(storm))


@pytest.mark.parametrize("seed", range(_FIRST, _FIRST + _SEEDS))
async def test_the_index_in_redis(seed: int, tmp_path: Path, tally: Tally) -> None:
    """Which dies, hangs and forgets meanwhile."""
    with RedisServer() as redis:
        storm = Storm(seed, tmp_path / "store", redis=redis, mirrors=2)
        await storm.run(_ROUNDS)
    tally(**_told(storm))
