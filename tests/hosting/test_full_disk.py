"""Pushes that meet a full disk: cached content makes way, or nothing is left of the push."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mirror.errors import NoRoomForPush, UploadUnknown
from mirror.oci.digest import Digest
from tests.support.hosted_world import TEAM, Caller, HostedWorld, Sent, read_blob, upload


@pytest.fixture
def world() -> Iterator[HostedWorld]:
    """With a disk that has no room but what the cache may give."""
    with HostedWorld() as world:
        world.uploads.room = 0
        yield world


_ALICE = Caller("user:alice", TEAM)


async def test_88_cached_content_makes_way(world: HostedWorld) -> None:
    """Row 88: the disk is full in mid-upload, of a body of unknown length. Room is made, and no byte is lost."""
    world.uploads.room = 7
    world.cached_bytes = 100
    [repository] = world.open(TEAM)
    session = await repository.begin_upload(_ALICE)
    writing = await repository.upload(session, _ALICE)
    assert await writing.append(Sent(b"hello", b", wor", b"ld")) == 12
    await writing.commit(Digest.of(b"hello, world"))
    await writing.close()
    assert await read_blob(repository, Digest.of(b"hello, world")) == b"hello, world"
    assert len(world.room_wanted) == 1


async def test_88_a_push_without_room_leaves_nothing(world: HostedWorld) -> None:
    """Row 88: nothing can be evicted any more: the push is refused, and its session is over."""
    world.uploads.room = 7
    [repository] = world.open(TEAM)
    session = await repository.begin_upload(_ALICE)
    writing = await repository.upload(session, _ALICE)
    with pytest.raises(NoRoomForPush):
        await writing.append(Sent(b"hello", b", wor", b"ld"))
    await writing.close()
    with pytest.raises(UploadUnknown):
        repository.upload_offset(session, _ALICE)
    assert not list(world.uploads.sessions())


async def test_a_push_is_refused_before_its_bytes_come(world: HostedWorld) -> None:
    """If the client says how many there will be."""
    world.free = 400
    [repository] = world.open(TEAM)
    with pytest.raises(NoRoomForPush):
        await repository.begin_upload(_ALICE, 500)
    assert not list(world.uploads.sessions())
    session = await repository.begin_upload(_ALICE)
    writing = await repository.upload(session, _ALICE)
    body = Sent(b"x" * 500, length=500)
    with pytest.raises(NoRoomForPush):
        await writing.append(body)
    await writing.close()
    assert await body.wait()


async def test_a_disk_that_stays_full_is_asked_once(world: HostedWorld) -> None:
    """Eviction that frees nothing for this file, as with a quota of the file system, ends the push."""
    [repository] = world.open(TEAM)
    with pytest.raises(NoRoomForPush):
        await upload(repository, b"hello", _ALICE)
    assert len(world.room_wanted) == 1
