"""Mirrors of two workers, as users run them, whose hosted content is in a real object store."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tests.support.bucket_site import BucketSite
from tests.support.engines.fault_proxy import Reset, SlowAnswer
from tests.support.engines.seaweedfs import SeaweedFS
from tests.support.images import sha256
from tests.support.mirror_process import holder_of_lock
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

        def push() -> bytes | None:
            # the other worker may not have found yet that the bucket answers again; clients push again after a 503
            with suppress(AssertionError):
                return site.push("corp/app", "v1", b"another")
            return None

        moved = eventually(push, "both workers use it again")
        assert site.pull("corp/app", "v1") == moved
        assert json.loads(site.ask("GET", "/v2/corp/app/tags/list").body)["tags"] == ["v1"]


def test_a_worker_that_dies_while_it_fills_from_the_bucket(tmp_path: Path, seaweedfs: SeaweedFS) -> None:
    """The other one goes on at the same byte; clients that were connected to the dead one ask again."""
    hexadecimal = sha256(LAYER).partition(":")[2]
    with BucketSite(tmp_path, seaweedfs, workers=2) as site:
        site.push("corp/app", "v1", LAYER)
        site.lose_disk()
        site.proxy.cause(SlowAnswer(2 << 20), where=lambda call: f"/{hexadecimal}." in call.target)
        ingests = tmp_path / "store" / "ingest"

        def pull(_: int) -> bytes:
            """As real clients do: again after a broken connection."""
            return eventually(lambda: _whole(site), "the blob is pulled")

        def filler() -> int | None:
            files = [file for file in ingests.glob("*") if hexadecimal in file.name and file.stat().st_size > 1 << 20]
            return next(filter(None, (holder_of_lock(file, site.mirror.worker_pids()) for file in files)), None)

        with ThreadPoolExecutor(6) as clients:
            pulling = [clients.submit(pull, number) for number in range(6)]
            site.mirror.kill_worker(eventually(filler, "a worker fills the blob"))
            eventually(lambda: site.proxy.count("GET", f"/{hexadecimal}.") > 1, "the fill goes on")
            site.proxy.heal()
            assert {future.result() for future in pulling} == {LAYER}
        ranges = [call.headers.get("range") for call in site.proxy.calls if f"/{hexadecimal}." in call.target]
        begun = [said for said in ranges if said is not None]
        assert begun
        assert all(int(said.removeprefix("bytes=").partition("-")[0]) > 1 << 20 for said in begun)


def _whole(site: BucketSite) -> bytes | None:
    try:
        answer = site.blob("corp/app", LAYER)
    except OSError:
        return None
    return answer.body if answer.status == 200 else None
