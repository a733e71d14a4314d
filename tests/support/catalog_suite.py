"""What every `Catalog` does. A test class inherits `CatalogSuite` and supplies the fixtures.

`catalog` is empty; `another` is a second one on the same disk.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import replace

import pytest

from mirror.errors import RecordChanged
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST
from mirror.oci.reference import Repo
from mirror.policy.records import ManifestRecord, Sighting, TagRecord
from mirror.ports import ABSENT, Catalog
from tests.support.ordered_names import must_be_ordered, names

ALPINE = Repo("docker.io", "library/alpine")
ONE = Digest.of(b"one")
TWO = Digest.of(b"two", "sha512")


def tag(name: str, digest: Digest = ONE, fetched_at: float = 1732419199.25) -> TagRecord:
    """A record of a tag."""
    return TagRecord(name, digest, OCI_INDEX, 1234, fetched_at)


def manifest(digest: Digest = ONE) -> ManifestRecord:
    """A record of a manifest."""
    return ManifestRecord(digest, OCI_MANIFEST, 567, 1732419199.25)


def count_up(catalog: Catalog, times: int) -> None:
    """Raise the size in the record of a tag by one, so many times, however many others do the same."""
    done = 0
    while done < times:
        with suppress(RecordChanged):
            found = catalog.tag(ALPINE, "counter")
            if found is None:
                catalog.put_tag(ALPINE, replace(tag("counter"), size=1), expect=ABSENT)
            else:
                catalog.put_tag(ALPINE, replace(found.record, size=found.record.size + 1), expect=found.version)
            done += 1


class CatalogSuite:
    """Fixtures to supply: `catalog`, `another`."""

    def test_the_absent_is_none(self, catalog: Catalog) -> None:
        """Nothing raises for what is not there."""
        assert catalog.get_tag(ALPINE, "latest") is None
        assert catalog.get_manifest(ALPINE, ONE) is None
        assert catalog.tags(ALPINE) == []
        assert catalog.get_history(ALPINE, "latest") == ()
        assert list(catalog.manifests(ALPINE)) == []
        assert list(catalog.manifest_digests(ALPINE)) == []
        assert list(catalog.repositories()) == []
        catalog.drop_tag(ALPINE, "latest")
        catalog.drop_manifest(ALPINE, ONE)

    def test_a_tag_comes_back_as_it_was_put(self, catalog: Catalog, another: Catalog) -> None:
        """For everyone, at once, in its repository only; put again it is replaced."""
        catalog.put_tag(ALPINE, tag("latest"))
        assert another.get_tag(ALPINE, "latest") == tag("latest")
        assert another.get_tag(ALPINE, "Latest") is None
        assert another.get_tag(Repo("ghcr.io", "library/alpine"), "latest") is None
        assert another.get_tag(Repo("docker.io", "library"), "latest") is None
        catalog.put_tag(ALPINE, tag("latest", TWO, 1732419300.0))
        assert another.get_tag(ALPINE, "latest") == tag("latest", TWO, 1732419300.0)

    def test_repositories_that_come_are_counted(self, catalog: Catalog, another: Catalog) -> None:
        """For everyone, at once; more of what is there already is no new one."""
        before = another.repositories_added()
        for repo in (ALPINE, Repo("docker.io", "library/alpine/nested"), Repo("ghcr.io", "library/alpine")):
            catalog.put_manifest(repo, manifest())
            after = another.repositories_added()
            assert after > before
            assert catalog.repositories_added() == after
            catalog.put_manifest(repo, manifest(TWO))
            catalog.drop_manifest(repo, TWO)
            assert another.repositories_added() == after
            before = after
        catalog.put_tag(Repo("ghcr.io", "tags/only"), tag("latest"))
        assert another.repositories_added() > before

    def test_an_emptied_repository_is_none(self, catalog: Catalog, another: Catalog) -> None:
        """Once its last tag and manifest are gone it is not listed; it comes back, and is counted, with the next."""
        catalog.put_tag(ALPINE, tag("latest"))
        catalog.put_manifest(ALPINE, manifest())
        catalog.drop_tag(ALPINE, "latest")
        assert list(another.repositories()) == [ALPINE]
        catalog.drop_manifest(ALPINE, ONE)
        assert list(another.repositories()) == []
        before = another.repositories_added()
        catalog.put_manifest(ALPINE, manifest())
        assert list(another.repositories()) == [ALPINE]
        assert another.repositories_added() > before
        catalog.drop_manifest(ALPINE, ONE)
        before = another.repositories_added()
        catalog.put_tag(ALPINE, tag("latest"))
        assert list(another.repositories()) == [ALPINE]
        assert another.repositories_added() > before

    def test_tags_are_sorted(self, catalog: Catalog) -> None:
        """Sorted by code point, in whichever order they were added, with every character that a tag may have."""
        names = ["v1.10", "v1.2", "_x", "1", "Z", "a-b", "A" * 128, "sha256-" + "a" * 64, "a..."]
        for name in names:
            catalog.put_tag(ALPINE, tag(name))
        assert catalog.tags(ALPINE) == sorted(names)
        assert all(catalog.get_tag(ALPINE, name) == tag(name) for name in names)

    def test_a_dropped_tag_is_gone(self, catalog: Catalog, another: Catalog) -> None:
        """And others stay; repeatable."""
        catalog.put_tag(ALPINE, tag("one"))
        catalog.put_tag(ALPINE, tag("two"))
        for _ in range(2):
            another.drop_tag(ALPINE, "one")
            assert catalog.get_tag(ALPINE, "one") is None
            assert catalog.tags(ALPINE) == ["two"]

    def test_a_tag_changes_only_from_the_expected_version(self, catalog: Catalog, another: Catalog) -> None:
        """A refused change or deletion changes nothing; without an expectation every change is made."""
        first = catalog.put_tag(ALPINE, tag("1.0"), expect=ABSENT)
        with pytest.raises(RecordChanged):
            another.put_tag(ALPINE, tag("1.0", TWO), expect=ABSENT)
        found = another.tag(ALPINE, "1.0")
        assert found
        assert (found.record, found.version) == (tag("1.0"), first)
        second = another.put_tag(ALPINE, tag("1.0", TWO), expect=first)
        assert second != first
        with pytest.raises(RecordChanged):
            catalog.put_tag(ALPINE, tag("1.0"), expect=first)
        with pytest.raises(RecordChanged):
            catalog.drop_tag(ALPINE, "1.0", expect=first)
        assert catalog.get_tag(ALPINE, "1.0") == tag("1.0", TWO)
        third = catalog.put_tag(ALPINE, tag("1.0", fetched_at=3.0))
        another.drop_tag(ALPINE, "1.0", expect=third)
        assert catalog.tag(ALPINE, "1.0") is None
        with pytest.raises(RecordChanged):
            catalog.put_tag(ALPINE, tag("1.0"), expect=third)
        assert catalog.tag(ALPINE, "1.0") is None

    def test_a_manifest_changes_only_from_the_expected_version(self, catalog: Catalog, another: Catalog) -> None:
        """As with tags; the version does not depend on the digest's algorithm."""
        for digest in (ONE, TWO):
            first = catalog.put_manifest(ALPINE, manifest(digest), expect=ABSENT)
            second = another.put_manifest(ALPINE, replace(manifest(digest), grants=(ONE,)), expect=first)
            with pytest.raises(RecordChanged):
                catalog.drop_manifest(ALPINE, digest, expect=first)
            found = catalog.manifest(ALPINE, digest)
            assert found
            assert (found.record.grants, found.version) == ((ONE,), second)
            catalog.drop_manifest(ALPINE, digest, expect=second)
            assert another.manifest(ALPINE, digest) is None

    def test_no_change_is_lost(self, catalog: Catalog, another: Catalog) -> None:
        """Of writers at the same time that expect the same version one succeeds; the others read again."""
        threads = [threading.Thread(target=count_up, args=(one, 20)) for one in (catalog, another) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = catalog.get_tag(ALPINE, "counter")
        assert found
        assert found.size == 80

    def test_a_history_comes_back_as_it_was_put(self, catalog: Catalog, another: Catalog) -> None:
        """In its order, with a digest twice; for everyone, of its tag and repository only; put again it is replaced."""
        seen = tuple(
            Sighting(digest, OCI_INDEX, 1234, time, time + 0.25)
            for time, digest in ((1732419199.25, ONE), (1732419300.0, TWO), (1732419400.5, ONE))
        )
        catalog.put_history(ALPINE, "1.0", seen)
        assert another.get_history(ALPINE, "1.0") == seen
        assert another.get_history(ALPINE, "1.1") == ()
        assert another.get_history(Repo("docker.io", "library/busybox"), "1.0") == ()
        another.put_history(ALPINE, "1.0", seen[1:])
        assert catalog.get_history(ALPINE, "1.0") == seen[1:]

    def test_a_history_outlives_its_tag(self, catalog: Catalog, another: Catalog) -> None:
        """A dropped tag leaves what it has pointed to; a history alone is neither a tag nor a repository."""
        seen = (Sighting(ONE, OCI_INDEX, 1234, 1.0, 2.0),)
        catalog.put_tag(ALPINE, tag("1.0"))
        catalog.put_history(ALPINE, "1.0", seen)
        another.drop_tag(ALPINE, "1.0")
        assert catalog.get_history(ALPINE, "1.0") == seen
        assert catalog.get_tag(ALPINE, "1.0") is None
        assert catalog.tags(ALPINE) == []
        catalog.put_history(Repo("docker.io", "library/busybox"), "1.0", seen)
        assert Repo("docker.io", "library/busybox") not in another.repositories()

    def test_a_manifest_belongs_to_its_repository(self, catalog: Catalog, another: Catalog) -> None:
        """Linked in one repository, a manifest is not in another; both algorithms work; put again it is replaced."""
        catalog.put_manifest(ALPINE, manifest())
        catalog.put_manifest(ALPINE, manifest(TWO))
        assert another.get_manifest(ALPINE, ONE) == manifest()
        assert another.get_manifest(ALPINE, TWO) == manifest(TWO)
        assert another.get_manifest(Repo("docker.io", "library/busybox"), ONE) is None
        newer = ManifestRecord(ONE, OCI_INDEX, 1, 2.5)
        catalog.put_manifest(ALPINE, newer)
        assert sorted(another.manifests(ALPINE), key=lambda record: record.digest) == [newer, manifest(TWO)]

    def test_a_dropped_manifest_is_gone(self, catalog: Catalog, another: Catalog) -> None:
        """And others stay; repeatable."""
        catalog.put_manifest(ALPINE, manifest())
        catalog.put_manifest(ALPINE, manifest(TWO))
        for _ in range(2):
            another.drop_manifest(ALPINE, ONE)
            assert catalog.get_manifest(ALPINE, ONE) is None
            assert list(catalog.manifests(ALPINE)) == [manifest(TWO)]
            assert list(catalog.manifest_digests(ALPINE)) == [TWO]

    def test_repositories_are_in_the_order_of_text(self, catalog: Catalog, another: Catalog) -> None:
        """After whichever text they begin."""
        listed = names(7, 40)
        for number, repo in enumerate(listed):
            if number % 2:
                catalog.put_tag(repo, tag("latest"))
            else:
                catalog.put_manifest(repo, manifest())
        must_be_ordered(another.repositories, listed)

    def test_every_repository_is_listed(self, catalog: Catalog, another: Catalog) -> None:
        """Once each, with tags or manifests or both, nested ones, and those whose names look like our own folders."""
        with_tags = [
            ALPINE,
            Repo("localhost:5000", "a"),
            Repo("docker.io", "tags/latest"),
            Repo("docker.io", "library"),
        ]
        with_manifests = [
            ALPINE,
            Repo("localhost:5000", "a/b/c"),
            Repo("docker.io", "manifests"),
            Repo("10.0.0.1", "x"),
        ]
        for repo in with_tags:
            catalog.put_tag(repo, tag("latest"))
        for repo in with_manifests:
            catalog.put_manifest(repo, manifest())
        assert list(another.repositories()) == sorted({*with_tags, *with_manifests}, key=str)
        for repo in with_tags:
            assert another.tags(repo) == ["latest"]
        for repo in with_manifests:
            assert list(another.manifests(repo)) == [manifest()]
