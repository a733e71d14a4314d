"""Events of replicas that are gone: they are delivered by another one, also if either ends between any two steps."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mirror.errors import StoreError
from mirror.events.adoption import EventAdoption
from mirror.events.announcing import OutboxAnnouncer
from mirror.events.bucket_outbox import EVENTS, BucketOutbox
from mirror.index.outbox import SqliteOutbox
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.events.changes import ChangeKind, HostedChange, SeenChange
from mirror.policy.events.subscriptions import Subscription, Subscriptions
from mirror.ports import ABSENT, Announcement
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from mirror.store.local.locks import FileLocks
from tests.support.clock import Clock
from tests.support.outbox_suite import Open, OutboxSuite, add, drain
from tests.support.stepping_bucket import Killed, SteppingBucket

APP = Repo("corp", "team/app")
_DIGEST = Digest.of(b"an image")


class Records:
    """What the hosted records show: whether the change was made. All replicas see the same."""

    def __init__(self) -> None:
        self.made = False
        self.readable = True

    def look(self, change: HostedChange, written: Collection[str] | None) -> SeenChange:
        """See `OutboxAnnouncer`."""
        if not self.readable:
            raise StoreError("the records cannot be read")
        return SeenChange(self.made, change.tags if self.made else ())


class Replica:
    """A replica with a disk of its own."""

    def __init__(self, root: Path, bucket: SteppingBucket, records: Records) -> None:
        self.clock = Clock(0.0)
        self.local = SqliteOutbox(root / "events", ["ci"], most_events=100, most_bytes=1 << 20)
        self.box = BucketOutbox(self.local, bucket)
        subscriptions = Subscriptions((Subscription("ci", ("*",), ("**",)),))
        self.announcer = OutboxAnnouncer(self.box, subscriptions, records.look, "here", lambda: 1000.0)
        self.locks = FileLocks(LocalStore(Layout(root / "store")).layout)
        self.adoption = EventAdoption(self.box, self.announcer, bucket, self.locks, lease="adoption", clock=self.clock)

    def begin(self) -> Announcement:
        """A push, which is not made yet."""
        return self.announcer.begin(ChangeKind.PUSH, APP, lambda: _PUSH)

    async def adopt(self) -> int:
        """A round of adoption."""
        lease = await self.locks.try_hold("adoption")
        assert lease is not None
        with lease:
            return await self.adoption.adopt(lease)

    async def adopt_the_gone(self) -> int:
        """A look, and another one a minute later."""
        adopted = await self.adopt()
        self.clock.time += 60.0
        return adopted + await self.adopt()

    def drain(self) -> list[str]:
        """The ids of what waits here, which is delivered."""
        ids = drain(self.box)
        self.box.sweep()
        return ids


_PUSH = HostedChange(ChangeKind.PUSH, APP, "anna", _DIGEST, ("v1",))


class Site:
    """Two replicas and their bucket."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bucket = SteppingBucket()
        self.records = Records()
        self.replicas: list[Replica] = []

    def replica(self, name: str) -> Replica:
        """A replica; the same name is the same disk."""
        self.replicas.append(Replica(self.root / name, self.bucket, self.records))
        return self.replicas[-1]

    @property
    def left(self) -> list[str]:
        """The objects of changes."""
        return [key for key in self.bucket.content() if key.startswith(EVENTS)]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    for replica in site.replicas:
        replica.box.close()


class TestBucketOutbox(OutboxSuite):
    """An outbox on a disk, written down in a bucket."""

    @pytest.fixture
    def opened(self, tmp_path: Path) -> Iterator[Open]:
        bucket = SteppingBucket()
        boxes: list[BucketOutbox] = []

        def make(most_events: int = 1000, most_bytes: int = 1 << 20, **more: object) -> BucketOutbox:
            local = SqliteOutbox(
                tmp_path / "events",
                ["ci", "chat"],
                most_events=most_events,
                most_bytes=most_bytes,
                **more,  # type: ignore[arg-type]
            )
            boxes.append(BucketOutbox(local, bucket))
            return boxes[-1]

        yield make
        for box in boxes:
            box.close()


def test_a_change_without_the_bucket_is_refused(site: Site) -> None:
    """It could be lost with the disk. Nothing is left of it."""
    here = site.replica("here")
    site.bucket.fail("write")
    with pytest.raises(StoreError, match="written down"):
        here.begin()
    here.local.close()
    assert SqliteOutbox(site.root / "here" / "events", [], most_events=1, most_bytes=1).orphans() == []


def test_what_was_delivered_is_deleted(site: Site) -> None:
    """Also what another process of the replica has prepared, and what a restart has left."""
    here, again = site.replica("here"), site.replica("here")
    add(here.box, "x-1-0")
    changes = [here.begin(), here.begin(), here.begin()]
    changes[0].done()
    changes[1].cancel()
    changes[2].done()
    assert len(site.left) == 4
    assert len(again.drain()) == 3
    here.box.sweep()
    assert site.left == []


async def test_a_confirmed_event_is_delivered_by_another_replica(site: Site) -> None:
    """Once its replica has shown no life for a minute by the clock of the other. With the same id."""
    gone, here = site.replica("gone"), site.replica("here")
    await asyncio.to_thread(gone.adoption.beat)
    (await asyncio.to_thread(gone.begin)).done()
    [id] = [each.id for each in gone.box.heads("ci", (), 9)]
    assert await here.adopt() == 0
    here.clock.time += 59.0
    assert await here.adopt() == 0
    await asyncio.to_thread(gone.adoption.beat)
    here.clock.time += 59.0
    assert await here.adopt() == 0
    here.clock.time += 60.0
    with capture_logs() as logs:
        assert await here.adopt() == 1
    assert [each["event"] for each in logs] == ["events adopted from a replica that is gone"]
    assert here.drain() == [id]
    assert site.left == []


async def test_a_replica_that_ends_hands_over_at_once(site: Site) -> None:
    """And takes its events back if it starts again with its disk before anybody has adopted them."""
    ended, here = site.replica("ended"), site.replica("here")
    (await asyncio.to_thread(ended.begin)).done()
    await asyncio.to_thread(lambda: ended.adoption.beat(ended=True))
    back = site.replica("ended")
    await asyncio.to_thread(back.adoption.beat)
    assert await here.adopt() == 0
    await asyncio.to_thread(lambda: back.adoption.beat(ended=True))
    assert await here.adopt() == 1
    assert len(here.drain()) == 1


@pytest.mark.parametrize("made", [False, True])
async def test_the_records_say_what_became_of_a_prepared_change(site: Site, *, made: bool) -> None:
    """Nobody else is there to say it."""
    gone, here = site.replica("gone"), site.replica("here")
    await asyncio.to_thread(gone.begin)
    site.records.made = made
    assert await here.adopt_the_gone() == 1
    assert len(here.drain()) == made
    assert site.left == []


@pytest.mark.parametrize("made", [False, True])
async def test_a_frozen_replica_that_comes_back_loses_no_event(site: Site, *, made: bool) -> None:
    """Its change was adopted before it was made; it writes the event down anew, and then its disk is lost."""
    frozen, here = site.replica("frozen"), site.replica("here")
    change = await asyncio.to_thread(frozen.begin)
    site.records.made = made
    assert await here.adopt_the_gone() == 1
    before = await asyncio.to_thread(here.drain)
    await asyncio.to_thread(change.done)
    assert len(site.left) == 1
    assert await here.adopt_the_gone() == 1
    after = await asyncio.to_thread(here.drain)
    # at least once, and as the same event
    assert len(before) == made
    assert set(before) <= {*after}
    assert len(after) == 1
    assert site.left == []


@pytest.mark.parametrize("confirmed", [False, True])
async def test_adoption_may_end_between_any_two_steps(tmp_path: Path, *, confirmed: bool) -> None:
    """The next one does the rest: the event is delivered, always with the same id, and nothing is left."""
    step = 0
    while True:
        step += 1
        site = Site(tmp_path / str(step))
        gone, first, second = (site.replica(name) for name in ("gone", "first", "second"))
        change = await asyncio.to_thread(gone.begin)
        if confirmed:
            await asyncio.to_thread(change.done)
        site.records.made = True
        [key] = site.left
        await first.adopt()
        first.clock.time += 60.0
        site.bucket.stop_at(step, Killed())
        with suppress(Killed):
            await first.adopt()
        reached = site.bucket.reached
        await asyncio.to_thread(first.adoption.beat, ended=True)
        await asyncio.to_thread(first.box.close)
        delivered = set()
        for _ in range(2):
            await second.adopt_the_gone()
            delivered |= {*await asyncio.to_thread(second.drain)}
        assert delivered == {f"{key.rpartition('/')[2]}-0"}, step
        assert site.left == [], step
        for replica in site.replicas:
            await asyncio.to_thread(replica.box.close)
        if not reached:
            break
    assert step > 6


async def test_a_change_is_confirmed_between_any_two_steps_of_its_adoption(tmp_path: Path) -> None:
    """Whatever the order, its event is delivered by the replica that stays."""
    step = 0
    while True:
        step += 1
        site = Site(tmp_path / str(step))
        frozen, here = site.replica("frozen"), site.replica("here")
        change = await asyncio.to_thread(frozen.begin)
        [key] = site.left
        await here.adopt()
        here.clock.time += 60.0

        def confirm(site: Site = site, change: Announcement = change) -> None:
            site.records.made = True
            change.done()

        site.bucket.act_at(step, confirm)
        await here.adopt()
        reached = site.bucket.reached
        delivered = set()
        for _ in range(2):
            await here.adopt_the_gone()
            delivered |= {*await asyncio.to_thread(here.drain)}
        assert delivered == ({f"{key.rpartition('/')[2]}-0"} if reached else set()), step
        assert site.left == [], step
        for replica in site.replicas:
            await asyncio.to_thread(replica.box.close)
        if not reached:
            break
    assert step > 6


async def test_a_change_that_cannot_be_looked_at_holds_up_no_others(site: Site) -> None:
    """After an hour it is given up, and that is reported."""
    gone, here = site.replica("gone"), site.replica("here")
    await asyncio.to_thread(gone.begin)
    (await asyncio.to_thread(gone.begin)).done()
    site.records.readable = False
    with capture_logs():
        assert await here.adopt_the_gone() == 1
        here.clock.time += 3601.0
        assert await here.adopt() == 1
    types = [each.type for each in here.box.listed(endpoint="ci", dead=False, most=9)]
    assert sorted(types) == ["mirror.events.lost", "mirror.image.pushed"]


async def test_a_damaged_change_is_reported_as_lost(site: Site) -> None:
    """It belongs to a run that never had a beat."""
    here = site.replica("here")
    site.bucket.write(f"{EVENTS}0123/0123-1", b"{", expect=ABSENT)
    assert await here.adopt_the_gone() == 1
    [lost] = here.box.listed(endpoint="ci", dead=False, most=9)
    assert json.loads(lost.body)["data"]["reason"] == "its description is damaged"


async def test_work_goes_on_after_an_outage_of_the_bucket(site: Site) -> None:
    """The beat and the looks are repeated."""
    here = site.replica("here")
    rounds = 0

    async def sleep(_: float) -> None:
        nonlocal rounds
        rounds += 1
        if rounds > 6:
            raise asyncio.CancelledError
        site.bucket.down = rounds < 4
        await asyncio.sleep(0)

    adoption = EventAdoption(here.box, here.announcer, site.bucket, here.locks, lease="adoption", sleep=sleep)
    site.bucket.down = True
    with capture_logs() as logs:
        await adoption.run()
    assert {each["event"] for each in logs} == {"events not adopted"}


def test_a_copy_of_a_disk_leaves_the_events_of_the_other(tmp_path: Path) -> None:
    """Both have the same outbox, each at its own place: neither takes what the other writes for what it has left."""
    bucket, boxes = SteppingBucket(), list[BucketOutbox]()
    (tmp_path / "one").mkdir()
    SqliteOutbox(tmp_path / "one" / "events", ["ci"], most_events=100, most_bytes=1 << 20).close()
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for place in ("one", "two"):
        local = SqliteOutbox(tmp_path / place / "events", ["ci"], most_events=100, most_bytes=1 << 20)
        boxes.append(BucketOutbox(local, bucket, place))
    first, second = boxes
    assert first.run != second.run
    first.prepare("corp/team/app", "{}")
    before = dict(bucket.content())
    second.sweep()
    assert dict(bucket.content()) == before
    first.sweep()
    assert dict(bucket.content()) == before
    for box in boxes:
        box.close()
