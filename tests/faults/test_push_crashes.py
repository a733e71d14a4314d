"""`kill -9` and power cuts while clients push, move tags and delete. What was acknowledged stays so; nothing is seen in
part.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.faults.conftest import Tally
from tests.support.each_step import (
    CHANGES,
    Change,
    Judge,
    config_on,
    cut_before_each_step,
    kill_before_each_step,
    wrong_files,
)
from tests.support.ext4 import Ext4, refusal
from tests.support.forked_workers import ForkedWorkers
from tests.support.mirror_process import write_config
from tests.support.process import eventually
from tests.support.pushers import Pushers, open_to_pushers
from tests.support.step_client import StepClient

#: Nothing is collected during a test.
_GRACE: Final = open_to_pushers(keep_deleted="7d", grace="1d", collect_every="1h")
#: Whatever is not named goes at once.
_NO_GRACE: Final = open_to_pushers(collect_every="1s")


def _first_seed() -> int:
    return int(os.environ.get("MIRROR_FAULTS_SEED", "1"))


def test_90_91_92_killed_again_and_again(tmp_path: Path, times: Callable[[str, int], int], tally: Tally) -> None:
    """Rows 87, 90 to 92: however often the worker is killed while it takes pushes and deletes and collects, every
    acknowledged push can be pulled whole, every acknowledged deletion is one, and at the end nothing is left over.
    """
    kills = times("KILLS", 30)
    chance = random.Random(_first_seed())
    config = write_config(tmp_path, {}, workers=1, more=_NO_GRACE)
    root = tmp_path / "store"
    read = 0
    with ForkedWorkers(config) as workers, Pushers(workers.port, seed=_first_seed()) as pushers:
        for _ in range(kills):
            # one in five dies while it starts
            if chance.random() < 0.2:
                workers.start(wait=False)
                time.sleep(chance.uniform(0, 0.08))  # the moment of the fault, not a wait for anything
                workers.kill()
            workers.start()
            pushers.rest()
            read += pushers.look()
            assert not pushers.wrong
            pushers.go()
            time.sleep(chance.uniform(0, 0.25))
            workers.kill()
        workers.start()
        pushers.wait_for(8)
        pushers.rest()
        read += pushers.look()
        assert not pushers.wrong
        assert not wrong_files(root)
        pushers.delete_all()
        eventually(lambda: not list((root / "hosted").glob("*/*/*")), "everything is collected")
        workers.stop()
        log = workers.log.read_text()
    tally(kills=kills, **_counted(pushers), read=read)
    assert not pushers.wrong
    assert pushers.statuses.keys() <= {0, 200, 201, 202, 204, 404, 409, 416, 503}
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:4000]
    assert "crashed" not in log


def _counted(pushers: Pushers) -> dict[str, int]:
    """For the tally: acknowledged changes by kind."""
    return {kind.replace(" ", "_"): count for kind, count in sorted(pushers.acknowledged.items())}


@pytest.mark.skipif(refusal() is not None, reason=f"power cannot be cut here: {refusal()}")
@pytest.mark.parametrize("collecting", [False, True])
def test_90_91_92_power_cuts(tmp_path: Path, times: Callable[[str, int], int], tally: Tally, collecting: bool) -> None:
    """Rows 90 to 92: after a power cut at any moment every acknowledged push can be pulled whole, every acknowledged
    deletion is one, no tag names what is not there, and no file has other bytes than its name says.
    """
    cuts = times("CUTS", 6)
    chance = random.Random(_first_seed())
    wrong: list[str] = []
    read = 0
    with Ext4(tmp_path) as disk:
        config = config_on(disk, tmp_path, _NO_GRACE if collecting else _GRACE)
        root = disk.mount_point / "store"
        with (
            ForkedWorkers(config) as workers,
            Pushers(workers.port, seed=_first_seed(), blobs_stay=not collecting) as pushers,
        ):
            workers.start(boot=1)
            for number in range(cuts):
                pushers.go()
                time.sleep(chance.uniform(0.0, 0.8))  # the moment of the fault
                pushers.lose()
                disk.cut()
                # nothing reaches the disk any more, so nothing may be acknowledged
                time.sleep(chance.uniform(0.0, 0.05))
                workers.kill()
                disk.remount()
                wrong += wrong_files(root)
                workers.start(boot=number + 2)
                pushers.rest()
                read += pushers.look()
                assert not pushers.wrong
                assert not wrong
            log = workers.log.read_text()
    tally(cuts=cuts, **_counted(pushers), read=read)
    assert not pushers.wrong
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:4000]


# ------------------------------------------------------------------------------------------ before each single step


def _repeatable(change: Change) -> Judge:
    """What is not seen is seen, whole, once it is repeated."""

    def judge(client: StepClient, seen: bool) -> None:
        if not seen:
            assert change.make(client)
            assert change.seen(client)

    return judge


@pytest.mark.parametrize("name", CHANGES)
def test_90_91_92_killed_before_each_step(tmp_path: Path, tally: Tally, name: str) -> None:
    """Rows 90 to 92: the worker is killed before each step of one change; the next one shows the change or does not."""
    change = CHANGES[name]
    tally(steps=kill_before_each_step(tmp_path, _GRACE, change, _repeatable(change)))


@pytest.mark.skipif(refusal() is not None, reason=f"power cannot be cut here: {refusal()}")
@pytest.mark.parametrize("name", CHANGES)
def test_90_91_92_power_cut_before_each_step(tmp_path: Path, tally: Tally, name: str) -> None:
    """Rows 90 to 92: the power is cut before each step of one change, and at last right after its answer."""
    change = CHANGES[name]
    tally(steps=cut_before_each_step(tmp_path, _GRACE, change, _repeatable(change)))
