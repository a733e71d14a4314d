"""Engines as fixtures: one of each for all tests of a process, started for the first one that asks.

Tests share the bucket: each works below a prefix of its own (`engine.access.below(…)`). A test that kills or slows an
engine starts one itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.engines.azurite import Azurite
from tests.support.engines.gcs_front import GcsFront
from tests.support.engines.radosgw import RadosGateway
from tests.support.engines.rclone import Rclone
from tests.support.engines.seaweedfs import SeaweedFS


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """S3."""
    with SeaweedFS(tmp_path_factory.mktemp("seaweedfs")) as running:
        yield running


@pytest.fixture(scope="session")
def radosgw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RadosGateway]:
    """S3, by Ceph."""
    with RadosGateway(tmp_path_factory.mktemp("radosgw")) as running:
        yield running


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """Azure."""
    with Azurite(tmp_path_factory.mktemp("azurite")) as running:
        yield running


@pytest.fixture(scope="session")
def gcs(seaweedfs: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsFront]:
    """GCS; its objects lie in the bucket of `seaweedfs`, below the same keys."""
    with GcsFront(seaweedfs, tmp_path_factory.mktemp("gcs")) as running:
        yield running


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rclone]:
    """S3 without the conditions of writes: what a mirror refuses."""
    with Rclone(tmp_path_factory.mktemp("rclone")) as running:
        yield running
