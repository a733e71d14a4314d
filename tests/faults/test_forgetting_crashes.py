"""Kills and power cuts before each step by which records of upstreams' tags and manifests are forgotten. Row numbers
are those of the list of faults.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest

from mirror.errors import StoreError
from mirror.eviction.forgetting import Forgetting
from mirror.graph.manifests import has_blob
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.oci.reference import Repo
from mirror.policy.records import ManifestRecord, Sighting, TagRecord
from mirror.store.local.blobs import LocalStore
from mirror.store.local.cached_records import LocalCachedRecords
from mirror.store.local.layout import Layout
from mirror.store.local.local_records import local_freezes, local_pins
from mirror.store.local.locks import FileLocks
from tests.support.breaking_steps import Steps, in_another_process
from tests.support.ext4 import Ext4, refusal

_OLD: Final = Repo("docker.io", "library/old")
_NEW: Final = Repo("docker.io", "library/old/new")
_CONTENT: Final = b'{"schemaVersion": 2}'
_HERE: Final = Digest.of(_CONTENT)
_GONE: Final = Digest.of(b"gone")
#: More than a site takes.
_MOST_STEPS: Final = 80


class _Site:
    """A disk as one process has it, opened anew after each fault."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        self.store = LocalStore(self.layout)
        self.records = LocalCachedRecords(self.layout)

    def fill(self) -> None:
        """Two old tags of a manifest that is gone, and one whose content is here, below their repository."""
        self.store.put(_HERE, _CONTENT)
        for repo, tag, digest in ((_OLD, "v1", _GONE), (_OLD, "v2", _GONE), (_NEW, "v1", _HERE)):
            self.records.put_manifest(repo, ManifestRecord(digest, OCI_MANIFEST, 1, 1.0))
            self.records.put_history(repo, tag, [Sighting(digest, OCI_MANIFEST, 1, 1.0, 1.0)])
            self.records.put_tag(repo, TagRecord(tag, digest, OCI_MANIFEST, 1, 1.0))
        self.store.flush()
        self.records.flush()
        os.sync()

    def walk(self) -> None:
        """As often as something is forgotten. Raises `StoreError`, as for a disk that has no power any more."""

        def unread(_repo: Repo, error: StoreError) -> None:
            raise error

        forgetting = Forgetting(
            self.records,
            local_pins(self.layout),
            (),
            local_freezes(self.layout),
            is_here=lambda _repo, digest: has_blob(self.store, digest),
            after=lambda _: 10.0,
            hold=FileLocks(self.layout).try_hold_now,
            now=lambda: 1000.0,
        )
        while old := [each for each in forgetting.old(unread) if each is not None]:
            forgetting.forget(old, forgetting.kept(), unread)

    def check(self) -> None:
        """What must stay is whole; of what goes, no tag is without its history or its manifest."""
        assert self.records.tags(_NEW) == ["v1"]
        assert self.records.get_tag(_NEW, "v1") is not None
        assert len(self.records.get_history(_NEW, "v1")) == 1
        assert self.records.get_manifest(_NEW, _HERE) is not None
        assert has_blob(self.store, _HERE)
        for tag in self.records.tags(_OLD):
            assert self.records.get_tag(_OLD, tag) is not None
            assert self.records.get_history(_OLD, tag)
            assert self.records.get_manifest(_OLD, _GONE) is not None

    def check_end(self) -> None:
        """Nothing old is left."""
        self.check()
        assert list(self.records.known()) == [_NEW]


def _check_next_walk(root: Path) -> None:
    """The state that was left is one that may be, and the next walk goes on from it to the end."""
    after = _Site(root)
    after.check()
    after.walk()
    after.check_end()


def test_156_killed_before_each_step(tmp_path: Path) -> None:
    """Row 156: the next walk goes on where the process has died."""
    steps = Steps(tmp_path / "steps")
    for number in range(1, _MOST_STEPS):
        root = tmp_path / f"store-{number}"
        site = _Site(root)
        site.fill()
        steps.kill_before(number)
        ended = in_another_process(steps, root, site.walk)
        was_hit = steps.hit
        assert ended is not was_hit
        _check_next_walk(root)
        if not was_hit:
            assert number > 5, "no step was counted"
            return
    pytest.fail("it has more steps than expected")


@pytest.mark.skipif(refusal() is not None, reason=f"power cannot be cut here: {refusal()}")
def test_156_power_cuts_before_each_step(tmp_path: Path) -> None:
    """Row 156: likewise."""
    steps = Steps(tmp_path / "steps")
    with Ext4(tmp_path, size=16 << 20) as disk:
        for number in range(1, _MOST_STEPS):
            root = disk.mount_point / f"store-{number}"
            site = _Site(root)
            site.fill()
            steps.cut_before(number)
            in_another_process(steps, root, site.walk)
            was_hit = steps.hit
            if not was_hit:
                disk.cut()
            disk.remount()
            _check_next_walk(root)
            if not was_hit:
                assert number > 5, "no step was counted"
                return
    pytest.fail("it has more steps than expected")
