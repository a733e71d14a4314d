"""The background work of a process goes on after an error that nobody expected, which is logged once."""

from __future__ import annotations

import ast
import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from mirror import telemetry
from mirror.aio.singleflight import cancel_and_wait
from mirror.app.object_storage.leasing import Leasing
from mirror.events.event_log import EventLog
from mirror.inspect.recent_answers import RecentAnswers
from mirror.oci.digest import Digest
from mirror.peers.member_lookup import MemberLookup
from mirror.peers.members import ClusterMembers
from mirror.peers.peer_health import PeerHealth
from mirror.policy.cluster.member_addresses import parse_member
from mirror.policy.events.changes import TYPES, Event
from mirror.policy.events.subscriptions import Subscription, Subscriptions
from mirror.policy.hosted.retention_rules import Happening, KeepRule, RetentionPolicy
from mirror.policy.last_answer import LastAnswer
from mirror.ports import Lease, Locks, Outbox, Outgoing, Records
from mirror.process import supervisor
from mirror.retention.pull_notes import PullNotes
from mirror.server.admin.traffic_log import TrafficLog
from mirror.server.admin.worker_status import Workers
from mirror.server.process_metrics import beat_regularly
from tests.support.collecting import APP
from tests.support.retaining import DAY, RetainedWorld

Sleep = Callable[[float], Awaitable[None]]


class _Rounds:
    """The pauses of some work, which ends in the pause after so many rounds."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._over = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        """One pause. Returns at once, or, after the last round, never."""
        self._left -= 1
        if self._left <= 0:
            self._over.set()
            await asyncio.Event().wait()

    async def of(self, work: Coroutine[Any, Any, None]) -> list[str]:
        """Lets them pass, and returns the log."""
        with capture_logs() as lines:
            running = asyncio.create_task(work)
            over = asyncio.create_task(self._over.wait())
            await asyncio.wait({over, running}, return_when="FIRST_COMPLETED")
            assert not running.done(), running.exception()
            await cancel_and_wait(running)
        return [line["event"] for line in lines]


class _Broken:
    """Fails with an error that nobody expects, as often as the test says; `calls` counts all calls."""

    def __init__(self, times: int, error: type[BaseException] = RuntimeError) -> None:
        self._left = times
        self._error = error
        self.calls = 0

    def __call__(self, *_: object, **__: object) -> None:
        self.calls += 1
        if self._left:
            self._left -= 1
            raise self._error("a mistake")


#: An error that nobody expects, and the end of something that was waited for.
_ERRORS = pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])


async def test_the_event_log_gives_up_the_event_that_it_cannot_write() -> None:
    """Those behind it are written, and it is counted among those that are lost."""
    broken, written = _Broken(1), list[object]()

    def turn(key: str) -> nullcontext[str]:
        broken()
        return nullcontext("1")

    outbox = SimpleNamespace(turn=turn, confirm=lambda change, order, events: written.extend(events))
    subscriptions = Subscriptions((Subscription("all"),))
    rounds = _Rounds(3)
    log = EventLog(cast(Outbox, outbox), subscriptions, "mirror", lambda: 1.0, sleep=rounds.sleep)
    for number in range(2):
        log.note(Event(sorted(TYPES)[0], f"subject {number}", "key"))
    [(_, before)] = telemetry.counted("mirror_events_dropped")
    assert await rounds.of(log.run()) == ["writing of events crashed"]
    assert len(written) == 1
    [(_, after)] = telemetry.counted("mirror_events_dropped")
    assert after - before == 1


async def test_the_last_flush_of_events_waits_for_one_under_way() -> None:
    """A thread that writes cannot be cancelled: at the end of the process the last flush would write its event again,
    and then lose the next one.
    """
    written: list[Outgoing] = []
    is_writing, may_end = threading.Event(), threading.Event()

    def confirm(_change: object, _order: object, events: Sequence[Outgoing]) -> None:
        if not is_writing.is_set():
            is_writing.set()
            assert may_end.wait(30)
        written.extend(events)

    outbox = SimpleNamespace(turn=lambda _: nullcontext("1"), confirm=confirm)
    log = EventLog(cast(Outbox, outbox), Subscriptions((Subscription("all"),)), "mirror", lambda: 1.0)
    for number in range(3):
        log.note(Event(sorted(TYPES)[0], f"subject {number}", "key"))
    running = asyncio.create_task(log.run())
    await asyncio.to_thread(is_writing.wait, 30)
    await cancel_and_wait(running)
    last = asyncio.create_task(asyncio.to_thread(log.flush))
    # the last flush writes nothing before the first one has ended, however long that takes
    await asyncio.wait({last}, timeout=0.1)
    before = len(written)
    may_end.set()
    await last
    assert before == 0
    assert len(written) == len({event.id for event in written}) == 3


async def test_pulls_are_noted_after_an_error(tmp_path: Path) -> None:
    """What was noted before it is kept, and written by the next round."""
    policy = RetentionPolicy(("team/app",), (KeepRule(within={Happening.PULLED: 30 * DAY}),))
    world = RetainedWorld(tmp_path, policy)
    broken, records = _Broken(3), world.pulled

    def versioned(key: str) -> Any:
        broken()
        return records.versioned(key)

    failing = cast(Records, SimpleNamespace(versioned=versioned, put=records.put))
    rounds = _Rounds(5)
    notes = PullNotes(failing, world.retention_rules, world.clock, sleep=rounds.sleep)
    notes.note(str(APP), "v1", Digest.of(b"an image"))
    assert set(await rounds.of(notes.run())) == {"writing of pull times crashed"}
    record = records.get(str(APP))
    assert record is not None
    assert "v1" in record["times"]


class _Board:
    """A board whose file and place fail now and then."""

    def __init__(self) -> None:
        self.opened, self.written = _Broken(2), _Broken(2)
        self.published: list[Mapping[str, Any]] = []
        self.is_closed = False

    def open(self) -> None:
        self.opened()

    def publish(self, status: Mapping[str, Any]) -> None:
        self.written()
        self.published.append(status)

    def others(self) -> list[dict[str, Any]]:
        return []

    def close(self) -> None:
        self.is_closed = True


async def test_the_status_of_a_worker_is_published_after_an_error() -> None:
    """Also one that has not changed since the error."""
    board, rounds = _Board(), _Rounds(6)
    flights = SimpleNamespace(active=list)
    workers = Workers(board, cast(Any, flights), list, sleep=rounds.sleep)
    assert await rounds.of(workers.run()) == ["writing of worker status crashed"]
    assert (board.opened.calls, len(board.published)) == (3, 1)
    assert board.is_closed


class _AnswerFile:
    def __init__(self) -> None:
        self.read, self.written = _Broken(1), _Broken(2)
        self.answers: Sequence[LastAnswer] = ()

    def load(self) -> Sequence[LastAnswer]:
        self.read()
        return ()

    def save(self, answers: Sequence[LastAnswer]) -> None:
        self.written()
        self.answers = answers


async def test_recent_answers_are_written_after_an_error() -> None:
    """Those that could not be written are written by the next round; the file is read once."""
    file, rounds = _AnswerFile(), _Rounds(5)
    recent = RecentAnswers(file, sleep=rounds.sleep)
    answer = SimpleNamespace(
        repository="docker.io/app", reference="v1", outcome=SimpleNamespace(value="hit"), upstream=None, digest=None,
        tag_override=None, error=None, sent=1,
    )  # fmt: skip
    recent.note("manifest", "GET", 200, cast(Any, answer), 0.5, "1-a")
    assert await rounds.of(recent.run()) == ["writing of recent answers crashed"]
    assert (file.read.calls, file.written.calls) == (1, 3)
    assert [each.reference for each in file.answers] == ["v1"]


async def test_traffic_is_recorded_after_an_error() -> None:
    """The lock is kept, and given up at the end."""
    broken, rounds, records = _Broken(2), _Rounds(5), dict[str, object]()
    lease = SimpleNamespace(lost=asyncio.Event(), release=_Broken(0))

    async def try_hold(name: str) -> Lease:
        return cast(Lease, lease)

    def get(key: str) -> None:
        broken()

    notes = cast(Records, SimpleNamespace(get=get, put=records.__setitem__))
    locks = cast(Locks, SimpleNamespace(try_hold=try_hold))
    log = TrafficLog(notes, locks=locks, sleep=rounds.sleep)
    assert await rounds.of(log.run()) == ["recording of traffic crashed"]
    assert records
    assert lease.release.calls == 1


async def test_clocks_are_compared_after_an_error() -> None:
    """However often it fails."""
    clock, rounds = SimpleNamespace(compare=_Broken(2)), _Rounds(4)
    leasing = Leasing("a", cast(Any, None), cast(Any, None), cast(Any, clock), cast(Any, None))
    assert await rounds.of(leasing.keep_clock(rounds.sleep)) == ["comparison of clocks crashed"]
    assert clock.compare.calls == 4


async def test_members_are_looked_up_after_an_error() -> None:
    """Whoever waits for the first lookup does not wait for ever."""
    broken, rounds = _Broken(2), _Rounds(4)

    async def resolve(host: str) -> Sequence[str]:
        broken()
        return ["10.0.0.2"]

    own = "http://10.0.0.1:5001"
    members = ClusterMembers(own, [], PeerHealth())
    lookup = MemberLookup(parse_member("dns+http://mirror.svc:5001"), members, resolve=resolve, sleep=rounds.sleep)
    log = await rounds.of(lookup.run())
    await lookup.first(3600.0)
    assert log == ["lookup of members crashed", "members changed"]
    assert len(members.all()) == 2


async def test_a_worker_beats_though_it_cannot_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the parent process would take it for one that hangs."""
    broken, beats, rounds = _Broken(1), _Broken(0), _Rounds(4)
    monkeypatch.setattr("mirror.server.process_metrics._measure", broken)
    assert await rounds.of(beat_regularly(beat=beats, sleep=rounds.sleep)) == ["measurement of the process crashed"]
    assert beats.calls == 4


class _Parent:
    """A parent process of one worker that has died."""

    def __init__(self, error: type[BaseException]) -> None:
        self.started = _Broken(2, error)
        self.filled = asyncio.Event()
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[int] = loop.create_future()
        ended.set_result(-9)
        self._plan = None
        self._current = {0: SimpleNamespace(ended=ended, blocked=False)}

    async def _start(self, slot: int, plan: object, *, after_blocked: bool) -> object:
        self.started()
        self.filled.set()
        return SimpleNamespace(ended=asyncio.get_running_loop().create_future(), blocked=False)


@_ERRORS
async def test_a_worker_is_started_again_after_a_start_that_failed(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """As while the machine has no memory for another process; each pause is longer."""
    parent, pauses = _Parent(error), list[float]()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(supervisor, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))
    with capture_logs() as lines:
        running = asyncio.create_task(supervisor._Supervisor._keep_running(cast(Any, parent), 0))
        await asyncio.wait({asyncio.create_task(parent.filled.wait()), running}, return_when="FIRST_COMPLETED")
        assert not running.done(), running.exception()
        await cancel_and_wait(running)
    assert [line["event"] for line in lines] == ["worker died", *["start of a worker crashed"] * 2]
    assert pauses == [1.0, 2.0, 4.0]


async def test_workers_are_watched_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise one that hangs would be left for ever, and systemd would take the mirror for dead."""
    monkeypatch.setattr(supervisor, "_LOOK", 0.0)
    broken, went_on = _Broken(2), asyncio.Event()

    def alive() -> None:
        broken()
        went_on.set()

    parent = SimpleNamespace(_systemd=SimpleNamespace(alive=alive), _add_up=lambda: None, _current={})
    with capture_logs() as lines:
        running = asyncio.create_task(supervisor._Supervisor._watch(cast(Any, parent)))
        await asyncio.wait({asyncio.create_task(went_on.wait()), running}, return_when="FIRST_COMPLETED")
        assert not running.done(), running.exception()
        await cancel_and_wait(running)
    assert [line["event"] for line in lines] == ["watch over workers crashed"]


@pytest.mark.parametrize("first", [True, False], ids=["the first worker", "another worker"])
async def test_a_reload_whose_worker_cannot_be_started(*, first: bool) -> None:
    """Without a first worker the new configuration is given up, with its descriptors; another slot keeps its worker."""
    closed: list[str] = []
    old, new = (SimpleNamespace(close=lambda name=name: closed.append(name)) for name in ("old", "new"))
    broken, fresh = _Broken(1), SimpleNamespace(ready=asyncio.get_running_loop().create_future())
    fresh.ready.set_result(True)
    before = [SimpleNamespace(ended=fresh.ready, drain=0.0) for _ in range(3)]

    async def start(slot: int, _plan: object) -> object:
        if slot == (0 if first else 1):
            broken()
        return fresh

    parent = SimpleNamespace(
        _reread=lambda: new,
        _plan=old,
        _listeners=[[], [], []],
        _current=dict(enumerate(before)),
        _retiring=set(),
        _start=start,
    )
    parent._replace = partial(supervisor._Supervisor._replace, cast(Any, parent))
    with capture_logs() as lines:
        await supervisor._Supervisor._reload(cast(Any, parent))
    assert lines[0]["event"] == "start of a worker crashed"
    assert closed == ["new" if first else "old"]
    assert parent._plan is (old if first else new)
    assert [parent._current[slot] is fresh for slot in range(3)] == ([False] * 3 if first else [True, False, True])
    await cancel_and_wait(*parent._retiring)


@_ERRORS
async def test_reloads_go_on_after_one_that_failed(error: type[BaseException]) -> None:
    """The mirror serves on, and the next SIGHUP is heard."""
    reloaded, hung_up, calls = _Broken(1, error), asyncio.Event(), asyncio.Queue[None]()

    async def reload() -> None:
        calls.put_nowait(None)
        reloaded()

    parent = cast(Any, SimpleNamespace(_hung_up=hung_up, _reload=reload))
    with capture_logs() as lines:
        running = asyncio.create_task(supervisor._Supervisor._reload_on_hang_ups(parent))
        for _ in range(2):
            hung_up.set()
            called = asyncio.create_task(calls.get())
            await asyncio.wait({called, running}, return_when="FIRST_COMPLETED")
            assert not running.done()
        await cancel_and_wait(running)
    assert [line["event"] for line in lines] == ["reload crashed"]


def test_a_loop_that_goes_on_after_all_errors_goes_on_after_each() -> None:
    """In an `async` function, what comes out of an await may be the end of something else: `raise_if_cancelled`."""
    found = [
        f"{path.name}:{handler.lineno}"
        for path in Path(telemetry.__file__).parents[1].rglob("*.py")
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.AsyncFunctionDef)
        for loop in ast.walk(function)
        if isinstance(loop, ast.While)
        for trial in ast.walk(loop)
        if isinstance(trial, ast.Try) and any(isinstance(part, ast.Await) for part in ast.walk(trial))
        for handler in trial.handlers
        if handler.type is not None and ast.unparse(handler.type) == "Exception"
    ]
    assert found == []
