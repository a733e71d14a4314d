"""Counters of processes that are gone, in the files of the metrics library."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from mirror.telemetry.worker_files import WorkerCounters, add_ended, summing


def _key(name: str) -> str:
    return str(mmap_key(name, name, ["kind"], ["blob"], "help"))


def _left(folder: Path, kind: str, pid: int, values: dict[str, tuple[float, float]]) -> None:
    """What a process has counted."""
    written = MmapedDict(str(folder / f"{kind}_{pid}.db"))  # type: ignore[no-untyped-call]
    for name, (value, at) in values.items():
        written.write_value(_key(name), value, at)  # type: ignore[no-untyped-call]
    written.close()  # type: ignore[no-untyped-call]


def _told(folder: Path) -> dict[str, float]:
    """What a scrape would say."""
    registry = CollectorRegistry()
    WorkerCounters(registry, str(folder))
    return {sample.name: sample.value for family in registry.collect() for sample in family.samples}


def test_sums_stay_and_files_go(tmp_path: Path) -> None:
    """Counters are added, also of names that are new, the latest of a gauge stays, gauges of who lives are gone."""
    names = [f"n{number}_total" for number in range(2000)]
    for pid in range(1, 30):
        _left(tmp_path, "counter", pid, dict.fromkeys(names[: pid * 60], (pid, 0.0)))
        _left(tmp_path, "gauge_mostrecent", pid, {"latest": (pid, 100.0 - pid)})
        _left(tmp_path, "gauge_livesum", pid, {"live": (1, 0.0)})
    before = _told(tmp_path)
    for pid in range(1, 29):
        assert add_ended(str(tmp_path), pid)
        now = _told(tmp_path)
        assert now["live"] == 29 - pid
        assert {**now, "live": 29.0} == before
    assert {file.name for file in tmp_path.glob("*.db")} == {
        f"{kind}_{whose}.db" for kind in ("counter", "gauge_mostrecent") for whose in ("ended", 29)
    } | {"gauge_livesum_29.db"}
    assert before["latest"] == 1
    assert (tmp_path / "counter_ended.db").stat().st_size < 200_000


def test_a_worker_that_is_starting_has_counted_nothing(tmp_path: Path) -> None:
    """Its file may be empty for a moment: a scrape goes on, and so does the addition if the worker dies then."""
    _left(tmp_path, "counter", 1, {"n1_total": (3, 0.0)})
    (tmp_path / "counter_2.db").touch()
    assert _told(tmp_path) == {"n1_total": 3}
    assert add_ended(str(tmp_path), 2)
    assert add_ended(str(tmp_path), 1)
    assert _told(tmp_path) == {"n1_total": 3}


_COUNTING = """
import os
from mirror import telemetry
telemetry.EVICTED.inc(3)
telemetry.STORE_LIMIT.set(os.getpid())
telemetry.REQUEST_SECONDS.labels("blob", "hit").observe(0.5)
print(os.getpid())
"""


def test_what_real_processes_leave(tmp_path: Path) -> None:
    """Files are named and written by the library as we think they are: processes count, end, are added up, and a scrape
    says the same before and after, but for gauges of who lives.
    """
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    pids = [
        int(subprocess.run([sys.executable, "-c", _COUNTING], env=environment, check=True, capture_output=True).stdout)
        for _ in range(2)
    ]
    before = _told(tmp_path)
    told = ("mirror_evicted_blobs_total", "mirror_store_limit_bytes", "mirror_request_seconds_count")
    assert [before[name] for name in told] == [6.0, float(pids[1]), 2.0]
    left = {file.name for file in tmp_path.glob("*.db")}
    assert all(add_ended(str(tmp_path), pid) for pid in pids)
    after = _told(tmp_path)
    assert {name: before[name] for name in after} == after
    assert {*told} <= {*after}
    added = {file.name for file in tmp_path.glob("*.db")}
    assert added == {f"{name.rpartition('_')[0]}_ended.db" for name in left if not name.startswith("gauge_live")}


def test_a_gauge_of_the_bucket_is_absent_until_it_is_set(tmp_path: Path) -> None:
    """A mirror without a bucket does not say that its bucket is down, with one worker or with several."""
    script = (
        "from mirror import telemetry\n"
        "def shown(): return b'\\nmirror_bucket_up' in telemetry.render_metrics()\n"
        "before = shown()\n"
        "telemetry.BUCKET_UP.set(0)\n"
        "telemetry.BUCKET_UP.set(1)\n"
        "assert b'\\nmirror_bucket_up 1.0' in telemetry.render_metrics(), telemetry.render_metrics()\n"
        "print(before)\n"
    )
    alone = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    for environment in (alone, {**alone, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}):
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert done.stdout == "False\n", done.stderr


def test_nothing_is_added_while_somebody_sums(tmp_path: Path) -> None:
    """It is put off, and nobody waits; those who sum do not hinder each other."""
    _left(tmp_path, "counter", 7, {"n_total": (7, 0.0)})
    told = []

    def try_it() -> None:
        told.append(add_ended(str(tmp_path), 7))

    with summing(str(tmp_path)), summing(str(tmp_path)):
        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()
        assert told == [False]
        assert _told(tmp_path) == {"n_total": 7.0}
    assert add_ended(str(tmp_path), 7)
    assert add_ended(str(tmp_path), 7)
    assert _told(tmp_path) == {"n_total": 7.0}


def test_without_room_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be added counts where it is, once."""
    for pid in (7, 8):
        _left(tmp_path, "counter", pid, {"n_total": (pid, 0.0)})
    assert add_ended(str(tmp_path), 7)

    def full(_file: int, _offset: int, _length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        add_ended(str(tmp_path), 8)
    assert _told(tmp_path) == {"n_total": 15.0}
    assert {file.name for file in tmp_path.iterdir()} == {"counter_ended.db", "counter_8.db", "adding-up.lock"}
