"""Histories as several processes write them, without the lock that is a help to them and not a condition."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mirror.clock import steady_time
from mirror.intake.tag_history import TagHistories, TamperProofClock
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.oci.reference import Repo
from mirror.policy.history import AgeRule
from mirror.policy.records import TagRecord
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from mirror.store.local.local_records import local_catalog, local_freezes

_REPO = Repo("docker.io", "library/app")
_RULE = AgeRule()


def _record(number: int) -> TagRecord:
    return TagRecord("v1", Digest.of(str(number).encode()), OCI_MANIFEST, 7, float(number))


def test_processes_that_learn_of_one_move(tmp_path: Path) -> None:
    """Eight of them at once, again and again: each move is there once, whoever wrote last."""
    layout = Layout(tmp_path / "store")
    LocalStore(layout)
    clocks = TamperProofClock(lambda: 0.0, lambda: 0.0)
    processes = [TagHistories(local_catalog(layout), local_freezes(layout), clocks) for _ in range(8)]
    gate = threading.Barrier(len(processes))

    def learn(histories: TagHistories, was: TagRecord | None, record: TagRecord) -> None:
        gate.wait()
        histories.put_tag(_REPO, was, record, _RULE)

    with ThreadPoolExecutor(len(processes)) as pool:
        was = None
        for number in range(20):
            record = _record(number)
            list(pool.map(learn, processes, [was] * 8, [record] * 8))
            was = record
    history = local_catalog(layout).get_history(_REPO, "v1")
    assert [one.digest for one in history] == [_record(number).digest for number in range(20)]


def test_two_clocks() -> None:
    """Setting the one forward or back shows in the later or the earlier of the two; time that passes in both."""
    wall, steady = 1000.0, 5.0
    clocks = TamperProofClock(lambda: wall, lambda: steady)
    wall, steady = wall + 10, steady + 10
    assert (clocks.earlier(), clocks.later()) == (1010, 1010)
    wall += 500
    assert (clocks.earlier(), clocks.later()) == (1010, 1510)
    wall -= 1000
    assert (clocks.earlier(), clocks.later()) == (510, 1010)
    wall, steady = wall + 7, steady + 7
    assert (clocks.earlier(), clocks.later()) == (517, 1017)


def test_the_steady_clock_goes_on() -> None:
    """It is the kernel's, and never goes back."""
    assert 0 < steady_time() <= steady_time()
