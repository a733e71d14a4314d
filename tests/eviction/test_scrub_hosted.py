"""The scrub of hosted blobs: what is damaged is found under each name, and repaired if a sound file is at hand."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from mirror.errors import BlobUnknown
from mirror.eviction.scrub import HostedNaming, Owner, Scrub, ScrubProgress, dangling_records, scrub_all
from mirror.graph.blob_places import BlobPlaces
from mirror.graph.damage import restore_hosted
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.oci.reference import Repo
from mirror.policy.records import ManifestRecord
from mirror.store.hosted.blob_names import HostedNames
from mirror.store.hosted.contents import LocalContents
from mirror.store.local.blobs import LocalStore
from mirror.store.local.json_records import JsonRecords
from mirror.store.local.layout import Layout
from mirror.store.local.local_records import local_catalog

HOSTED, CACHED = Repo("corp", "team/app"), Repo("docker.io", "library/app")
CONFIG, LAYER = b"{}", b"layer" * 100
DIGEST = Digest.of(LAYER)


class Site:
    """A store with an image of a hosted and of a cached repository, and what scrubs it."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        self.store = LocalStore(self.layout)
        self.hosted = HostedNames(self.layout)
        self.contents = LocalContents(self.layout)
        self.catalog = local_catalog(self.layout)
        self.places = BlobPlaces(self.store, self.contents, lambda repo: repo == HOSTED)
        self.fetched: list[Owner] = []

    def push(self, repo: Repo) -> None:
        """The image becomes one of this repository."""
        put = self.hosted.put if repo == HOSTED else self.store.put
        named = [{"mediaType": "a/b", "digest": str(Digest.of(each)), "size": len(each)} for each in (CONFIG, LAYER)]
        manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": named[0], "layers": named[1:]}
        content = json.dumps(manifest).encode()
        for each in (CONFIG, LAYER, content):
            put(Digest.of(each), each)
        self.catalog.put_manifest(repo, ManifestRecord(Digest.of(content), OCI_MANIFEST, len(content), 1.0))

    def unname(self, digest: Digest) -> None:
        """The blob loses its hosted name."""
        Path(self.layout.hosted_blob(digest)).unlink()

    def is_one_file(self, digest: Digest) -> bool:
        """True if both names of the blob lead to it."""
        return Path(self.layout.blob(digest)).samefile(self.layout.hosted_blob(digest))

    async def fetch(self, owner: Owner, digest: Digest) -> None:
        """What an upstream has."""
        self.fetched.append(owner)
        assert owner.repo == CACHED
        self.store.put(digest, LAYER)

    async def scrub(self) -> ScrubProgress:
        """Of everything."""
        scrub = Scrub(
            self.store,
            self.catalog,
            hosted=HostedNaming(self.hosted, self.places),
            fetch_again=self.fetch,
            may_fetch=lambda repo: repo != HOSTED,
        )
        return await scrub_all(scrub, self.contents, JsonRecords(self.layout, "scrub"), now=time.time)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Empty."""
    return Site(tmp_path)


def spoil(path: str) -> None:
    """Other bytes of the same number."""
    file = Path(path)
    file.chmod(0o600)
    file.write_bytes(b"x" * file.stat().st_size)


async def test_a_damaged_hosted_blob_is_lost_and_kept(site: Site) -> None:
    """Nothing but a push brings it back: it is reported, and nobody is asked for it."""
    site.push(HOSTED)
    spoil(site.layout.hosted_blob(DIGEST))
    progress = await site.scrub()
    assert (progress.blobs, progress.damaged, progress.lost) == (3, 1, [DIGEST])
    assert [blob.digest for blob in site.hosted.damaged()] == [DIGEST]
    assert not site.fetched


async def test_an_upstream_of_the_same_blob_repairs_it(site: Site) -> None:
    """Both names lead to one file; a cached repository fetches the blob, and it gets both names again."""
    site.push(CACHED)
    site.push(HOSTED)
    site.unname(DIGEST)
    site.hosted.adopt(DIGEST)
    spoil(site.layout.hosted_blob(DIGEST))
    progress = await site.scrub()
    assert (progress.damaged, progress.repaired, progress.lost) == (1, 1, [])
    assert [owner.repo for owner in site.fetched] == [CACHED]
    assert site.is_one_file(DIGEST)
    assert not site.hosted.damaged()


async def test_a_sound_file_of_the_cache_repairs_it(site: Site) -> None:
    """It gets the hosted name, and nobody is asked."""
    site.push(CACHED)
    site.push(HOSTED)
    spoil(site.layout.hosted_blob(DIGEST))
    progress = await site.scrub()
    assert (progress.damaged, progress.repaired) == (1, 1)
    assert not site.fetched
    assert site.hosted.hosted(DIGEST).size == len(LAYER)
    assert site.contents.read(DIGEST, 1000) == LAYER


async def test_a_pull_of_the_same_blob_repairs_it(site: Site) -> None:
    """A cached repository has fetched it again; the hourly look gives it the hosted name, unless it is damaged, too."""
    site.push(HOSTED)
    spoil(site.layout.hosted_blob(DIGEST))
    assert (await site.scrub()).lost == [DIGEST]
    assert restore_hosted(site.store, site.hosted) == 1
    site.store.put(DIGEST, LAYER)
    spoil(site.layout.blob(DIGEST))
    assert restore_hosted(site.store, site.hosted) == 1
    site.store.put(DIGEST, LAYER)
    assert restore_hosted(site.store, site.hosted) == 0
    assert site.is_one_file(DIGEST)


async def test_a_damaged_file_of_the_cache_costs_hosted_content_nothing(site: Site) -> None:
    """The cached repository fetches it again; if there is none, the blob is not lost."""
    site.push(HOSTED)
    site.store.put(DIGEST, LAYER)
    spoil(site.layout.blob(DIGEST))
    progress = await site.scrub()
    assert (progress.damaged, progress.unneeded, progress.lost) == (1, 1, [])
    with pytest.raises(BlobUnknown):
        site.store.stat(DIGEST)
    assert site.contents.read(DIGEST, 1000) == LAYER


async def test_one_file_with_two_names_is_read_once(site: Site) -> None:
    """Two files are both read."""
    site.store.put(DIGEST, LAYER)
    site.hosted.adopt(DIGEST)
    assert (await site.scrub()).bytes == len(LAYER)
    site.unname(DIGEST)
    site.hosted.put(DIGEST, LAYER)
    assert (await site.scrub()).bytes == 2 * len(LAYER)


def test_records_of_hosted_manifests_do_not_dangle(site: Site) -> None:
    """Their bytes have a hosted name alone; those of a cached repository need the cache's."""
    site.push(HOSTED)
    [manifest] = site.catalog.manifests(HOSTED)
    site.catalog.put_manifest(CACHED, manifest)
    assert list(dangling_records(site.catalog, site.places)) == [f"{CACHED}@{manifest.digest}: its manifest is gone"]
