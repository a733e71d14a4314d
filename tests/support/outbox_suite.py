"""What every `EventStore` does. A test class inherits `OutboxSuite` and supplies the fixture.

`opened` opens an outbox on the same data each time, as processes do, and closes them all at the end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace

from structlog.testing import capture_logs

from mirror.ports import EventStore, Outgoing, WaitingEvent

KEY = "corp/app"

#: `most_events`, `most_bytes` and `lost`, with defaults.
Open = Callable[..., EventStore]


def event(id: str, *endpoints: str, key: str = KEY, made_at: float = 1000.0, body: str = "{}") -> Outgoing:
    """For `ci`, unless others are named."""
    return Outgoing(id, "mirror.image.pushed", key, body, made_at, endpoints or ("ci",))


def add(box: EventStore, *ids: str, key: str = KEY, made_at: float = 1000.0) -> None:
    """Changes that were made, one after the other."""
    for id in ids:
        prepared = box.prepare(key, "{}")
        with box.turn(key) as order:
            pass
        box.confirm(prepared, order, [event(id, key=key, made_at=made_at)])


def ids_of(events: Iterable[WaitingEvent]) -> list[str]:
    """In the same order."""
    return [event.id for event in events]


def drain(box: EventStore) -> list[str]:
    """The ids of all events for `ci`, in the order in which they come out."""
    drained = []
    while heads := box.heads("ci", (), 8):
        for waiting in heads:
            drained.append(waiting.id)
            box.delivered(waiting)
    return drained


class OutboxSuite:
    """Fixture to supply: `opened`."""

    def test_events_come_out_in_the_order_of_their_turns(self, opened: Open) -> None:
        """Not in that of their confirmations: readers saw the changes in the order of the turns."""
        box = opened()
        first, second = box.prepare(KEY, "1"), box.prepare(KEY, "2")
        with box.turn(KEY) as early:
            pass
        with box.turn(KEY) as late:
            pass
        assert early < late
        box.confirm(second, late, [event("late")])
        # the first was prepared before the second was confirmed, so it may come before it
        assert box.heads("ci", (), 8) == []
        box.confirm(first, early, [event("early")])
        assert drain(box) == ["early", "late"]

    def test_a_change_that_begins_later_holds_up_nothing(self, opened: Open) -> None:
        """Its turn is later than those of all events that were confirmed before it was prepared."""
        box = opened()
        add(box, "one")
        box.prepare(KEY, "still being made")
        assert ids_of(box.heads("ci", (), 8)) == ["one"]

    def test_one_event_of_each_key_is_next(self, opened: Open) -> None:
        """Without the keys of which one is being sent."""
        box = opened()
        for name in ("a", "b", "c"):
            add(box, f"{name}1", f"{name}2", key=name)
        assert ids_of(box.heads("ci", (), 8)) == ["a1", "b1", "c1"]
        assert ids_of(box.heads("ci", {"b"}, 2)) == ["a1", "c1"]
        assert box.heads("chat", (), 8) == []

    def test_each_endpoint_takes_its_own(self, opened: Open) -> None:
        """An event stays until the last of them has it."""
        box = opened()
        with box.turn(KEY) as order:
            pass
        box.confirm(None, order, [event("both", "ci", "chat")])
        [waiting] = box.heads("ci", (), 8)
        box.delivered(waiting)
        box.delivered(waiting)
        assert box.heads("ci", (), 8) == []
        assert ids_of(box.heads("chat", (), 8)) == ["both"]
        assert [each.waiting for each in box.backlog(["ci", "chat"])] == [0, 1]

    def test_an_event_is_written_once(self, opened: Open) -> None:
        """However often it is confirmed, as after a failure of which nobody knows how far it came."""
        box = opened()
        prepared = box.prepare(KEY, "x")
        for _ in range(3):
            with box.turn(KEY) as order:
                box.confirm(prepared, order, [event("same")])
        assert drain(box) == ["same"]

    def test_other_processes_see_what_is_confirmed(self, opened: Open) -> None:
        """And notice that something has changed."""
        box, other = opened(), opened()
        before = other.changed()
        add(box, "one")
        assert other.changed() != before
        assert drain(other) == ["one"]
        assert box.heads("ci", (), 8) == []

    def test_what_a_living_process_prepares_is_no_orphan(self, opened: Open) -> None:
        """Unless the process gives it up, or ends."""
        box, other = opened(), opened()
        kept, given_up = box.prepare(KEY, "kept"), box.prepare(KEY, "given up")
        assert box.orphans() == other.orphans() == []
        box.abandon(given_up)
        assert other.orphans() == [given_up]
        assert other.orphans("corp/other") == []
        box.close()
        assert other.orphans() == [kept, given_up]
        assert other.is_prepared(kept)
        with other.turn(KEY) as order:
            other.confirm(kept, order, [])
        assert not other.is_prepared(kept)
        assert other.orphans(KEY) == [given_up]

    def test_beyond_the_bound_the_oldest_are_counted(self, opened: Open) -> None:
        """No event is refused. The endpoint learns how many it will not get, and of which time."""
        lost: list[tuple[str, int]] = []
        box = opened(most_events=100, lost=lambda endpoint, count: lost.append((endpoint, count)))
        with capture_logs():
            for number in range(120):
                add(box, f"e{number}", made_at=1000.0 + number)
        gap = box.gap("ci")
        assert gap is not None
        assert gap.count == sum(count for _, count in lost) >= 20
        assert (gap.first_at, gap.last_at) == (1000.0, 1000.0 + gap.count - 1)
        assert drain(box) == [f"e{number}" for number in range(gap.count, 120)]
        # from now on that gap does not grow: the endpoint is being told of it
        for number in range(120, 240):
            add(box, f"e{number}", made_at=1000.0 + number)
        assert box.gap("ci") == gap
        box.told("ci", gap)
        following = box.gap("ci")
        assert following is not None
        assert following.id != gap.id
        box.told("ci", following)
        assert box.gap("ci") is None

    def test_the_bound_counts_bytes(self, opened: Open) -> None:
        """As many as the bodies have, for all endpoints together once."""
        box = opened(most_bytes=1000)
        with box.turn(KEY) as order:
            pass
        box.confirm(None, order, [event(f"e{number}", "ci", "chat", body="x" * 600) for number in range(2)])
        assert [(each.waiting, each.lost > 0) for each in box.backlog(["ci", "chat"])] in (
            [(0, True)] * 2,
            [(1, True)] * 2,
        )

    def test_dead_events_stay_until_they_are_sent_again(self, opened: Open) -> None:
        """With what went wrong; all, one, or those of one endpoint."""
        box = opened()
        add(box, "old", made_at=10.0)
        add(box, "refused", "next")
        assert box.expire("ci", before=20.0) == 1
        [refused] = box.heads("ci", (), 8)
        box.failed(refused, "status 503")
        box.bury(refused, "status 400")
        assert ids_of(box.heads("ci", (), 8)) == ["next"]
        dead = box.listed(endpoint="ci", dead=True, most=10)
        assert [(each.id, each.attempts, each.error, each.dead) for each in dead] == [
            ("old", 0, "", True),
            ("refused", 2, "status 400", True),
        ]
        assert ids_of(box.listed(endpoint=None, dead=False, most=10)) == ["next"]
        assert ids_of(box.listed(endpoint=None, dead=None, most=2)) == ["old", "refused"]
        assert box.resend(id="refused", endpoint="chat") == 0
        assert box.resend(id="refused", endpoint=None) == 1
        assert box.resend(id=None, endpoint="ci") == 1
        assert drain(box) == ["old", "refused", "next"]

    def test_what_waits_for_nobody_is_dropped_when_it_is_old(self, opened: Open) -> None:
        """An endpoint that is no longer configured may come back for a while."""
        box = opened()
        add(box, "old", made_at=10.0)
        add(box, "new")
        assert [each.endpoint for each in box.backlog([])] == ["ci"]
        assert box.forget_endpoints(["ci"], before=20.0) == 0
        assert box.forget_endpoints(["chat"], before=20.0) == 1
        assert drain(box) == ["new"]

    def test_threads_share_commits_and_lose_nothing(self, opened: Open) -> None:
        """Each key keeps its order, whoever writes."""
        box = opened()
        threads = [
            threading.Thread(target=add, args=(box, *(f"{key}-{n:02d}" for n in range(25))), kwargs={"key": key})
            for key in "abcd"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        drained = drain(box)
        assert len(drained) == 100
        for key in "abcd":
            assert [id for id in drained if id.startswith(key)] == [f"{key}-{n:02d}" for n in range(25)]
        assert box.orphans() == []

    def test_a_delivery_of_another_file_is_not_noted(self, opened: Open) -> None:
        """Numbers begin anew in a new file; ids do not."""
        box = opened()
        add(box, "mine")
        [mine] = box.heads("ci", (), 8)
        foreign = replace(mine, id="another")
        box.delivered(foreign)
        assert drain(box) == ["mine"]
