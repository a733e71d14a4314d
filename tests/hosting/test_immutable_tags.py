"""Immutable tags: they neither move nor go, by whichever way, and what they need stays."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from mirror.errors import (
    Denied,
    ManifestBlobUnknown,
    ManifestUnknown,
    RecordDamaged,
    StoreError,
    TagImmutable,
    answer_for,
)
from mirror.hosting.hosted_imports import HostedImports
from mirror.hosting.operator_deletions import OperatorDeletions
from mirror.hosting.pushing import ManifestPut
from mirror.oci.attachments import referrers_tag, signature_tag
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST, read_manifest
from mirror.policy.hosted.immutability import ImmutableRule, ImmutableTags
from mirror.policy.hosted.push_checks import HostedRules, read_pushed
from mirror.policy.records import Freeze
from mirror.repository.hosted import HostedRepository, HostedVerbs
from tests.support.hooked import Hooked
from tests.support.hosted_world import OTHER, TEAM, Caller, HostedWorld, image, index, push, push_image, upload

ALICE = Caller("user:alice", TEAM)
IMAGE = image(b"{}", b"layer")
CHANGED = image(b"{}", b"other")
BOTH = index(IMAGE, CHANGED)


@pytest.fixture
def world() -> Iterator[HostedWorld]:
    """`v*` is immutable in the repositories of the team, except `v0*`. Ports at which something else can happen."""
    with HostedWorld() as world:
        world.catalog, world.records, world.contents = (
            Hooked(each) for each in (world.catalog, world.records, world.contents)
        )
        world.immutable = ImmutableTags({"corp": [ImmutableRule(("team/*",), ("v*",), ("v0*",))]})
        yield world


@pytest.fixture
async def here(world: HostedWorld) -> HostedRepository:
    """`v1` points to an image; the layers of another one are there."""
    [repository] = world.open(TEAM)
    await push_image(repository, ALICE, "v1", b"{}", b"layer")
    await upload(repository, b"other", ALICE)
    return repository


def _operators(world: HostedWorld) -> OperatorDeletions:
    verbs = world.verbs()
    return OperatorDeletions(verbs.parts, verbs.deleting, ["corp"])


async def _points_to(world: HostedWorld, tag: str, content: bytes) -> bool:
    """As a worker sees it that has remembered nothing."""
    [fresh] = world.open(TEAM)
    return (await fresh.manifest(tag)).digest == Digest.of(content)


async def _is_gone(world: HostedWorld, reference: str | Digest) -> bool:
    [fresh] = world.open(TEAM)
    try:
        await fresh.manifest(reference)
    except ManifestUnknown:
        return True
    return False


# ------------------------------------------------------------------------------------------------------------- moves


async def test_a_tag_does_not_move(world: HostedWorld, here: HostedRepository) -> None:
    """Not by its name in the path, nor by `?tag=`; the message says which setting, and what it points to."""
    for reference, more in (("v1", ()), (Digest.of(CHANGED), ("new", "v1"))):
        with pytest.raises(TagImmutable) as caught:
            await push(here, CHANGED, ALICE, reference, *more)
        assert str(caught.value) == (
            f"the tag corp/team/app:v1 is immutable ([[hosted.immutable]] of corp); it points to {Digest.of(IMAGE)}"
        )
        assert (answer_for(caught.value).status, answer_for(caught.value).code) == (403, "DENIED")
    assert await _points_to(world, "v1", IMAGE)
    # nothing of the refused push is there
    assert await _is_gone(world, "new")
    assert await _is_gone(world, Digest.of(CHANGED))


async def test_the_same_digest_is_no_move(here: HostedRepository) -> None:
    assert (await push(here, IMAGE, ALICE, "v1")).moved == ()
    assert (await push(here, IMAGE, ALICE, Digest.of(IMAGE), "v1", "v2")).tags == ("v1", "v2")


async def test_other_tags_move(world: HostedWorld, here: HostedRepository) -> None:
    """An exception, one that no pattern covers, and one in a repository that no rule is about."""
    for tag in ("v0.1", "latest"):
        await push(here, IMAGE, ALICE, tag)
        assert (await push(here, CHANGED, ALICE, tag)).moved == (tag,)
        await here.delete_tag(tag, ALICE)
    [other] = world.open(OTHER)
    await push_image(other, ALICE, "v1", b"{}", b"layer")
    await upload(other, b"other", ALICE)
    assert (await push(other, CHANGED, ALICE, "v1")).moved == ("v1",)


async def test_who_may_not_overwrite_is_told_the_stronger_reason(here: HostedRepository) -> None:
    with pytest.raises(TagImmutable):
        await push(here, CHANGED, Caller("user:bob", TEAM, overwrite=False), "v1")


async def test_a_rule_covers_tags_that_are_older(world: HostedWorld, here: HostedRepository) -> None:
    """The rule is about names: no tag carries a mark."""
    await push(here, IMAGE, ALICE, "latest")
    world.immutable = ImmutableTags({"corp": [ImmutableRule()]})
    [now] = world.open(TEAM)
    with pytest.raises(TagImmutable):
        await push(now, CHANGED, ALICE, "latest")


async def test_an_import_moves_no_tag(world: HostedWorld, here: HostedRepository) -> None:
    """Nothing of it is written; the same image passes."""
    verbs = world.verbs()
    imports = HostedImports(verbs.parts, verbs.links, verbs.pushing, world.uploads, {"corp": HostedRules()}, "import")
    changed, same = read_manifest(CHANGED, OCI_MANIFEST), read_manifest(IMAGE, OCI_MANIFEST)
    with pytest.raises(TagImmutable):
        imports.take(TEAM, [], [changed], "v1")
    assert await _is_gone(world, changed.digest)
    assert imports.take(TEAM, [], [same], "v1") is None


async def test_two_pushers_of_one_new_tag(world: HostedWorld, here: HostedRepository) -> None:
    """Row 93, at the worst moment: the first stays, and the other is told which digest won."""
    other = world.verbs()

    def push_first() -> None:
        put = ManifestPut(read_pushed(IMAGE, None, "v2"), "v2")
        other.pushing.put(TEAM, HostedRules(), put, "user:bob", may_overwrite=True)

    world.catalog.before("put_tag", push_first)
    with pytest.raises(TagImmutable, match=f"it points to {Digest.of(IMAGE)}"):
        await push(here, CHANGED, ALICE, "v2")
    assert await _points_to(world, "v2", IMAGE)
    assert [each.digest for each in world.catalog.get_history(TEAM, "v2")] == [Digest.of(IMAGE)]


async def test_93_many_pushers_of_one_new_tag(world: HostedWorld, here: HostedRepository) -> None:
    """Row 93: eight workers at once, each with its own image: one is acknowledged, and all others name its digest."""
    images = [image(b"{}", b"layer", annotations={"of": str(number)}) for number in range(8)]
    start = threading.Barrier(len(images))

    def push_one(content: bytes) -> Exception | None:
        verbs = world.verbs()
        put = ManifestPut(read_pushed(content, None, "v2"), "v2")
        start.wait()
        try:
            verbs.pushing.put(TEAM, HostedRules(), put, "user:alice", may_overwrite=True)
        except TagImmutable as error:
            return error
        return None

    with ThreadPoolExecutor(len(images)) as threads:
        answers = list(threads.map(push_one, images))
    [winner] = [content for content, answer in zip(images, answers, strict=True) if answer is None]
    assert await _points_to(world, "v2", winner)
    assert all(f"it points to {Digest.of(winner)}" in str(answer) for answer in answers if answer is not None)


# --------------------------------------------------------------------------------------------------------- deletions


async def test_neither_the_tag_nor_its_manifest_is_deleted(world: HostedWorld, here: HostedRepository) -> None:
    """Also not because of another tag of the same manifest, which goes alone."""
    await push(here, IMAGE, ALICE, "latest")
    for deletion in (here.delete_tag("v1", ALICE), here.delete_manifest(Digest.of(IMAGE), ALICE)):
        with pytest.raises(TagImmutable, match="`mirror delete --force`") as caught:
            await deletion
        assert "the tag corp/team/app:v1 is immutable" in str(caught.value)
    await here.delete_tag("latest", ALICE)
    assert await _points_to(world, "v1", IMAGE)
    assert list(world.records.deleted_manifests(TEAM)) == []


async def test_what_an_index_names_stays(world: HostedWorld, here: HostedRepository) -> None:
    """However deep: the platforms of an index that an index names."""
    await push(here, CHANGED, ALICE, Digest.of(CHANGED))
    await push(here, BOTH, ALICE, "v2")
    nested = index(BOTH)
    await push(here, nested, ALICE, "v3")
    await push(here, image(b"{}", b"layer", annotations={"a": "b"}), ALICE, "loose")
    for tag in ("v1", "v2"):
        _operators(world).delete(_operators(world).plan_tag(TEAM, tag), "cli:root", keep=False, force=True)
    for content in (IMAGE, CHANGED, BOTH, nested):
        with pytest.raises(TagImmutable, match="app:v3 is immutable"):
            await here.delete_manifest(Digest.of(content), ALICE)
    await here.delete_manifest((await here.manifest("loose")).digest, ALICE)


async def test_a_repository_is_deleted_whole_or_not_at_all(world: HostedWorld, here: HostedRepository) -> None:
    """At once, too: nothing is gone after a refusal. The same of a frozen tag."""
    await push(here, CHANGED, ALICE, "latest")
    operators = _operators(world)
    plan = operators.plan_repository(TEAM, kept=False)
    for refused in (
        lambda: operators.check(plan),
        lambda: operators.delete(plan, "cli:root", keep=True),
        lambda: operators.erase(plan, "cli:root", everything=True),
    ):
        with pytest.raises(TagImmutable):
            refused()
    record = world.catalog.get_tag(TEAM, "latest")
    world.freezes.put(Freeze(TEAM, "latest", record.digest, record.media_type, record.size, "", 1.0))
    with pytest.raises(Denied, match="frozen"):
        operators.delete(plan, "cli:root", keep=True, force=True)
    assert await _points_to(world, "v1", IMAGE)
    assert await _points_to(world, "latest", CHANGED)
    world.freezes.drop(TEAM, "latest")
    operators.delete(plan, "cli:root", keep=True, force=True)
    assert await _is_gone(world, "v1")
    assert await _is_gone(world, Digest.of(CHANGED))


async def test_force_makes_the_tag_a_new_one(world: HostedWorld, here: HostedRepository) -> None:
    """The next push decides what it points to from then on; what was deleted does not come back under it."""
    operators = _operators(world)
    operators.delete(operators.plan_image(TEAM, Digest.of(IMAGE)), "cli:root", keep=True, force=True)
    assert await _is_gone(world, "v1")
    await push(here, CHANGED, ALICE, "v1")
    await here.undelete(Digest.of(IMAGE), ALICE)
    assert await _points_to(world, "v1", CHANGED)
    with pytest.raises(TagImmutable):
        await push(here, IMAGE, ALICE, "v1")


@pytest.mark.parametrize("whole", [False, True])
async def test_what_was_deleted_by_force_comes_back(world: HostedWorld, here: HostedRepository, whole: bool) -> None:
    """While nothing has taken its name; then it neither moves nor goes."""
    operators = _operators(world)
    plan = operators.plan_image(TEAM, Digest.of(IMAGE)) if whole else operators.plan_tag(TEAM, "v1")
    operators.delete(plan, "cli:root", keep=True, force=True)
    await here.undelete(Digest.of(IMAGE) if whole else "v1", ALICE)
    assert await _points_to(world, "v1", IMAGE)
    with pytest.raises(TagImmutable):
        await here.delete_tag("v1", ALICE)


async def test_signatures_may_move_but_not_go(world: HostedWorld, here: HostedRepository) -> None:
    """The tags under which clients attach something to an image, as long as an immutable tag needs the image."""
    world.immutable = ImmutableTags({"corp": [ImmutableRule()]})
    [here] = world.open(TEAM)
    for tag in (signature_tag(Digest.of(IMAGE)), referrers_tag(Digest.of(IMAGE))):
        first, second = (image(b"{}", b"layer", annotations={tag: word}) for word in ("first", "second"))
        await push(here, first, ALICE, tag)
        assert (await push(here, second, ALICE, tag)).moved == (tag,)
        with pytest.raises(TagImmutable, match=f"belongs to {Digest.of(IMAGE)}, which the immutable tag v1 needs"):
            await here.delete_tag(tag, ALICE)
        with pytest.raises(TagImmutable):
            await here.delete_manifest(Digest.of(second), ALICE)
        await here.delete_manifest(Digest.of(first), ALICE)
    unneeded = signature_tag(Digest.of(b"gone"))
    await push(here, IMAGE, ALICE, unneeded)
    await here.delete_tag(unneeded, ALICE)


# ------------------------------------------------------------------------------------------------------------- races


def _delete(verbs: HostedVerbs, content: bytes) -> Callable[[], None]:
    return lambda: verbs.deleting.delete_manifest(TEAM, Digest.of(content), "user:bob", keep=True)


def _push(verbs: HostedVerbs, content: bytes, tag: str) -> Callable[[], None]:
    put = ManifestPut(read_pushed(content, None, tag), tag)

    def push_it() -> None:
        verbs.pushing.put(TEAM, HostedRules(), put, "user:bob", may_overwrite=True)

    return push_it


@pytest.mark.parametrize("content", [CHANGED, BOTH], ids=["image", "index"])
@pytest.mark.parametrize("call", ["put_deleted_manifest", "flush", "drop_manifest"])
async def test_a_tag_that_comes_while_its_manifest_is_deleted(
    world: HostedWorld, here: HostedRepository, call: str, content: bytes
) -> None:
    """After the deletion has looked for tags: what was acknowledged stays, and the deletion is refused. So it is if the
    tag points to an index that names the manifest.
    """
    await push(here, CHANGED, ALICE, "latest")
    if content is BOTH:
        await push(here, BOTH, ALICE, Digest.of(BOTH))
    port = world.catalog if call == "drop_manifest" else world.records
    # the second half of a push alone: the first half has written the record before the deletion reads it
    verbs = world.verbs()
    record = replace(
        world.catalog.get_tag(TEAM, "latest"),
        tag="v2",
        digest=Digest.of(content),
        media_type=read_manifest(content).media_type,
    )

    def tag() -> None:
        placing: Any = verbs.pushing._placing
        placed = placing.put_tag(TEAM, record, may_overwrite=False)
        placing.check_still_there(TEAM, record.digest, [placed], [Digest.of(CHANGED)])

    port.before(call, tag)
    with pytest.raises(TagImmutable, match="app:v2 is immutable"):
        await here.delete_manifest(Digest.of(CHANGED), ALICE)
    assert await _points_to(world, "v2", content)
    assert await _points_to(world, "latest", CHANGED)


@pytest.mark.parametrize("content", [CHANGED, BOTH], ids=["image", "index"])
async def test_a_manifest_that_is_deleted_while_it_is_tagged(
    world: HostedWorld, here: HostedRepository, content: bytes
) -> None:
    """Before the tag is acknowledged: the push is refused, and there is no such tag."""
    await push(here, CHANGED, ALICE, "latest")
    world.catalog.before("put_tag", _delete(world.verbs(), CHANGED))
    with pytest.raises(ManifestUnknown if content is CHANGED else ManifestBlobUnknown):
        await push(here, content, ALICE, "v2")
    assert await _is_gone(world, "v2")
    assert world.catalog.get_tag(TEAM, "v2") is None


async def test_a_manifest_is_pushed_again_right_after_its_deletion(world: HostedWorld, here: HostedRepository) -> None:
    """The tag that comes with it is its own, and stays; those that it had before are gone."""
    await push(here, CHANGED, ALICE, "latest")
    world.catalog.after("drop_manifest", _push(world.verbs(), CHANGED, "v2"))
    await here.delete_manifest(Digest.of(CHANGED), ALICE)
    assert await _points_to(world, "v2", CHANGED)
    assert await _is_gone(world, "latest")


async def test_an_ordinary_push_writes_each_record_once(world: HostedWorld, here: HostedRepository) -> None:
    """Also of an immutable tag, while nobody deletes its manifest."""
    before = world.catalog.calls["put_manifest"]
    await push(here, CHANGED, ALICE, "v2")
    assert world.catalog.calls["put_manifest"] == before + 1


async def test_an_undeleted_tag_whose_manifest_goes(world: HostedWorld, here: HostedRepository) -> None:
    """It is not said to be back."""
    await push(here, CHANGED, ALICE, "v0")
    await here.delete_tag("v0", ALICE)
    world.catalog.after("put_tag", _delete(world.verbs(), CHANGED))
    with pytest.raises(ManifestUnknown):
        await here.undelete("v0", ALICE)
    assert world.catalog.get_tag(TEAM, "v0") is None


# -------------------------------------------------------------------------------------------------------- unreadable


Verb = Callable[[HostedRepository], Awaitable[Any]]

MOVE: Verb = lambda it: push(it, CHANGED, ALICE, "v1")  # noqa: E731 -- a table of verbs
DELETE_TAG: Verb = lambda it: it.delete_tag("v1", ALICE)  # noqa: E731
DELETE_OTHER: Verb = lambda it: it.delete_manifest(Digest.of(CHANGED), ALICE)  # noqa: E731


@pytest.mark.parametrize(
    ("call", "verb", "kind"),
    [
        ("get_tag", MOVE, StoreError),
        ("get_tag", MOVE, RecordDamaged),
        ("get_tag", DELETE_OTHER, StoreError),
        ("get_tag", DELETE_OTHER, RecordDamaged),
        ("get_manifest", MOVE, StoreError),
        ("get_manifest", DELETE_TAG, StoreError),
        ("get_manifest", DELETE_OTHER, StoreError),
    ],
)
async def test_102_what_cannot_be_read_is_not_free(
    world: HostedWorld, here: HostedRepository, call: str, verb: Verb, kind: type[StoreError]
) -> None:
    """Row 102: 503, and nothing moves or goes. A deletion that is refused leaves no mark."""
    await push(here, CHANGED, ALICE, "latest")
    [fresh] = world.open(TEAM)
    world.catalog.fail(call, kind("EIO"))
    with pytest.raises(StoreError) as caught:
        await verb(fresh)
    assert answer_for(caught.value).status == 503
    world.catalog.fail(call, None)
    assert list(world.records.deleted_manifests(TEAM)) == []
    assert await _points_to(world, "v1", IMAGE)
    assert await _points_to(world, "latest", CHANGED)


@pytest.mark.parametrize("verb", [MOVE, DELETE_TAG])
async def test_a_damaged_record_of_the_manifest_is_a_record(
    world: HostedWorld, here: HostedRepository, verb: Verb
) -> None:
    """The tag points to something, and neither moves nor goes."""
    world.catalog.fail("get_manifest", RecordDamaged("damaged"))
    with pytest.raises(TagImmutable):
        await verb(here)


async def test_a_damaged_tag_goes_by_force_alone(world: HostedWorld, here: HostedRepository) -> None:
    """Nobody can say what it points to, so it is not free for another image."""
    world.catalog.fail("tag", RecordDamaged("the record is damaged", world.catalog.tag(TEAM, "v1").version))
    with pytest.raises(TagImmutable):
        await here.delete_tag("v1", ALICE)
    world.verbs().deleting.delete_tag(TEAM, "v1", "cli:root", keep=True, force=True)
    world.catalog.fail("tag", None)
    assert world.catalog.get_tag(TEAM, "v1") is None


async def test_an_index_that_cannot_be_read_keeps_what_it_may_name(world: HostedWorld, here: HostedRepository) -> None:
    """Its bytes are unreadable, or missing."""
    await push(here, CHANGED, ALICE, "latest")
    await push(here, index(IMAGE), ALICE, "v2")
    world.contents.fail("read", StoreError("EIO"))
    with pytest.raises(StoreError):
        await here.delete_manifest(Digest.of(CHANGED), ALICE)
    world.contents.fail("read", None)
    world.blobs.names.delete(Digest.of(index(IMAGE)))
    with pytest.raises(StoreError, match="the immutable tag v2 needs it"):
        await here.delete_manifest(Digest.of(CHANGED), ALICE)
    assert await _points_to(world, "latest", CHANGED)


async def test_a_tag_whose_manifest_was_lost_is_not_free(world: HostedWorld, here: HostedRepository) -> None:
    """The record went without a deletion: 503, until the same image is pushed again, or the tag is given up."""
    world.catalog.drop_manifest(TEAM, Digest.of(IMAGE))
    [fresh] = world.open(TEAM)
    with pytest.raises(StoreError, match="was lost, not deleted"):
        await push(fresh, CHANGED, ALICE, "v1")
    await push(fresh, IMAGE, ALICE, "v1")
    assert await _points_to(world, "v1", IMAGE)
    world.catalog.drop_manifest(TEAM, Digest.of(IMAGE))
    operators = _operators(world)
    with pytest.raises(ManifestUnknown):
        operators.plan_tag(TEAM, "v1")
    operators.delete(operators.plan_tag(TEAM, "v1", force=True), "cli:root", keep=True, force=True)
    await push(fresh, CHANGED, ALICE, "v1")
    assert await _points_to(world, "v1", CHANGED)


async def test_a_tag_whose_manifest_was_deleted_is_free(world: HostedWorld, here: HostedRepository) -> None:
    """By force, by a process that died before it dropped the tag."""

    def die() -> None:
        raise KeyboardInterrupt

    world.catalog.after("drop_manifest", die)
    with pytest.raises(KeyboardInterrupt):
        world.verbs().deleting.delete_manifest(TEAM, Digest.of(IMAGE), "cli:root", keep=False, force=True)
    [fresh] = world.open(TEAM)
    await push(fresh, CHANGED, ALICE, "v1")
    assert await _points_to(world, "v1", CHANGED)
