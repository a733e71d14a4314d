"""Kills and power cuts before each step by which a blob gets, keeps or loses its hosted name. Row numbers are those of
the list of faults.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from mirror.errors import BlobUnknown, RecordChanged
from mirror.oci.digest import Digest
from mirror.policy.hosted_records import QueuedBlob
from mirror.store.hosted.blob_names import HostedNames
from mirror.store.hosted.contents import LocalContents
from mirror.store.hosted.upload_files import LocalUploads
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from tests.support.breaking_steps import Steps, in_another_process
from tests.support.ext4 import Ext4, refusal
from tests.support.store_suite import Pieces
from tests.support.uploads_suite import OWNER, ignore, opened

CONTENT = bytes(range(256)) * 200
DIGEST = Digest.of(CONTENT)
#: More than any of the calls takes.
_MOST_STEPS: Final = 60


class Site:
    """A store as one process has it, opened anew after each fault."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        self.cache = LocalStore(self.layout)
        self.hosted = HostedNames(self.layout)
        self.uploads = LocalUploads(self.layout, self.hosted)
        self.contents = LocalContents(self.layout)

    @property
    def is_hosted(self) -> bool:
        """True if the blob has its hosted name; what has it must be right. Raises `BlobDamaged`."""
        try:
            self.hosted.hosted(DIGEST)
        except BlobUnknown:
            return False
        assert self.contents.read(DIGEST, len(CONTENT)) == CONTENT
        return True

    @property
    def waits(self) -> bool:
        """True if the blob waits to be collected."""
        return self.hosted.queued(DIGEST) is not None

    def flush(self) -> None:
        """All that was done so far is durable."""
        self.cache.flush()
        self.hosted.flush()

    def wait_for_collection(self) -> None:
        """The blob waits; a record may have been left when the blob was collected."""
        self.hosted.queue(QueuedBlob(DIGEST, 1.0))


# each prepares a site, returns what is called, and, called again, does what is left to do ----------------------------


def publish(site: Site) -> Callable[[], object]:
    """Of an upload, from its first byte on."""

    def call() -> None:
        upload = opened(site.uploads, site.uploads.begin(OWNER))
        upload.fill(Pieces(CONTENT), ignore)
        upload.publish(DIGEST)

    return call


def put(site: Site) -> Callable[[], object]:
    """Of a manifest, made durable."""

    def call() -> None:
        site.hosted.put(DIGEST, CONTENT)
        site.hosted.flush()

    return call


def adopt(site: Site) -> Callable[[], object]:
    """Of a blob that the cache has."""
    site.cache.put(DIGEST, CONTENT)
    return lambda: site.hosted.adopt(DIGEST)


def rescue(site: Site) -> Callable[[], object]:
    """Of a hosted blob."""
    site.hosted.put(DIGEST, CONTENT)
    return lambda: site.hosted.rescue(DIGEST)


def collect(site: Site) -> Callable[[], object]:
    """Of a hosted blob that nothing needs."""
    site.hosted.put(DIGEST, CONTENT)

    def call() -> None:
        record = site.hosted.queued(DIGEST)
        if record is not None:
            with suppress(RecordChanged):
                site.hosted.collect(DIGEST, record.version)

    return call


GIVING = [publish, put, adopt, rescue]


def prepared(
    root: Path, kind: Callable[[Site], Callable[[], object]], *, waiting: bool = True
) -> tuple[Site, Callable[[], object]]:
    """A site and what is to be called; all that is there is durable."""
    site = Site(root)
    call = kind(site)
    if waiting:
        site.wait_for_collection()
    site.flush()
    os.sync()
    return site, call


@pytest.mark.parametrize("kind", GIVING)
def test_90_killed_before_each_step(tmp_path: Path, kind: Callable[[Site], Callable[[], object]]) -> None:
    """Row 90: what was answered is there and does not wait. If nothing was answered, the next try succeeds."""
    steps = Steps(tmp_path / "steps")
    for number in range(1, _MOST_STEPS):
        root = tmp_path / f"store-{number}"
        site, call = prepared(root, kind)
        steps.kill_before(number)
        acknowledged = in_another_process(steps, root, call)
        was_hit = steps.hit
        assert acknowledged is not was_hit
        hosted = site.is_hosted
        assert hosted or not acknowledged
        call()
        assert site.is_hosted
        assert not site.waits
        if not was_hit:
            assert number > 2, "no step was counted"
            return
    pytest.fail("it has more steps than expected")


def test_a_collector_killed_before_each_step(tmp_path: Path) -> None:
    """The next one ends its work."""
    steps = Steps(tmp_path / "steps")
    for number in range(1, _MOST_STEPS):
        root = tmp_path / f"store-{number}"
        site, call = prepared(root, collect)
        steps.kill_before(number)
        in_another_process(steps, root, call)
        was_hit = steps.hit
        assert site.waits or not site.is_hosted
        call()
        assert not site.is_hosted
        assert not site.waits
        if not was_hit:
            assert number > 2, "no step was counted"
            return
    pytest.fail("it has more steps than expected")


@pytest.mark.skipif(refusal() is not None, reason=f"power cannot be cut here: {refusal()}")
@pytest.mark.parametrize(
    ("kind", "waiting"),
    [(publish, True), (publish, False), (put, False), (adopt, False), (rescue, True), (collect, True)],
)
def test_90_power_cuts_before_each_step(
    tmp_path: Path, kind: Callable[[Site], Callable[[], object]], waiting: bool
) -> None:
    """Row 90: what was answered survives, and its record in the queue does not come back; whatever has a hosted name
    has all its bytes.
    """
    steps = Steps(tmp_path / "steps")
    with Ext4(tmp_path, size=16 << 20) as disk:
        for number in range(1, _MOST_STEPS):
            root = disk.mount_point / f"store-{number}"
            _, call = prepared(root, kind, waiting=waiting)
            steps.cut_before(number)
            acknowledged = in_another_process(steps, root, call)
            was_hit = steps.hit
            if not was_hit:
                disk.cut()
            disk.remount()
            after = Site(root)
            hosted = after.is_hosted
            if kind is collect:
                assert after.waits or not hosted or not was_hit
            elif acknowledged:
                assert hosted
                assert not after.waits
            if not was_hit:
                assert number > 2, "no step was counted"
                return
    pytest.fail("it has more steps than expected")
