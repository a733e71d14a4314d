"""Mirrors of two workers, as users run them, that keep what they cache in a real object store."""

from __future__ import annotations

from pathlib import Path

from tests.support.admin_client import ask_admin
from tests.support.bucket_site import BucketSite
from tests.support.engines.fault_proxy import Reset
from tests.support.engines.seaweedfs import SeaweedFS
from tests.support.fake_registry import FakeRegistry
from tests.support.process import eventually

#: Is uploaded in several parts.
LAYER = bytes(range(253)) * 100_000
_APP = "docker.io/library/app"


def _settled(store: Path, blobs: int) -> bool:
    """True once the status says that the bucket has so many blobs, and that nothing waits."""
    found = ask_admin(store / "admin.sock", "GET", "/admin/v1/status").json["bucket"]["cache"]
    return not found["waiting"] and found["blobs"] == blobs


def test_without_a_disk_without_an_upstream_and_without_a_bucket(tmp_path: Path, seaweedfs: SeaweedFS) -> None:
    """Each of them may be lost while the others are there."""
    with FakeRegistry() as registry:
        registry.add_image("library/app", "v1", [LAYER, b"small"])
        upstreams = {"docker.io": registry.url}
        with BucketSite(tmp_path, seaweedfs, upstreams=upstreams, cache=True, workers=2) as site:
            manifest = site.pull(_APP, "v1")
            eventually(lambda: _settled(tmp_path / "store", 4), "all is written behind")
            registry.forget()
            site.lose_disk()
            assert site.pull(_APP, "v1") == manifest
            assert registry.count("blobs") == registry.count("manifests", "GET") == 0
            site.proxy.cause(Reset())
            assert site.pull(_APP, "v1") == manifest
            registry.add_image("library/app", "v2", [b"while it is down"])
            site.pull(_APP, "v2")
            site.proxy.heal()
            eventually(lambda: _settled(tmp_path / "store", 6), "what waited is written")
