"""The status of processes, and what was purged: read by the other processes; a status is gone with its process."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.store.local.json_records import JsonRecords
from mirror.store.local.layout import Layout
from mirror.store.local.locks import FileLease, FileLocks
from mirror.store.local.purge_notices import PurgeNotices
from mirror.store.local.status_board import StatusBoard


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """An empty store."""
    for folder in ("locks", "ingest"):
        (tmp_path / folder).mkdir()
    return Layout(tmp_path)


def _board(layout: Layout) -> StatusBoard:
    made = StatusBoard(layout, FileLocks(layout))
    made.open()
    return made


def test_each_reads_the_others(layout: Layout) -> None:
    """Never itself, the latest alone, and not the status of a process that ended."""
    one, two, three = (_board(layout) for _ in range(3))
    one.publish({"n": 0})
    one.publish({"n": 1})
    two.publish({"n": 2})
    assert one.others() == [{"n": 2}]
    assert sorted(status["n"] for status in three.others()) == [1, 2]
    two.close()
    assert three.others() == [{"n": 1}]
    again = _board(layout)
    assert again.others() == [{"n": 1}]


def test_what_a_dead_one_left_is_dropped(layout: Layout) -> None:
    """Its lock is free: the file belongs to no process; one that does not parse is skipped."""
    one = _board(layout)
    one.publish({"n": 1})
    folder = layout.records("board")
    (folder / "7.json").write_text('{"n": 7}')
    (folder / "nonsense").write_text("x")
    assert one.others() == []
    assert not (folder / "7.json").exists()
    two = _board(layout)
    two.publish({"n": 2})
    (folder / "1.json").write_text("{")
    assert one.others() == []


def test_purges_are_read_once(layout: Layout) -> None:
    """By each process, also by the one that published; not those from before it began."""
    notes = JsonRecords(layout, "purges")
    repo, digest = Repo("docker.io", "library/app"), Digest.parse("sha256:" + "a" * 64)
    PurgeNotices(notes).publish(repo, ["old"], [])
    listener = PurgeNotices(notes)
    assert listener.new() == []
    PurgeNotices(notes).publish(repo, ["v1"], [digest])
    [notice] = listener.new()
    assert (notice.repo, notice.tags, notice.digests) == (repo, ("v1",), (digest,))
    assert listener.new() == []


def test_two_purges_in_one_tick(layout: Layout) -> None:
    """A purge is read although the folder's time is that of the purge before it."""
    notes = JsonRecords(layout, "purges")
    folder = layout.root / "purges"
    repo = Repo("docker.io", "library/app")
    listener = PurgeNotices(notes)
    # a clock that stands still: no time has passed since the last change, however busy the machine is
    tick = time.time_ns() + 3600 * 10**9
    for tag in ("v1", "v2", "v3"):
        PurgeNotices(notes).publish(repo, [tag], [])
        os.utime(folder, ns=(tick, tick))
        assert [notice.tags for notice in listener.new()] == [(tag,)]
    assert listener.new() == []


def test_purges_are_not_read_without_need(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that has not changed for a while is not listed."""
    notes = JsonRecords(layout, "purges")
    PurgeNotices(notes).publish(Repo("docker.io", "library/app"), ["v1"], [])
    os.utime(layout.root / "purges", ns=(10**9, 10**9))
    listener = PurgeNotices(notes)
    monkeypatch.setattr(notes, "all", lambda: pytest.fail("listed"))
    assert listener.new() == []


def test_closed_while_it_opens(layout: Layout) -> None:
    """A process that ends as soon as it has begun keeps no slot, though a thread was about to take it."""

    class Closing(FileLocks):
        def try_hold_now(self, name: str) -> FileLease | None:
            lease = super().try_hold_now(name)
            late.close()
            return lease

    late = StatusBoard(layout, Closing(layout))
    late.open()
    late.publish({"n": 1})
    assert _board(layout).others() == []
    assert FileLocks(layout).try_hold_now("board-1") is not None
