"""Mirrors of two workers, as users run them, whose hosted content is in a real object store."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.bucket_site import BucketSite
from tests.support.engines.fault_proxy import Reset
from tests.support.engines.seaweedfs import SeaweedFS
from tests.support.images import sha256
from tests.support.process import eventually

LAYER = bytes(range(253)) * 100_000


def test_pushed_and_pulled_without_a_disk_and_without_a_bucket(tmp_path: Path, seaweedfs: SeaweedFS) -> None:
    """A new disk gets all from the bucket, once for all clients of all workers; then it does without the bucket."""
    with BucketSite(tmp_path, seaweedfs, workers=2) as site:
        manifest = site.push("corp/app", "v1", LAYER, b"small")
        assert site.pull("corp/app", "v1") == manifest
        site.lose_disk()
        with ThreadPoolExecutor(8) as clients:
            assert {*clients.map(lambda _: site.pull("corp/app", "v1"), range(16))} == {manifest}
        hexadecimal = sha256(LAYER).partition(":")[2]
        assert site.proxy.count("GET", f"/{hexadecimal}.") == 1
        head = site.ask("HEAD", f"/v2/corp/app/blobs/{sha256(LAYER)}")
        assert head.headers["Cache-Status"] == "mirror; hit"
        part = site.ask("GET", f"/v2/corp/app/blobs/{sha256(LAYER)}", headers={"Range": "bytes=1000-1999,5000-5099"})
        assert (part.status, LAYER[5000:5100] in part.body) == (206, True)
        site.proxy.cause(Reset())
        assert site.pull("corp/app", "v1") == manifest
        refused = site.push_blob("corp/app", b"while it is down")
        assert refused.status == 503
        assert "Retry-After" in refused.headers
        site.proxy.heal()
        eventually(lambda: site.push_blob("corp/app", b"after that").status == 201, "the bucket is used again")
        moved = site.push("corp/app", "v1", b"another")
        assert site.pull("corp/app", "v1") == moved
        assert json.loads(site.ask("GET", "/v2/corp/app/tags/list").body)["tags"] == ["v1"]
