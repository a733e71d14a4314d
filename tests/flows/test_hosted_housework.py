"""What a running mirror does for hosted content without being asked: abandoned uploads go, images stay."""

from __future__ import annotations

import asyncio
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mirror.app import collecting
from mirror.app.housekeeping import run_housekeeping
from mirror.app.storage import open_storage
from mirror.collection.grace_clock import GraceClock
from mirror.config import load
from mirror.eviction.reconcile import is_whole
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.oci.reference import Repo
from mirror.policy.hosted.collection import ClockReading
from mirror.policy.records import ManifestRecord
from tests.support.eviction_world import until
from tests.support.push_client import hosting_mirror
from tests.support.uploads_suite import OWNER, pushed

HOSTED = Repo("corp", "team/app")


async def test_housekeeping_at_a_site_that_hosts(tmp_path: Path) -> None:
    """At start: an upload that got no byte for `upload_timeout` is deleted, another stays. The comparison of index and
    disk leaves hosted manifests and their records alone, and the index does not learn them.
    """
    config = tmp_path / "mirror.toml"
    config.write_text(
        f'[store]\nroot = "{tmp_path / "store"}"\n[[hosted]]\nname = "corp"\n[hosting]\nupload_timeout = "1h"\n'
    )
    loaded = load(config)
    manifest = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}).encode()
    digest = Digest.of(manifest)
    async with open_storage(loaded) as storage:
        old, new = (pushed(storage.hosted.uploads, b"a part") for _ in range(2))
        os.utime(storage.layout.uploads / old, (time.time() - 3700, time.time() - 3700))
        storage.hosted.blobs.put(digest, manifest)
        storage.catalog.put_manifest(HOSTED, ManifestRecord(digest, OCI_MANIFEST, len(manifest), 1.0))
        housekeeping = asyncio.create_task(run_housekeeping(loaded, storage))

        await until(lambda: storage.hosted.uploads.session(old) is None)
        async with asyncio.timeout(60):
            while not await is_whole(storage.index):  # noqa: ASYNC110  # nothing announces the condition
                await asyncio.sleep(0.001)
        housekeeping.cancel()
        with suppress(asyncio.CancelledError):
            await housekeeping
        found = storage.hosted.uploads.session(new)
        assert found
        assert found.owner == OWNER
        assert storage.catalog.get_manifest(HOSTED, digest)
        assert storage.contents.read(digest, 1000) == manifest
        assert (await storage.index.usage()).blobs == 0


async def test_a_clock_that_a_test_moves_is_the_only_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What hosted content is judged by moves with the rest of a mirror under test: it would collect without pause if
    only one of its clocks stood still.
    """
    clocks: list[GraceClock] = []

    def noted(*arguments: Any) -> GraceClock:
        clocks.append(GraceClock(*arguments))
        return clocks[-1]

    monkeypatch.setattr(collecting, "GraceClock", noted)
    async with hosting_mirror(tmp_path) as mirror:
        for _ in range(2):
            assert {clock.read() for clock in clocks} == {ClockReading(mirror.clock(), mirror.clock())}
            mirror.clock.forward(3600)
        assert not mirror.events("clock jumped")
