"""Several worker processes on one store, killed at random among clients, a bad upstream, purges and a Redis that dies.

`MIRROR_FAULTS_KILLS` says how many workers are killed, `MIRROR_FAULTS_SEED` how the dice begin.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Final

import pytest

from mirror.app.storage import open_storage
from mirror.config import load
from mirror.eviction.reconcile import reconcile
from mirror.oci.digest import Digest
from mirror.server.admin.operations import PREFIX
from mirror.store.local.layout import Layout
from mirror.store.local.recovery import sweep
from tests.faults.conftest import APPS, Tally, add_apps
from tests.support.admin_client import ask_admin
from tests.support.fake_registry import FakeRegistry, cut, reset, stall, status
from tests.support.forked_workers import ForkedWorkers
from tests.support.mirror_process import write_config
from tests.support.redis_server import RedisServer
from tests.support.scripted import Stall
from tests.support.stubborn import Stubborn

_SEED: Final = int(os.environ.get("MIRROR_FAULTS_SEED", "0"))
_LAYERS: Final = (0, 37, 70_000, 300_000, 800_000)


@pytest.fixture
def library(registry: FakeRegistry) -> FakeRegistry:
    """Eight images, about 9 MB; one layer is shared by all."""
    add_apps(registry, _LAYERS)
    return registry


@pytest.fixture(params=["redis", "embedded"])
def redis(request: pytest.FixtureRequest) -> Iterator[RedisServer | None]:
    """Where the index is."""
    if request.param == "embedded":
        yield None
        return
    with RedisServer() as running:
        yield running


def test_58_workers_are_killed_at_random(
    library: FakeRegistry, redis: RedisServer | None, tmp_path: Path, times: Callable[[str, int], int], tally: Tally
) -> None:
    """Rows 41, 44, 58: whichever worker dies, and whatever else goes wrong, an ordinary retry gives each client the
    right bytes in the end; no published file is wrong, nothing is left over, and index and disk agree.
    """
    kills = times("KILLS", 12)
    dice = random.Random(_SEED)
    index = redis.url if redis else ""
    config = write_config(
        tmp_path,
        {"docker.io": library.url},
        workers=1,
        capacity="4MB",
        tag_ttl="0s",
        index=index,
        index_timeout="100ms",
    )
    gates: list[Stall] = []
    counted: Counter[str] = Counter()
    with ExitStack() as stack:
        workers = [stack.enter_context(ForkedWorkers(config))]
        workers += [stack.enter_context(ForkedWorkers(config, beside=workers[0])) for _ in range(2)]
        for one in workers:
            one.start()
        with Stubborn(workers[0].port, APPS, clients=6, tries=400, pause=0.02, seed=_SEED) as clients:
            for _ in range(kills):
                for _ in range(dice.randint(0, 2)):
                    counted[_trouble(dice, library, redis, tmp_path / "store", gates)] += 1
                time.sleep(dice.uniform(0, 0.25))  # the moment of the fault, not a wait for anything
                one = dice.choice(workers)
                one.kill()
                one.start(wait=False)
                while gates:
                    gates.pop().release()
            library.heal()
            clients.wait_for_pulls(6)
            clients.leave()
        assert not clients.failed
        assert not clients.corrupt
        for one in workers:
            one.stop()
        workers[0].start()
        # the next request finishes what the killed workers have left half done
        for name, tag in APPS:
            with Stubborn(workers[0].port, [(name, tag)], clients=1, tries=50) as last:
                last.wait_for_pulls(1)
            assert not last.failed
            assert not last.corrupt
        workers[0].stop()
        log = workers[0].log.read_text()
    assert not _wrong(tmp_path / "store")
    left = sweep(Layout(tmp_path / "store"), keep=0.0, now=lambda: time.time() + 86400.0)
    assert not left.partials
    assert not list((tmp_path / "store" / "ingest").iterdir())
    asyncio.run(_index_and_disk_agree(config))
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:4000]
    assert "crashed" not in log
    tally(kills=kills, pulls=clients.pulled, requests=clients.requests, broken=clients.broken, **counted)


def _trouble(
    dice: random.Random, library: FakeRegistry, redis: RedisServer | None, root: Path, gates: list[Stall]
) -> str:
    """One of many; its name."""
    match dice.randrange(8):
        case 4 if redis:
            redis.restart()
            return "redis_lost"
        case 5 if redis:
            redis.pause()
            time.sleep(0.2)  # the length of the fault
            redis.resume()
            return "redis_paused"
        case 6:
            name, tag = dice.choice(APPS)
            with suppress(OSError, HTTPException, ValueError):
                ask_admin(root / "admin.sock", "DELETE", f"{PREFIX}/images/docker.io/{name}:{tag}")
            return "purged"
        case 7:
            with suppress(OSError, HTTPException, ValueError):
                ask_admin(root / "admin.sock", "POST", f"{PREFIX}/eviction")
            return "collected"
    gate = Stall()
    gates.append(gate)
    fault = dice.choice((status(503), status(500), cut(66_000), cut(0), reset(100_000), stall(gate, 66_000)))
    library.fail(dice.choice(("blobs", "blobs", "manifests")), fault, dice.randint(1, 3))
    return "upstream"


def _wrong(root: Path) -> list[Path]:
    """The published files whose bytes do not match their name."""
    files = list((root / "blobs").glob("*/*/*"))
    assert files
    return [file for file in files if not Digest.parse(f"{file.parts[-3]}:{file.name}").matches(file.read_bytes())]


async def _index_and_disk_agree(config: Path) -> None:
    async with open_storage(load(config)) as storage:
        await reconcile(storage.store, storage.catalog, storage.index)
        usage = await storage.index.usage()
        on_disk = [info.size for info in storage.store.walk()]
    assert (usage.blobs, usage.bytes) == (len(on_disk), sum(on_disk))
    assert sum(on_disk) <= 4_000_000
