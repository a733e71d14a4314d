"""When hosted images were pulled, as several workers write it down."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from structlog.testing import capture_logs

from mirror import telemetry
from mirror.errors import RecordChanged, StoreError
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted.collection import ClockReading
from mirror.policy.hosted.retention import PullFacts
from mirror.policy.hosted.retention_rules import Happening, KeepRule, RetentionPolicy
from mirror.ports import Records
from mirror.retention import pull_notes
from mirror.retention.pull_notes import PullNotes, PullTimes
from tests.support.collecting import APP, TWIN
from tests.support.retaining import DAY, RetainedWorld

_PULLED = RetentionPolicy(("team/app",), (KeepRule(within={Happening.PULLED: 30 * DAY}),))
_DIGEST = Digest.of(b"an image")


@pytest.fixture
def world(tmp_path: Path) -> RetainedWorld:
    """A rule asks for pulls from one repository."""
    return RetainedWorld(tmp_path, _PULLED)


def _facts(world: RetainedWorld) -> PullFacts:
    return PullTimes(world.pulled).facts(APP, world.grace_clock.read())


def test_pulls_of_all_workers_are_known(world: RetainedWorld) -> None:
    """The later time counts. It is known to ten minutes, and never too early."""
    one, two = world.pull_notes(), world.pull_notes()
    one.begin()
    begun = world.clock()
    one.note(str(APP), "v1", _DIGEST)
    one.flush()
    world.passes(DAY)
    two.note(str(APP), "v1", _DIGEST)
    two.note(str(APP), "v2", _DIGEST)
    two.flush()
    one.note(str(APP), "v3", _DIGEST)
    one.flush()
    world.passes(DAY)
    facts = _facts(world)
    assert facts.since == begun
    assert set(facts.times) == {"v1", "v2", "v3", str(_DIGEST)}
    assert set(facts.times.values()) == {begun + DAY + 600}


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (StoreError, "pull times not written"),
        (RuntimeError, "writing of pull times crashed"),
    ],
)
def test_records_that_cannot_be_written_are_one_line(tmp_path: Path, error: type[Exception], event: str) -> None:
    """However many repositories there are: it comes again each minute. All are written later."""
    world = RetainedWorld(tmp_path, RetentionPolicy(("team/*",), _PULLED.keep))
    names = [str(Repo(APP.registry, f"team/app{number}")) for number in range(5)]

    def fail(_key: str) -> None:
        raise error("it fails")

    records = world.pulled
    notes = PullNotes(
        cast(Records, SimpleNamespace(versioned=fail, put=records.put)), world.retention_rules, world.clock
    )
    for name in names:
        notes.note(name, "v1", _DIGEST)
    with capture_logs() as lines:
        notes.flush()
    [line] = lines
    assert (line["event"], line["repositories"]) == (event, 5)
    assert line["repository"] in names
    notes._records = records
    notes.flush()
    assert all(records.get(name) for name in names)


def test_a_repository_that_no_rule_asks_about_is_not_noted(world: RetainedWorld) -> None:
    """Nothing is written."""
    notes = world.pull_notes()
    notes.note(str(TWIN), "v1", _DIGEST)
    notes.note("docker.io/library/alpine", "v1", _DIGEST)
    notes.flush()
    assert not list(world.pulled.all())
    world.policies = ()
    assert not world.pull_notes().asked


def test_a_second_pull_soon_writes_nothing(world: RetainedWorld) -> None:
    """Nor does one that another worker has written."""
    notes = world.pull_notes()
    notes.begin()
    notes.note(str(APP), "v1", _DIGEST)
    notes.flush()
    writes = world.pulled.calls["put"]
    world.passes(599)
    notes.note(str(APP), "v1", _DIGEST)
    notes.flush()
    assert world.pulled.calls["put"] == writes
    world.passes(1)
    notes.note(str(APP), "v1", _DIGEST)
    notes.flush()
    assert world.pulled.calls["put"] == writes + 1


def test_what_cannot_be_written_is_written_later(world: RetainedWorld) -> None:
    """With the time of the pull."""
    notes = world.pull_notes()
    notes.begin()
    notes.note(str(APP), "v1", _DIGEST)
    pulled_at = world.clock()
    world.pulled.fail("put", StoreError("the disk is full"))
    notes.flush()
    world.passes(DAY)
    world.pulled.fail("put", None)
    notes.flush()
    assert _facts(world).times["v1"] == pulled_at + 600


def test_notes_that_are_lost_begin_anew(world: RetainedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was pulled is not known any more, so nothing is known from before."""
    notes = world.pull_notes()
    notes.begin()
    notes.note(str(APP), "v1", _DIGEST)
    notes.flush()
    monkeypatch.setattr(pull_notes, "_MOST", 10)
    world.passes(DAY)
    for number in range(20):
        notes.note(str(APP), f"b{number}", _DIGEST)
    notes.flush()
    assert _facts(world).since == world.clock()


def test_a_record_that_others_change_all_the_time_is_an_error(world: RetainedWorld) -> None:
    """Recording has not begun then: whoever waits for it tries again."""
    world.pulled.fail("put", RecordChanged("another process was faster"))
    with pytest.raises(StoreError, match="changed all the time"):
        world.pull_notes().begin()


def test_a_rule_that_was_away_begins_anew(world: RetainedWorld) -> None:
    """Pulls were not recorded meanwhile. A rule that stays keeps its recording."""
    world.pull_notes().begin()
    notes = world.pull_notes()
    notes.note(str(APP), "v1", _DIGEST)
    notes.flush()
    begun = world.clock()
    world.passes(DAY)
    world.pull_notes().begin()
    assert _facts(world).since == begun
    world.policies = ()
    world.pull_notes().begin()
    assert _facts(world) == PullFacts()
    world.policies = (_PULLED,)
    world.passes(DAY)
    world.pull_notes().begin()
    assert _facts(world).since == world.clock()


@pytest.mark.parametrize("damage", [None, {"since": "?"}, {"since": 1.0, "times": 5}])
def test_a_record_that_is_lost_begins_anew(world: RetainedWorld, damage: dict[str, object] | None) -> None:
    """Nothing is known until then."""
    notes = world.pull_notes()
    notes.begin()
    notes.note(str(APP), "v1", _DIGEST)
    notes.flush()
    if damage is None:
        world.pulled.drop(str(APP))
    else:
        world.pulled.put(str(APP), damage)
    assert _facts(world) == PullFacts()
    world.passes(DAY)
    PullTimes(world.pulled).tidy(APP, ["v1"], world.grace_clock.read())
    assert _facts(world) == PullFacts(world.clock())


def test_what_is_gone_is_forgotten_and_wrong_clocks_are_mended(world: RetainedWorld) -> None:
    """So that the record stays small, and nothing stays for ever."""
    notes = world.pull_notes()
    notes.begin()
    notes.note(str(APP), "v1", _DIGEST)
    notes.flush()
    now = world.clock()
    PullTimes(world.pulled).tidy(APP, ["v1"], ClockReading(now - 500, now - 400))
    facts = PullTimes(world.pulled).facts(APP, ClockReading(now, now))
    assert facts == PullFacts(now, {"v1": now})
    record = world.pulled.get(str(APP))
    assert record is not None
    assert record["times"] == {"v1": now - 400}
    assert record["since"] == now - 400


def test_it_hears_of_answers(world: RetainedWorld) -> None:
    """From the server, not from what the mirror reads for itself; of no other notices."""
    notes = world.pull_notes()
    notes.begin()
    end = telemetry.listen(notes.listen)
    telemetry.notice(telemetry.Notice.MANIFEST_ANSWERED, repository=str(APP), reference="v1", digest=_DIGEST)
    telemetry.notice(telemetry.Notice.BLOB_DAMAGED, digest=_DIGEST, reason="")
    end()
    telemetry.notice(telemetry.Notice.MANIFEST_ANSWERED, repository=str(APP), reference="v2", digest=_DIGEST)
    notes.flush()
    assert set(_facts(world).times) == {"v1", str(_DIGEST)}


async def test_it_writes_behind_the_answer(world: RetainedWorld) -> None:
    """Every minute, until it is cancelled."""
    written = asyncio.Event()
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            written.set()
            await asyncio.Event().wait()
        notes.note(str(APP), "v1", _DIGEST)

    notes = pull_notes.PullNotes(world.pulled, world.retention_rules, world.clock, sleep=sleep)
    task = asyncio.create_task(notes.run())
    await written.wait()
    assert set(_facts(world).times) == {"v1", str(_DIGEST)}
    assert waits[0] == 60
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    world.policies = ()
    await world.pull_notes().run()
