"""The suite of buckets, and the probe, against each real store."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import pytest

from mirror.errors import BucketDenied, BucketUnfit
from mirror.ports import Bucket
from mirror.store.objects.bucket_check import check_bucket
from mirror.store.objects.bucket_probe import probe_conditions
from tests.support.bucket_suite import BucketSuite
from tests.support.engines.access import BucketAccess
from tests.support.engines.azurite import Azurite
from tests.support.engines.gcs_front import GcsFront
from tests.support.engines.radosgw import RadosGateway
from tests.support.engines.rclone import Rclone
from tests.support.engines.seaweedfs import SeaweedFS
from tests.support.opened_bucket import opened_bucket


def opened(access: BucketAccess, folder: Path) -> Bucket:
    """As a mirror opens it, below a prefix that only this test uses."""
    prefix = re.sub(r"[^a-z0-9]+", "-", f"{folder.parent.name}-{folder.name}".lower())
    return opened_bucket(folder, access.below(prefix))


class EngineSuite(BucketSuite):
    """Fixtures to supply: `access`."""

    THREE_PARTS: ClassVar[int] = (16 << 20) + 1

    @pytest.fixture
    def bucket(self, access: BucketAccess, tmp_path: Path) -> Iterator[Bucket]:
        """Empty, because its prefix is new."""
        with closing(opened(access, tmp_path)) as bucket:
            yield bucket

    def test_it_is_fit(self, bucket: Bucket) -> None:
        """The probe finds nothing, and leaves nothing."""
        probe_conditions(bucket)
        assert list(bucket.list("")) == []

    def test_every_check_passes(self, bucket: Bucket) -> None:
        """Of `mirror check --online`."""
        checks = check_bucket(bucket)
        assert [check for check in checks if not check.ok] == []
        assert list(bucket.list("")) == []


class TestSeaweedFS(EngineSuite):
    """S3."""

    @pytest.fixture
    def access(self, seaweedfs: SeaweedFS) -> BucketAccess:
        """Of its owner."""
        return seaweedfs.access


class TestRadosGateway(EngineSuite):
    """S3, by Ceph."""

    @pytest.fixture
    def access(self, radosgw: RadosGateway) -> BucketAccess:
        """Of its owner."""
        return radosgw.access


class TestAzurite(EngineSuite):
    """Azure."""

    @pytest.fixture
    def access(self, azurite: Azurite) -> BucketAccess:
        """Of its owner."""
        return azurite.access


class TestGcs(EngineSuite):
    """GCS."""

    @pytest.fixture
    def access(self, gcs: GcsFront) -> BucketAccess:
        """Of its owner."""
        return gcs.access


@pytest.fixture(params=["seaweedfs", "radosgw", "azurite", "gcs"])
def read_only(request: pytest.FixtureRequest) -> BucketAccess:
    """Of somebody who may only read and list."""
    access: BucketAccess = request.getfixturevalue(request.param).read_only
    return access


def test_a_reader_is_told_what_is_missing(read_only: BucketAccess, tmp_path: Path) -> None:
    """Reading and listing work; each other thing names its permission, and is not taken for an outage."""
    with closing(opened(read_only, tmp_path)) as bucket:
        checks = {check.step: check for check in check_bucket(bucket)}
        assert {step for step, check in checks.items() if check.ok} & {"write", "delete"} == set()
        assert checks["read"].ok
        assert checks["list"].ok
        assert "permission" in checks["write"].advice
        with pytest.raises(BucketDenied):
            bucket.write("key", b"1")


def test_rclone_is_refused(rclone: Rclone, tmp_path: Path) -> None:
    """It lets an object be created twice, and says so to nobody."""
    with closing(opened(rclone.access, tmp_path)) as bucket:
        with pytest.raises(BucketUnfit, match="created twice"):
            probe_conditions(bucket)
        assert list(bucket.list("")) == []
