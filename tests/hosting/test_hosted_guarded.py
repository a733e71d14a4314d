"""Rules about content apply to hosted images as to cached ones, and do not keep clients from pushing."""

from __future__ import annotations

import pytest

from mirror.errors import Denied
from mirror.oci.digest import Digest
from mirror.policy.content_rules import ContentLists, ContentRule, patterns
from mirror.repository.guarded import GuardedHosted, Signatures
from mirror.repository.protocol import Fetchable, Writable
from tests.support.hosted_world import TEAM, Caller, HostedWorld, image, index, push, push_image, upload

ALICE = Caller("user:alice", TEAM)
IMAGE = image(b"{}", b"layer")


def _guarded(world: HostedWorld, rule: ContentRule, lists: ContentLists | None = None) -> GuardedHosted:
    [inner] = world.open(TEAM)
    return GuardedHosted(inner, inner, lists or ContentLists(), rule, [], Signatures())


async def test_a_guarded_repository_takes_pushes(world: HostedWorld) -> None:
    """It has the verbs of a hosted one, and no others."""
    guarded = _guarded(world, ContentRule(require_digest=True))
    assert isinstance(guarded, Writable)
    assert not isinstance(guarded, Fetchable)
    pushed = await push_image(guarded, ALICE, "1", b"{}", b"layer")  # type: ignore[arg-type]
    assert (await guarded.manifest(pushed.digest)).content == IMAGE
    with pytest.raises(Denied):
        await guarded.manifest("1")
    await guarded.delete_tag("1", ALICE)
    await guarded.undelete("1", ALICE)
    assert (await guarded.tags("", 10)).items == ("1",)


async def test_a_limit_and_a_list_refuse_pulls(world: HostedWorld) -> None:
    """Of what is too large or denied, also to callers who may push."""
    await push_image(world.open(TEAM)[0], ALICE, "1", b"{}", b"layer")
    with pytest.raises(Denied):
        await _guarded(world, ContentRule(largest=3)).manifest("1")
    denied = ContentLists(deny=patterns([f"{TEAM}@{Digest.of(b'layer')}"]))
    guarded = _guarded(world, ContentRule(), denied)
    for ask in (
        guarded.blob(Digest.of(b"layer")),
        guarded.stat_for_push(Digest.of(b"layer"), ALICE),
        guarded.blob_for_push(Digest.of(b"layer"), ALICE),
    ):
        with pytest.raises(Denied):
            await ask
    assert (await guarded.stat_for_push(Digest.of(b"{}"), ALICE)).size == 2


async def test_indexes_are_found_by_what_they_name(world: HostedWorld) -> None:
    """The search for signatures needs that, in hosted bytes as well."""
    [repository] = world.open(TEAM)
    await upload(repository, b"{}", ALICE)
    child = image(b"{}")
    await push(repository, child, ALICE, "child")
    await push(repository, index(child), ALICE, "index")
    assert await repository.indexes_naming(Digest.of(child)) == [Digest.of(index(child))]
