"""The outbox of events in SQLite: what survives, in which order events come out, and what happens beyond its bound."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mirror.errors import StoreError
from mirror.index import outbox as outbox_module
from mirror.index.outbox import SqliteOutbox
from tests.support.memory_outbox import MemoryOutbox, OutboxData
from tests.support.outbox_suite import KEY, Open, OutboxSuite, add, drain, event


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Opens outboxes on the same folder, as processes do."""
    boxes: list[SqliteOutbox] = []

    def make(most_events: int = 1000, most_bytes: int = 1 << 20, **more: object) -> SqliteOutbox:
        box = SqliteOutbox(tmp_path / "events", ["ci", "chat"], most_events=most_events, most_bytes=most_bytes, **more)  # type: ignore[arg-type]
        boxes.append(box)
        return box

    yield make
    for box in boxes:
        box.close()


class TestSqliteOutbox(OutboxSuite):
    """In one file."""


class TestMemoryOutbox(OutboxSuite):
    """The simplest one passes the suite that it is the model of."""

    @pytest.fixture
    def opened(self) -> Open:
        """Opens outboxes on the same data."""
        data = OutboxData()
        return lambda **bounds: MemoryOutbox(data, **bounds)


_DIES = """
import os, signal, sys
from pathlib import Path
from mirror.index.outbox import SqliteOutbox
box = SqliteOutbox(Path(sys.argv[1]), ["ci"], most_events=1000, most_bytes=1 << 20)
box.prepare("corp/app", "being made")
print("prepared", flush=True)
sys.stdin.read()
"""


def test_what_a_killed_process_has_prepared_is_an_orphan(opened: Open, tmp_path: Path) -> None:
    """The kernel says that it is dead; nobody goes by age or by process number."""
    box = opened()
    command = [sys.executable, "-c", _DIES, str(tmp_path / "events")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "prepared\n"
        assert box.orphans() == []
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    [orphan] = box.orphans()
    assert (orphan.key, orphan.claim) == (KEY, "being made")
    writers = tmp_path / "events" / "writers"
    box.sweep()
    assert len(list(writers.iterdir())) == 1
    with box.turn(KEY) as order:
        box.confirm(orphan, order, [])
    box.sweep()
    assert list(writers.iterdir()) == []


def _damage(folder: Path) -> None:
    for file in folder.glob("outbox.sqlite*"):
        if not file.name.endswith(".lock"):
            file.write_bytes(b"no database, but long enough to be looked at " * 100)


def test_a_damaged_file_is_kept_and_everybody_is_told(opened: Open, tmp_path: Path) -> None:
    """It is no derived data: what was in it is lost, and each endpoint gets a gap of unknown size. Pushes go on."""
    box = opened()
    add(box, "lost")
    box.close()
    _damage(tmp_path / "events")
    with capture_logs() as logs:
        again = opened()
        prepared = again.prepare(KEY, "x")
    assert "event outbox set aside" in {line["event"] for line in logs}
    assert len(list((tmp_path / "events").glob("outbox-*.sqlite"))) == 1
    for endpoint in ("ci", "chat"):
        gap = again.gap(endpoint)
        assert gap is not None
        assert gap.count == 0
    with again.turn(KEY) as order:
        again.confirm(prepared, order, [event("new")])
    assert drain(again) == ["new"]


def test_a_file_of_a_later_version_is_kept(opened: Open, tmp_path: Path) -> None:
    """It is not understood, so it is set aside like a damaged one."""
    box = opened()
    add(box, "unknown")
    box.close()
    with closing(sqlite3.connect(tmp_path / "events" / "outbox.sqlite")) as connection:
        connection.execute("PRAGMA user_version = 99")
    again = opened()
    assert again.heads("ci", (), 8) == []
    assert again.gap("ci") is not None
    assert [file.name.startswith("outbox-unknown") for file in (tmp_path / "events").glob("outbox-*.sqlite")] == [True]


def test_a_file_that_was_taken_away_is_noticed(opened: Open, tmp_path: Path) -> None:
    """A change is prepared again in the new file, and a process with the old one open does not write into the void."""
    box = opened()
    prepared = box.prepare(KEY, "x")
    for file in (tmp_path / "events").glob("outbox.sqlite*"):
        file.unlink()
    with box.turn(KEY) as order:
        pass
    box.confirm(prepared, order, [event("kept")])
    assert box.gap("ci") is not None
    assert drain(box) == ["kept"]
    assert not box.is_prepared(prepared)


def test_a_file_that_is_replaced_during_a_commit(opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit is made again in the file that is there now."""
    box, other = opened(), opened()
    other.changed()
    inner = outbox_module._add
    calls = []

    def add_and_take_away(*arguments: object) -> None:
        inner(*arguments)  # type: ignore[arg-type]
        calls.append(1)
        if len(calls) == 1:
            for file in (tmp_path / "events").glob("outbox.sqlite*"):
                file.unlink()

    monkeypatch.setattr(outbox_module, "_add", add_and_take_away)
    with box.turn(KEY) as order:
        pass
    box.confirm(None, order, [event("twice")])
    assert len(calls) == 2
    assert drain(other) == ["twice"]


def test_a_disk_that_comes_back_to_a_machine_keeps_the_order(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was done at another machine meanwhile comes between, though this one was not started anew."""
    boot = tmp_path / "boot_id"
    monkeypatch.setattr(outbox_module, "_BOOT", boot)
    for number, machine in enumerate("abab"):
        boot.write_text(f"{machine}\n")
        box = opened()
        add(box, f"{number}-one")
        # another process of the same machine
        add(opened(), f"{number}-two")
        box.close()
    assert drain(opened()) == [f"{number}-{which}" for number in range(4) for which in ("one", "two")]


def test_what_is_said_of_an_event_is_not_believed_of_another_one(opened: Open) -> None:
    """A file that was damaged is replaced, and its numbers begin anew."""
    box = opened()
    add(box, "mine")
    [mine] = box.heads("ci", (), 8)
    other = replace(mine, id="other")
    box.failed(other, "refused")
    box.bury(other, "refused for good")
    box.delivered(other)
    assert box.heads("ci", (), 8) == [mine]


def test_a_first_start_loses_nothing(opened: Open) -> None:
    """There is no gap in a file that was never there before."""
    box = opened()
    box.prepare(KEY, "x")
    assert box.gap("ci") is None
    assert box.backlog(["ci"])[0].lost == 0


def test_a_disk_that_fails_is_an_error(opened: Open, tmp_path: Path) -> None:
    """Nothing is changed, and later calls work again."""
    box = opened()
    (tmp_path / "events").write_text("no folder")
    with pytest.raises(StoreError):
        box.prepare(KEY, "x")
    with pytest.raises(StoreError), box.turn(KEY):
        pass
    (tmp_path / "events").unlink()
    add(box, "later")
    assert drain(box) == ["later"]


def test_a_closed_outbox_refuses(opened: Open) -> None:
    """Also if it was never opened."""
    box = opened()
    box.close()
    box.close()
    with pytest.raises(StoreError, match="closed"):
        box.prepare(KEY, "x")
