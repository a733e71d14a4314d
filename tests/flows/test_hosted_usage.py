"""How full hosted registries are: the ledger of a whole mirror."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted_records import BlobLink, LinkState
from mirror.store.hosted.blob_names import HostedNames
from mirror.store.hosted.upload_files import LocalUploads
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from mirror.store.local.local_records import local_repository_records
from mirror.telemetry import render_metrics
from tests.support.live_mirror import LiveMirror, live_mirror, noise, until
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import eventually
from tests.support.push_client import PushClient, hosting_mirror
from tests.support.store_suite import Pieces

_CORP: Final = {"name": "corp", "quota": "1MB", "quotas": {"team-a/**": "500kB"}}
_UPSTREAM: Final = {"docker.io": "http://127.0.0.1:1"}


def _link(root: Path, name: str, size: int) -> None:
    """Give a hosted repository a blob of this size, as another process would."""
    records = local_repository_records(LocalStore(Layout(root)).layout)
    digest = Digest.of(f"{name} {size}".encode())
    records.put_link(Repo("corp", name), BlobLink(digest, size, LinkState.LINKED, 1.0))


def _completed(mirror: LiveMirror) -> list[dict[str, Any]]:
    return mirror.events("ledger completed")


def _shown(metric: str, scope: str) -> float | None:
    """A figure among the metrics; None if it is not there."""
    return _value(f'{metric}{{scope="{scope}"}}')


def _value(sample: str) -> float | None:
    """The value of a sample, which is named as the exposition names it; None if it is not there."""
    start = f"{sample} "
    shown = [line.removeprefix(start) for line in render_metrics().decode().splitlines() if line.startswith(start)]
    return float(shown[0]) if shown else None


async def test_the_ledger_is_completed_at_start(tmp_path: Path) -> None:
    """From the records on the disk, at each start; the metrics show each registry, and each pattern with a quota."""
    root = tmp_path / "store"
    _link(root, "team-a/app", 300_000)
    _link(root, "team-b/app", 40_000)
    async with live_mirror(root, _UPSTREAM, hosted=[_CORP, {"name": "lab"}]) as mirror:
        await until(lambda: bool(_completed(mirror)))
        ledger = mirror.app.storage.hosted.ledger
        assert ledger.is_complete()
        assert ledger.usage("corp") == 340_000
        await until(lambda: _shown("mirror_hosted_bytes", "lab") == 0)
        assert _shown("mirror_hosted_bytes", "corp") == 340_000
        assert _shown("mirror_hosted_bytes", "corp/team-a/**") == 300_000
        assert _shown("mirror_hosted_quota_bytes", "corp") == 1_000_000
        assert _shown("mirror_hosted_quota_bytes", "corp/team-a/**") == 500_000
    _link(root, "team-a/app", 1)
    async with live_mirror(root, _UPSTREAM, hosted=[_CORP, {"name": "lab"}]) as mirror:
        await until(lambda: bool(_completed(mirror)))
        assert mirror.app.storage.hosted.ledger.usage("corp") == 340_001


async def test_uploads_and_the_age_of_the_ledger_are_shown(tmp_path: Path) -> None:
    """Sessions that a client has left open, with their bytes; and when the ledger was completed."""
    began = time.time()
    uploads = LocalUploads(layout := LocalStore(Layout(tmp_path / "store")).layout, HostedNames(layout))
    upload = uploads.open(uploads.begin("somebody"))
    assert upload
    upload.fill(Pieces(noise(70_000)), lambda _offset: None)
    upload.close()
    uploads.begin("somebody")
    layout.backed_up.touch()
    os.utime(layout.backed_up, (1_700_000_000, 1_700_000_000))
    async with live_mirror(tmp_path / "store", _UPSTREAM, hosted=[_CORP]) as mirror:
        await until(lambda: bool(_completed(mirror)))
        await until(lambda: _value("mirror_uploads_open") == 2)
        assert _value("mirror_uploads_open_bytes") == 70_000
        await until(lambda: _value("mirror_backup_last_complete_timestamp_seconds") == 1_700_000_000)
        assert (_value("mirror_ledger_last_complete_timestamp_seconds") or 0) >= began


async def test_other_patterns_count_anew(tmp_path: Path) -> None:
    """After a restart with other quotas, each new pattern counts what its repositories have."""
    root = tmp_path / "store"
    _link(root, "team-a/app", 300_000)
    _link(root, "team-b/app", 40_000)
    async with live_mirror(root, _UPSTREAM, hosted=[_CORP]) as mirror:
        await until(lambda: bool(_completed(mirror)))
    async with live_mirror(root, _UPSTREAM, hosted=[{"name": "corp", "quotas": {"*/app": "1GB"}}]) as mirror:
        await until(lambda: bool(_completed(mirror)))
        ledger = mirror.app.storage.hosted.ledger
        assert (ledger.usage("corp"), ledger.usage("corp/*/app")) == (340_000, 340_000)
        assert ledger.usage("corp/team-a/**") == 0


def test_a_quota_that_is_taken_away_is_shown_no_longer(tmp_path: Path) -> None:
    """After a reload: else the alert about it would never end."""
    config = write_config(tmp_path, _UPSTREAM, workers=2, more='[[hosted]]\nname = "corp"\nquota = "1MB"\n')
    quota, used = 'mirror_hosted_quota_bytes{scope="corp"}', 'mirror_hosted_bytes{scope="corp"}'
    with MirrorProcess(config) as mirror:
        eventually(lambda: mirror.metrics().get(quota) == 1_000_000, "the quota is shown")
        config.write_text(config.read_text().replace('quota = "1MB"\n', ""))
        os.kill(mirror.pid, signal.SIGHUP)
        mirror.wait_for_event("configuration reloaded")

        def is_gone() -> bool:
            shown = mirror.metrics()
            return quota not in shown and shown.get(used) == 0

        eventually(is_gone, "the quota is shown no longer", timeout=120)


async def test_a_mirror_that_hosts_nothing_has_no_ledger(tmp_path: Path) -> None:
    """No file is made, and nothing is counted."""
    async with live_mirror(tmp_path / "store", _UPSTREAM) as mirror:
        await mirror.rebuilt()
    assert not (tmp_path / "store" / "hosted.sqlite").exists()


async def test_a_push_beyond_a_quota_is_refused(tmp_path: Path) -> None:
    """Before its body, while it streams, and when it is linked: 403 with the figures. What the registry has already
    costs nothing, and deleting and collecting is not needed to pull.
    """
    hosted = {"quota": "1MB", "quotas": {"team-a/**": "500kB"}}
    async with hosting_mirror(tmp_path, hosted=hosted) as mirror:
        team, other = PushClient(mirror, "corp/team-a/app"), PushClient(mirror, "corp/team-b/app")
        layer = noise(400_000)
        await team.push_image("v1", layer)
        refused = await team.ask("POST", team.uploads + f"?digest={Digest.of(noise(200_000))}", body=noise(200_000))
        assert (refused.status, refused.code) == (403, "DENIED")
        assert "the quota of corp/team-a/** is 500 kB; 400 kB are used" in refused.json["errors"][0]["message"]

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield noise(100_000)

        streamed = await other.ask("PATCH", await other.begin(), body=pieces())
        assert (streamed.status, streamed.code) == (403, "DENIED")
        assert "the quota of corp is 1 MB" in streamed.json["errors"][0]["message"]
        await other.push_image("v1", layer)
        assert mirror.app.storage.hosted.ledger.usage("corp") < 410_000
        got = await team.blob(Digest.of(layer))
        assert (got.status, got.body) == (200, layer)
        big = noise(580_000)
        await other.push_blob(big)
        last = await other.ask("POST", other.uploads + f"?digest={Digest.of(noise(30_000))}", body=noise(30_000))
        assert last.status == 403
