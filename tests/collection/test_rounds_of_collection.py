"""Rounds of collection over hosted content in memory: what goes, what stays, and when."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mirror.collection import blob_pass
from mirror.collection.collection_report import CollectionReport
from mirror.collection.collection_round import collection_round
from mirror.collection.waiting import waiting
from mirror.errors import ManifestBlobUnknown, StoreError
from mirror.hosting.deleting import Deleting
from mirror.hosting.links import Links
from mirror.hosting.placing import Placing
from mirror.hosting.pushing import ManifestPut, Pushing
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST, Descriptor, read_manifest
from mirror.oci.reference import Repo
from mirror.policy.hosted.collection import COLLECTOR, CollectionRules
from mirror.policy.hosted.push_checks import HostedRules
from mirror.policy.hosted_records import BlobLink, DeletedTag, LinkState, QueuedBlob
from mirror.policy.records import ManifestRecord
from mirror.ports import BlobInfo, Versioned
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from mirror.store.local.local_records import local_catalog, local_repository_records
from mirror.store.records.record_keys import file_name
from tests.support.bucket_records import Machine
from tests.support.collecting import APP, GRACE, KEEP, TWIN, CollectedWorld, image, index
from tests.support.hooked import Hooked
from tests.support.hosted_blobs_suite import all_queued
from tests.support.unreliable_disk import UnreliableCatalog


@pytest.fixture(params=["memory", "bucket"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> CollectedWorld:
    """Hosted content and its collection: with records in memory, and with records in a bucket."""
    if request.param == "memory":
        return CollectedWorld()
    machine = Machine(tmp_path / "machine")
    machine.list_all()
    return CollectedWorld(catalog=machine.catalog(), records=machine.records())


def test_what_is_named_stays(world: CollectedWorld) -> None:
    """However often it is collected."""
    pushed = world.push_image(APP, b"one", b"two")
    before = world.hosted()
    world.collect_until_nothing_waits()
    assert pushed in world.hosted() == before
    assert set(world.records.linked(APP)) == {Digest.of(b"one"), Digest.of(b"two")}


def test_an_upload_without_a_manifest_waits_twice(world: CollectedWorld) -> None:
    """First the link, then the bytes; each is queued before it goes."""
    digest = world.upload(APP, b"one")
    world.collect(pause=GRACE - 1)
    assert _link(world, APP, digest).queued_at is None
    report = world.collect(pause=2)
    assert _link(world, APP, digest).queued_at == world.clock()
    assert (report.links_queued, report.links) == (1, 0)
    assert world.collect(pause=GRACE - 1).waiting_links == 1
    report = world.collect(pause=2)
    assert (report.links, report.blobs_queued, report.waiting_bytes) == (1, 1, 3)
    assert world.records.link(APP, digest) is None
    world.collect(pause=GRACE - 1)
    assert digest in world.hosted()
    report = world.collect(pause=2)
    assert (report.blobs, report.bytes) == (1, 3)
    assert not world.hosted()


def test_a_manifest_that_comes_in_time_keeps_a_queued_link(world: CollectedWorld) -> None:
    """Although the link waits already, and has waited long enough."""
    digest = world.upload(APP, b"one")
    world.collect(2, pause=GRACE + 1)
    digest = world.upload(APP, b"one")
    world.push(APP, image(digest), "v1")
    world.collect_until_nothing_waits()
    assert digest in world.hosted()


def test_a_deleted_image_stays_until_it_cannot_be_undeleted(world: CollectedWorld) -> None:
    """Then everything that only it named goes."""
    layer = world.upload(APP, b"shared")
    first = world.push_image(APP, b"shared", b"only")
    second = world.push(APP, image(layer), "v2")
    world.delete(APP, first, "v1")
    world.collect(int(KEEP // GRACE) - 1, pause=GRACE)
    assert {first, second, layer, Digest.of(b"only")} == world.hosted()
    world.collect_until_nothing_waits()
    assert world.hosted() == {second, layer}
    assert not list(world.records.deleted_manifests(APP))


def test_a_round_says_what_waits_and_why(world: CollectedWorld) -> None:
    """A deleted image, then the link that it leaves, then the bytes; what may go first comes first."""
    pushed = world.push_image(APP, b"one")
    world.delete(APP, pushed, "v1")
    [waiting] = world.collect(pause=1.0).waiting
    assert (waiting.kind, waiting.digest, waiting.repository) == ("manifest", pushed, str(APP))
    assert waiting.may_go_at == waiting.since + KEEP
    seen: dict[str, set[str]] = {}
    for _ in range(int(2 * KEEP / GRACE) + 12):
        for each in world.collect(pause=GRACE / 2 + 1).waiting:
            seen.setdefault(each.kind, set()).add(each.why)
    assert seen["link"] == {"no manifest names it"}
    assert seen["bytes"] == {"no repository has it"}
    for number in range(150):
        world.upload(APP, b"%d" % number)
    world.collect(pause=GRACE + 1)
    report = world.collect(pause=1.0)
    assert (report.waiting_links, len(report.waiting)) == (150, 100)
    assert [each.may_go_at for each in report.waiting] == sorted(each.may_go_at for each in report.waiting)
    assert CollectionReport.from_json(report.to_json()) == report


def test_a_deletion_that_is_not_kept(world: CollectedWorld) -> None:
    """Its content goes after the grace time."""
    pushed = world.push_image(APP, b"one")
    world.delete(APP, pushed, "v1", keep=False)
    world.collect_until_nothing_waits()
    assert not world.hosted()


def test_bytes_that_another_repository_has_stay(world: CollectedWorld) -> None:
    """Links go by repository, bytes only when no repository has them."""
    world.push_image(APP, b"one")
    pushed = world.push_image(TWIN, b"one")
    world.delete(APP, pushed, "v1", keep=False)
    world.collect_until_nothing_waits()
    assert list(world.records.linked(APP)) == []
    assert world.hosted() == {pushed, Digest.of(b"one")}


def test_an_interrupted_deletion_is_finished(world: CollectedWorld) -> None:
    """The tags that still point to the manifest are dropped; one that points elsewhere stays."""
    first, second = world.push_image(APP, b"one", tag="v1"), world.push_image(APP, b"two", tag="v2")
    record = world.catalog.get_manifest(APP, first)
    assert record is not None
    world.records.put_deleted_manifest(APP, world.deletion(record, "v1", "v2"))
    world.catalog.drop_manifest(APP, first)
    before = world.records.changes(APP)
    world.collect()
    assert world.catalog.tags(APP) == ["v2"]
    assert world.catalog.pointed(APP, "v2") == second
    assert world.records.changes(APP) > before


def test_a_deletion_that_never_began_changes_nothing(world: CollectedWorld) -> None:
    """The process died after it had written the record of the deletion: the image is live."""
    pushed = world.push_image(APP, b"one")
    record = world.catalog.get_manifest(APP, pushed)
    assert record is not None
    world.records.put_deleted_manifest(APP, world.deletion(record, "v1"))
    world.collect(30, pause=GRACE)
    assert world.catalog.tags(APP) == ["v1"]
    assert world.hosted() == {pushed, Digest.of(b"one")}
    assert not list(world.records.deleted_manifests(APP))


def test_101_a_manifest_that_cannot_be_read_keeps_what_it_may_name(world: CollectedWorld) -> None:
    """The whole repository is left alone; other repositories are not."""
    pushed = world.push_image(APP, b"one")
    loose, other = world.upload(APP, b"loose"), world.upload(TWIN, b"other")
    world.catalog.unreadable.add((APP, pushed))
    report = world.collect_until_nothing_waits()
    assert world.hosted() == {pushed, Digest.of(b"one"), loose}
    assert other not in set(world.records.linked(TWIN))
    assert [unread.what for unread in report.unread] == [str(APP)]
    world.catalog.unreadable.clear()
    world.collect_until_nothing_waits()
    assert world.hosted() == {pushed, Digest.of(b"one")}


def test_101_bytes_of_a_manifest_that_are_missing_keep_its_layers(world: CollectedWorld) -> None:
    """A push of the same manifest repairs it, and needs them."""
    pushed = world.push_image(APP, b"one")
    world.blobs.names.delete(pushed)
    assert world.collect_until_nothing_waits().unread_count == 1
    assert world.hosted() == {Digest.of(b"one")}


def test_101_a_damaged_link_keeps_its_bytes(world: CollectedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can say what it grants."""
    digest, other = world.upload(APP, b"one"), world.upload(APP, b"two")
    real = world.records.link

    def link(repo: Repo, asked: Digest) -> Versioned[BlobLink] | None:
        if asked == digest:
            raise StoreError("cannot be read")
        found: Versioned[BlobLink] | None = real(repo, asked)
        return found

    monkeypatch.setattr(world.records, "link", link)
    assert world.collect_until_nothing_waits().unread_count == 1
    assert world.hosted() == {digest}
    assert other not in set(world.records.linked(APP))


def test_101_damaged_records_stop_no_collection(tmp_path: Path) -> None:
    """Their names say which manifests they are about, and the bytes what those name. The report has each of them."""
    layout = LocalStore(Layout(tmp_path)).layout
    world = CollectedWorld(catalog=local_catalog(layout), records=local_repository_records(layout))
    live, gone = world.push_image(APP, b"one", tag="1"), world.push_image(APP, b"two", tag="2")
    loose, stray = world.upload(APP, b"loose"), world.upload(APP, b"stray")
    world.delete(APP, gone, "2")
    world.records.put_deleted_tag(APP, DeletedTag("3", live, OCI_MANIFEST, 1, world.clock()))
    damaged = (
        Path(layout.manifests(APP)) / file_name(live),
        Path(layout.deleted_manifests(APP)) / file_name(gone),
        Path(layout.deleted_tags(APP)) / "3",
        Path(layout.links(APP)) / file_name(stray),
    )
    for path in damaged:
        path.write_bytes(b"{")
    report = world.collect()
    assert sorted(unread.reason for unread in report.unread) == [
        f"the link of {APP} to {stray} is damaged",
        f"the record of the deleted manifest {APP}@{gone} is damaged",
        f"the record of the deleted tag {APP}:3 is damaged",
        f"the record of the manifest {APP}@{live} is damaged",
    ]
    record = world.catalog.get_manifest(APP, live)
    assert record == ManifestRecord(live, OCI_MANIFEST, len(world.blobs.names.read(live, 1000)), record.fetched_at)
    assert world.records.link(APP, stray).record.state is LinkState.REMOVED
    world.collect_until_nothing_waits()
    assert world.hosted() == {live, gone, Digest.of(b"one"), Digest.of(b"two")}
    assert not {loose, stray} & set(world.records.linked(APP))
    # nobody knows since when it is deleted: that begins anew when the damage is seen
    world.collect(8, pause=KEEP)
    assert world.hosted() == {live, Digest.of(b"one")}
    assert damaged[2].read_bytes() == b"{"


def test_a_damaged_tag_keeps_every_referrer(tmp_path: Path) -> None:
    """It may be the tag of any of them."""
    layout = LocalStore(Layout(tmp_path)).layout
    world = CollectedWorld(
        catalog=local_catalog(layout), records=local_repository_records(layout), collect_dangling=True
    )
    referrer = world.push(APP, image(subject=Digest.of(b"gone")))
    world.push_image(APP, b"one", tag="1")
    (Path(layout.tags(APP)) / "1").write_bytes(b"{")
    world.collect(3, pause=GRACE + 1)
    assert referrer in set(world.catalog.manifest_digests(APP))
    world.catalog.drop_tag(APP, "1")
    world.collect(3, pause=GRACE + 1)
    assert referrer not in set(world.catalog.manifest_digests(APP))


def test_damaged_content_stays_as_long_as_something_needs_it(world: CollectedWorld) -> None:
    """A push of the same digest repairs it; once nothing needs it, it goes."""
    pushed, layer = world.push_image(APP, b"one"), Digest.of(b"one")
    _, reader = world.blobs.names.open(layer)
    assert world.blobs.names.set_aside(layer, reader)
    world.collect_until_nothing_waits()
    assert [blob.digest for blob in world.blobs.damaged()] == [layer]
    world.delete(APP, pushed, "v1", keep=False)
    world.collect_until_nothing_waits()
    assert not world.blobs.damaged()
    assert not all_queued(world.blobs)


def test_a_repository_that_cannot_be_listed_stops_the_second_pass(
    world: CollectedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can say which bytes it has."""
    world.push_image(APP, b"one")
    loose = world.upload(TWIN, b"two")

    def linked(repo: Repo) -> list[Digest]:
        raise StoreError(f"{repo} cannot be listed")

    with monkeypatch.context() as patched:
        patched.setattr(world.records, "linked", linked)
        assert not world.collect_until_nothing_waits().complete
        assert not all_queued(world.blobs)
    assert world.collect_until_nothing_waits().complete
    assert loose not in world.hosted()


def test_a_registry_that_is_not_configured_keeps_everything(world: CollectedWorld) -> None:
    """The configuration may be wrong."""
    elsewhere = Repo("old", "team/app")
    world.push_image(elsewhere, b"one")
    loose = world.upload(elsewhere, b"loose")
    before = world.hosted()
    world.collect_until_nothing_waits()
    assert loose in world.hosted() == before
    assert loose in set(world.records.linked(elsewhere))


def test_103_nothing_goes_early_when_the_clock_is_set_back(world: CollectedWorld) -> None:
    """And nothing is kept for ever: what was queued before the jump goes at last."""
    digest = world.upload(APP, b"one")
    world.collect(2, pause=GRACE / 2 + 1)
    queued_at = _link(world, APP, digest).queued_at
    assert queued_at is not None
    world.clock.time -= 365 * 86400.0
    report = world.collect(pause=GRACE / 2)
    assert report.links == 0
    world.collect(9, pause=GRACE + 1)
    assert not world.hosted()


def test_103_nothing_goes_early_when_the_clock_is_set_forward(world: CollectedWorld) -> None:
    """A year ahead, in the middle of the wait."""
    digest = world.upload(APP, b"one")
    world.collect(pause=GRACE + 1)
    world.clock.time += 365 * 86400.0
    assert world.collect(pause=GRACE / 2).links == 0
    assert digest in set(world.records.linked(APP))
    world.collect(9, pause=GRACE + 1)
    assert not world.hosted()


def test_records_of_the_future_wait_anew(world: CollectedWorld) -> None:
    """A clock that was wrong has dated them."""
    digest, future = world.upload(APP, b"one"), world.clock() + 365 * 86400.0
    world.records.put_link(APP, BlobLink(digest, 3, LinkState.LINKED, future))
    loose = Digest.of(b"two")
    world.blobs.put(loose, b"two")
    world.blobs.queue(QueuedBlob(loose, future))
    world.collect()
    assert _link(world, APP, digest).since == world.clock()
    queued = world.blobs.queued(loose)
    assert queued is not None
    assert queued.record.queued_at == world.clock()
    world.collect_until_nothing_waits()
    assert not world.hosted()


def test_a_mark_of_a_removal_goes_with_the_bytes(world: CollectedWorld) -> None:
    """As long as the bytes are here, for whomever, it forbids something."""
    removed = world.upload(APP, b"one")
    world.records.put_link(APP, BlobLink(removed, 3, LinkState.REMOVED, world.clock()))
    world.push_image(TWIN, b"one")
    world.collect_until_nothing_waits()
    assert _link(world, APP, removed).state is LinkState.REMOVED
    pushed = next(iter(world.catalog.manifest_digests(TWIN)))
    world.delete(TWIN, pushed, "v1", keep=False)
    world.collect_until_nothing_waits()
    assert not world.hosted()
    assert list(world.records.linked(APP)) == []


def test_dangling_referrers_stay_by_default(world: CollectedWorld) -> None:
    """Like all untagged manifests."""
    pushed = world.push(APP, image(world.upload(APP, b"sig"), subject=Digest.of(b"gone")))
    world.collect_until_nothing_waits()
    assert pushed in world.hosted()


def test_a_deletion_that_may_have_been_made_is_noted() -> None:
    """The answer to it is lost: every process looks anew."""
    catalog = Hooked(UnreliableCatalog())
    world = CollectedWorld(collect_dangling=True, catalog=catalog)
    pushed = world.push(APP, image(subject=Digest.of(b"gone")))
    world.collect()
    world.passes(GRACE + 1)
    before = world.records.changes(APP)

    def lost() -> None:
        raise StoreError("no answer")

    catalog.after("drop_manifest", lost)
    assert world.collect().unread
    assert world.catalog.get_manifest(APP, pushed) is None
    assert not catalog.pending
    assert world.records.changes(APP) != before


def test_dangling_referrers_go_if_that_is_set() -> None:
    """But not if a tag or an index keeps them, or if their subject is here."""
    world = CollectedWorld(collect_dangling=True)
    gone = Digest.of(b"gone")
    subject = world.push_image(APP, b"one")
    dangling = world.push(APP, image(world.upload(APP, b"sig"), subject=gone))
    tagged = world.push(APP, image(world.upload(APP, b"sig2"), subject=gone), "signed")
    named = world.push(APP, image(world.upload(APP, b"sig3"), subject=gone))
    world.push(APP, index(named), "all")
    attached = world.push(APP, image(world.upload(APP, b"sig4"), subject=subject))
    world.records.put_referrer(APP, gone, Descriptor("application/x", dangling, 7))
    world.collect(pause=GRACE - 1)
    assert world.catalog.get_manifest(APP, dangling) is not None
    assert world.collect(pause=2).referrers == 1
    deletion = world.records.deleted_manifest(APP, dangling)
    assert deletion is not None
    assert deletion.record.by == COLLECTOR
    world.collect(20, pause=GRACE)
    assert {tagged, named, attached} <= world.hosted()
    assert not {dangling, Digest.of(b"sig")} & world.hosted()
    assert not list(world.records.referrer_digests(APP, gone))


def test_a_referrer_that_an_index_names_comes_back_after_a_crash() -> None:
    """The collector died between dropping it and looking a second time."""
    world = CollectedWorld(collect_dangling=True)
    named = world.push(APP, image(world.upload(APP, b"sig"), subject=Digest.of(b"gone")))
    record = world.catalog.get_manifest(APP, named)
    assert record is not None
    world.push(APP, index(named), "all")
    world.records.put_deleted_manifest(APP, replace(world.deletion(record), by=COLLECTOR))
    world.catalog.drop_manifest(APP, named)
    world.collect()
    assert world.catalog.get_manifest(APP, named) is not None
    assert not list(world.records.deleted_manifests(APP))


def test_an_index_whose_child_is_collected_while_it_is_pushed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child was there when the push began, and is collected before the index has its record."""
    world = CollectedWorld(collect_dangling=True)
    child = world.push(APP, image(world.upload(APP, b"sig"), subject=Digest.of(b"gone")))
    world.passes(GRACE + 1)
    links = Links(world.parts)
    pushing = Pushing(world.parts, placing := Placing(world.parts, links), Deleting(world.parts, links, placing))
    put = ManifestPut(read_manifest(index(child)), "all")
    real = world.blobs.put

    def collect_first(digest: Digest, content: bytes) -> BlobInfo:
        if digest == put.manifest.digest and world.catalog.get_manifest(APP, child):
            assert world.collect().referrers == 1
        return real(digest, content)

    monkeypatch.setattr(world.blobs, "put", collect_first)
    with pytest.raises(ManifestBlobUnknown):
        pushing.put(APP, HostedRules(), put, "user:a", may_overwrite=False)
    assert list(world.catalog.manifest_digests(APP)) == []


def test_deleted_tags_are_forgotten(world: CollectedWorld) -> None:
    """Once they can no longer be undeleted; those of the future begin to wait now."""
    pushed = world.push_image(APP, b"one")
    for tag, at in (("old", world.clock()), ("future", world.clock() + 10 * KEEP)):
        world.records.put_deleted_tag(APP, DeletedTag(tag, pushed, "application/x", 7, at))
    world.collect(pause=KEEP - 1)
    assert world.records.deleted_tags(APP) == ["future", "old"]
    world.collect(pause=2)
    assert world.records.deleted_tags(APP) == ["future"]
    world.collect(pause=KEEP)
    assert world.records.deleted_tags(APP) == []


def test_a_round_takes_no_more_than_it_may(world: CollectedWorld) -> None:
    """What is left is for the next round, which is due at once."""
    for number in range(5):
        world.blobs.put(Digest.of(b"%d" % number), b"%d" % number)
    world.collect()
    world.passes(GRACE + 1)
    report = CollectionReport(world.clock())
    steps = collection_round(world.parts, world.rules, world.grace_clock.read, report)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(blob_pass, "MOST", 3)
        for _ in steps:
            pass
    assert (report.blobs, report.more, report.waiting_blobs) == (3, True, 2)
    assert world.collect().blobs == 2


def test_what_waits_can_be_listed(world: CollectedWorld) -> None:
    """With the reason, and when it may go."""
    loose = world.upload(APP, b"loose")
    world.records.put_link(TWIN, BlobLink(loose, 5, LinkState.RESERVED, world.clock(), "user:a"))
    pushed = world.push_image(APP, b"one")
    world.delete(APP, pushed, "v1")
    world.blobs.put(Digest.of(b"bytes"), b"bytes")
    assert [entry.kind for entry in waiting(world.parts, world.rules, [])] == ["manifest"]
    world.collect(pause=GRACE + 1)
    listed = {(entry.kind, entry.repository): entry for entry in waiting(world.parts, world.rules, [])}
    assert {key: entry.why for key, entry in listed.items()} == {
        ("link", str(APP)): "no manifest names it",
        ("link", str(TWIN)): "reserved by user:a, and not pushed",
        ("manifest", str(APP)): "deleted by user:a",
        ("bytes", None): "no repository has it",
    }
    assert listed["link", str(APP)].may_go_at == world.clock() + GRACE
    assert listed["bytes", None].size == 5


def test_rules_without_registries_collect_nothing(world: CollectedWorld) -> None:
    """All hosted registries were taken out of the configuration."""
    world.push_image(APP, b"one")
    loose = world.upload(APP, b"two")
    world.rules = CollectionRules(GRACE, {})
    before = world.hosted()
    world.collect_until_nothing_waits()
    assert loose in world.hosted() == before


def _link(world: CollectedWorld, repo: Repo, digest: Digest) -> BlobLink:
    found: Versioned[BlobLink] | None = world.records.link(repo, digest)
    assert found is not None
    return found.record


def test_97_a_reservation_outlives_the_grace_time_or_the_push_says_so(world: CollectedWorld) -> None:
    """A HEAD said yes. Within the grace time the manifest finds its layer; later it is told that the layer is unknown,
    and the client uploads it.
    """
    links, layer = Links(world.parts), world.upload(TWIN, b"one")
    world.push(TWIN, image(layer), "v1")
    pushing = Pushing(world.parts, placing := Placing(world.parts, links), Deleting(world.parts, links, placing))
    put = ManifestPut(read_manifest(image(layer, size=3)), "v1")

    assert links.reserve(APP, layer, 3, "user:a")
    world.collect(pause=GRACE - 1)
    pushing.put(APP, HostedRules(), put, "user:a", may_overwrite=False)
    assert world.catalog.pointed(APP, "v1") == put.manifest.digest

    late = Repo("corp", "team/late")
    assert links.reserve(late, layer, 3, "user:a")
    world.collect(3, pause=GRACE + 1)
    with pytest.raises(ManifestBlobUnknown) as caught:
        pushing.put(late, HostedRules(), put, "user:a", may_overwrite=False)
    assert str(layer) in caught.value.digests
    assert world.catalog.get_manifest(late, put.manifest.digest) is None
    assert world.catalog.tags(late) == []
