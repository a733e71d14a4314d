"""Upload sessions of a hosted repository: limits, quotas, and bodies that end early."""

from __future__ import annotations

import asyncio

import pytest

from mirror.errors import (
    BlobUnknown,
    DigestInvalid,
    NoRoomForPush,
    QuotaExceeded,
    StoreFull,
    TooManyUploads,
    UploadBroken,
    UploadBusy,
    UploadUnknown,
)
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from tests.support.hooked import Hooked
from tests.support.hosted_world import OTHER, TEAM, Caller, HostedWorld, Limited, Sent, push_image, read_blob, upload
from tests.support.live_mirror import until

ALICE = Caller("user:alice", TEAM)
BOB = Caller("user:bob", TEAM)


async def test_one_request_writes_at_a_time(world: HostedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another is told so, and may write once the first has closed the session."""
    monkeypatch.setattr("mirror.repository.hosted._PAUSE", 0.0)
    [repository] = world.open(TEAM)
    session = await repository.begin_upload(ALICE)
    writing = await repository.upload(session, ALICE)
    with pytest.raises(UploadBusy):
        await repository.upload(session, ALICE)
    await writing.close()
    writing = await repository.upload(session, ALICE)
    await writing.cancel()
    await writing.close()
    with pytest.raises(UploadUnknown):
        repository.upload_offset(session, ALICE)
    assert world.uploads.sessions() == []


async def test_a_client_that_has_vanished_does_not_keep_its_session(
    world: HostedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next request waits until the first one is idle, and goes on. What the first one still sends is refused."""
    monkeypatch.setattr("mirror.repository.hosted._PAUSE", 0.0)
    monkeypatch.setattr("mirror.repository.hosted._LOOKS", 1_000_000)
    vanished, back = asyncio.Event(), asyncio.Event()
    world.uploads = Hooked(world.uploads)
    [repository] = world.open(TEAM)
    session = await repository.begin_upload(ALICE)
    first = await repository.upload(session, ALICE)
    appending = asyncio.create_task(first.append(Sent(b"hel", vanished, None, back, b"XXX")))
    await until(lambda: repository.upload_offset(session, ALICE) == 3)
    opening = asyncio.create_task(repository.upload(session, ALICE))
    await until(lambda: world.uploads.calls["open"] > 3)
    assert not opening.done()
    vanished.set()
    second = await opening
    assert second.offset == 3
    assert await second.append(Sent(b"lo")) == 5
    back.set()
    with pytest.raises(UploadBroken):
        await appending
    await first.close()
    await second.commit(Digest.of(b"hello"))
    await second.close()
    assert await read_blob(repository, Digest.of(b"hello")) == b"hello"


async def test_a_client_may_pause(world: HostedWorld) -> None:
    """Its session is as it was, and it goes on; also if it pauses before the end."""
    [repository] = world.open(TEAM)
    session = await repository.begin_upload(ALICE)
    writing = await repository.upload(session, ALICE)
    assert await writing.append(Sent(b"hel", None, b"lo", None)) == 5
    await writing.commit(Digest.of(b"hello"))
    await writing.close()
    assert await read_blob(repository, Digest.of(b"hello")) == b"hello"


async def test_a_session_that_grew_while_it_was_released_is_not_written_to(world: HostedWorld) -> None:
    """Another request has written and has left again: the first must not append behind its bytes."""
    [repository] = world.open(TEAM)
    session = await repository.begin_upload(ALICE)
    first = await repository.upload(session, ALICE)
    vanished = asyncio.Event()
    appending = asyncio.create_task(first.append(Sent(b"hel", None, vanished, b"XXX")))
    await until(lambda: repository.upload_offset(session, ALICE) == 3)
    second = await repository.upload(session, ALICE)
    await second.append(Sent(b"lo"))
    await second.close()
    vanished.set()
    with pytest.raises(UploadBroken):
        await appending
    await first.close()
    assert repository.upload_offset(session, ALICE) == 5


async def test_who_sends_keeps_the_session(world: HostedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another request is refused as soon as it sees the session grow."""
    monkeypatch.setattr("mirror.repository.hosted._PAUSE", 0.0)
    monkeypatch.setattr("mirror.repository.hosted._LOOKS", 1_000_000)
    world.uploads = Hooked(world.uploads)
    [repository] = world.open(TEAM)
    session = await repository.begin_upload(ALICE)
    first, more = await repository.upload(session, ALICE), asyncio.Event()
    appending = asyncio.create_task(first.append(Sent(b"hel", more, b"lo", asyncio.Event())))
    await until(lambda: repository.upload_offset(session, ALICE) == 3)
    opening = asyncio.create_task(repository.upload(session, ALICE))
    await until(lambda: world.uploads.calls["open"] > 3)
    more.set()
    with pytest.raises(UploadBusy):
        await opening
    appending.cancel()


async def test_a_body_that_breaks_off_leaves_what_arrived(world: HostedWorld) -> None:
    """The client goes on at that byte."""
    [repository] = world.open(TEAM)
    session = await repository.begin_upload(ALICE)
    writing = await repository.upload(session, ALICE)
    with pytest.raises(UploadBroken):
        await writing.append(Sent(b"hel", UploadBroken("gone")))
    await writing.close()
    assert repository.upload_offset(session, ALICE) == 3
    writing = await repository.upload(session, ALICE)
    await writing.append(Sent(b"lo"))
    await writing.commit(Digest.of(b"hello"))
    await writing.close()
    assert await read_blob(repository, Digest.of(b"hello")) == b"hello"


async def test_104_sessions_are_bounded(world: HostedWorld) -> None:
    """Row 104: for each caller, over all repositories, and in all."""
    world.most_uploads, world.most_uploads_per_caller = 3, 2
    first, second = world.open(TEAM, Repo("corp", "second"))
    session = await first.begin_upload(ALICE)
    await second.begin_upload(ALICE)
    with pytest.raises(TooManyUploads, match=r"of your uploads are open \(2\)"):
        await first.begin_upload(ALICE)
    await first.begin_upload(BOB)
    with pytest.raises(TooManyUploads, match=r"uploads are open \(3\)"):
        await second.begin_upload(Caller("user:carol"))
    writing = await first.upload(session, ALICE)
    await writing.cancel()
    await first.begin_upload(ALICE)


async def test_89_a_quota_ends_an_upload(world: HostedWorld) -> None:
    """Row 89: before the body if its length is known, else while it arrives; nothing is left."""
    world.accounts = Limited(10)
    [repository] = world.open(TEAM)
    await upload(repository, b"12345678", ALICE)
    for body in (Sent(b"123", length=3), Sent(b"12", b"3", b"4")):
        session = await repository.begin_upload(ALICE)
        writing = await repository.upload(session, ALICE)
        with pytest.raises(QuotaExceeded):
            await writing.append(body)
        await writing.close()
        with pytest.raises(UploadUnknown):
            repository.upload_offset(session, ALICE)
    with pytest.raises(QuotaExceeded):
        await repository.begin_upload(ALICE, 3)
    assert world.uploads.sessions() == []


async def test_a_quota_is_judged_once_more_when_the_blob_is_linked(world: HostedWorld) -> None:
    """Two uploads that fit one by one: the second is refused, and its blob is not served."""
    world.accounts = Limited(10)
    [repository] = world.open(TEAM)
    uploads = []
    for content in (b"first!", b"second"):
        writing = await repository.upload(await repository.begin_upload(ALICE), ALICE)
        await writing.append(Sent(content))
        uploads.append((writing, Digest.of(content)))
    await uploads[0][0].commit(uploads[0][1])
    with pytest.raises(QuotaExceeded):
        await uploads[1][0].commit(uploads[1][1])
    assert world.records.link(TEAM, uploads[1][1]) is None
    with pytest.raises(QuotaExceeded):
        await push_image(repository, ALICE, "1", b"first!")
    assert world.catalog.tags(TEAM) == []


async def test_a_full_quota_does_not_refuse_what_counts_already(world: HostedWorld) -> None:
    """If the client says the digest in time, and may know that the blob is here: such a push repairs damaged content.
    Not one byte more than the blob has.
    """
    world.accounts = Limited(8)
    [repository] = world.open(TEAM)
    content = await upload(repository, b"12345678", ALICE)
    world.blobs.names.damage(content, b"1234")
    with pytest.raises(BlobUnknown):
        await repository.stat_blob(content)
    with pytest.raises(QuotaExceeded):
        await repository.begin_upload(ALICE, 8)
    for size in (None, 8):
        session = await repository.begin_upload(ALICE, size, content)
        writing = await repository.upload(session, ALICE)
        await writing.complete(Sent(b"1234", b"5678", length=None), content)
        await writing.close()
    assert await read_blob(repository, content) == b"12345678"
    with pytest.raises(QuotaExceeded):
        await repository.begin_upload(ALICE, 9, content)
    writing = await repository.upload(await repository.begin_upload(ALICE, None, content), ALICE)
    with pytest.raises(QuotaExceeded):
        await writing.complete(Sent(b"1234", b"5678", b"9", length=None), content)
    await writing.close()
    assert world.uploads.sessions() == []


async def test_a_full_quota_does_not_tell_what_others_have(world: HostedWorld) -> None:
    """A blob that counts already, but that the caller may not pull, is refused like any other."""
    world.accounts = Limited(8)
    [repository, other] = world.open(TEAM, OTHER)
    content = await upload(repository, b"12345678", ALICE)
    stranger = Caller("user:dora", OTHER)
    with pytest.raises(QuotaExceeded):
        await other.begin_upload(stranger, None, content)
    assert await other.begin_upload(Caller("user:bob", TEAM, OTHER), None, content)


async def test_88_a_full_disk_ends_an_upload(world: HostedWorld) -> None:
    """Row 88: if nothing can be evicted for it, before the body or while it arrives; nothing is left."""
    world.uploads = Hooked(world.uploads)
    [repository] = world.open(TEAM)
    session = await repository.begin_upload(ALICE)
    writing = await repository.upload(session, ALICE)
    full = Hooked(writing._file)  # type: ignore[attr-defined]
    full.fail("fill", StoreFull("no space left on device"))
    writing._file = full  # type: ignore[attr-defined]
    with pytest.raises(NoRoomForPush):
        await writing.append(Sent(b"hello"))
    await writing.close()
    assert world.uploads.sessions() == []
    world.free = 4
    with pytest.raises(NoRoomForPush):
        await repository.begin_upload(ALICE, 5)
    session = await repository.begin_upload(ALICE, 4)
    writing = await repository.upload(session, ALICE)
    with pytest.raises(NoRoomForPush):
        await writing.append(Sent(b"hello", length=5))
    assert world.uploads.sessions() == []


async def test_86_a_wrong_digest_of_another_algorithm(world: HostedWorld) -> None:
    """Row 86: refused; the session stays, and the right digest is accepted."""
    [repository] = world.open(TEAM)
    session = await repository.begin_upload(ALICE)
    writing = await repository.upload(session, ALICE)
    await writing.append(Sent(b"hello"))
    with pytest.raises(DigestInvalid):
        await writing.commit(Digest.of(b"other", "sha512"))
    assert await writing.commit(Digest.of(b"hello", "sha512")) == 5
    await writing.close()
    assert await read_blob(repository, Digest.of(b"hello", "sha512")) == b"hello"


async def test_94_two_pushers_of_one_blob(world: HostedWorld) -> None:
    """Row 94: both are told that it is there."""
    [repository] = world.open(TEAM)
    for caller in (ALICE, BOB):
        await upload(repository, b"hello", caller)
    assert await read_blob(repository, Digest.of(b"hello")) == b"hello"


@pytest.mark.parametrize("pieces", [(b"hello",), (b"he", b"llo"), (None, b"he", None, b"llo", None)])
async def test_a_small_body_makes_the_blob(world: HostedWorld, pieces: tuple[bytes | None, ...]) -> None:
    """In one turn of a thread if it comes at once, and also if it comes in pieces."""
    [repository] = world.open(TEAM)
    writing = await repository.upload(await repository.begin_upload(ALICE), ALICE)
    await writing.append(Sent(b"oh, ", length=4))
    assert await writing.complete(Sent(*pieces, length=5), Digest.of(b"oh, hello")) == 9
    await writing.close()
    assert await read_blob(repository, Digest.of(b"oh, hello")) == b"oh, hello"
    assert world.uploads.sessions() == []


async def test_a_small_body_that_breaks_off_can_be_completed(world: HostedWorld) -> None:
    """The session keeps what arrived, also after a wrong digest."""
    [repository] = world.open(TEAM)
    session = await repository.begin_upload(ALICE)
    writing = await repository.upload(session, ALICE)
    with pytest.raises(UploadBroken):
        await writing.complete(Sent(b"he", UploadBroken("gone"), length=5), Digest.of(b"hello"))
    assert writing.offset == 2
    with pytest.raises(DigestInvalid):
        await writing.complete(Sent(b"llo", length=3), Digest.of(b"other"))
    await writing.close()
    assert repository.upload_offset(session, ALICE) == 5
    writing = await repository.upload(session, ALICE)
    assert await writing.complete(Sent(length=0), Digest.of(b"hello")) == 5
    await writing.close()
    assert await read_blob(repository, Digest.of(b"hello")) == b"hello"


async def test_a_small_body_waits_for_room(world: HostedWorld) -> None:
    """Cached content makes way, and no byte is lost; if there is none, the session is over."""
    [repository] = world.open(TEAM)
    world.uploads.room, world.cached_bytes = 3, 100
    writing = await repository.upload(await repository.begin_upload(ALICE), ALICE)
    assert await writing.complete(Sent(b"hello", length=5), Digest.of(b"hello")) == 5
    await writing.close()
    assert await read_blob(repository, Digest.of(b"hello")) == b"hello"
    world.uploads.room = 3
    session = await repository.begin_upload(ALICE)
    writing = await repository.upload(session, ALICE)
    with pytest.raises(NoRoomForPush):
        await writing.complete(Sent(b"world", length=5), Digest.of(b"world"))
    await writing.close()
    with pytest.raises(UploadUnknown):
        repository.upload_offset(session, ALICE)
