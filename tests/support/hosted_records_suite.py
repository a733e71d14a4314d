"""What every `HostedRecords` does. A test class inherits `HostedRecordsSuite` and supplies the fixtures.

`records` is empty; `another` is a second one on the same disk; `catalog` is the catalog beside them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest

from mirror.errors import RecordChanged
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST, Descriptor
from mirror.oci.reference import Repo
from mirror.policy.hosted_records import BlobLink, DeletedManifest, DeletedTag, LinkState
from mirror.policy.records import ManifestRecord, TagRecord
from mirror.ports import ABSENT, Catalog, HostedRecords
from tests.support.ordered_names import must_be_ordered, names

APP = Repo("corp", "team/app")
#: Its name begins like the other's, and is not part of it.
BASE = Repo("corp", "team")
ONE = Digest.of(b"one")
TWO = Digest.of(b"two", "sha512")


def link(digest: Digest = ONE, state: LinkState = LinkState.LINKED, since: float = 1732419199.25) -> BlobLink:
    """A link to a blob of 1234 bytes."""
    return BlobLink(digest, 1234, state, since)


def deleted(digest: Digest = ONE) -> DeletedManifest:
    """A deleted manifest with two tags."""
    return DeletedManifest(digest, OCI_MANIFEST, 567, 1732419199.25, 1732419300.5, "user:alice", ("1.0", "latest"))


def deleted_tag(tag: str = "1.0", digest: Digest = ONE) -> DeletedTag:
    """A deleted tag."""
    return DeletedTag(tag, digest, OCI_MANIFEST, 567, 1732419300.5, "user:alice")


def signature(digest: Digest) -> Descriptor:
    """The descriptor of a referrer."""
    return Descriptor(OCI_MANIFEST, digest, 89, "application/vnd.example.signature", {"signed-by": "Zoë"})


def referrers_of(records: HostedRecords, repo: Repo, subject: Digest) -> list[Descriptor]:
    """All entries of a subject, sorted by digest."""
    found = (records.referrer(repo, subject, digest) for digest in sorted(records.referrer_digests(repo, subject)))
    return [each for each in found if each is not None]


def renew(records: HostedRecords, times: int) -> None:
    """Move the link's `since` forward by one second, so many times, however many others do the same."""
    done = 0
    while done < times:
        with suppress(RecordChanged):
            found = records.link(APP, ONE)
            if found is None:
                records.put_link(APP, link(since=1.0), expect=ABSENT)
            else:
                later = replace(found.record, since=found.record.since + 1)
                records.put_link(APP, later, expect=found.version)
            done += 1


class HostedRecordsSuite:
    """Fixtures to supply: `records`, `another`, `catalog`."""

    def test_the_absent_is_none(self, records: HostedRecords) -> None:
        """Nothing raises for what is not there, and dropping it is no error."""
        assert records.link(APP, ONE) is None
        assert list(records.linked(APP)) == []
        assert referrers_of(records, APP, ONE) == []
        assert records.deleted_manifest(APP, ONE) is None
        assert list(records.deleted_manifests(APP)) == []
        assert records.deleted_tag(APP, "1.0") is None
        assert list(records.deleted_tags(APP)) == []
        assert list(records.repositories("corp")) == []
        assert records.changes(APP) == 0
        records.drop_link(APP, ONE)
        records.drop_link(APP, ONE, expect=ABSENT)
        records.drop_referrer(APP, ONE, TWO)
        records.drop_deleted_manifest(APP, ONE)
        records.drop_deleted_tag(APP, "1.0")
        records.flush()

    @pytest.mark.parametrize("state", LinkState)
    @pytest.mark.parametrize("digest", [ONE, TWO])
    def test_a_link_comes_back_as_it_was_put(
        self, records: HostedRecords, another: HostedRecords, digest: Digest, state: LinkState
    ) -> None:
        """Every reader sees it at once, with all its fields, in its repository only."""
        reserved = replace(link(digest, state), by="user:alice", queued_at=1732419200.75)
        records.put_link(APP, reserved)
        found = another.link(APP, digest)
        assert found
        assert found.record == reserved
        assert list(another.linked(APP)) == [digest]
        for repo in (BASE, Repo("corp", "team/app/nested"), Repo("other", "team/app")):
            assert another.link(repo, digest) is None
            assert list(another.linked(repo)) == []
        another.drop_link(APP, digest)
        assert records.link(APP, digest) is None
        assert list(records.linked(APP)) == []

    def test_a_link_changes_only_from_the_expected_version(
        self, records: HostedRecords, another: HostedRecords
    ) -> None:
        """A collector that has seen an older link cannot drop one that was renewed."""
        first = records.put_link(APP, link(), expect=ABSENT)
        with pytest.raises(RecordChanged):
            another.put_link(APP, link(since=2.0), expect=ABSENT)
        second = another.put_link(APP, link(since=2.0), expect=first)
        with pytest.raises(RecordChanged):
            records.drop_link(APP, ONE, expect=first)
        found = records.link(APP, ONE)
        assert found
        assert (found.record.since, found.version) == (2.0, second)
        records.drop_link(APP, ONE, expect=second)
        assert another.link(APP, ONE) is None
        with pytest.raises(RecordChanged):
            another.put_link(APP, link(), expect=second)

    def test_no_change_of_a_link_is_lost(self, records: HostedRecords, another: HostedRecords) -> None:
        """Of writers at the same time that expect the same version one succeeds; the others read again."""
        threads = [threading.Thread(target=renew, args=(one, 20)) for one in (records, another) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = records.link(APP, ONE)
        assert found
        assert found.record.since == 80.0

    def test_referrers_are_sorted_by_digest(self, records: HostedRecords, another: HostedRecords) -> None:
        """With artifact type and annotations; only those of the subject, in its repository; each once."""
        signatures = [signature(Digest.of(bytes([number]))) for number in range(5)]
        for one in (*signatures, signatures[0]):
            records.put_referrer(APP, ONE, one)
        records.put_referrer(APP, TWO, signature(TWO))
        assert referrers_of(another, APP, ONE) == sorted(signatures, key=lambda one: one.digest)
        assert referrers_of(another, APP, TWO) == [signature(TWO)]
        assert referrers_of(another, BASE, ONE) == []
        for _ in range(2):
            another.drop_referrer(APP, ONE, signatures[0].digest)
            assert sorted(one.digest for one in referrers_of(records, APP, ONE)) == sorted(
                one.digest for one in signatures[1:]
            )

    def test_a_referrer_that_is_put_again_is_replaced(self, records: HostedRecords) -> None:
        """The later descriptor counts."""
        records.put_referrer(APP, ONE, signature(TWO))
        later = replace(signature(TWO), annotations={})
        records.put_referrer(APP, ONE, later)
        assert referrers_of(records, APP, ONE) == [later]

    def test_a_deleted_manifest_comes_back_as_it_was_put(self, records: HostedRecords, another: HostedRecords) -> None:
        """With its tags; it changes only from the expected version."""
        for digest in (ONE, TWO):
            version = records.put_deleted_manifest(APP, deleted(digest), expect=ABSENT)
            found = another.deleted_manifest(APP, digest)
            assert found
            assert (found.record, found.version) == (deleted(digest), version)
        assert sorted(another.deleted_manifests(APP)) == sorted([ONE, TWO])
        assert list(another.deleted_manifests(BASE)) == []
        with pytest.raises(RecordChanged):
            another.put_deleted_manifest(APP, deleted(), expect=ABSENT)
        later = another.put_deleted_manifest(APP, replace(deleted(), tags=()))
        with pytest.raises(RecordChanged):
            records.drop_deleted_manifest(APP, TWO, expect=later)
        records.drop_deleted_manifest(APP, ONE, expect=later)
        assert another.deleted_manifest(APP, ONE) is None
        assert list(another.deleted_manifests(APP)) == [TWO]

    def test_a_deleted_tag_comes_back_as_it_was_put(self, records: HostedRecords, another: HostedRecords) -> None:
        """Sorted with others; it changes only from the expected version."""
        for tag in ("v2", "1.0", "sha256-" + "a" * 64):
            records.put_deleted_tag(APP, deleted_tag(tag), expect=ABSENT)
        assert list(another.deleted_tags(APP)) == ["1.0", "sha256-" + "a" * 64, "v2"]
        found = another.deleted_tag(APP, "v2")
        assert found
        assert found.record == deleted_tag("v2")
        with pytest.raises(RecordChanged):
            another.put_deleted_tag(APP, deleted_tag("v2", TWO), expect=ABSENT)
        later = another.put_deleted_tag(APP, deleted_tag("v2", TWO), expect=found.version)
        with pytest.raises(RecordChanged):
            records.drop_deleted_tag(APP, "v2", expect=found.version)
        records.drop_deleted_tag(APP, "v2", expect=later)
        assert another.deleted_tag(APP, "v2") is None
        assert list(another.deleted_tags(BASE)) == []

    def test_every_change_is_seen(self, records: HostedRecords, another: HostedRecords) -> None:
        """The number differs after each change, for everyone, and for its repository only."""
        seen = {another.changes(APP)}
        for one in (records, another, records):
            one.note_change(APP)
            assert records.changes(APP) == another.changes(APP)
            assert another.changes(APP) not in seen
            seen.add(another.changes(APP))
        assert -1 not in seen
        assert another.changes(BASE) == 0
        records.note_change(BASE)
        assert another.changes(BASE) != 0

    def test_changes_at_the_same_time(self, records: HostedRecords, another: HostedRecords) -> None:
        """Each of many writers sees another number after its change than before."""
        same: list[int] = []

        def change(one: HostedRecords) -> None:
            for _ in range(50):
                before = one.changes(APP)
                one.note_change(APP)
                if one.changes(APP) == before:
                    same.append(before)

        threads = [threading.Thread(target=change, args=(one,)) for one in (records, another) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert same == []

    def test_what_is_a_repository(self, records: HostedRecords, another: HostedRecords, catalog: Catalog) -> None:
        """For collection: whatever has a tag, a manifest, a link or a deletion, of this registry. For lists of images:
        only what has a tag or a manifest.
        """
        images = [Repo("corp", "tagged"), Repo("corp", "a/manifest"), Repo("other", "tagged")]
        catalog.put_tag(images[0], TagRecord("1.0", ONE, OCI_MANIFEST, 1, 1.0))
        catalog.put_manifest(images[1], ManifestRecord(ONE, OCI_MANIFEST, 1, 1.0))
        catalog.put_tag(images[2], TagRecord("1.0", ONE, OCI_MANIFEST, 1, 1.0))
        others = [
            Repo("corp", "a"),
            Repo("corp", "a/manifest/b"),
            Repo("corp", "blobs"),
            Repo("corp", "tagged/deleted"),
        ]
        records.put_link(others[0], link())
        records.put_deleted_manifest(others[1], deleted())
        records.put_deleted_tag(others[2], deleted_tag())
        records.put_link(others[3], link())
        records.note_change(Repo("corp", "changed/only"))
        assert sorted(another.repositories("corp")) == sorted([*images[:2], *others])
        assert list(another.repositories("other")) == [images[2]]
        assert list(another.repositories("corporation")) == []
        records.drop_link(others[3], ONE)
        assert others[3] not in another.repositories("corp")
        assert sorted(catalog.repositories()) == sorted(images)

    def test_repositories_are_in_the_order_of_text(self, records: HostedRecords, another: HostedRecords) -> None:
        """After whichever text they begin; each once, whatever it has."""
        listed = names(11, 40, ["corp"])
        for number, repo in enumerate(listed):
            if number % 2:
                records.put_link(repo, link())
            if number % 3 != 1:
                records.put_deleted_manifest(repo, deleted())
            if number % 6 == 4:
                records.put_deleted_tag(repo, deleted_tag())
        records.put_link(Repo("corp-x", "a"), link())
        must_be_ordered(lambda after: another.repositories("corp", after), listed)

    def test_a_name_stays_taken_until_it_is_released(
        self, records: HostedRecords, another: HostedRecords, catalog: Catalog
    ) -> None:
        """A record of what was pushed takes a name, also for other processes. It stays taken when the record has gone,
        and is released only then. Names above and below it are others.
        """
        assert not records.is_taken(APP)
        assert list(records.taken("corp")) == []
        assert records.release(APP)
        writes: list[Callable[[], object]] = [
            lambda: records.put_deleted_manifest(APP, deleted()),
            lambda: records.put_deleted_tag(APP, deleted_tag()),
            lambda: records.put_referrer(APP, ONE, signature(TWO)),
            lambda: catalog.put_tag(APP, TagRecord("1.0", ONE, OCI_MANIFEST, 1, 1.0)),
            lambda: catalog.put_manifest(APP, ManifestRecord(ONE, OCI_MANIFEST, 1, 1.0)),
        ]
        for write in writes:
            write()
            assert another.is_taken(APP)
            assert not another.is_taken(BASE)
            assert not another.is_taken(Repo("corp", "team/app/below"))
            assert not records.release(APP)
            assert another.is_taken(APP)
            records.note_change(APP)
            records.drop_deleted_manifest(APP, ONE)
            records.drop_deleted_tag(APP, "1.0")
            records.drop_referrer(APP, ONE, TWO)
            catalog.drop_tag(APP, "1.0")
            catalog.drop_manifest(APP, ONE)
            assert another.is_taken(APP)
            assert list(another.taken("corp")) == list(records.taken("corp")) == [APP]
            assert records.release(APP)
            assert not another.is_taken(APP)

    def test_a_push_under_way_takes_the_name(self, records: HostedRecords, another: HostedRecords) -> None:
        """A link takes it while it is there, in whatever state; a reservation does not, nor does a mere change."""
        for state in (LinkState.RESERVED, LinkState.LINKED, LinkState.RESERVED, LinkState.REMOVED):
            records.put_link(APP, link(TWO, LinkState.RESERVED))
            records.put_link(APP, link(ONE, state))
            records.note_change(APP)
            for each in (records, another, another):
                assert each.is_taken(APP) == (state is not LinkState.RESERVED)
        assert list(records.taken("corp")) == []
        assert not records.release(APP)
        records.drop_link(APP, ONE)
        records.note_change(APP)
        assert not another.is_taken(APP)
        records.drop_link(APP, TWO)
        records.note_change(APP)
        assert not another.is_taken(APP)
