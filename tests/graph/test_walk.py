"""A walk over all manifests leaves out only what its caller has decided to leave out."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
import structlog

from mirror.errors import BlobDamaged, BlobUnreadable, RecordDamaged, StoreError
from mirror.graph.manifests import manifest_of_bytes
from mirror.graph.walk import (
    Trouble,
    all_must_be_readable,
    any_may_be_missing,
    damaged_may_be_missing,
    stored_in,
    walk,
)
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.oci.reference import Repo
from mirror.policy.records import ManifestRecord, References
from tests.support.memory_store import MemoryCatalog, MemoryStore

APP, TOOL = Repo("docker.io", "library/app"), Repo("docker.io", "library/tool")


class Store(MemoryStore):
    """Cannot read some blobs at the moment."""

    def __init__(self) -> None:
        super().__init__()
        self.unreadable: set[Digest] = set()

    def read(self, digest: Digest, limit: int) -> bytes:
        if digest in self.unreadable:
            raise BlobUnreadable(f"{digest}: Input/output error")
        return super().read(digest, limit)


class Records(MemoryCatalog):
    """Some records do not parse."""

    def __init__(self) -> None:
        super().__init__()
        self.damaged: set[Digest] = set()

    def get_manifest(self, repo: Repo, digest: Digest) -> ManifestRecord | None:
        if digest in self.damaged:
            raise RecordDamaged(f"the record of {digest} is damaged")
        return super().get_manifest(repo, digest)


class Site:
    """Three images, the first of them in two repositories."""

    def __init__(self) -> None:
        self.store, self.catalog = Store(), Records()
        self.layers = [Digest.of(b"%d" % number) for number in range(3)]
        self.images = [
            self._add(layer, repos) for layer, repos in zip(self.layers, ([APP, TOOL], [APP], [APP]), strict=True)
        ]

    def _add(self, layer: Digest, repos: Iterable[Repo]) -> Digest:
        body = {"mediaType": OCI_MANIFEST, "layers": [{"mediaType": "x/y", "digest": str(layer), "size": 1}]}
        content = json.dumps({"schemaVersion": 2, **body}).encode()
        digest = Digest.of(content)
        self.store.put(digest, content)
        for repo in repos:
            self.catalog.put_manifest(repo, ManifestRecord(digest, OCI_MANIFEST, len(content), 0.0))
        return digest

    def named(self, trouble: Trouble, repos: Iterable[Repo] | None = None) -> set[tuple[Repo, Digest, References]]:
        """What the bytes of all manifests name."""
        manifests = walk(self.catalog, lambda _repo, digest: manifest_of_bytes(self.store, digest), trouble, repos)
        return {(repo, digest, References.of(manifest)) for repo, digest, manifest in manifests}

    def expected(self, *numbers: int) -> set[tuple[Repo, Digest, References]]:
        """The same for these images."""
        images = [(APP, number) for number in numbers] + [(TOOL, 0)] * (0 in numbers)
        return {
            (repo, self.images[each], References(self.images[each], (), (self.layers[each],))) for repo, each in images
        }


@pytest.fixture
def site() -> Site:
    """Whole."""
    return Site()


@pytest.mark.parametrize("trouble", [all_must_be_readable, damaged_may_be_missing, any_may_be_missing])
def test_every_manifest_of_every_repository(site: Site, trouble: Trouble) -> None:
    """Each once for each repository that has it; a manifest whose bytes are gone names nothing."""
    assert site.named(trouble) == site.expected(0, 1, 2)
    assert {repo for repo, _, _ in site.named(trouble, [TOOL])} == {TOOL}
    site.store.delete(site.images[1])
    assert site.named(trouble) == site.expected(0, 2)


def test_what_cannot_be_read_now_may_name_anything(site: Site) -> None:
    """It ends a walk on which something depends, and is logged by one that is only shown."""
    site.store.unreadable.add(site.images[1])
    for trouble in (all_must_be_readable, damaged_may_be_missing):
        with pytest.raises(BlobUnreadable):
            site.named(trouble)
    with structlog.testing.capture_logs() as logs:
        assert site.named(any_may_be_missing) == site.expected(0, 2)
    assert [line["what"] for line in logs] == [f"{APP}@{site.images[1]}"]


def test_damaged_bytes_name_nothing_only_if_the_caller_says_so(site: Site) -> None:
    """A purge waits for a repair; eviction does not, because no client can pull them."""
    site.store.damage(site.images[1], b"something else")
    with pytest.raises(BlobDamaged):
        site.named(all_must_be_readable)
    assert site.named(damaged_may_be_missing) == site.expected(0, 2)


def test_a_damaged_record_does_not_hide_what_its_manifest_names(site: Site) -> None:
    """What a repository may serve depends on the record, what is needed does not."""
    site.catalog.damaged.add(site.images[1])
    assert site.named(all_must_be_readable) == site.expected(0, 1, 2)
    read = stored_in(site.store, site.catalog)
    assert site.images[1] not in {digest for _, digest, _ in walk(site.catalog, read, damaged_may_be_missing)}
    with pytest.raises(RecordDamaged):
        list(walk(site.catalog, read))


def test_a_repository_that_cannot_be_listed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing makes up for that, not even when the result is only shown."""

    def fail(_: Repo) -> Iterable[Digest]:
        raise StoreError("no descriptor left")

    monkeypatch.setattr(site.catalog, "manifest_digests", fail)
    with pytest.raises(StoreError, match="descriptor"):
        site.named(any_may_be_missing)
