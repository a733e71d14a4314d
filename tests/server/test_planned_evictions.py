"""The plan of an eviction names its images, and reads no other repositories for that."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import pytest

from mirror.config import Config, routing_table
from mirror.errors import IndexUnavailable
from mirror.eviction.reconcile import MARK
from mirror.graph.blob_places import BlobPlaces
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.oci.reference import Repo
from mirror.policy.eviction import Victim
from mirror.policy.hosted.stay_rules import StayRules
from mirror.policy.records import ManifestRecord, TagRecord
from mirror.server.admin.image_admin import ImageAdmin
from tests.support.memory_index import MemoryIndex
from tests.support.memory_store import MemoryCatalog, MemoryStore

_REPOS = [Repo("docker.io", f"team/app-{number}") for number in range(100)]
_IMAGE = Digest.of(b"image")
_COPY = Digest.of(b"copy of a hosted image")


class _CountingCatalog(MemoryCatalog):
    """Notes which repositories are looked into."""

    def __init__(self) -> None:
        super().__init__()
        self.looked: set[Repo] = set()

    def manifest_digests(self, repo: Repo) -> Iterable[Digest]:
        self.looked.add(repo)
        return super().manifest_digests(repo)


class _Space:
    """Would evict these."""

    async def plan(self, size: int | None, *, short: bool) -> list[Victim]:
        """As `Space`."""
        return [Victim(image, 10, 1.0, "old", (image,), 1.0) for image in (_IMAGE, _COPY)]


class _FailingIndex(MemoryIndex):
    async def marker(self) -> str | None:
        raise IndexUnavailable("down")


async def _planned(catalog: MemoryCatalog, index: MemoryIndex) -> list[list[str]]:
    for number, repo in enumerate(_REPOS):
        digest = {0: _COPY, 7: _IMAGE, 8: _IMAGE}.get(number, Digest.of(str(repo).encode()))
        catalog.put_tag(repo, TagRecord("v1", digest, OCI_MANIFEST, 10, 1.0))
        catalog.put_manifest(repo, ManifestRecord(digest, OCI_MANIFEST, 10, 1.0))
    unused = cast("Any", None)
    settings: dict[str, Any] = {}
    blobs = BlobPlaces.only(MemoryStore())
    blobs = BlobPlaces(
        blobs.cache,
        blobs.contents,
        blobs.is_hosted,
        hosted_holders=lambda digest, _: _REPOS[:1] if digest == _COPY else (),
    )
    admin = ImageAdmin(
        blobs, catalog, unused, unused, index, unused, cast("Any", _Space()), unused,
        rules=StayRules(), table=routing_table(Config(**settings)),
    )  # fmt: skip
    reply = await admin.plan({"limit": "20"})
    return [image["names"] for image in reply["images"]]


_NAMES = [[f"{_REPOS[7]}:v1", f"{_REPOS[8]}:v1"], [f"{_REPOS[0]}:v1"]]


async def test_only_repositories_that_have_an_image_are_read() -> None:
    """Cached ones by the index, hosted ones by the ledger."""
    catalog, index = _CountingCatalog(), MemoryIndex()
    await index.set_marker(MARK)
    for repo in _REPOS[7:9]:
        await index.link(repo, {_IMAGE: 10})
    assert await _planned(catalog, index) == _NAMES
    assert catalog.looked == {_REPOS[0], *_REPOS[7:9]}


@pytest.mark.parametrize("kind", ["no mark", "no link", "down"])
async def test_an_index_that_does_not_know_is_not_believed(kind: str) -> None:
    """Then all repositories are read."""
    catalog, index = _CountingCatalog(), _FailingIndex() if kind == "down" else MemoryIndex()
    if kind == "no link":
        await index.set_marker(MARK)
    assert await _planned(catalog, index) == _NAMES
    assert catalog.looked == {*_REPOS}
