"""A request that stood still, or whose client has left, moves and deletes nothing, wherever it stood."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Final

import pytest

from mirror.errors import BlobUnknown, ManifestUnknown, StaleRequest
from mirror.oci.digest import Digest
from mirror.policy.hosted.standstill import LONGEST
from mirror.repository.hosted import HostedRepository
from mirror.server.registry.request_steps import RequestSteps
from tests.support.hooked import Hooked
from tests.support.hosted_world import OTHER, TEAM, Caller, HostedWorld, image, push, push_image, upload

_CONFIG: Final = b'{"os": "linux"}'
_LAYER: Final = b"layer"


class _Watch:
    """A clock, a client that may leave, and the steps of its requests."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.is_gone = False

    def caller(self) -> Caller:
        """Whose request is read now."""
        caller = Caller("user:alice", OTHER)
        caller.made_steps = RequestSteps(self.time, lambda: self.is_gone, clock=lambda: self.time)
        return caller

    def stand_still(self) -> None:
        """For as long as nothing may."""
        self.time += LONGEST

    def leave(self) -> None:
        """The client closes its connection."""
        self.is_gone = True


@pytest.fixture
def world() -> Iterator[HostedWorld]:
    with HostedWorld() as made:
        made.catalog = Hooked(made.catalog)
        made.records = Hooked(made.records)
        yield made


@pytest.fixture
def watch() -> _Watch:
    return _Watch()


_Verb = Callable[[HostedRepository, Caller], Awaitable[object]]

_OLD: Final = image(_CONFIG, _LAYER)
_NEW: Final = image(_CONFIG, _LAYER, annotations={"made": "later"})


async def _stocked(world: HostedWorld) -> HostedRepository:
    """With the tags `1` and `2` at the new image, the old one, and a blob that none names."""
    repository, other = world.open(TEAM, OTHER)
    caller = Caller("user:alice")
    await push_image(other, caller, "1", b"mounted")
    await push_image(repository, caller, "0", _CONFIG, _LAYER)
    await upload(repository, b"alone", caller)
    await push(repository, _OLD, caller, "1")
    await push(repository, _NEW, caller, "1", "2")
    await repository.delete_tag("0", caller)
    return repository


async def _state(world: HostedWorld) -> object:
    """What the repository has, with the versions of its records."""
    catalog, records = world.catalog, world.records
    tags = {tag: catalog.tag(TEAM, tag) for tag in catalog.tags(TEAM)}
    manifests = {digest: catalog.manifest(TEAM, digest) for digest in catalog.manifest_digests(TEAM)}
    links = {digest: records.link(TEAM, digest) for digest in records.linked(TEAM)}
    return tags, manifests, links, {*records.deleted_manifests(TEAM)}


_VERBS: Final[dict[str, _Verb]] = {
    "tag moved": lambda repository, caller: push(repository, _OLD, caller, "1"),
    "manifest pushed": lambda repository, caller: push(
        repository, image(_CONFIG, _LAYER, annotations={"made": "last"}), caller, "3"
    ),
    "tag deleted": lambda repository, caller: repository.delete_tag("1", caller),
    "manifest deleted": lambda repository, caller: repository.delete_manifest(Digest.of(_NEW), caller),
    "blob deleted": lambda repository, caller: repository.delete_blob(Digest.of(b"alone"), caller),
    "tag undeleted": lambda repository, caller: repository.undelete("0", caller),
    "blob mounted": lambda repository, caller: repository.mount(Digest.of(b"mounted"), OTHER, caller),
    "blob uploaded": lambda repository, caller: upload(repository, b"fresh", caller),
}

_LATE: Final = {"stood still": _Watch.stand_still, "client left": _Watch.leave}


@pytest.mark.parametrize("late", [*_LATE])
@pytest.mark.parametrize("verb", [*_VERBS])
async def test_a_request_that_comes_too_late_changes_nothing(
    world: HostedWorld, watch: _Watch, verb: str, late: str
) -> None:
    """Whatever it asks for; the same request by a client that is there is done."""
    repository = await _stocked(world)
    before = await _state(world)
    caller = watch.caller()
    _LATE[late](watch)
    with pytest.raises(StaleRequest):
        await _VERBS[verb](repository, caller)
    assert await _state(world) == before
    watch.is_gone = False
    await _VERBS[verb](repository, watch.caller())
    assert await _state(world) != before


@pytest.mark.parametrize("call", ["tag", "get_tag", "put_tag"])
async def test_a_tag_that_has_moved_meanwhile_stays(world: HostedWorld, watch: _Watch, call: str) -> None:
    """A push stands still before it reads the tag, or between that and its write; another client moves the tag."""
    repository = await _stocked(world)
    caller = watch.caller()

    def others_push() -> None:
        watch.stand_still()
        record = world.catalog.get_tag(TEAM, "2")
        world.catalog.put_tag(TEAM, replace(record, tag="1"))

    await push(repository, _OLD, Caller("user:alice"), "1")
    world.catalog.before(call, others_push)
    with pytest.raises(StaleRequest):
        await push(repository, image(_CONFIG, _LAYER, annotations={"made": "last"}), caller, "1")
    assert world.catalog.get_tag(TEAM, "1").digest == Digest.of(_NEW)
    assert not world.catalog.pending


@pytest.mark.parametrize("call", ["tag", "manifest", "drop_manifest"])
async def test_a_deletion_that_stands_still_deletes_nothing(world: HostedWorld, watch: _Watch, call: str) -> None:
    """Neither the manifest nor its tags, and no mark of the deletion stays."""
    repository = await _stocked(world)
    before, caller = await _state(world), watch.caller()
    world.catalog.before(call, watch.stand_still)
    with pytest.raises(StaleRequest):
        await repository.delete_manifest(Digest.of(_NEW), caller)
    assert await _state(world) == before
    assert not world.catalog.pending


async def test_a_request_may_take_long_as_long_as_it_goes_on(world: HostedWorld, watch: _Watch) -> None:
    """Each step less than a minute after the one before: a deletion of an image with many tags."""
    repository = await _stocked(world)
    caller = watch.caller()
    tags = [f"tag-{number}" for number in range(20)]
    await push(repository, _OLD, Caller("user:alice"), *tags)

    def slow() -> None:
        watch.time += LONGEST - 1
        world.catalog.before("tag", slow)

    world.catalog.before("tag", slow)
    await repository.delete_manifest(Digest.of(_OLD), caller)
    assert watch.time > 1000 + 20 * (LONGEST - 1)
    with pytest.raises(ManifestUnknown):
        await repository.manifest(Digest.of(_OLD))


async def test_what_cannot_be_committed_in_time_stays_open(world: HostedWorld, watch: _Watch) -> None:
    """The client goes on with the session once it is back."""
    [repository] = world.open(TEAM)
    first = watch.caller()
    session = await repository.begin_upload(first)
    late = watch.caller()
    watch.stand_still()
    opened = await repository.upload(session, late)
    with pytest.raises(StaleRequest):
        await opened.commit(Digest.of(b""))
    await opened.close()
    assert repository.upload_offset(session, first) == 0
    with pytest.raises(BlobUnknown):
        await repository.stat_blob(Digest.of(b""))
