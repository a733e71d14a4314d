"""Turns of large pushed blobs: who may upload to the bucket, and who waits."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from mirror.errors import BucketUnavailable
from mirror.hosting.upload_turns import UploadTurns
from mirror.oci.digest import Digest
from mirror.repository.hosted import HostedRepository
from tests.support.hosted_world import TEAM, Caller, HostedWorld, upload
from tests.support.live_mirror import until
from tests.support.object_site import ObjectSite

_LARGE = 1 << 30
ALICE = Caller("user:alice", TEAM)
BOB = Caller("user:bob", TEAM)


async def _have(stack: AsyncExitStack, turns: UploadTurns, caller: str, had: list[str]) -> None:
    await stack.enter_async_context(turns.turn(caller, _LARGE))
    had.append(caller)


async def test_one_caller_does_not_take_all_turns() -> None:
    """Its further blobs wait, those of others go on, and small ones never wait. A turn that is free goes to whoever has
    fewest.
    """
    turns = UploadTurns(most=3, most_per_caller=2)
    had: list[str] = []
    stacks = [AsyncExitStack() for _ in range(7)]
    callers = ["alice"] * 4 + ["bob", "bob", "carol"]
    tasks = [asyncio.create_task(_have(s, turns, c, had)) for s, c in zip(stacks, callers, strict=True)]
    await until(lambda: len(had) == 3)
    assert had == ["alice", "alice", "bob"]
    assert "3 of 3, 4 waiting" in repr(turns)
    async with turns.turn("alice", 1000):
        pass
    await stacks[0].aclose()
    await tasks[6]
    assert had[3:] == ["carol"]
    for stack, task in zip(stacks[1:], tasks[1:], strict=True):
        if not task.done():
            await until(task.done)
        await stack.aclose()
    assert sorted(had[4:]) == ["alice", "alice", "bob"]
    assert "0 of 3, 0 waiting" in repr(turns)


async def test_who_waits_in_vain_is_refused_and_keeps_no_turn() -> None:
    """With the time after which to try again; one whose request ends while it waits keeps none either."""
    turns = UploadTurns(most=1, most_per_caller=1, patience=0.0)
    async with turns.turn("alice", _LARGE):
        with pytest.raises(BucketUnavailable, match="too many large blobs") as refused:
            async with turns.turn("bob", _LARGE):
                raise AssertionError("a second turn")
    assert refused.value.retry_after > 1
    turns = UploadTurns(most=1, most_per_caller=1)
    async with AsyncExitStack() as first:
        await first.enter_async_context(turns.turn("alice", _LARGE))
        waiting = asyncio.create_task(_have(AsyncExitStack(), turns, "bob", []))
        await until(lambda: "1 waiting" in repr(turns))
        await first.aclose()  # bob's turn, in the same step in which it gives up
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    async with turns.turn("alice", _LARGE):
        assert "1 of 1, 0 waiting" in repr(turns)


async def test_commits_of_one_caller_take_turns(world: HostedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bucket: its second large blob is committed after the first one, and another caller's beside it."""
    monkeypatch.setattr("mirror.hosting.upload_turns.is_large", lambda size: size > 3)
    turns = UploadTurns(most=2, most_per_caller=1)
    [opened] = world.open(TEAM)
    repository = HostedRepository(opened._content, opened._rules, replace(opened._verbs, turns=turns))
    content = b"x" * (70 << 10)
    async with turns.turn(ALICE.name, _LARGE):
        pushing = asyncio.create_task(upload(repository, content, ALICE))
        await until(lambda: "1 waiting" in repr(turns))
        assert await upload(repository, content + b"bob", BOB) == Digest.of(content + b"bob")
        assert not pushing.done()
    assert await pushing == Digest.of(content)


def test_a_small_blob_does_not_wait_for_large_ones(tmp_path: Path) -> None:
    """However many of them the bucket takes its time for."""
    site, go_on = ObjectSite(tmp_path), threading.Event()
    taking = site.bucket.upload

    def slow(key: str, file: Path, size: int) -> None:
        assert size < 1000 or go_on.wait(60)
        taking(key, file, size)

    site.bucket.upload = slow  # type: ignore[method-assign]

    def push(content: bytes) -> None:
        file = tmp_path / f"upload-{Digest.of(content).hex}"
        file.write_bytes(content)
        site.hosted.take_in(Digest.of(content), file, len(content))

    large = [threading.Thread(target=push, args=(b"%d" % at * 2000,)) for at in range(20)]
    for thread in large:
        thread.start()
    try:
        push(b"abc")
        assert site.hosted.hosted(Digest.of(b"abc")).size == 3
    finally:
        go_on.set()
        for thread in large:
            thread.join()
