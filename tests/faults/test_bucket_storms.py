"""Clients push, move tags, delete and pull, and everything unused is collected, while the bucket is killed, cut, slowed
and throttled, and the mirror loses its disk.

As a soak test of half an hour or so:

    MIRROR_FAULTS_BUCKET_SECONDS=1800 .venv/bin/python -m pytest -n 0 -s tests/faults/test_bucket_storms.py
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.faults.conftest import APPS, Tally, add_apps
from tests.support.bucket_site import BucketSite
from tests.support.bucket_troubles import BucketTroubles
from tests.support.engines.seaweedfs import SeaweedFS
from tests.support.fake_registry import FakeRegistry
from tests.support.process import PATIENCE, eventually
from tests.support.pushers import Pushers, open_to_pushers
from tests.support.storm_length import StormLength

#: How many acknowledged changes the clients make between two faults.
_CHANGES: Final = 15
_LENGTH: Final = StormLength("BUCKET", 6, limit=1500)


class _Storm:
    """One mirror before one store, and what happens to both."""

    def __init__(self, site: BucketSite, engine: SeaweedFS, pushers: Pushers, dice: random.Random) -> None:
        self._site = site
        self._engine = engine
        self._pushers = pushers
        self._dice = dice
        self._troubles = BucketTroubles([site.proxy], dice, lambda: pushers.wait_for(_CHANGES))
        #: How often each of them happened.
        self.caused: Counter[str] = Counter()
        self.pulled = 0

    def one_more(self) -> None:
        """Something goes wrong while the clients work, and is repaired."""
        kinds: dict[str, Callable[[], None]] = {
            **self._troubles.kinds,
            "killed": self._kill_the_store,
            "mirror killed": self._kill_the_mirror,
            "disk lost": self._lose_the_disk,
        }
        kind = self._dice.choice(list(kinds))
        kinds[kind]()
        self.caused[kind] += 1

    def pull_all(self) -> None:
        """What upstream has, past no fault; the bytes are compared."""
        for name, tag in APPS:
            self._site.pull(name, tag)
            self.pulled += 1

    def _kill_the_store(self) -> None:
        self._engine.kill()
        before = sum(self._pushers.statuses.values())
        eventually(lambda: sum(self._pushers.statuses.values()) > before + 10, "clients ask", timeout=600)
        self._engine.start()

    def _kill_the_mirror(self) -> None:
        self._site.kill()
        self._site.start()

    def _lose_the_disk(self) -> None:
        # unfinished uploads go with it, and clients begin them anew
        self._site.lose_disk(kill=True)


@pytest.mark.timeout(_LENGTH.limit)
def test_113_to_123_a_storm_around_a_bucket(registry: FakeRegistry, tmp_path: Path, tally: Tally) -> None:
    """Rows 113 to 123: no byte is wrong, nothing acknowledged is lost, no deletion is undone, and in the end nothing is
    left of what was deleted but objects that no state names: what a crash has left waits a day for the sweep.
    """
    seed = int(os.environ.get("MIRROR_FAULTS_SEED", "1"))
    dice = random.Random(seed)
    add_apps(registry, (50_000, 120_000))
    read = 0
    with (
        SeaweedFS(tmp_path / "store-engine") as engine,
        BucketSite(
            tmp_path,
            engine,
            upstreams={"docker.io": registry.url},
            cache=True,
            workers=2,
            more=open_to_pushers(),
            connect_timeout=2,
            read_timeout=3,
            timeout=6,
        ) as site,
        Pushers(site.mirror.port, seed=seed, tries=20_000) as pushers,
    ):
        storm = _Storm(site, engine, pushers, dice)
        for number in _LENGTH.rounds():
            pushers.go()
            pushers.wait_for(_CHANGES, timeout=600)
            storm.one_more()
            pushers.wait_for(_CHANGES, timeout=600)
            pushers.rest()
            read += pushers.look()
            storm.pull_all()
            assert pushers.wrong == [], f"seed {seed}, round {number}, {dict(storm.caused)}"
        pushers.delete_all()
        eventually(lambda: not list(site.counted()), "all bytes are collected", timeout=PATIENCE * 3)
        collected = eventually(lambda: site.mirror.metrics()["mirror_collected_blobs_total"] or None, "it is counted")
    assert read > 0
    tally(
        rounds=storm.caused.total(),
        changes=pushers.acknowledged.total(),
        read=read,
        pulled=storm.pulled,
        collected=int(collected),
        **{re.sub(r"\W", "_", kind): count for kind, count in sorted(storm.caused.items())},
    )
