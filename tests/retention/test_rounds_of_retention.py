"""Rounds of retention over hosted content: what goes, what stays, and what is remembered."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from mirror.errors import StoreError
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.oci.reference import Repo
from mirror.policy.hosted.immutability import ImmutableRule, ImmutableTags
from mirror.policy.hosted.retention import RETENTION
from mirror.policy.hosted.retention_rules import DeleteRule, Happening, KeepRule, RetentionPolicy, TagChoice
from mirror.policy.hosted_records import DeletedManifest
from mirror.policy.pins import PinRule
from mirror.policy.records import Freeze, Pin, TagRecord
from mirror.policy.schedule import Every
from mirror.ports import Versioned
from mirror.retention.retention_report import RetentionReport
from mirror.retention.retention_schedule import RoundWanted
from tests.support.collecting import APP, KEEP, TWIN, index
from tests.support.retaining import DAY, RetainedWorld

_NEWEST = RetentionPolicy(("**",), (KeepRule(newest=2),), (DeleteRule(TagChoice(("*",))),))
_UNTAGGED = RetentionPolicy(("**",), delete_untagged_after=7 * DAY)
_PULLED = RetentionPolicy(("**",), (KeepRule(within={Happening.PULLED: 30 * DAY}),), (DeleteRule(TagChoice(("*",))),))


@pytest.fixture
def world(tmp_path: Path) -> RetainedWorld:
    """Five builds, of which the newest two stay."""
    world = RetainedWorld(tmp_path, _NEWEST)
    for number in range(1, 6):
        world.build(f"b{number}")
    return world


async def test_the_newest_stay_and_the_rest_can_be_undeleted(world: RetainedWorld) -> None:
    """What was deleted is collected in its time."""
    report = await world.retain()
    assert (report.tags, report.manifests, report.repositories, report.complete) == (3, 3, 1, True)
    assert world.tags() == "b4 b5"
    assert {record.by for record in _deleted(world)} == {RETENTION}
    assert (await world.retain()).tags == 0
    world.passes(KEEP + 1)
    world.collect_until_nothing_waits()
    assert not _deleted(world)


def _deleted(world: RetainedWorld) -> list[DeletedManifest]:
    found = (world.records.deleted_manifest(APP, digest) for digest in world.records.deleted_manifests(APP))
    return [each.record for each in found if each]


async def test_only_repositories_that_are_asked_for(world: RetainedWorld) -> None:
    """And only those of a policy. Such a round is no round by schedule."""
    for number in range(1, 6):
        world.build(f"b{number}", TWIN)
    report = await world.retain(lambda repo: repo == TWIN)
    assert (world.tags(), world.tags(TWIN)) == ("b1 b2 b3 b4 b5", "b4 b5")
    assert report.repositories == 1
    assert world.retention().last() is None
    world.policies = (replace(_NEWEST, repositories=("other/**",)),)
    assert (await world.retain()).repositories == 0


async def test_a_plan_changes_nothing(world: RetainedWorld) -> None:
    """And says of each tag and manifest why it goes or stays."""
    [plan] = list(world.retention().plan(lambda repo: True))
    assert plan.verdicts.tags_going == ["b1", "b2", "b3"]
    assert plan.verdicts.tags["b5"].reason == "keep: tags *, the newest 2"
    assert plan.verdicts.tags["b1"].reason == "delete: tags *"
    assert world.tags() == "b1 b2 b3 b4 b5"
    assert not list(world.marks.all())


async def test_pins_freezes_and_immutable_tags_stay(world: RetainedWorld) -> None:
    """By tag, by digest, and by rule."""
    digests = {tag: world.catalog.pointed(APP, tag) for tag in ("b1", "b2", "b3")}
    world.pins.put(Pin(APP, "b1", "audit", 0.0))
    world.freezes.put(Freeze(APP, "b2", digests["b2"], OCI_MANIFEST, 1, "", 0.0))
    world.parts = replace(world.parts, immutable=ImmutableTags({"corp": (ImmutableRule(tags=("b3",)),)}))
    [plan] = list(world.retention().plan(lambda repo: True))
    assert [plan.verdicts.tags[tag].reason for tag in ("b1", "b2", "b3")] == [
        "pinned: audit",
        "the tag b2 is frozen",
        "immutable: b3 in **",
    ]
    assert (await world.retain()).tags == 0
    world.pins.drop(APP, "b1")
    world.pins.put(Pin(APP, digests["b1"], "", 0.0, until=world.clock() + 100))
    world.freezes.drop(APP, "b2")
    world.pin_rules = [PinRule("corp/**:b2")]
    assert (await world.retain()).tags == 0
    world.passes(101)
    assert (await world.retain()).tags == 1
    assert world.tags() == "b2 b3 b4 b5"


async def test_a_pin_that_comes_meanwhile_keeps(world: RetainedWorld) -> None:
    """Pins are looked at again before anything is deleted."""
    world.hooks["catalog"].before("tags", lambda: world.pins.put(Pin(APP, "b1", "", 0.0)))
    await world.retain()
    assert world.tags() == "b1 b4 b5"


async def test_a_push_meanwhile_keeps(world: RetainedWorld) -> None:
    """A tag that moved since the decision stays."""

    def push() -> None:
        digest = world.catalog.pointed(APP, "b5")
        assert digest is not None
        world.catalog.put_tag(APP, TagRecord("b1", digest, OCI_MANIFEST, 1, world.clock()))

    world.marks.after("put", lambda: world.marks.after("put", push))
    report = await world.retain()
    assert world.tags() == "b1 b4 b5"
    assert report.stayed == 1


# ------------------------------------------------------------------------------------------------------- untagged


async def test_untagged_manifests_wait_since_they_were_seen(tmp_path: Path) -> None:
    """Not since they were pushed; a tag that comes and goes again begins the wait anew."""
    world = RetainedWorld(tmp_path, _UNTAGGED)
    digest = world.build("b1")
    world.passes(100 * DAY)
    await world.retain()
    world.catalog.drop_tag(APP, "b1")
    await world.retain()
    world.passes(6 * DAY)
    assert (await world.retain()).manifests == 0
    world.catalog.put_tag(APP, TagRecord("again", digest, OCI_MANIFEST, 1, world.clock()))
    await world.retain()
    world.catalog.drop_tag(APP, "again")
    await world.retain()
    world.passes(6 * DAY)
    assert (await world.retain()).manifests == 0
    world.passes(1 * DAY + 1)
    assert (await world.retain()).manifests == 1
    # nothing is remembered of what is gone
    assert [record["key"] for record in world.marks.all()] == ["round"]


async def test_marks_that_are_lost_begin_anew(tmp_path: Path) -> None:
    """As do those of a wrong clock."""
    world = RetainedWorld(tmp_path, _UNTAGGED)
    digest = world.build("b1")
    world.catalog.drop_tag(APP, "b1")
    for lost in (None, {"untagged": {str(digest): world.clock() + 1e9}}, {"untagged": "damaged"}):
        await world.retain()
        if lost is None:
            world.marks.drop(str(APP))
        else:
            world.marks.put(str(APP), lost)
        world.passes(7 * DAY + 1)
        assert (await world.retain()).manifests == 0
    world.passes(7 * DAY + 1)
    assert (await world.retain()).manifests == 1


# ------------------------------------------------------------------------------------------------------ unreadable


@pytest.mark.parametrize(
    ("port", "call"),
    [("catalog", "manifest_digests"), ("catalog", "manifest"), ("catalog", "tags"), ("catalog", "tag")],
)
async def test_101_what_cannot_be_read_keeps_the_repository(world: RetainedWorld, port: str, call: str) -> None:
    """And the report says so. The plan does, too."""
    world.hooks[port].fail(call, StoreError("the disk"))
    report = await world.retain()
    assert (report.tags, report.unread_count, report.complete) == (0, 1, True)
    assert report.unread[0].what == str(APP)
    [plan] = list(world.retention().plan(lambda repo: True))
    assert plan.facts.unread == "the disk"
    assert not plan.verdicts.tags_going
    world.hooks[port].fail(call, None)
    assert (await world.retain()).tags == 3


@pytest.mark.parametrize("what", ["tag", "manifest", "bytes"])
async def test_101_one_that_cannot_be_read_keeps_all(
    world: RetainedWorld, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may name anything of this repository. Others are judged."""
    for number in range(1, 6):
        world.build(f"b{number}", TWIN)
    digest = world.catalog.pointed(APP, "b4")
    assert digest is not None
    if what == "tag":
        real = world.catalog.tag

        def tag(repo: Repo, tag: str) -> Versioned[TagRecord] | None:
            if (repo, tag) == (APP, "b4"):
                raise StoreError("cannot be read")
            found: Versioned[TagRecord] | None = real(repo, tag)
            return found

        monkeypatch.setattr(world.catalog, "tag", tag)
    elif what == "manifest":
        world.catalog.unreadable.add((APP, digest))
    else:
        world.blobs.names.delete(digest)
    report = await world.retain()
    assert (report.unread_count, report.tags) == (1, 3)
    assert len(list(world.catalog.tags(APP))) == 5
    assert world.tags(TWIN) == "b4 b5"


@pytest.mark.parametrize(
    ("port", "call"),
    [
        ("catalog", "drop_manifest"),
        ("catalog", "drop_tag"),
        ("catalog", "flush"),
        ("records", "put_deleted_manifest"),
        ("records", "flush"),
    ],
)
async def test_101_a_disk_that_fails_while_it_deletes(world: RetainedWorld, port: str, call: str) -> None:
    """What is done is done; the next round does the rest."""
    world.hooks[port].fail(call, StoreError("the disk"))
    assert (await world.retain()).unread_count == 1
    world.hooks[port].fail(call, None)
    assert {"b4", "b5"} <= set(world.tags().split())
    await world.retain()
    world.collect()
    assert world.tags() == "b4 b5"
    assert set(world.catalog.manifest_digests(APP)) == {world.catalog.pointed(APP, tag) for tag in ("b4", "b5")}


async def test_101_pins_that_cannot_be_read_keep_everything(world: RetainedWorld) -> None:
    """Nobody knows what they are about."""
    folder = world.layout.root / "pins"
    folder.mkdir(exist_ok=True)
    (folder / f"{'0' * 32}.json").write_text("{")
    with pytest.raises(StoreError):
        await world.retain()
    assert world.tags() == "b1 b2 b3 b4 b5"
    assert world.retention().last() is not None
    assert world.reports[-1].failures == 1


async def test_101_a_damaged_pin_of_a_known_tag_still_holds(world: RetainedWorld) -> None:
    """Its file's name says which it is."""
    world.pins.put(Pin(APP, "b1", "", 0.0))
    [file] = (world.layout.root / "pins").glob("*.json")
    file.write_text(file.read_text()[:-5])
    await world.retain()
    assert world.tags() == "b1 b4 b5"


async def test_101_marks_that_cannot_be_read_or_written(world: RetainedWorld) -> None:
    """Nothing goes before it is written down what goes."""
    world.marks.fail("get", StoreError("the disk"))
    assert (await world.retain()).unread_count == 1
    world.marks.fail("get", None)
    world.marks.before("put", lambda: world.marks.before("put", _raise))
    assert (await world.retain()).unread_count == 1
    assert world.tags() == "b1 b2 b3 b4 b5"


def _raise() -> None:
    raise StoreError("the disk is full")


# ------------------------------------------------------------------------------------------------------------- pulls


async def test_what_was_pulled_lately_stays(tmp_path: Path) -> None:
    """Once pulls have been recorded for as long as the rule asks."""
    world = RetainedWorld(tmp_path, _PULLED)
    digests = {tag: world.build(tag) for tag in ("a", "b", "c")}
    notes = world.pull_notes()
    notes.begin()
    world.passes(100 * DAY)
    await world.retain()
    world.passes(25 * DAY)
    notes.note(str(APP), "a", digests["a"])
    notes.note(str(APP), digests["b"], digests["b"])
    notes.flush()
    assert world.tags() == "a b c"
    world.passes(6 * DAY)
    await world.retain()
    assert world.tags() == "a b"
    world.passes(30 * DAY)
    await world.retain()
    assert world.tags() == ""


async def test_a_pull_meanwhile_keeps(tmp_path: Path) -> None:
    """Pulls are read again before anything is deleted."""
    world = RetainedWorld(tmp_path, _PULLED)
    digest = world.build("a")
    notes = world.pull_notes()
    notes.begin()
    await world.retain()
    world.passes(31 * DAY)

    def pull() -> None:
        notes.note(str(APP), "a", digest)
        notes.flush()

    world.marks.after("put", lambda: world.marks.after("put", pull))
    await world.retain()
    assert world.tags() == "a"


async def test_101_pull_times_that_cannot_be_read_keep(tmp_path: Path) -> None:
    """Also if they are damaged: recording begins anew."""
    world = RetainedWorld(tmp_path, _PULLED)
    world.build("a")
    world.pull_notes().begin()
    await world.retain()
    world.passes(40 * DAY)
    world.pulled.fail("get", StoreError("the disk"))
    await world.retain()
    world.pulled.fail("get", None)
    world.pulled.put(str(APP), {"since": "damaged"})
    await world.retain()
    assert world.tags() == "a"
    world.passes(31 * DAY)
    await world.retain()
    assert world.tags() == ""


# ---------------------------------------------------------------------------------------------------- interruptions


async def test_112_an_interrupted_round_goes_on(world: RetainedWorld) -> None:
    """Behind the last repository that was done, by what is there then; the report says so."""
    other = Repo("corp", "aaa")
    for number in range(1, 6):
        world.build(f"b{number}", other)
    done = RetentionReport(world.clock(), "schedule", world.retention()._rules, after=str(other), tags=3)
    world.marks.put("round", done.to_json())
    report = await world.retention().go_on()
    assert report is not None
    assert (report.resumed, report.repositories, report.tags) == (1, 1, 6)
    assert (world.tags(other), world.tags()) == ("b1 b2 b3 b4 b5", "b4 b5")
    again = await world.retention().go_on()
    assert again is not None
    assert (again.resumed, again.repositories) == (0, 2)
    assert world.tags(other) == "b4 b5"


async def test_112_other_rules_begin_a_round_anew(world: RetainedWorld) -> None:
    """What is done by other rules is not done."""
    world.marks.put("round", RetentionReport(world.clock(), "schedule", "others", after="corp/zzz").to_json())
    report = await world.retention().go_on()
    assert report is not None
    assert (report.resumed, report.tags) == (0, 3)


async def test_112_what_was_condemned_goes_although_its_tags_are_gone(world: RetainedWorld) -> None:
    """An index that is gone names its platforms no more: the next round finishes them."""
    platform = world.build("platform")
    world.push(APP, index(platform), "b6")
    world.catalog.drop_tag(APP, "platform")
    for number in (7, 8):
        world.build(f"b{number}")

    class Killed(BaseException):
        """No error of ours: the process ends."""

    calls = 0

    def die() -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise Killed
        world.hooks["catalog"].after("drop_manifest", die)

    world.hooks["catalog"].after("drop_manifest", die)
    with pytest.raises(Killed):
        await world.retain()
    world.collect()
    await world.retain()
    world.collect()
    assert world.tags() == "b7 b8"
    assert set(world.catalog.manifest_digests(APP)) == {world.catalog.pointed(APP, tag) for tag in ("b7", "b8")}


async def test_112_what_was_undeleted_is_not_deleted_again(world: RetainedWorld) -> None:
    """For as long as it can be undeleted; then the rules decide again."""
    digest = world.catalog.pointed(APP, "b1")
    assert isinstance(digest, Digest)
    await world.retain()
    deleted = world.records.deleted_manifest(APP, digest)
    assert deleted is not None
    world.catalog.put_manifest(APP, deleted.record.restored(world.clock()))
    world.catalog.put_tag(APP, TagRecord("b1", digest, OCI_MANIFEST, 1, world.clock(), restored_at=world.clock()))
    world.passes(KEEP - 1)
    assert (await world.retain()).tags == 0
    world.passes(2)
    assert (await world.retain()).tags == 1


async def test_an_error_of_ours_stops_no_round(world: RetainedWorld) -> None:
    """The other repositories are judged; the report names the one that was not."""
    for number in range(1, 6):
        world.build(f"b{number}", TWIN)
    world.hooks["catalog"].before("manifest_digests", lambda: [][0])
    report = await world.retain()
    assert (report.unread_count, report.tags, report.complete) == (1, 3, True)
    assert report.unread[0].reason == "an error of the mirror: IndexError"
    assert (world.tags(), world.tags(TWIN)) == ("b1 b2 b3 b4 b5", "b4 b5")


async def test_two_processes_take_turns(world: RetainedWorld) -> None:
    """The second one has nothing to do."""
    locks = world.retention()._locks
    lease = await locks.try_hold("retention")
    assert lease is not None
    assert await world.retention(locks).run(RoundWanted("b")) is None
    assert await world.retention(locks).go_on() is None
    lease.release()


class _Enough(Exception):
    """The test has seen enough."""


async def test_rounds_by_schedule(world: RetainedWorld) -> None:
    """The first soon after the rules are known, then at the times of the plan."""
    begun = []

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(0)
        if seconds >= 1:
            world.passes(seconds)
            begun.append(len(world.reports))
        if len(begun) > 3 * 1440:
            raise _Enough

    with pytest.raises(_Enough):
        await world.retention(sleep=sleep).run_when_due(Every(DAY))
    assert 3 <= len(world.reports) <= 4
    assert {report.by for report in world.reports} == {"schedule"}
    assert world.tags() == "b4 b5"


async def test_without_rules_there_is_no_schedule(tmp_path: Path) -> None:
    """Nothing is looked at."""
    world = RetainedWorld(tmp_path)
    await world.retention().run_when_due(Every(DAY))
    assert not world.reports
