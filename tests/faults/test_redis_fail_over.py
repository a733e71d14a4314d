"""Row 128: Redis fails over while clients pull, push, move and delete tags, and while content is collected: with
Sentinels and in a Cluster. No pull fails at its first try, nothing acknowledged is lost, no deletion is undone; and
what Redis lost is rebuilt from the disk.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from mirror.errors import IndexUnavailable
from mirror.eviction.reconcile import MARK
from mirror.index.redis import Keys, RedisIndex
from tests.faults.conftest import Tally
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import noise
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import eventually
from tests.support.pushers import Pushers, open_to_pushers
from tests.support.redis_sets import RedisSet
from tests.support.stubborn import Stubborn

_IMAGES = [(f"library/app-{number}", "v1") for number in range(6)]
#: Pulls and changes that must succeed in each phase.
_MORE = 6


@pytest.fixture(params=["redis_sentinels", "redis_cluster"])
def redis(request: pytest.FixtureRequest) -> RedisSet:
    """Whole and empty."""
    found: RedisSet = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def full(registry: FakeRegistry) -> FakeRegistry:
    """Images of one layer each."""
    for number, (name, tag) in enumerate(_IMAGES):
        registry.add_image(name, tag, [noise(60_000, seed=number)], config=name.encode())
    return registry


class _Load:
    """Clients that pull and push all the time, at a mirror whose index is in Redis."""

    def __init__(self, directory: Path, upstream: FakeRegistry, redis: RedisSet) -> None:
        more = open_to_pushers(collect_every="100ms")
        config = write_config(
            directory, {"docker.io": upstream.url}, index=redis.url, index_timeout="100ms", workers=2, more=more
        )
        self.store = directory / "store"
        self.mirror = MirrorProcess(config)
        self.redis = redis
        self.puller = Stubborn(self.mirror.port, _IMAGES, clients=2, tries=1, timeout=60.0)
        self.pushers = Pushers(self.mirror.port, clients=2, seed=128)

    @property
    def store_id(self) -> str:
        return str(json.loads((self.store / "store.json").read_text())["id"])

    @property
    def tag(self) -> str:
        """The hash tag of the index of this store."""
        return Keys(self.store_id).tag

    def goes_on(self) -> None:
        """Pulls and changes succeed."""
        self.puller.wait_for_pulls(_MORE)
        self.pushers.wait_for(_MORE)

    def is_rebuilt(self) -> bool:
        """Whether the index has what the disk has, and says so."""
        return asyncio.run(self._is_rebuilt())

    async def _is_rebuilt(self) -> bool:
        on_disk = {f"{file.parts[-3]}:{file.name}" for file in (self.store / "blobs").glob("*/*/*")}
        async with aclosing(RedisIndex(self.redis.address(), store_id=self.store_id, budget=10.0)) as index:
            try:
                known = {str(digest) async for batch in index.digests() for digest in batch}
                return await index.marker() == MARK and known == on_disk and len(on_disk) >= 3 * len(_IMAGES)
            except IndexUnavailable:
                return False


def _dies(load: _Load) -> None:
    old = load.redis.primary(load.tag)
    old.kill()
    load.goes_on()
    load.redis.wait_for_another(old, load.tag)


def _sleeps_and_wakes(load: _Load) -> None:
    """Until it learns what has happened, it acknowledges what is lost."""
    old = load.redis.primary(load.tag)
    old.pause()
    load.goes_on()
    load.redis.wait_for_another(old, load.tag)
    load.goes_on()
    old.resume()


def _is_emptied(load: _Load) -> None:
    load.redis.flush()


def _hangs(load: _Load) -> None:
    """All servers at once: nobody takes over."""
    for each in load.redis.servers:
        each.pause()
    load.goes_on()
    for each in load.redis.servers:
        each.resume()


@pytest.mark.parametrize(
    "becomes", [_dies, _sleeps_and_wakes, _is_emptied, _hangs], ids=["dies", "sleeps", "is emptied", "hangs"]
)
def test_128_redis_fails_over_under_load(
    full: FakeRegistry, redis: RedisSet, tmp_path: Path, tally: Tally, becomes: Callable[[_Load], None]
) -> None:
    """Row 128: clients notice nothing; afterwards the index has what the disk has."""
    load = _Load(tmp_path, full, redis)
    with load.mirror as mirror, load.puller as puller, load.pushers as pushers:
        pushers.go()
        load.goes_on()
        eventually(load.is_rebuilt, "the index is whole")
        becomes(load)
        load.goes_on()
        pushers.rest()
        puller.leave()
        eventually(load.is_rebuilt, "the index was rebuilt from the disk")
        looked_at = pushers.look()
        assert (puller.failed, puller.corrupt, pushers.wrong) == ([], [], [])
        assert not [line for line in mirror.log if line.get("event") in ("request crashed", "eviction crashed")]
        tally(pulls=puller.pulled, changes=pushers.acknowledged.total(), manifests=looked_at)
