"""Deletions by retention, and what clients do at the same moment: each at the exact point where it hurts most."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from mirror.errors import Denied, ManifestBlobUnknown, ManifestUnknown, StoreError
from mirror.hosting.deleting import Deleting
from mirror.hosting.links import Links
from mirror.hosting.placing import Placing
from mirror.hosting.pushing import ManifestPut, Pushing
from mirror.hosting.retiring import Retired, Retirement, Retiring
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST, read_manifest
from mirror.policy.hosted.immutability import ImmutableRule, ImmutableTags
from mirror.policy.hosted.push_checks import HostedRules
from mirror.policy.records import Freeze
from mirror.ports import SILENCE
from tests.support.collecting import APP, GRACE, CollectedWorld, image, index
from tests.support.hooked import Hooked


class _Crash(Exception):
    """The process ends here."""


class _Site(CollectedWorld):
    """Three images, an index of the first two, and a tag of the third that is a second one of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (
            self.push(APP, image(self.upload(APP, name.encode()), size=3), name) for name in ("one", "two")
        )
        self.list = index(self.one, self.two)
        self.index = self.push(APP, self.list, "v1")
        catalog: Any = Hooked(self.catalog)
        records: Any = Hooked(self.records)
        self.hooks = {"catalog": catalog, "records": records}
        self.hooked = replace(self.parts, catalog=catalog, records=records)
        self.freezes = self.parts.histories.freezes

    def retire(self, *tags: str, manifests: tuple[Digest, ...] = (), keep: bool = True, size: int = 200) -> Retired:
        """Deletes these, as they are now."""
        pointing = {}
        for name in tags:
            found = self.catalog.tag(APP, name)
            assert found is not None
            pointing[name] = found.record.digest, found.version
        versions = {}
        for digest in manifests:
            manifest = self.catalog.manifest(APP, digest)
            assert manifest is not None
            versions[digest] = manifest.version
        retired = Retired()
        known = set(self.catalog.manifest_digests(APP))
        retiring = Retiring(self.hooked, Placing(self.hooked, Links(self.hooked)))
        for batch in Retirement(pointing, versions, {self.index: (self.one, self.two)}).batches(size):
            for _ in retiring.steps(APP, batch, known, retired, keep=keep):
                pass
        return retired

    def client(self) -> tuple[Pushing, Deleting]:
        """Another process."""
        links = Links(self.parts)
        placing = Placing(self.parts, links)
        deleting = Deleting(self.parts, links, placing)
        return Pushing(self.parts, placing, deleting), deleting

    def push_really(self, content: bytes, tag: str) -> Callable[[], None]:
        """What pushes a manifest as a client does, a second later."""

        def push() -> None:
            self.passes(1)
            pushing, _ = self.client()
            pushing.put(APP, HostedRules(), ManifestPut(read_manifest(content), tag), "user:b", may_overwrite=True)

        return push

    @property
    def tags(self) -> str:
        """The tags that can be pulled."""
        here = set(self.catalog.manifest_digests(APP))
        return " ".join(tag for tag in self.catalog.tags(APP) if self.catalog.pointed(APP, tag) in here)

    @property
    def manifests(self) -> set[Digest]:
        """The manifests that can be pulled."""
        return set(self.catalog.manifest_digests(APP))

    def check(self) -> None:
        """What can be pulled is whole, and nothing is left half done."""
        for digest in self.manifests:
            manifest = read_manifest(self.parts.contents.read(digest, 10_000))
            assert {child.digest for child in manifest.manifests} <= self.manifests


@pytest.fixture
def site() -> Iterator[_Site]:
    """A repository with images."""
    site = _Site()
    yield site
    site.check()
    assert not any(hook.pending for hook in site.hooks.values())


@pytest.mark.parametrize("size", [1, 2, 200])
def test_all_goes_and_can_be_undeleted(site: _Site, size: int) -> None:
    """By the tag alone; every process sees it."""
    before = site.records.changes(APP)
    retired = site.retire("v1", "one", "two", manifests=(site.index, site.one, site.two), size=size)
    assert (sorted(retired.tags), set(retired.manifests)) == (["one", "two", "v1"], {site.index, site.one, site.two})
    assert not retired.stayed
    assert (site.tags, site.manifests) == ("", set())
    assert site.records.changes(APP) > before
    deleted = site.records.deleted_manifest(APP, site.index)
    assert deleted is not None
    assert (deleted.record.by, deleted.record.tags) == ("retention", ("v1",))
    _, deleting = site.client()
    for digest in (site.one, site.two, site.index):
        deleting.undelete_manifest(APP, digest, "user:a")
    assert site.tags == "one two v1"


def test_a_tag_alone(site: _Site) -> None:
    """Its image stays, because something else needs it."""
    retired = site.retire("one")
    assert (retired.tags, site.tags) == (["one"], "two v1")
    _, deleting = site.client()
    deleting.undelete_tag(APP, "one", "user:a")
    assert site.tags == "one two v1"


def test_what_is_not_kept_cannot_be_undeleted(site: _Site) -> None:
    """And counts no longer."""
    site.accounts.link(APP, site.index, 10)
    site.retire("v1", "one", manifests=(site.index,), keep=False)
    assert not list(site.records.deleted_manifests(APP))
    assert not site.records.deleted_tags(APP)
    assert (APP, site.index) not in site.accounts.noted


@pytest.mark.parametrize(
    ("port", "moment"),
    [("catalog", "manifest"), ("records", "put_deleted_manifest"), ("records", "flush"), ("catalog", "drop_manifest")],
)
def test_an_image_that_is_pushed_again_stays(site: _Site, port: str, moment: str) -> None:
    """Up to the moment when its record is dropped; and what it names."""
    site.hooks[port].before(moment, site.push_really(site.list, "v1"))
    retired = site.retire("v1", "one", "two", manifests=(site.index, site.one, site.two))
    assert retired.manifests == []
    assert site.tags.endswith("v1")
    assert {what for what, _ in retired.stayed} >= {"v1", str(site.index), str(site.one), str(site.two)}


@pytest.mark.parametrize(
    ("port", "moment"),
    [("catalog", "manifest"), ("records", "put_deleted_manifest"), ("records", "flush"), ("catalog", "drop_manifest")],
)
def test_an_image_that_gets_another_tag_stays(site: _Site, port: str, moment: str) -> None:
    """Whatever that tag is named."""
    content = site.parts.contents.read(site.two, 10_000)
    site.hooks[port].before(moment, site.push_really(content, "release"))
    retired = site.retire("v1", "two", manifests=(site.index, site.two))
    assert "release" in site.tags
    assert site.index in retired.manifests
    assert site.two in site.manifests


def test_a_push_after_the_drop_knows(site: _Site) -> None:
    """The client gets an error, or its image is whole."""

    def push() -> None:
        with pytest.raises(ManifestBlobUnknown):
            site.push_really(index(site.two), "new")()

    site.hooks["catalog"].before("manifest_digests", push)
    site.retire("v1", "two", manifests=(site.index, site.two))
    assert site.tags == "one"


@pytest.mark.parametrize("moment", ["flush", "put_deleted_manifest"])
def test_an_index_that_comes_meanwhile_keeps_what_it_names(site: _Site, moment: str) -> None:
    """It is met after the drop, and what it names comes back."""
    new = index(site.two)
    site.hooks["records"].before(moment, site.push_really(new, "new"))
    retired = site.retire("v1", "two", manifests=(site.index, site.two))
    assert retired.manifests == [site.index]
    assert site.tags == "new one two"
    assert site.records.deleted_manifest(APP, site.two) is None


def test_an_index_that_cannot_be_read_may_name_all(site: _Site) -> None:
    """Everything comes back."""

    def push() -> None:
        pushed = site.push(APP, index(site.two), "new")
        site.blobs.names.delete(pushed)

    site.hooks["records"].before("flush", push)
    with pytest.raises(StoreError):
        site.retire("v1", "two", manifests=(site.index, site.two))
    assert site.manifests >= {site.index, site.one, site.two}
    site.catalog.drop_manifest(APP, Digest.of(index(site.two)))
    assert site.tags == "one two v1"


def test_a_tag_that_moves_stays(site: _Site) -> None:
    """Where it points now."""
    content = site.parts.contents.read(site.one, 10_000)
    site.hooks["records"].before("flush", site.push_really(content, "two"))
    retired = site.retire("two", "v1", manifests=(site.index,))
    assert (retired.tags, site.tags) == (["v1"], "one two")
    assert site.catalog.pointed(APP, "two") == site.one
    assert site.records.deleted_tag(APP, "two") is None


def test_101_a_tag_that_cannot_be_read_stops_it(site: _Site) -> None:
    """It may point to what is to go. Nothing is left behind."""
    site.hooks["catalog"].fail("tag", StoreError("cannot be read"))
    with pytest.raises(StoreError):
        site.retire("v1", manifests=(site.index,))
    assert site.tags == "one two v1"
    assert not list(site.records.deleted_manifests(APP))


def test_101_a_disk_that_fails_in_the_middle(site: _Site) -> None:
    """At each call: what is there is whole."""
    for call in ("manifest", "tags", "manifest_digests", "drop_manifest", "drop_tag", "flush"):
        site.hooks["catalog"].fail(call, StoreError("the disk"))
        with pytest.raises(StoreError):
            site.retire("one", "v1", manifests=(site.index,))
        site.hooks["catalog"].fail(call, None)
        if site.index not in site.manifests:
            _, deleting = site.client()
            deleting.undelete_manifest(APP, site.index, "user:a")
        site.check()


def test_a_frozen_tag_stays(site: _Site) -> None:
    """A freeze that came after the decision, too."""
    site.freezes.put(Freeze(APP, "v1", site.index, OCI_MANIFEST, 1, "", 0.0))
    retired = site.retire("v1", "one", manifests=(site.index,))
    assert (retired.tags, site.tags) == (["one"], "two v1")
    assert any("frozen" in reason for _, reason in retired.stayed)


def test_an_immutable_tag_stays(site: _Site) -> None:
    """Whatever was decided."""
    rules = ImmutableTags({"corp": (ImmutableRule(tags=("v*",)),)})
    site.hooked = replace(site.hooked, immutable=rules)
    retired = site.retire("v1", "one", manifests=(site.index,))
    assert (retired.tags, site.tags) == (["one"], "two v1")


@pytest.mark.parametrize("call", ["drop_manifest", "manifest_digests", "drop_tag"])
def test_112_a_crash_is_finished_by_collection(site: _Site, call: str) -> None:
    """Tags of what is gone go; what a live index names comes back; the rest stays deleted."""
    site.hooks["catalog"].fail(call, _Crash())
    # nothing is done after the crash
    site.hooks["records"].fail("drop_deleted_manifest", _Crash())
    with pytest.raises(_Crash):
        site.retire("v1", "two", manifests=(site.index, site.two))
    site.hooks["catalog"].fail(call, None)
    site.collect(2, pause=GRACE)
    assert site.catalog.tags(APP) == site.tags.split()
    if call != "drop_manifest":
        assert site.tags == "one"


def test_112_a_crash_before_the_look_at_new_indexes(site: _Site) -> None:
    """The index keeps what it names: collection brings it back."""
    record = site.catalog.get_manifest(APP, site.two)
    assert record is not None
    site.records.put_deleted_manifest(APP, replace(site.deletion(record, "two"), by="retention"))
    site.catalog.drop_manifest(APP, site.two)
    site.collect()
    assert site.two in site.manifests
    assert site.tags == "one two v1"


def test_a_client_that_deletes_at_the_same_time(site: _Site) -> None:
    """Both are right."""
    _, deleting = site.client()

    def delete() -> None:
        deleting.delete_manifest(APP, site.index, "user:a", keep=True)

    site.hooks["records"].before("flush", delete)
    retired = site.retire("v1", "one", manifests=(site.index,))
    assert site.tags in ("one two", "two")
    assert site.index not in site.manifests
    assert site.index not in retired.manifests
    with pytest.raises(ManifestUnknown):
        deleting.delete_manifest(APP, site.index, "user:a", keep=True)
    with pytest.raises((ManifestUnknown, Denied)):
        deleting.undelete_tag(APP, "v1", "user:a")


@pytest.mark.parametrize("fails", [False, True])
def test_events_come_after_every_process_knows(site: _Site, fails: bool) -> None:
    """Also those of a batch that failed in the middle; its own error is the one that is raised."""
    before, order = site.records.changes(APP), []

    class Announced(type(SILENCE)):  # type: ignore[misc]
        """Notes whether the change is known when it is reported."""

        def begin(self, *_: object) -> Announced:
            return self

        def done(self, *_: object) -> None:
            order.append(("done", site.records.changes(APP) > before))

        def end(self, *_: object) -> None:
            order.append(("end", site.records.changes(APP) > before))

    site.hooked = replace(site.hooked, events=Announced())
    if fails:
        site.hooks["catalog"].fail("drop_tag", StoreError("the first"))
        with pytest.raises(StoreError, match="the first"):
            site.retire("v1", manifests=(site.index,))
    else:
        site.retire("v1", manifests=(site.index,))
    assert order == [*([] if fails else [("done", True)]), ("end", True)]
