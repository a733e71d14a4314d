"""The events of pushes and deletions that fail, race and are interrupted: they say what is there, and nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from mirror.errors import Denied, MirrorError, StoreError
from mirror.events.announcing import OutboxAnnouncer
from mirror.events.seen_changes import look
from mirror.index.outbox import SqliteOutbox
from mirror.oci.digest import Digest
from mirror.policy.events.changes import LOST, ChangeKind, HostedChange
from mirror.policy.events.subscriptions import Subscription, Subscriptions
from tests.support.hooked import Hooked
from tests.support.hosted_world import TEAM, Caller, HostedWorld, image, push, push_image, upload

_ANN, _BOB = Caller("user:ann"), Caller("user:bob", overwrite=False)


class _World(HostedWorld):
    """A hosted registry whose changes are announced through `outbox`, which may be replaced."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.catalog = Hooked(self.catalog)
        self.records = Hooked(self.records)
        self.box = SqliteOutbox(folder, ["ci"], most_events=1000, most_bytes=1 << 20)
        self.outbox = Hooked(self.box)
        subscriptions = Subscriptions((Subscription("ci"),))
        self.announcements = OutboxAnnouncer(
            self.outbox,
            subscriptions,
            lambda change, written: look(self.catalog, self.records, change, written),
            "here",
            self.clock,
        )
        self.announcer = self.announcements

    def events(self) -> list[dict[str, Any]]:
        """Takes what waits, in order."""
        taken = []
        while heads := self.box.heads("ci", (), 1):
            taken.append(json.loads(heads[0].body))
            self.box.delivered(heads[0])
        return taken

    def types(self) -> list[str]:
        """Of what waits, without what they all begin with."""
        return [event["type"].removeprefix("mirror.") for event in self.events()]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[_World]:
    """With an empty outbox."""
    world = _World(tmp_path)
    with world, closing(world.box):
        yield world


async def test_each_change_has_its_events(world: _World) -> None:
    """A push, a move, a mount, deletions, and what brings them back."""
    [team] = world.open(TEAM)
    first = await push_image(team, _ANN, "1", b"config", b"one")
    second = await push_image(team, _ANN, "1", b"config", b"two")
    await team.delete_tag("1", _ANN)
    await team.undelete("1", _ANN)
    await team.delete_manifest(second.digest, _ANN)
    world.clock.time += 1
    await team.undelete(second.digest, _ANN)
    taken = world.events()
    assert [event["type"].removeprefix("mirror.") for event in taken] == [
        "image.pushed",
        "image.pushed",
        "image.retagged",
        "tag.deleted",
        "tag.undeleted",
        "image.deleted",
        "image.undeleted",
    ]
    assert {event["data"]["by"] for event in taken} == {"user:ann"}
    assert taken[2]["data"]["from"] == str(first.digest)
    assert taken[-1]["data"]["tags"] == ["1"]
    told = [event["data"] for event in taken if event["type"] != "mirror.image.deleted"]
    generations = [data["generation"] if "generation" in data else data["generations"]["1"] for data in told]
    assert generations[1] == generations[2]
    assert sorted({*generations}) == generations[:1] + generations[2:]
    assert world.box.orphans() == []


@pytest.mark.parametrize("call", ["put_manifest", "put_tag", "put_history", "flush"])
async def test_a_push_that_fails_is_reported_as_far_as_it_came(world: _World, call: str) -> None:
    """Whatever the client was answered: what is there is reported, and nothing else."""
    [team] = world.open(TEAM)
    for blob in (b"config", b"one"):
        await upload(team, blob, _ANN)
    world.catalog.fail(call, StoreError("the disk is gone"))
    with pytest.raises(StoreError):
        await push(team, image(b"config", b"one"), _ANN, "1")
    world.catalog.fail(call, None)
    digest = Digest.of(image(b"config", b"one"))
    tag = world.catalog.get_tag(TEAM, "1")
    has_manifest = world.catalog.get_manifest(TEAM, digest) is not None
    taken = world.events()
    assert [event["data"]["tags"] for event in taken] == ([["1"] if tag else []] if has_manifest else [])
    assert all("certain" not in event["data"] for event in taken)
    assert world.box.orphans() == []


async def test_of_two_pushers_of_one_new_tag_one_is_reported_with_it(world: _World) -> None:
    """The manifest of the other is there, without the tag."""
    [team, other] = world.open(TEAM, TEAM)
    for blob in (b"config", b"one", b"two"):
        await upload(team, blob, _ANN)
    mine, theirs = image(b"config", b"one"), image(b"config", b"two")

    def first() -> None:
        asyncio.run(push(other, theirs, _ANN, "1"))

    # not inside the turn, for which the other one would wait
    world.catalog.after("put_manifest", first)
    with pytest.raises(Denied):
        await push(team, mine, _BOB, "1")
    found = {event["data"]["digest"]: event["data"]["tags"] for event in world.events()}
    assert found == {str(Digest.of(theirs)): ["1"], str(Digest.of(mine)): []}


async def test_a_deletion_that_is_tried_again_is_reported_once(world: _World) -> None:
    """Somebody pushes the same image while it is being deleted: the first attempt has changed nothing."""
    [team, other] = world.open(TEAM, TEAM)
    pushed = await push_image(team, _ANN, "1", b"config", b"one")
    world.events()

    def again() -> None:
        world.clock.time += 1
        asyncio.run(push(other, image(b"config", b"one"), _ANN, "2"))

    world.records.before("flush", again)
    await team.delete_manifest(pushed.digest, _ANN)
    taken = world.events()
    assert [event["type"] for event in taken] == ["mirror.image.pushed", "mirror.image.deleted"]
    assert "certain" not in taken[1]["data"]
    assert sorted(taken[1]["data"]["tags"]) == ["1", "2"]


async def test_an_undeletion_that_is_refused_is_not_reported(world: _World) -> None:
    """The tag points to something else by now."""
    [team] = world.open(TEAM)
    await push_image(team, _ANN, "1", b"config", b"one")
    await team.delete_tag("1", _ANN)
    await push_image(team, _ANN, "1", b"config", b"two")
    world.events()
    with pytest.raises(Denied):
        await team.undelete("1", _ANN)
    assert world.events() == []


async def test_without_its_event_no_change_is_made(world: _World) -> None:
    """The outbox cannot be written: the client is refused, and nothing is different."""
    [team] = world.open(TEAM)
    pushed = await push_image(team, _ANN, "1", b"config", b"one")
    for blob in (b"config", b"two"):
        await upload(team, blob, _ANN)
    world.outbox.fail("prepare", StoreError("the disk is full"))
    with pytest.raises(StoreError):
        await push(team, image(b"config", b"two"), _ANN, "1")
    with pytest.raises(StoreError):
        await team.delete_manifest(pushed.digest, _ANN)
    with pytest.raises(StoreError):
        await team.delete_tag("1", _ANN)
    tag = world.catalog.get_tag(TEAM, "1")
    assert tag is not None
    assert tag.digest == pushed.digest
    assert world.catalog.get_manifest(TEAM, Digest.of(image(b"config", b"two"))) is None


async def test_a_change_that_cannot_be_confirmed_is_answered_and_reported_later(world: _World) -> None:
    """With the same events, in their place; nothing of its repository overtakes it."""
    [team] = world.open(TEAM)
    world.outbox.fail("confirm", StoreError("busy"))
    with capture_logs() as logs:
        await push_image(team, _ANN, "1", b"config", b"one")
    assert [line["event"] for line in logs] == ["events not confirmed"]
    world.outbox.fail("confirm", None)
    await push_image(team, _ANN, "2", b"config", b"two")
    assert world.events() == []
    world.announcements.settle()
    assert [event["data"]["tags"] for event in world.events()] == [["1"], ["2"]]


async def test_what_a_dead_process_has_left_is_settled_first(world: _World) -> None:
    """Before the next change of the repository: what that one hides could not be told any more."""
    [team] = world.open(TEAM)
    pushed = await push_image(team, _ANN, "1", b"config", b"one")
    world.events()
    claim = HostedChange(ChangeKind.PUSH, TEAM, "user:dead", pushed.digest, ("1",), "type", 1, had=True)
    world.box.abandon(world.box.prepare(str(TEAM), claim.to_json()))
    await push_image(team, _ANN, "1", b"config", b"two")
    taken = world.events()
    assert [event["data"]["by"] for event in taken] == ["user:dead", "user:ann", "user:ann"]
    assert all("certain" not in event["data"] for event in taken)


async def test_what_another_change_has_hidden_is_uncertain(world: _World) -> None:
    """It was made, or it was not."""
    [team] = world.open(TEAM)
    pushed = await push_image(team, _ANN, "1", b"config", b"one")
    world.events()
    hidden = HostedChange(ChangeKind.DELETE, TEAM, "user:dead", pushed.digest, ("1",), "type", 1, version="another")
    world.box.abandon(world.box.prepare(str(TEAM), hidden.to_json()))
    world.announcements.settle()
    [event] = world.events()
    assert (event["type"], event["data"]["certain"]) == ("mirror.image.deleted", False)


async def test_records_that_cannot_be_read_are_waited_for(world: _World) -> None:
    """For an hour; then the endpoint is told that an event was lost, and others follow."""
    [team] = world.open(TEAM)
    pushed = await push_image(team, _ANN, "1", b"config", b"one")
    world.events()
    claim = HostedChange(ChangeKind.DELETE, TEAM, "user:dead", pushed.digest, version="1")
    for _ in range(2):
        world.box.abandon(world.box.prepare(str(TEAM), claim.to_json()))
    world.catalog.fail("manifest", StoreError("unreadable"))
    world.announcements.settle()
    world.clock.time += 3599
    world.announcements.settle()
    assert len(world.box.orphans()) == 2
    world.clock.time += 2
    with capture_logs() as logs:
        world.announcements.settle()
    assert [line["event"] for line in logs] == ["interrupted change not reported"] * 2
    assert world.box.orphans() == []
    taken = world.events()
    assert {(event["type"], event["data"]["count"]) for event in taken} == {(LOST, 1)}


async def test_a_claim_that_cannot_be_parsed_is_given_up(world: _World) -> None:
    """Nobody will ever be able to read it."""
    world.box.abandon(world.box.prepare(str(TEAM), "{"))
    with capture_logs() as logs:
        world.announcements.settle()
    assert [line["event"] for line in logs] == ["interrupted change not reported"]
    assert [event["type"] for event in world.events()] == [LOST]


async def test_what_cannot_be_left_to_others_is_left_later(world: _World) -> None:
    """The records cannot be read, and the outbox cannot be written: it is tried again."""
    [team] = world.open(TEAM)
    for blob in (b"config", b"one"):
        await upload(team, blob, _ANN)
    world.catalog.fail("put_tag", StoreError("gone"))
    world.outbox.fail("abandon", StoreError("full"))
    world.catalog.before("put_tag", lambda: world.catalog.fail("tag", StoreError("gone")))
    with capture_logs(), pytest.raises(StoreError):
        await push(team, image(b"config", b"one"), _ANN, "1")
    assert world.box.orphans() == []
    for hooked, calls in ((world.catalog, ("put_tag", "tag")), (world.outbox, ("abandon",))):
        for call in calls:
            hooked.fail(call, None)
    world.announcements.settle()
    assert [event["data"]["tags"] for event in world.events()] == [[]]


async def test_nothing_is_prepared_that_nobody_wants(world: _World) -> None:
    """Not even described."""
    world.announcer = OutboxAnnouncer(
        world.outbox,
        Subscriptions((Subscription("ci", ("mirror.upstream.*",)),)),
        lambda *_: _never(),
        "here",
        world.clock,
    )
    [team] = world.open(TEAM)
    pushed = await push_image(team, _ANN, "1", b"config", b"one")
    await team.delete_manifest(pushed.digest, _ANN)
    assert world.outbox.calls == {}


def _never() -> Any:
    raise AssertionError("nobody asks")


@pytest.mark.parametrize("call", ["put_deleted_manifest", "flush"])
async def test_a_deletion_that_fails_before_it_is_seen_is_not_reported(world: _World, call: str) -> None:
    """The image is still there."""
    [team] = world.open(TEAM)
    pushed = await push_image(team, _ANN, "1", b"config", b"one")
    world.events()
    world.records.fail(call, StoreError("gone"))
    with suppress(MirrorError):
        await team.delete_manifest(pushed.digest, _ANN)
    world.records.fail(call, None)
    gone = world.catalog.get_manifest(TEAM, pushed.digest) is None
    assert world.types() == (["image.deleted"] if gone else [])


async def test_whoever_gets_an_event_sees_the_change(world: _World) -> None:
    """Before the events of a push or a deletion are delivered, every process knows that the repository has changed."""
    [team] = world.open(TEAM)
    for blob in (b"config", b"one"):
        await upload(team, blob, _ANN)
    digest = Digest.of(image(b"config", b"one"))
    changes: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
        "push": lambda: push(team, image(b"config", b"one"), _ANN, "1"),
        "tag": lambda: team.delete_tag("1", _ANN),
        "undelete": lambda: team.undelete("1", _ANN),
        "image": lambda: team.delete_manifest(digest, _ANN),
    }
    seen: dict[str, int] = {}
    for name, change in changes.items():
        before = world.records.changes(TEAM)
        world.outbox.before("confirm", partial(_see, world, seen, name))
        await change()
        seen[name] = seen[name] > before
    assert seen == dict.fromkeys(changes, True)


def _see(world: _World, seen: dict[str, int], name: str) -> None:
    seen[name] = world.records.changes(TEAM)


async def test_a_change_that_cannot_be_noted_is_reported_nevertheless(world: _World) -> None:
    """The client is answered that it failed, but the image is there."""
    [team] = world.open(TEAM)
    for blob in (b"config", b"one"):
        await upload(team, blob, _ANN)
    world.records.fail("note_change", StoreError("the disk is full"))
    with capture_logs(), pytest.raises(StoreError, match="the disk is full"):
        await push(team, image(b"config", b"one"), _ANN, "1")
    assert world.types() == ["image.pushed"]


@pytest.mark.parametrize("verb", ["push", "delete"])
async def test_the_first_error_is_the_one_that_is_raised(world: _World, verb: str) -> None:
    """Whatever else fails after it, and no event waits for an end that does not come."""
    [team] = world.open(TEAM)
    pushed = await push_image(team, _ANN, "1", b"config", b"one")
    world.events()
    world.records.fail("note_change", StoreError("the disk is full"))
    world.catalog.fail("put_tag" if verb == "push" else "drop_manifest", StoreError("the first"))
    change: Coroutine[Any, Any, object] = (
        push(team, image(b"config", b"one"), _ANN, "2") if verb == "push" else team.delete_manifest(pushed.digest, _ANN)
    )
    with capture_logs(), pytest.raises(StoreError, match="the first") as caught:
        await change
    assert "the disk is full" in caught.value.__notes__
    world.announcements.settle()
    assert world.box.orphans() == []
