"""The outbox of events in SQLite: what survives, in which order events come out, and what happens beyond its bound."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mirror.errors import StoreError
from mirror.index import outbox as outbox_module
from mirror.index.outbox import SqliteOutbox
from mirror.ports import Outgoing, WaitingEvent

_KEY = "corp/app"

Open = Callable[..., SqliteOutbox]


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


def _event(id: str, *endpoints: str, key: str = _KEY, made_at: float = 1000.0, body: str = "{}") -> Outgoing:
    return Outgoing(id, "mirror.image.pushed", key, body, made_at, endpoints or ("ci",))


def _add(box: SqliteOutbox, *ids: str, key: str = _KEY, made_at: float = 1000.0) -> None:
    for id in ids:
        prepared = box.prepare(key, "{}")
        with box.turn(key) as order:
            pass
        box.confirm(prepared, order, [_event(id, key=key, made_at=made_at)])


def _ids(events: object) -> list[str]:
    return [event.id for event in events]  # type: ignore[attr-defined]


def _drain(box: SqliteOutbox, endpoint: str = "ci") -> list[str]:
    """The ids of all events, in the order in which they come out."""
    drained = []
    while heads := box.heads(endpoint, (), 8):
        for event in heads:
            drained.append(event.id)
            box.delivered(event)
    return drained


def test_events_come_out_in_the_order_of_their_turns(opened: Open) -> None:
    """Not in that of their confirmations: readers saw the changes in the order of the turns."""
    box = opened()
    first, second = box.prepare(_KEY, "1"), box.prepare(_KEY, "2")
    with box.turn(_KEY) as early:
        pass
    with box.turn(_KEY) as late:
        pass
    assert early < late
    box.confirm(second, late, [_event("late")])
    # the first was prepared before the second was confirmed, so it may come before it
    assert box.heads("ci", (), 8) == []
    box.confirm(first, early, [_event("early")])
    assert _drain(box) == ["early", "late"]


def test_a_change_that_begins_later_holds_up_nothing(opened: Open) -> None:
    """Its turn is later than those of all events that were confirmed before it was prepared."""
    box = opened()
    _add(box, "one")
    box.prepare(_KEY, "still being made")
    assert _ids(box.heads("ci", (), 8)) == ["one"]


def test_one_event_of_each_key_is_next(opened: Open) -> None:
    """Without the keys of which one is being sent."""
    box = opened()
    for name in ("a", "b", "c"):
        _add(box, f"{name}1", f"{name}2", key=name)
    assert _ids(box.heads("ci", (), 8)) == ["a1", "b1", "c1"]
    assert _ids(box.heads("ci", {"b"}, 2)) == ["a1", "c1"]
    assert box.heads("chat", (), 8) == []


def test_each_endpoint_takes_its_own(opened: Open) -> None:
    """An event stays until the last of them has it."""
    box = opened()
    with box.turn(_KEY) as order:
        pass
    box.confirm(None, order, [_event("both", "ci", "chat")])
    [event] = box.heads("ci", (), 8)
    box.delivered(event)
    box.delivered(event)
    assert box.heads("ci", (), 8) == []
    assert _ids(box.heads("chat", (), 8)) == ["both"]
    assert [each.waiting for each in box.backlog(["ci", "chat"])] == [0, 1]


def test_an_event_is_written_once(opened: Open) -> None:
    """However often it is confirmed, as after a failure of which nobody knows how far it came."""
    box = opened()
    prepared = box.prepare(_KEY, "x")
    for _ in range(3):
        with box.turn(_KEY) as order:
            box.confirm(prepared, order, [_event("same")])
    assert _drain(box) == ["same"]


def test_other_processes_see_what_is_confirmed(opened: Open) -> None:
    """And notice that something has changed."""
    box, other = opened(), opened()
    before = other.changed()
    _add(box, "one")
    assert other.changed() != before
    assert _drain(other) == ["one"]
    assert box.heads("ci", (), 8) == []


def test_what_a_living_process_prepares_is_no_orphan(opened: Open) -> None:
    """Unless the process gives it up, or ends."""
    box, other = opened(), opened()
    kept, given_up = box.prepare(_KEY, "kept"), box.prepare(_KEY, "given up")
    assert box.orphans() == other.orphans() == []
    box.abandon(given_up)
    assert other.orphans() == [given_up]
    assert other.orphans("corp/other") == []
    box.close()
    assert other.orphans() == [kept, given_up]
    assert other.is_prepared(kept)
    with other.turn(_KEY) as order:
        other.confirm(kept, order, [])
    assert not other.is_prepared(kept)
    assert other.orphans(_KEY) == [given_up]


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
    assert (orphan.key, orphan.claim) == (_KEY, "being made")
    writers = tmp_path / "events" / "writers"
    box.sweep()
    assert len(list(writers.iterdir())) == 1
    with box.turn(_KEY) as order:
        box.confirm(orphan, order, [])
    box.sweep()
    assert list(writers.iterdir()) == []


def test_beyond_the_bound_the_oldest_are_counted(opened: Open) -> None:
    """No event is refused. The endpoint learns how many it will not get, and of which time."""
    lost: list[tuple[str, int]] = []
    box = opened(most_events=100, lost=lambda endpoint, count: lost.append((endpoint, count)))
    with capture_logs() as logs:
        for number in range(120):
            _add(box, f"e{number}", made_at=1000.0 + number)
    gap = box.gap("ci")
    assert gap is not None
    assert gap.count == sum(count for _, count in lost) >= 20
    assert (gap.first_at, gap.last_at) == (1000.0, 1000.0 + gap.count - 1)
    assert _drain(box) == [f"e{number}" for number in range(gap.count, 120)]
    assert {line["event"] for line in logs} == {"events given up"}
    # from now on that gap does not grow: the endpoint is being told of it
    for number in range(120, 240):
        _add(box, f"e{number}", made_at=1000.0 + number)
    assert box.gap("ci") == gap
    box.told("ci", gap)
    following = box.gap("ci")
    assert following is not None
    assert following.id != gap.id
    box.told("ci", following)
    assert box.gap("ci") is None


def test_the_bound_counts_bytes(opened: Open) -> None:
    """As many as the bodies have, for all endpoints together once."""
    box = opened(most_bytes=1000)
    with box.turn(_KEY) as order:
        pass
    box.confirm(None, order, [_event(f"e{number}", "ci", "chat", body="x" * 600) for number in range(2)])
    assert [(each.waiting, each.lost > 0) for each in box.backlog(["ci", "chat"])] in ([(0, True)] * 2, [(1, True)] * 2)


def test_dead_events_stay_until_they_are_sent_again(opened: Open) -> None:
    """With what went wrong; all, one, or those of one endpoint."""
    box = opened()
    _add(box, "old", made_at=10.0)
    _add(box, "refused", "next")
    assert box.expire("ci", before=20.0) == 1
    [refused] = box.heads("ci", (), 8)
    box.failed(refused, "status 503")
    box.bury(refused, "status 400")
    assert _ids(box.heads("ci", (), 8)) == ["next"]
    dead = box.listed(endpoint="ci", dead=True, most=10)
    assert [(event.id, event.attempts, event.error, event.dead) for event in dead] == [
        ("old", 0, "", True),
        ("refused", 2, "status 400", True),
    ]
    assert _ids(box.listed(endpoint=None, dead=False, most=10)) == ["next"]
    assert _ids(box.listed(endpoint=None, dead=None, most=2)) == ["old", "refused"]
    assert box.resend(id="refused", endpoint="chat") == 0
    assert box.resend(id="refused", endpoint=None) == 1
    assert box.resend(id=None, endpoint="ci") == 1
    assert _drain(box) == ["old", "refused", "next"]


def test_what_waits_for_nobody_is_dropped_when_it_is_old(opened: Open) -> None:
    """An endpoint that is no longer configured may come back for a while."""
    box = opened()
    _add(box, "old", made_at=10.0)
    _add(box, "new")
    assert [each.endpoint for each in box.backlog([])] == ["ci"]
    assert box.forget_endpoints(["ci"], before=20.0) == 0
    assert box.forget_endpoints(["chat"], before=20.0) == 1
    assert _drain(box) == ["new"]


def test_threads_share_commits_and_lose_nothing(opened: Open) -> None:
    """Each key keeps its order, whoever writes."""
    box = opened()
    threads = [
        threading.Thread(target=_add, args=(box, *(f"{key}-{n:02d}" for n in range(25))), kwargs={"key": key})
        for key in "abcd"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    drained = _drain(box)
    assert len(drained) == 100
    for key in "abcd":
        assert [id for id in drained if id.startswith(key)] == [f"{key}-{n:02d}" for n in range(25)]
    assert box.orphans() == []


def _damage(folder: Path) -> None:
    for file in folder.glob("outbox.sqlite*"):
        if not file.name.endswith(".lock"):
            file.write_bytes(b"no database, but long enough to be looked at " * 100)


def test_a_damaged_file_is_kept_and_everybody_is_told(opened: Open, tmp_path: Path) -> None:
    """It is no derived data: what was in it is lost, and each endpoint gets a gap of unknown size. Pushes go on."""
    box = opened()
    _add(box, "lost")
    box.close()
    _damage(tmp_path / "events")
    with capture_logs() as logs:
        again = opened()
        prepared = again.prepare(_KEY, "x")
    assert "event outbox set aside" in {line["event"] for line in logs}
    assert len(list((tmp_path / "events").glob("outbox-*.sqlite"))) == 1
    for endpoint in ("ci", "chat"):
        gap = again.gap(endpoint)
        assert gap is not None
        assert gap.count == 0
    with again.turn(_KEY) as order:
        again.confirm(prepared, order, [_event("new")])
    assert _drain(again) == ["new"]


def test_a_file_of_a_later_version_is_kept(opened: Open, tmp_path: Path) -> None:
    """It is not understood, so it is set aside like a damaged one."""
    box = opened()
    _add(box, "unknown")
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
    prepared = box.prepare(_KEY, "x")
    for file in (tmp_path / "events").glob("outbox.sqlite*"):
        file.unlink()
    with box.turn(_KEY) as order:
        pass
    box.confirm(prepared, order, [_event("kept")])
    assert box.gap("ci") is not None
    assert _drain(box) == ["kept"]
    assert not box.is_prepared(prepared)


def test_a_file_that_is_replaced_during_a_commit(opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit is made again in the file that is there now."""
    box, other = opened(), opened()
    other.changed()
    inner = outbox_module._add
    calls = []

    def add(*arguments: object) -> None:
        inner(*arguments)  # type: ignore[arg-type]
        calls.append(1)
        if len(calls) == 1:
            for file in (tmp_path / "events").glob("outbox.sqlite*"):
                file.unlink()

    monkeypatch.setattr(outbox_module, "_add", add)
    with box.turn(_KEY) as order:
        pass
    box.confirm(None, order, [_event("twice")])
    assert len(calls) == 2
    assert _drain(other) == ["twice"]


def test_a_first_start_loses_nothing(opened: Open) -> None:
    """There is no gap in a file that was never there before."""
    box = opened()
    box.prepare(_KEY, "x")
    assert box.gap("ci") is None
    assert box.backlog(["ci"])[0].lost == 0


def test_a_disk_that_fails_is_an_error(opened: Open, tmp_path: Path) -> None:
    """Nothing is changed, and later calls work again."""
    box = opened()
    (tmp_path / "events").write_text("no folder")
    with pytest.raises(StoreError):
        box.prepare(_KEY, "x")
    with pytest.raises(StoreError), box.turn(_KEY):
        pass
    (tmp_path / "events").unlink()
    _add(box, "later")
    assert _drain(box) == ["later"]


def test_a_closed_outbox_refuses(opened: Open) -> None:
    """Also if it was never opened."""
    box = opened()
    box.close()
    box.close()
    with pytest.raises(StoreError, match="closed"):
        box.prepare(_KEY, "x")


def test_a_delivery_of_another_file_is_not_noted(opened: Open) -> None:
    """Numbers begin anew in a new file; ids do not."""
    box = opened()
    _add(box, "mine")
    [event] = box.heads("ci", (), 8)
    foreign = WaitingEvent(event.number, "another", event.type, event.key, event.endpoint, event.body, event.made_at)
    box.delivered(foreign)
    assert _drain(box) == ["mine"]
