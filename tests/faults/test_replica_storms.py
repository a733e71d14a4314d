"""Clients push, move tags, delete and pull at three replicas, and everything unused is collected, while each replica,
the bucket and Redis are killed, frozen and cut off in turn.

As a soak test of half an hour, another one with each MIRROR_FAULTS_SEED:

    MIRROR_FAULTS_REPLICA_SECONDS=1800 .venv/bin/python -m pytest -n 0 -s tests/faults/test_replica_storms.py
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
from tests.support.bucket_troubles import BucketTroubles
from tests.support.cluster_site import ClusterSite, Replica
from tests.support.engines.fault_proxy import Answer, CutAnswer, Fault, FlippedAnswer, Silence
from tests.support.engines.seaweedfs import SeaweedFS
from tests.support.fake_registry import FakeRegistry
from tests.support.process import PATIENCE, eventually
from tests.support.pushers import Pushers, open_to_pushers
from tests.support.redis_sets import SentinelSet
from tests.support.storm_length import StormLength
from tests.support.stubborn import Stubborn

#: How many acknowledged changes the clients make between two faults.
_CHANGES: Final = 15
_LENGTH: Final = StormLength("REPLICA", 2, limit=1500)


class _ReplicaStorm:
    """Three replicas before one store and one set of Redis servers, and what happens to all of them."""

    def __init__(
        self,
        site: ClusterSite,
        engine: SeaweedFS,
        redis: SentinelSet,
        pushers: Pushers,
        dice: random.Random,
    ) -> None:
        self._site = site
        self._engine = engine
        self._redis = redis
        self._pushers = pushers
        self._dice = dice
        proxies = [one.bucket for one in site.replicas if one.bucket is not None]
        self._troubles = BucketTroubles(proxies, dice, self._meanwhile)
        #: How often each of them happened.
        self.caused: Counter[str] = Counter()
        #: What is still to come before everything has happened once.
        self._coming: list[str] = []

    def one_more(self) -> None:
        """Something goes wrong while the clients work, and is repaired: each kind once, then each once more, …"""
        kinds: dict[str, Callable[[], None]] = {
            "replica killed": self._kill_a_replica,
            "replica frozen": self._freeze_a_replica,
            "replica cut off": self._cut_off_a_replica,
            "replica emptied": lambda: self._drawn().lose_disk(kill=True),
            "replica replaced": lambda: self._drawn().lose_disk(),
            "peers cut": self._cut_peers,
            "peers fail": self._break_peers,
            "store killed": self._kill_the_store,
            "store frozen": self._freeze_the_store,
            "primary killed": self._kill_the_primary,
            "primary frozen": self._freeze_the_primary,
            "redis emptied": self._empty_redis,
            "bucket": lambda: self._dice.choice(list(self._troubles.kinds.values()))(),
        }
        if not self._coming:
            self._coming = self._dice.sample(list(kinds), len(kinds))
        kind = self._coming.pop()
        kinds[kind]()
        self.caused[kind] += 1

    def _drawn(self) -> Replica:
        return self._dice.choice(self._site.replicas)

    def _meanwhile(self) -> None:
        self._pushers.wait_for(_CHANGES, timeout=600)

    def _some_answers(self) -> None:
        """Clients are answered somehow, if only that it does not work now."""
        wanted = sum(self._pushers.statuses.values()) + 10
        eventually(lambda: sum(self._pushers.statuses.values()) > wanted, "clients ask", timeout=600)

    # ---------------------------------------------------------------------------------------------- replicas

    def _kill_a_replica(self) -> None:
        one = self._drawn()
        one.kill()
        self._meanwhile()
        one.start()

    def _freeze_a_replica(self) -> None:
        one = self._drawn()
        one.freeze()
        # a request that is there already waits
        self._pushers.avoid(one.port)
        self._meanwhile()
        one.thaw()
        self._pushers.avoid(None)

    def _cut_off_a_replica(self) -> None:
        one = self._drawn()
        self._site.cut_off(one)
        self._meanwhile()
        self._site.mend()

    def _cut_peers(self) -> None:
        self._site.cut_from_peers(self._drawn())
        self._meanwhile()
        self._site.mend()

    def _break_peers(self) -> None:
        faults: list[Fault] = [Silence(), Answer(500, "INTERNAL"), CutAnswer(20_000), FlippedAnswer()]
        for one in self._site.replicas:
            one.peers.cause(self._dice.choice(faults), where=lambda call: self._dice.random() < 0.5)
        self._meanwhile()
        self._site.mend()

    # ---------------------------------------------------------------------------------------------- the store

    def _kill_the_store(self) -> None:
        self._engine.kill()
        self._some_answers()
        self._engine.start()

    def _freeze_the_store(self) -> None:
        self._engine.pause()
        self._some_answers()
        self._engine.resume()

    # -------------------------------------------------------------------------------------------------- Redis

    def _kill_the_primary(self) -> None:
        primary = self._redis.primary()
        primary.kill()
        self._meanwhile()
        self._redis.heal()

    def _freeze_the_primary(self) -> None:
        primary = self._redis.primary()
        primary.pause()
        self._meanwhile()
        # what it acknowledges before it knows better is lost
        primary.resume()
        self._meanwhile()
        self._redis.heal()

    def _empty_redis(self) -> None:
        self._redis.primary().command("FLUSHALL")
        self._meanwhile()


@pytest.mark.timeout(_LENGTH.limit)
def test_125_to_133_a_storm_around_replicas(
    registry: FakeRegistry,
    redis_sentinels: SentinelSet,
    tmp_path: Path,
    tally: Tally,
) -> None:
    """Rows 125 to 133: no byte is wrong, nothing acknowledged is lost, no deletion is undone, and in the end every byte
    that nothing needs is collected.
    """
    seed = int(os.environ.get("MIRROR_FAULTS_SEED", "1"))
    dice = random.Random(seed)
    add_apps(registry, (50_000, 120_000))
    read = 0
    with (
        SeaweedFS(tmp_path / "store-engine") as engine,
        ClusterSite(
            tmp_path,
            engine,
            upstreams={"docker.io": registry.url},
            cache=True,
            index=redis_sentinels.url,
            index_timeout="250ms",
            more=open_to_pushers(),
            connect_timeout=2,
            read_timeout=3,
            timeout=6,
        ) as site,
        # shorter than a replica is frozen: what a client has given up there must not take effect later
        Pushers(site.ports, seed=seed, tries=20_000, patience=20) as pushers,
        Stubborn(site.ports, APPS, clients=2, tries=20_000, pause=0.1, seed=seed) as pullers,
    ):
        storm = _ReplicaStorm(site, engine, redis_sentinels, pushers, dice)
        for number in _LENGTH.rounds():
            pushers.go()
            pushers.wait_for(_CHANGES, timeout=600)
            storm.one_more()
            pushers.wait_for(_CHANGES, timeout=600)
            pushers.rest()
            read += pushers.look()
            assert pushers.wrong == [], f"seed {seed}, round {number}, {dict(storm.caused)}"
            assert pullers.corrupt == [], f"seed {seed}, round {number}, {dict(storm.caused)}"
        pullers.wait_for_pulls(2, timeout=600)
        pullers.leave()
        pushers.delete_all()
        eventually(lambda: not list(site.bucket.counted()), "all bytes are collected", timeout=PATIENCE * 3)
    assert read > 0
    assert pullers.failed == []
    tally(
        rounds=storm.caused.total(),
        changes=pushers.acknowledged.total(),
        read=read,
        pulled=pullers.pulled,
        **{re.sub(r"\W", "_", kind): count for kind, count in sorted(storm.caused.items())},
    )
