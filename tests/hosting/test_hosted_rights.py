"""Bytes are shared by all repositories, rights are not: every way to name another tenant's layer."""

from __future__ import annotations

import base64
import json

import pytest

from mirror.errors import BlobUnknown, Denied, ManifestBlobUnknown, ManifestUnknown, UploadUnknown, UpstreamUnavailable
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted.push_checks import HostedRules
from mirror.repository.hosted import HostedRepository
from tests.support.hooked import Hooked
from tests.support.hosted_world import (
    CACHED,
    OTHER,
    TEAM,
    Caller,
    HostedWorld,
    descriptor,
    image,
    index,
    manifest,
    push,
    push_image,
    read_blob,
    upload,
)

SECRET = b"a layer of another tenant"
THEIRS = Digest.of(SECRET)

#: May push to the team's repository and pull from it, and from nowhere else.
ALICE = Caller("user:alice", TEAM)
#: Pushes to the other repository.
MALLORY = Caller("user:mallory", OTHER)
#: May pull from both.
BOB = Caller("user:bob", TEAM, OTHER)


@pytest.fixture
async def team(world: HostedWorld) -> HostedRepository:
    """A repository with the secret layer."""
    [team] = world.open(TEAM)
    await push_image(team, ALICE, "1", b"{}", SECRET)
    return team


@pytest.fixture
def other(world: HostedWorld, team: HostedRepository) -> HostedRepository:
    """Another repository of the same registry, whose pushers may not pull from the first."""
    return world.open(OTHER)[0]


async def _cannot_get(repository: HostedRepository, caller: Caller) -> None:
    with pytest.raises(BlobUnknown):
        await repository.blob(THEIRS)
    with pytest.raises(BlobUnknown):
        await repository.stat_blob(THEIRS)
    with pytest.raises(BlobUnknown):
        await repository.blob_for_push(THEIRS, caller)
    with pytest.raises(BlobUnknown):
        await repository.stat_for_push(THEIRS, caller)


async def test_a_layer_elsewhere_is_unknown(other: HostedRepository) -> None:
    """To GET and HEAD, also of a caller who may push."""
    await _cannot_get(other, MALLORY)


@pytest.mark.parametrize("source", [None, TEAM, Repo("corp", "does/not-exist"), CACHED])
async def test_a_mount_gives_no_right_that_the_caller_has_not(other: HostedRepository, source: Repo | None) -> None:
    """Forbidden and unknown sources get the same answer: upload it."""
    assert not await other.mount(THEIRS, source, MALLORY)
    await _cannot_get(other, MALLORY)


async def test_a_manifest_that_names_a_layer_gives_no_right_to_it(other: HostedRepository) -> None:
    """As a layer it is missing; as a foreign layer, child, subject or under an unknown type it may be named, but is
    not served.
    """
    await upload(other, b"{}", MALLORY)
    for named in (image(b"{}", SECRET), index(SECRET)):
        with pytest.raises(ManifestBlobUnknown) as caught:
            await push(other, named, MALLORY)
        assert caught.value.digests == (str(THEIRS),)
    config = descriptor(b"{}", "application/vnd.oci.image.config.v1+json")
    foreign = descriptor(SECRET, urls=["https://elsewhere.example/layer"])
    for number, body in enumerate(
        (
            manifest(config=config, layers=[foreign]),
            manifest(config=config, layers=[], subject=descriptor(SECRET)),
            manifest(mediaType="application/vnd.example.thing+json", layers=[descriptor(SECRET)], config=config),
        )
    ):
        await push(other, body, MALLORY, str(number))
        await _cannot_get(other, MALLORY)
    with pytest.raises(ManifestUnknown):
        await other.manifest(THEIRS)


async def test_embedded_content_is_the_callers_own(other: HostedRepository) -> None:
    """A caller who has the bytes may have the blob; one who has only the digest may not."""

    await upload(other, b"{}", MALLORY)
    config = descriptor(b"{}", "application/vnd.oci.image.config.v1+json")
    lie = descriptor(SECRET, data=base64.b64encode(b"x" * len(SECRET)).decode())
    with pytest.raises(ManifestBlobUnknown):
        await push(other, manifest(config=config, layers=[lie]), MALLORY)
    own = descriptor(b"mine", data=base64.b64encode(b"mine").decode())
    await push(other, manifest(config=config, layers=[own]), MALLORY)
    assert await read_blob(other, Digest.of(b"mine")) == b"mine"


async def test_sparse_children_grant_nothing(world: HostedWorld, team: HostedRepository) -> None:
    """An index may name what the repository has not, if the registry allows that; it is not served."""
    world.rules = HostedRules(sparse_indexes=True)
    [other] = world.open(OTHER)
    child = (await team.manifest("1")).read()
    await push(other, index(child.content), MALLORY, "1")
    with pytest.raises(ManifestUnknown):
        await other.manifest(child.digest)


async def test_the_same_manifest_needs_its_blobs_in_each_repository(other: HostedRepository) -> None:
    """That another repository has it counts for nothing."""
    await upload(other, b"{}", MALLORY)
    with pytest.raises(ManifestBlobUnknown):
        await push(other, image(b"{}", SECRET), MALLORY)
    await upload(other, SECRET, MALLORY)
    await push(other, image(b"{}", SECRET), MALLORY)
    assert await read_blob(other, THEIRS) == SECRET


async def test_referrers_name_only_what_the_repository_has(team: HostedRepository, other: HostedRepository) -> None:
    """Of a subject that both have named, each repository lists its own."""
    subject = descriptor(b"subject", "application/vnd.oci.image.manifest.v1+json")
    for repository, caller, kind in ((team, ALICE, "application/a"), (other, MALLORY, "application/b")):
        await upload(repository, b"{}", caller)
        config = descriptor(b"{}", kind)
        await push(repository, manifest(config=config, layers=[], subject=subject), caller)
    assert [each.artifact_type for each in (await team.referrers(Digest.of(b"subject"))).items] == ["application/a"]
    assert [each.artifact_type for each in (await other.referrers(Digest.of(b"subject"))).items] == ["application/b"]


# ------------------------------------------------------------------------------------------------------ reservations


async def test_what_the_caller_may_pull_elsewhere_is_reserved(world: HostedWorld, other: HostedRepository) -> None:
    """For this caller alone, until a manifest names it: then it is linked."""
    assert (await other.stat_for_push(THEIRS, BOB)).size == len(SECRET)
    content = await other.blob_for_push(THEIRS, BOB)
    content.close()
    for reader in world.open(OTHER):
        with pytest.raises(BlobUnknown):
            await reader.blob(THEIRS)
    await upload(other, b"{}", MALLORY)
    with pytest.raises(ManifestBlobUnknown):
        await push(other, image(b"{}", SECRET), MALLORY)
    await push(other, image(b"{}", SECRET), BOB)
    assert await read_blob(other, THEIRS) == SECRET


async def test_two_callers_reserve_the_same_blob(other: HostedRepository) -> None:
    """Neither takes it from the other."""
    carol = Caller("user:carol", TEAM, OTHER)
    for caller in (BOB, carol, BOB):
        await other.stat_for_push(THEIRS, caller)
    for caller in (BOB, carol):
        (await other.blob_for_push(THEIRS, caller)).close()
    with pytest.raises(BlobUnknown):
        await other.blob_for_push(THEIRS, MALLORY)


async def test_a_mount_from_where_the_caller_may_pull_links(other: HostedRepository) -> None:
    """With the source's name and without."""
    assert await other.mount(THEIRS, TEAM, BOB)
    assert await read_blob(other, THEIRS) == SECRET
    assert await other.mount(Digest.of(b"{}"), None, BOB)
    assert await read_blob(other, Digest.of(b"{}")) == b"{}"


async def test_a_reserved_blob_is_no_source(other: HostedRepository, world: HostedWorld) -> None:
    """A reservation is not passed on to those who may only pull from the repository that has it."""
    await other.stat_for_push(THEIRS, BOB)
    [third] = world.open(Repo("corp", "third"))
    eve = Caller("user:eve", OTHER)
    with pytest.raises(BlobUnknown):
        await third.stat_for_push(THEIRS, eve)
    assert not await third.mount(THEIRS, OTHER, eve)


async def test_what_the_cache_has_need_not_be_uploaded(world: HostedWorld, other: HostedRepository) -> None:
    """If the caller may pull it there, and the cached repository may serve it."""
    layer = await world.cached_blob(b"from the hub")
    stray = Digest.of(b"stray")
    world.cache.put(stray, b"stray")
    with pytest.raises(BlobUnknown):
        await other.stat_for_push(layer, MALLORY)
    puller = Caller("user:puller", CACHED)
    assert (await other.stat_for_push(layer, puller)).size == 12
    with pytest.raises(BlobUnknown):
        await other.stat_for_push(stray, puller)
    assert await other.mount(layer, CACHED, puller)
    world.cache.delete(layer)
    assert await read_blob(other, layer) == b"from the hub"


async def test_registries_that_are_asked_about_callers_count_only_by_name(
    world: HostedWorld, other: HostedRepository
) -> None:
    """HEAD and a mount without `from` never ask an upstream."""
    layer = await world.cached_blob(b"private")
    caller = Caller("user:v", verified=[CACHED])
    with pytest.raises(BlobUnknown):
        await other.stat_for_push(layer, caller)
    assert not await other.mount(layer, None, caller)
    assert await other.mount(layer, CACHED, caller)

    class Unanswered(Caller):
        async def may_pull(self, repo: Repo) -> bool:
            raise UpstreamUnavailable("no answer", upstream="docker.io")

    assert not await other.mount(layer, CACHED, Unanswered("user:w"))


async def test_rules_are_asked_before_the_disk(world: HostedWorld, other: HostedRepository) -> None:
    """Of repositories that the caller may not pull from, nothing is read: the answer takes no longer."""

    records = Hooked(world.records)
    world.records = records
    [other] = world.open(OTHER)
    with pytest.raises(BlobUnknown):
        await other.stat_for_push(THEIRS, MALLORY)
    seen = records.calls["link"]
    with pytest.raises(BlobUnknown):
        await other.stat_for_push(Digest.of(b"nobody has it"), MALLORY)
    assert records.calls["link"] == 2 * seen


@pytest.mark.parametrize("holders", [0, 2])
async def test_an_answer_does_not_say_whether_others_have_a_blob(
    world: HostedWorld, other: HostedRepository, holders: int
) -> None:
    """The rules are asked as often, and the ledger and the index, as for a blob that nobody has."""
    for number in range(holders):
        world.accounts.noted[Repo("corp", f"secret/{number}"), THEIRS] = len(SECRET)

    async def work(digest: Digest, *, mount: bool) -> tuple[int, list[int]]:
        asker = Caller("user:mallory", OTHER)
        world.holders_asked.clear()
        if mount:
            assert not await other.mount(digest, None, asker)
        else:
            with pytest.raises(BlobUnknown):
                await other.stat_for_push(digest, asker)
        return len(asker.asked), list(world.holders_asked)

    for mount in (False, True):
        assert await work(THEIRS, mount=mount) == await work(Digest.of(b"nobody has it"), mount=mount)


async def test_one_of_many_repositories_that_have_a_blob_is_found(world: HostedWorld, other: HostedRepository) -> None:
    """However many have it from which the caller may not pull."""
    theirs = dict(world.accounts.noted)
    world.accounts.noted.clear()
    for number in range(500):
        world.accounts.noted[Repo("corp", f"secret/{number}"), THEIRS] = len(SECRET)
    world.accounts.noted.update(theirs)
    with pytest.raises(BlobUnknown):
        await other.stat_for_push(THEIRS, MALLORY)
    assert (await other.stat_for_push(THEIRS, BOB)).size == len(SECRET)


async def test_a_deleted_blob_stays_deleted(other: HostedRepository) -> None:
    """Until it is uploaded, or mounted by the name of its source."""
    assert await other.mount(THEIRS, TEAM, BOB)
    await other.delete_blob(THEIRS, BOB)
    with pytest.raises(BlobUnknown):
        await other.stat_for_push(THEIRS, BOB)
    assert not await other.mount(THEIRS, None, BOB)
    assert await other.mount(THEIRS, TEAM, BOB)
    assert await read_blob(other, THEIRS) == SECRET


# --------------------------------------------------------------------------------------------------- upload sessions


async def test_a_session_belongs_to_its_caller_and_repository(team: HostedRepository, other: HostedRepository) -> None:
    """Its id is of no use to others, nor elsewhere."""
    session = await team.begin_upload(ALICE)
    for repository, caller in ((team, BOB), (other, ALICE)):
        with pytest.raises(UploadUnknown):
            repository.upload_offset(session, caller)
        with pytest.raises(UploadUnknown):
            await repository.upload(session, caller)
    assert team.upload_offset(session, ALICE) == 0


async def test_a_registry_says_where_and_whether_it_takes_pushes(world: HostedWorld, team: HostedRepository) -> None:
    """A name outside its patterns and a read-only registry take none; pulls go on, and what is there can be deleted."""
    world.rules = HostedRules(("other/**",))
    [outside] = world.open(TEAM)
    with pytest.raises(Denied):
        await outside.begin_upload(ALICE)
    with pytest.raises(Denied):
        await push(outside, image(b"{}", SECRET), ALICE, "2")
    with pytest.raises(Denied):
        await outside.mount(THEIRS, OTHER, ALICE)
    assert (await outside.stat_for_push(THEIRS, ALICE)).size == len(SECRET)
    await outside.delete_tag("1", ALICE)
    world.rules = HostedRules(read_only=True)
    [frozen] = world.open(TEAM)
    with pytest.raises(Denied):
        await frozen.delete_tag("1", ALICE)
    with pytest.raises(Denied):
        await frozen.undelete("1", ALICE)
    assert json.loads((await frozen.manifest(Digest.of(image(b"{}", SECRET)))).content or b"")["schemaVersion"] == 2
