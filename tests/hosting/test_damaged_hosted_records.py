"""Records of a hosted repository that exist and cannot be parsed: whoever may push the content, or delete it, repairs
them; nobody gets a right by the damage.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.errors import (
    BlobUnknown,
    Denied,
    ManifestBlobUnknown,
    ManifestUnknown,
    QuotaExceeded,
    RecordDamaged,
    StoreError,
)
from mirror.hosting.operator_deletions import OperatorDeletions
from mirror.oci.digest import Digest
from mirror.repository.hosted import HostedRepository
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from mirror.store.local.local_records import local_catalog, local_repository_records
from mirror.store.records.record_keys import file_name
from tests.support.hooked import Hooked
from tests.support.hosted_world import (
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

ALICE = Caller("user:alice", TEAM)
BOB = Caller("user:bob", TEAM, OTHER, overwrite=False)
IMAGE = image(b"{}", b"layer")
LAYER = Digest.of(b"layer")
GARBAGE = b'{"mediaType": "applic'


class _World(HostedWorld):
    """Its records are files."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.layout = LocalStore(Layout(root)).layout
        self.catalog, self.records = local_catalog(self.layout), local_repository_records(self.layout)

    def damage(self, folder: str, name: str) -> None:
        """Cuts the record of this name, and lets every worker look again."""
        record = Path(folder, name)
        assert record.exists()
        record.write_bytes(GARBAGE)
        self.records.note_change(TEAM)

    def damage_manifest(self, digest: Digest) -> None:
        self.damage(self.layout.manifests(TEAM), file_name(digest))

    def damage_link(self, digest: Digest) -> None:
        self.damage(self.layout.links(TEAM), file_name(digest))

    def damage_deletion(self, digest: Digest) -> None:
        self.damage(self.layout.deleted_manifests(TEAM), file_name(digest))

    def deletions(self) -> OperatorDeletions:
        verbs = self.verbs()
        return OperatorDeletions(verbs.parts, verbs.deleting, ["corp"])


@pytest.fixture
def world(tmp_path: Path) -> Iterator[_World]:
    world = _World(tmp_path)
    with world:
        yield world


@pytest.fixture
async def team(world: _World) -> HostedRepository:
    """A repository with one image, `1`."""
    [repository] = world.open(TEAM)
    await push_image(repository, ALICE, "1", b"{}", b"layer")
    return repository


# ------------------------------------------------------------------------------------------------------------ manifests


async def test_a_damaged_manifest_record_is_repaired_by_a_push(world: _World, team: HostedRepository) -> None:
    """The image can be pulled meanwhile: the bytes are here, and the name of the record says which."""
    world.damage_manifest(Digest.of(IMAGE))
    assert (await team.manifest("1")).content == IMAGE
    assert (await team.resolve(Digest.of(IMAGE))).media_type == "application/vnd.oci.image.manifest.v1+json"
    pushed = await push(team, IMAGE, BOB, "1")
    assert pushed.moved == ()
    assert world.catalog.get_manifest(TEAM, Digest.of(IMAGE)).size == len(IMAGE)


async def test_a_tag_of_a_damaged_manifest_is_not_free(world: _World, team: HostedRepository) -> None:
    """Who may not overwrite may not move it; who may, may."""
    world.damage_manifest(Digest.of(IMAGE))
    other = image(b"{}", b"other")
    await upload(team, b"other", BOB)
    with pytest.raises(Denied):
        await push(team, other, BOB, "1")
    assert (await push(team, other, ALICE, "1")).moved == ("1",)
    assert (await push(team, index(IMAGE), ALICE, "2")).tags == ("2",)


async def test_a_damaged_manifest_record_can_be_deleted(world: _World, team: HostedRepository) -> None:
    """With its tags; and undeleted, since its bytes are here."""
    world.damage_manifest(Digest.of(IMAGE))
    await team.delete_manifest(Digest.of(IMAGE), ALICE)
    with pytest.raises(ManifestUnknown):
        await team.manifest("1")
    await team.undelete(Digest.of(IMAGE), ALICE)
    assert (await team.manifest("1")).content == IMAGE


async def test_a_damaged_manifest_record_without_bytes_can_be_deleted(world: _World, team: HostedRepository) -> None:
    """Nothing is left of it."""
    world.damage_manifest(Digest.of(IMAGE))
    world.blobs.names.delete(Digest.of(IMAGE))
    with pytest.raises(ManifestUnknown):
        await world.open(TEAM)[0].manifest("1")
    await team.delete_manifest(Digest.of(IMAGE), ALICE)
    assert list(world.catalog.manifest_digests(TEAM)) == []
    assert list(world.records.deleted_manifests(TEAM)) == []
    assert world.catalog.tags(TEAM) == []


async def test_a_manifest_whose_bytes_cannot_be_read_is_not_deleted(world: _World, team: HostedRepository) -> None:
    """Nobody can say what the record was."""
    world.damage_manifest(Digest.of(IMAGE))
    world.contents = Hooked(world.contents)
    world.contents.fail("stat", StoreError("the disk cannot be read"))
    [repository] = world.open(TEAM)
    with pytest.raises(StoreError):
        await repository.delete_manifest(Digest.of(IMAGE), ALICE)
    assert list(world.catalog.manifest_digests(TEAM)) == [Digest.of(IMAGE)]


async def test_operators_delete_damaged_manifests(world: _World, team: HostedRepository) -> None:
    """By digest, by tag, and at once."""
    world.damage_manifest(Digest.of(IMAGE))
    deletions = world.deletions()
    assert deletions.digest_of(TEAM, "1") == Digest.of(IMAGE)
    erased = deletions.erase(deletions.plan_image(TEAM, Digest.of(IMAGE)), "user:root")
    assert set(erased.blobs) == {Digest.of(IMAGE), Digest.of(b"{}"), LAYER}
    with pytest.raises(ManifestUnknown):
        await team.manifest("1")


# ---------------------------------------------------------------------------------------------------------------- links


async def test_a_damaged_link_is_repaired_by_an_upload(world: _World, team: HostedRepository) -> None:
    """A pusher is told that the blob is unknown, and so sends it again; a puller gets an error that says why."""
    world.damage_link(LAYER)
    with pytest.raises(RecordDamaged):
        await team.blob(LAYER)
    with pytest.raises(BlobUnknown):
        await team.stat_for_push(LAYER, ALICE)
    with pytest.raises(ManifestBlobUnknown):
        await push(team, IMAGE, ALICE, "1")
    await upload(team, b"layer", ALICE)
    assert await read_blob(team, LAYER) == b"layer"
    await push(team, IMAGE, ALICE, "1")


async def test_a_damaged_link_may_be_the_mark_of_a_removal(world: _World, team: HostedRepository) -> None:
    """So nobody gets the blob by having it elsewhere, except by naming where."""
    [other] = world.open(OTHER)
    await push_image(other, BOB, "1", b"{}", b"layer")
    world.damage_link(LAYER)
    with pytest.raises(BlobUnknown):
        await team.stat_for_push(LAYER, BOB)
    assert not await team.mount(LAYER, None, BOB)
    assert await team.mount(LAYER, OTHER, BOB)
    assert await read_blob(team, LAYER) == b"layer"


async def test_a_damaged_link_elsewhere_stops_no_push(world: _World, team: HostedRepository) -> None:
    """Nobody could pull the blob from there."""
    world.damage_link(LAYER)
    [other] = world.open(OTHER)
    with pytest.raises(BlobUnknown):
        await other.stat_for_push(LAYER, BOB)
    assert not await other.mount(LAYER, TEAM, BOB)


async def test_a_full_quota_does_not_cost_a_damaged_link(world: _World, team: HostedRepository) -> None:
    """Nobody could write it back, and it keeps the bytes that a manifest names."""
    world.damage_link(LAYER)
    world.accounts.noted.clear()
    world.accounts.limit = 3
    with pytest.raises(QuotaExceeded):
        world.verbs().links.make(TEAM, LAYER, 5)
    assert list(world.records.linked(TEAM))
    with pytest.raises(RecordDamaged):
        world.records.link(TEAM, LAYER)


async def test_a_damaged_link_can_be_deleted(world: _World, team: HostedRepository) -> None:
    """Unless a manifest names the blob."""
    loose = await upload(team, b"loose", ALICE)
    world.damage_link(loose)
    await team.delete_blob(loose, ALICE)
    assert world.verbs().links.is_removed(TEAM, loose)
    with pytest.raises(BlobUnknown):
        await team.blob(loose)


async def test_an_image_comes_back_although_its_links_are_damaged(world: _World, team: HostedRepository) -> None:
    """The deleted manifest says that the repository had the blobs."""
    await team.delete_manifest(Digest.of(IMAGE), ALICE)
    world.damage_link(LAYER)
    await team.undelete(Digest.of(IMAGE), ALICE)
    assert await read_blob(team, LAYER) == b"layer"


async def test_what_a_damaged_link_may_hold_is_not_erased(world: _World, team: HostedRepository) -> None:
    """The report says where it stays, and the rest is erased."""
    [other] = world.open(OTHER)
    await push_image(other, BOB, "1", b"{}", b"layer", b"secret")
    world.damage_link(LAYER)
    deletions = world.deletions()
    erased = deletions.erase(deletions.plan_repository(OTHER, kept=True), "user:root", everything=True)
    assert erased.elsewhere[LAYER] == (TEAM,)
    assert Digest.of(b"secret") in erased.blobs


# ------------------------------------------------------------------------------------------------------------ deletions


async def test_a_damaged_deletion_stops_no_push_and_no_list(world: _World, team: HostedRepository) -> None:
    """The tags that a crash has left are found by what they point to."""
    tag = world.catalog.tag(TEAM, "1").record
    await team.delete_manifest(Digest.of(IMAGE), ALICE)
    world.catalog.put_tag(TEAM, tag)
    await push_image(team, ALICE, "2", b"{}", b"other")
    world.damage_deletion(Digest.of(IMAGE))
    assert (await team.tags("", 10)).items == ("2",)
    await push(team, IMAGE, ALICE, "3")
    assert (await team.tags("", 10)).items == ("2", "3")
    assert list(world.records.deleted_manifests(TEAM)) == []


async def test_a_damaged_deletion_can_be_undeleted_or_ended(world: _World, team: HostedRepository) -> None:
    """By digest and without tags: nobody can say which it had, nor whether a tag was its."""
    await team.delete_manifest(Digest.of(IMAGE), ALICE)
    world.damage_deletion(Digest.of(IMAGE))
    deletions = world.deletions()
    assert [record.digest for _, record in deletions.deleted(lambda repo: True)] == [Digest.of(IMAGE)]
    with pytest.raises(RecordDamaged):
        deletions.undelete_tag(TEAM, "1", "user:root")
    assert deletions.undelete_image(TEAM, Digest.of(IMAGE), "user:root").manifests == [Digest.of(IMAGE)]
    assert (await team.tags("", 10)).items == ()
    await team.delete_manifest(Digest.of(IMAGE), ALICE)
    world.damage_deletion(Digest.of(IMAGE))
    deletions.erase(deletions.plan_image(TEAM, Digest.of(IMAGE)), "user:root")
    assert list(world.records.deleted_manifests(TEAM)) == []


async def test_a_damaged_deletion_of_a_tag_is_ended_by_a_deletion(world: _World, team: HostedRepository) -> None:
    """Nothing else is stopped by it."""
    await push(team, IMAGE, ALICE, "2")
    await team.delete_tag("2", ALICE)
    world.damage(world.layout.deleted_tags(TEAM), "2")
    deletions = world.deletions()
    assert list(deletions.deleted(lambda repo: True)) == []
    deletions.delete(deletions.plan_tag(TEAM, "2"), "user:root", keep=True)
    assert world.records.deleted_tags(TEAM) == []
    with pytest.raises(ManifestUnknown):
        deletions.plan_tag(TEAM, "2")
    assert (await team.manifest("1")).content == IMAGE


async def test_a_damaged_entry_does_not_hide_the_referrers(world: _World, team: HostedRepository) -> None:
    """The manifests say what was in it."""
    signature = manifest(config=descriptor(b"{}"), layers=[], subject=descriptor(IMAGE), annotations={"by": "alice"})
    await push(team, signature, ALICE, Digest.of(signature))
    before = (await team.referrers(Digest.of(IMAGE))).items
    world.damage(world.layout.referrers(TEAM, Digest.of(IMAGE)), file_name(Digest.of(signature)))
    assert (await team.referrers(Digest.of(IMAGE))).items == before != ()
