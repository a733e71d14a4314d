"""Hosted blobs in real object stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mirror.ports import BlobStore, Bucket, HostedBlobs
from mirror.store.objects.hosted_blobs import HostedObjects
from mirror.store.objects.hosted_sweep import HostedSweep
from mirror.store.objects.object_keys import hosted_key
from tests.support.hosted_blobs_suite import CONTENT, DIGEST, HostedBlobsSuite
from tests.support.object_site import BucketProcess, PlainContents
from tests.support.opened_bucket import opened_bucket
from tests.support.uploads_suite import opened, pushed


@pytest.fixture(params=["seaweedfs", "radosgw", "azurite", "gcs"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bucket]:
    """Nothing lies below its prefix."""
    engine: Any = request.getfixturevalue(request.param)
    bucket = opened_bucket(tmp_path, engine.access.below(f"hosted-{tmp_path.name}"))
    yield bucket
    bucket.close()


@pytest.fixture
def site(bucket: Bucket, tmp_path: Path) -> BucketProcess:
    """Its disk has no room for copies: what is read comes from the bucket."""
    return BucketProcess(tmp_path, bucket, copies=False)


class TestHostedInEngines(HostedBlobsSuite):
    """They behave like the model in memory."""

    @pytest.fixture
    def hosted(self, site: BucketProcess) -> HostedObjects:
        """None yet."""
        return site.hosted

    @pytest.fixture
    def contents(self, site: BucketProcess) -> PlainContents:
        """Reads the bucket and the cache."""
        return site.contents

    @pytest.fixture
    def cache(self, site: BucketProcess) -> BlobStore:
        """Empty."""
        return site.cache

    @pytest.fixture
    def another(self, bucket: Bucket, tmp_path: Path) -> HostedBlobs:
        """Another process of the same machine."""
        return BucketProcess(tmp_path, bucket, copies=False).hosted


def test_a_sweep(site: BucketProcess, bucket: Bucket) -> None:
    """It sees every object once, in the order of states, and finds the one that is gone. What is young stays."""
    contents = [f"blob {number}".encode() for number in range(60)]
    upload = opened(site.uploads, pushed(site.uploads, CONTENT))
    upload.publish(DIGEST)
    for content in contents:
        site.hosted.put(DIGEST.of(content), content)
    bucket.write(hosted_key(DIGEST, "0" * 16), CONTENT)
    gone = DIGEST.of(contents[7])
    bucket.delete([site.key(gone)])
    sweep = HostedSweep(bucket, site.views, site.hosted.lost, now=site.now, page=7)
    pages = list(sweep.pages(""))
    assert sum(page.objects for page in pages) == 61
    assert sum(page.lost for page in pages) == 1
    assert sum(page.deleted + page.queued for page in pages) == 0
    assert [blob.digest for blob in site.hosted.damaged()] == [gone]
    half = len(pages) // 2
    rest = list(sweep.pages(pages[half].after))
    assert sum(page.objects for page in rest) == sum(page.objects for page in pages[half + 1 :])
    sweep.leftovers()
    assert not list(bucket.list("probe/"))
