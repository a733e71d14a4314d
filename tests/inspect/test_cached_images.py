"""What is listed as being here, and what is told of one image."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence

import pytest

from mirror.errors import IndexUnavailable
from mirror.eviction.pinned_images import pinned_images
from mirror.eviction.reconcile import reconcile
from mirror.graph.blob_places import BlobPlaces
from mirror.graph.listed_repositories import ListedRepositories
from mirror.inspect.images import CachedImage, Overview, PageCursor
from mirror.inspect.untagged_lists import UntaggedLists
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor
from mirror.oci.reference import Repo
from mirror.policy.records import ContentRecord, Freeze, Pin
from mirror.policy.routing import Registry, RoutingTable
from mirror.policy.selection import Selection, select
from tests.support.here import APP, CONFIG, Here
from tests.support.listed import Names, list_of
from tests.support.memory_index import MemoryIndex
from tests.support.memory_store import MemoryCatalog, MemoryPins, MemoryStore

_TABLE = RoutingTable.build([Registry("docker.io", library=True), Registry("ghcr.io")], "docker.io")
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"


@pytest.fixture
def here() -> Here:
    """Empty."""
    return Here(MemoryStore(), MemoryCatalog())


def _overview(here: Here, index: MemoryIndex | None = None, pins: MemoryPins | None = None) -> Overview:
    pinned = pinned_images(pins or MemoryPins(), (), here.catalog, 0.0)
    return Overview(here.store, here.catalog, index or MemoryIndex(), pinned)


async def _list(here: Here, pattern: str = "**") -> dict[str, CachedImage]:
    selection: Selection = select(pattern, _TABLE)
    return {image.name: image async for image in _overview(here).images(selection)}


async def _get(here: Here, tag: str | Digest) -> CachedImage:
    image = await _overview(here).image(APP, tag)
    assert image
    return image


def _gone(here: Here, content: bytes) -> Digest:
    digest = Digest.of(content)
    here.store.delete(digest)
    return digest


# ------------------------------------------------------------------------------------------------------- listing


async def test_tags_and_what_has_none(here: Here) -> None:
    """Each tag, then manifests that no index here names; children of an index are not listed, unless tagged."""
    child = here.image([b"amd64"])
    tagged_child = here.image([b"arm64"], config={"os": "linux", "architecture": "arm64"}, tag="arm")
    here.index({"linux/amd64": child, "linux/arm64": tagged_child}, tag="v1")
    old_child = here.image([b"old"])
    old = here.index({"linux/amd64": old_child})
    alone = here.image([b"alone"])
    images = await _list(here)
    assert list(images) == [f"{APP}:arm", f"{APP}:v1", *sorted(f"{APP}@{root.digest}" for root in (old, alone))]
    assert all(image.complete for image in images.values())
    assert [platform.name for platform in images[f"{APP}:v1"].platforms] == ["linux/amd64", "linux/arm64"]
    assert [platform.name for platform in images[f"{APP}:arm"].platforms] == ["linux/arm64"]


async def test_patterns(here: Here) -> None:
    """By repository and by tag; what has no tag is left out where tags are asked for."""
    other = Repo("ghcr.io", "owner/app")
    here.image([b"1"], tag="v1")
    here.image([b"2"], tag="edge")
    here.image([b"3"])
    here.image([b"4"], repo=other, tag="v1")
    assert len(await _list(here)) == 4
    assert len(await _list(here, "app")) == 3
    assert list(await _list(here, "app:v*")) == [f"{APP}:v1"]
    assert list(await _list(here, "**:v1")) == [f"{APP}:v1", f"{other}:v1"]
    assert list(await _list(here, "ghcr.io/**")) == [f"{other}:v1"]


async def test_a_sparse_index(here: Here) -> None:
    """Platforms that nobody pulled are told apart from those that lack something."""
    whole = here.image([b"whole"])
    lacking = here.image([b"lacking", b"also"])
    never = Descriptor(whole.media_type, Digest.of(b"never"), 700)
    here.index({"linux/amd64": whole, "linux/arm/v7": lacking, "linux/s390x": never}, tag="v1")
    gone = _gone(here, b"lacking")
    image = (await _list(here))[f"{APP}:v1"]
    states = {
        platform.name: (platform.pulled, platform.complete, [node.digest for node in platform.missing])
        for platform in image.platforms
    }
    assert states == {
        "linux/amd64": (True, True, []),
        "linux/arm/v7": (True, False, [gone]),
        "linux/s390x": (False, False, []),
    }
    assert not image.complete
    here.store.put(gone, b"lacking")
    assert (await _get(here, "v1")).complete


async def test_a_blob_that_platforms_share(here: Here) -> None:
    """Missing, it is missing from each of them."""
    first = here.image([b"base", b"1"])
    two = here.image([b"base", b"2"], config={"os": "linux", "architecture": "arm64"})
    here.index({"linux/amd64": first, "linux/arm64": two}, tag="v1")
    gone = _gone(here, b"base")
    image = await _get(here, "v1")
    assert [[node.digest for node in each.missing] for each in image.platforms] == [[gone], [gone]]
    assert len(image.closure.missing) == 1


async def test_schema_1(here: Here) -> None:
    """Layers without sizes: there or not, nothing more is known."""
    body = {
        "schemaVersion": 1,
        "name": "library/app",
        "architecture": "amd64",
        "fsLayers": [{"blobSum": str(Digest.of(b"a"))}, {"blobSum": str(Digest.of(b"b"))}],
        "history": [],
    }
    here.raw(json.dumps(body).encode(), _SCHEMA_1, tag="v1")
    here.blob(b"a")
    image = await _get(here, "v1")
    assert [node.digest for node in image.closure.missing] == [Digest.of(b"b")]
    here.blob(b"b")
    image = await _get(here, "v1")
    assert image.complete
    assert [platform.complete for platform in image.platforms] == [True]


async def test_last_pull_and_pins(here: Here) -> None:
    """As the index has it; while that is down, as the disk has it. A pin by tag or by digest tells why."""
    root = here.image([b"1"], tag="v1")
    here.store.mark_used({root.digest: 50.0})
    index, pins = MemoryIndex(), MemoryPins()
    await index.put([ContentRecord(root.digest, 1, 99.0)])
    pins.put(Pin(APP, "v1", "the release", 0.0))
    image = await _overview(here, index, pins).image(APP, "v1")
    assert image
    assert image.used_at == 99.0
    assert [pin.reason for pin in image.pinned] == ["the release"]
    by_digest = await _overview(here, index, pins).image(APP, root.digest)
    assert by_digest
    assert [pin.reason for pin in by_digest.pinned] == ["the release"]

    class Down(MemoryIndex):
        asked = 0

        async def records(self, digests: Sequence[Digest]) -> dict[Digest, ContentRecord]:
            self.asked += 1
            raise IndexUnavailable("down")

    down = Down()
    overview = _overview(here, down)
    assert [image.used_at async for image in overview.images()] == [50.0]
    assert [image.used_at async for image in overview.images()] == [50.0]
    assert down.asked == 1


async def test_a_tag_without_its_manifest(here: Here) -> None:
    """It is not listed, for nothing of it can be told; asked for by name, it is not complete."""
    root = here.image([b"1"], tag="v1")
    here.image([b"2"], tag="v2")
    here.store.delete(root.digest)
    assert list(await _list(here)) == [f"{APP}:v2"]
    image = await _get(here, "v1")
    assert not image.complete
    assert [node.digest for node in image.closure.missing] == [root.digest]


async def test_manifests_alone(here: Here) -> None:
    """An image of which the manifest is left is marked; one that lacks a layer is not, nor is one that is whole."""
    here.image([here.blob(b"gone", here=False)], tag="part")
    here.image([b"1"], tag="whole")
    config = here.blob(b"{}", CONFIG, here=False)
    here.manifest({"config": config, "layers": [here.blob(b"2", here=False)]}, tag="emptied")
    images = await _list(here)
    assert {name.rpartition(":")[2]: image.manifests_only for name, image in images.items()} == {
        "emptied": True,
        "part": False,
        "whole": False,
    }


async def test_what_a_freeze_keeps(here: Here) -> None:
    """The frozen tag, which is listed as what it answers, and whatever else is the same digest in that repository."""
    old = here.image([b"old"], tag="twin")
    here.image([b"new"], tag="v1")
    freeze = Freeze(APP, "v1", old.digest, old.media_type, old.size, "", 1.0)
    overview = Overview(here.store, here.catalog, MemoryIndex(), (), [freeze])
    here.image([b"free"], tag="v2")
    frozen = {image.tag: image.frozen async for image in overview.images()}
    assert frozen == {"twin": True, "v1": True, "v2": False, None: False}


# --------------------------------------------------------------------------------------------------------- pages


class _Counted(MemoryStore):
    """Counts what is read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def read(self, digest: Digest, limit: int) -> bytes:
        self.reads += 1
        return super().read(digest, limit)


def _stocked() -> tuple[_Counted, Here, list[Repo]]:
    """Forty repositories of five tags, every second tag without anything that is here; an image without a tag each."""
    store = _Counted()
    here = Here(store, MemoryCatalog())
    repos = [Repo("docker.io", f"team/app{number:02}") for number in range(40)]
    for repo in repos:
        for number in range(5):
            root = here.image([f"{repo} {number}".encode()], repo=repo, tag=f"v{number}")
            if number % 2:
                here.store.delete(root.digest)
        here.image([f"{repo} untagged".encode()], repo=repo)
    return store, here, repos


@pytest.mark.parametrize(("limit", "most"), [(1, 1000), (7, 1000), (500, 3), (500, 1), (500, 1000)])
async def test_pages_are_the_whole_list(limit: int, most: int) -> None:
    """Put together they are what a listing says, each image once, whatever ends a page: its length or how many were
    looked at.
    """
    _, here, repos = _stocked()
    overview, selection = _overview(here), select("**", _TABLE)
    names: list[str] = []
    begin = None
    while True:
        page = await overview.page(selection, list_of(repos), begin, limit, most)
        assert len(page.images) <= limit
        names += [image.name for image in page.images]
        if page.next is None:
            break
        assert begin is None or page.next != begin
        begin = page.next
    assert names == list(await _list(here))


@pytest.mark.parametrize("pattern", ["**", "**:v4", "**:no*"])
async def test_a_page_reads_no_more_than_it_tells(pattern: str) -> None:
    """However large the store is and wherever the page begins: two files for each image, and those of one repository
    where its images without tags are told; where a search finds nothing, none at all.
    """
    store, here, repos = _stocked()
    overview, selection = _overview(here), select(pattern, _TABLE)
    for begin in (None, (repos[20], "v2"), (repos[39], "")):
        store.reads = 0
        page = await overview.page(selection, list_of(repos), begin, 4, 1000)
        # a page looks into one more than it tells, to know whether there is one
        assert store.reads <= 2 * (len(page.images) + 1) + (2 * 6 if pattern == "**" else 0)


async def test_a_page_lists_the_repositories_that_it_needs() -> None:
    """Some of those behind its place, and none in front of it, also if its repository has gone."""
    _, here, repos = _stocked()
    overview, selection = _overview(here), select("**", _TABLE)
    for gone in (False, True):
        names = Names(repos[:20] + repos[20 + gone :])
        listed = ListedRepositories(names.read, lambda: 0)
        page = await overview.page(selection, listed, (repos[20], "v3"), 4, 1000)
        assert len(page.images) == 4
        assert names.looked == repos[21 : 21 + len(names.looked)]
        assert len(names.looked) <= 5


async def test_a_listing_reads_each_manifest_once() -> None:
    """The manifest and the config of each image, and no manifest again to find those without a tag; the index is asked
    once for many images.
    """
    store = _Counted()
    here = Here(store, MemoryCatalog())
    repos = [Repo("docker.io", f"team/app{number}") for number in range(4)]
    for repo in repos:
        for number in range(20):
            parts = [here.image([f"{repo} {number} {name}".encode()], repo=repo) for name in ("amd64", "arm64")]
            here.index({"linux/amd64": parts[0], "linux/arm64": parts[1]}, repo=repo, tag=f"v{number}")
        here.image([f"{repo} untagged".encode()], repo=repo)

    class Asked(MemoryIndex):
        calls = 0

        async def records(self, digests: Sequence[Digest]) -> dict[Digest, ContentRecord]:
            self.calls += 1
            return await super().records(digests)

    index = Asked()
    page = await _overview(here, index).page(select("**", _TABLE), list_of(repos), None, 500, 1000)
    assert len(page.images) == 4 * 21
    assert store.reads == 4 * (20 * 3 + 2 + 1)
    assert index.calls == 1


@pytest.mark.parametrize("slow", [False, True])
async def test_pages_of_images_without_tags_cost_what_they_show(slow: bool) -> None:
    """The first page looks at the whole repository; those that continue it do not, if that was slow. What was deleted
    since is not in them, and a list that begins later has what came.
    """
    store, clock = _Counted(), [0.0]
    here = Here(store, MemoryCatalog())
    roots = [here.image([f"{number}".encode()]) for number in range(60)]

    def now() -> float:
        clock[0] += float(slow)
        return clock[0]

    untagged, names, reads = UntaggedLists(now), [], []
    begin: PageCursor | None = None
    while True:
        store.reads = 0
        overview = Overview(store, here.catalog, MemoryIndex(), untagged=untagged)
        page = await overview.page(select("**", _TABLE), list_of([APP]), begin, 6, 1000)
        names += [image.root.digest for image in page.images]
        reads.append(store.reads)
        if page.next is None:
            break
        if begin is None:
            gone = max(roots, key=lambda root: str(root.digest))
            here.catalog.drop_manifest(APP, gone.digest)
        begin = page.next
    assert names == sorted((root.digest for root in roots if root != gone), key=str)
    assert reads[0] >= 60
    assert all(each <= 2 * 7 if slow else each >= 59 for each in reads[1:])
    new = here.image([b"new"])
    overview = Overview(store, here.catalog, MemoryIndex(), untagged=untagged)
    page = await overview.page(select("**", _TABLE), list_of([APP]), None, 500, 1000)
    assert new.digest in {image.root.digest for image in page.images}


@pytest.mark.parametrize("seed", range(8))
async def test_what_stays_is_listed_once_whatever_changes_between_pages(seed: int) -> None:
    """Images come and go between the pages, before the place, behind it and at it; tags move. Those that are there the
    whole time, under the same name, are listed once each.
    """
    draw = random.Random(seed)
    here = Here(MemoryStore(), MemoryCatalog())
    repos = [Repo("docker.io", f"team/app{number}") for number in range(6)]

    def name(number: int) -> str:
        return f"{draw.choice('abc')}{number}"

    staying: set[str] = set()
    others: list[tuple[Repo, str]] = []
    for number, repo in enumerate(repos * 10):
        tag = name(number)
        root = here.image([f"{repo} {tag}".encode()], repo=repo, tag=None if number % 7 == 3 else tag)
        if number % 3 or number % 7 == 3:
            staying.add(f"{repo}@{root.digest}" if number % 7 == 3 else f"{repo}:{tag}")
        else:
            others.append((repo, tag))
    listed: Counter[str] = Counter()
    begin, added = None, 100
    while True:
        # each page is of an overview of its own, as each request's is
        found = list_of({*repos, *here.catalog.repositories()})
        page = await _overview(here).page(select("**", _TABLE), found, begin, draw.randint(1, 6), draw.randint(1, 9))
        listed.update(image.name for image in page.images)
        if page.next is None:
            break
        begin = page.next
        for _ in range(draw.randint(0, 3)):
            if others and draw.random() < 0.6:
                repo, tag = others.pop(draw.randrange(len(others)))
                here.catalog.drop_tag(repo, tag)
            else:
                added += 1
                repo = draw.choice([*repos, Repo("docker.io", f"team/app{draw.randint(0, 9)}x")])
                tag = name(added)
                here.image([f"new {added}".encode()], repo=repo, tag=tag)
                others.append((repo, tag))
    assert {name: listed[name] for name in staying} == dict.fromkeys(staying, 1)
    assert max(listed.values()) == 1


# ----------------------------------------------------------------------------------------------------- one image


@pytest.mark.parametrize("indexed", [False, True])
async def test_what_is_shared(here: Here, indexed: bool) -> None:
    """Bytes that another image names too, in any repository, and all of a child that two indexes name, or that another
    repository has; whether the index knows it or the disk has to be read.
    """
    index = MemoryIndex()
    overview = _overview(here, index)

    async def shared(tag: str) -> tuple[CachedImage, int]:
        if indexed:
            await reconcile(here.store, here.catalog, index)
        image = await _get(here, tag)
        return image, (await overview.detail(image)).shared

    here.image([b"base" * 100, b"own"], config={"only": 1}, tag="v1")
    assert (await shared("v1"))[1] == 0
    here.image([b"base" * 100, b"theirs"], config={"only": 2}, repo=Repo("ghcr.io", "owner/app"))
    assert (await shared("v1"))[1] == 400

    child = here.image([b"child"], config={"only": 3})
    here.index({"linux/amd64": child}, tag="new")
    assert (await shared("new"))[1] == 0
    here.index({"linux/amd64": child, "linux/arm64": here.image([b"arm"], config={"only": 4})}, tag="old")
    image, size = await shared("new")
    assert size == image.closure.present_size - image.root.size

    here.image([b"twin"], config={"only": 5}, tag="twin")
    assert (await shared("twin"))[1] == 0
    here.image([b"twin"], config={"only": 5}, repo=Repo("ghcr.io", "owner/twin"))
    image, size = await shared("twin")
    assert size == image.closure.present_size
    alone = here.image([b"alone"], config={"only": 6}, tag="alone")
    here.index({"linux/amd64": alone}, tag="above")
    image, size = await shared("alone")
    assert size == image.closure.present_size


async def test_what_the_index_knows_is_not_read(here: Here) -> None:
    """What an image shares with those of other repositories is told without a look into their manifests."""
    index = MemoryIndex()
    here.image([b"base", b"own"], config={"only": 1}, tag="v1")
    other = here.image([b"base", b"theirs"], config={"only": 2}, repo=Repo("ghcr.io", "owner/app"))
    await reconcile(here.store, here.catalog, index)
    read: list[Digest] = []
    store = here.store

    class Watched(MemoryStore):
        def read(self, digest: Digest, limit: int) -> bytes:
            read.append(digest)
            return store.read(digest, limit)

        stat = store.stat

    overview = Overview(Watched(), here.catalog, index)
    image = await overview.image(APP, "v1")
    assert image
    assert (await overview.detail(image)).shared == 4
    assert image.root.digest in read
    assert other.digest not in read


@pytest.mark.parametrize("hosted", [False, True])
async def test_one_image_costs_its_repository(hosted: bool) -> None:
    """Whatever else is here: no other repository is listed or read to tell what the image shares with it."""
    others = [Repo("ghcr.io", f"owner/app{number}") for number in range(20)]

    listed: set[Repo] = set()

    class Listed(MemoryCatalog):
        def manifest_digests(self, repo: Repo) -> Iterable[Digest]:
            listed.add(repo)
            return super().manifest_digests(repo)

    catalog, store = Listed(), _Counted()
    here, index = Here(store, catalog), MemoryIndex()
    here.image([b"base" * 50, b"own"], config={"only": 1}, tag="v1")
    for number, repo in enumerate(others):
        here.image([b"base" * 50, f"{number}".encode()], config={"only": 1}, repo=repo, tag="v1")
    await reconcile(store, catalog, index)
    base, config = Digest.of(b"base" * 50), Digest.of(json.dumps({"only": 1}).encode())

    def holders(digest: Digest, most: int) -> Sequence[Repo]:
        return [APP, others[3]][:most] if digest in (base, config) else [APP]

    places = BlobPlaces(store, store, lambda repo: hosted, hosted_holders=holders if hosted else lambda _d, _m: ())
    overview = Overview(places, catalog, index)
    image = await overview.image(APP, "v1")
    assert image
    listed.clear()
    store.reads = 0
    detail = await overview.detail(image)
    assert detail.shared == store.stat(base).size + store.stat(config).size
    assert listed == {APP}
    assert store.reads <= 3


async def test_what_a_hosted_image_shares_if_the_ledger_does_not_say() -> None:
    """All manifests are read."""
    here, index = Here(MemoryStore(), MemoryCatalog()), MemoryIndex()
    here.image([b"base" * 50, b"own"], config={"only": 1}, tag="v1")
    here.image([b"base" * 50, b"theirs"], config={"only": 2}, repo=Repo("ghcr.io", "owner/app"), tag="v1")
    await reconcile(here.store, here.catalog, index)

    def unknown(_digest: Digest, _most: int) -> Sequence[Repo]:
        raise IndexUnavailable("not complete")

    overview = Overview(
        BlobPlaces(here.store, here.store, lambda repo: True, hosted_holders=unknown), here.catalog, index
    )
    image = await overview.image(APP, "v1")
    assert image
    assert (await overview.detail(image)).shared == 200


async def test_everything_about_one(here: Here) -> None:
    """Times, other tags, what refers to it and what it refers to."""
    child = here.image([b"layer"])
    root = here.index({"linux/amd64": child}, tag="v1")
    here.index({"linux/amd64": child}, tag="latest")
    here.image([b"other"], tag="v2")
    signature = here.image([b"sig"], subject=root.to_json(), artifactType="application/x.sig", tag="sig")
    sbom = here.image([b"sbom"], subject=child.to_json())
    here.image([b"of another"], subject=signature.to_json())
    overview = _overview(here)
    whole = await overview.detail(await _get(here, "v1"))
    assert (whole.fetched_at, whole.checked_at) == (1000.0, 2000.0)
    assert whole.other_tags == ("latest",)
    assert whole.subject is None
    assert {referrer.digest for referrer in whole.referrers} == {signature.digest, sbom.digest}
    artifact = await _get(here, "sig")
    assert artifact.complete
    assert (await overview.detail(artifact)).subject == root.digest


async def test_a_frozen_tag(here: Here) -> None:
    """What it answers counts, not what it was last known to point to."""
    old = here.image([b"old"], config={"only": 1})
    new = here.image([b"new"], config={"only": 2}, tag="v1")
    here.store.delete(new.digest)
    freeze = Freeze(APP, "v1", old.digest, old.media_type, old.size, "why", 5.0)
    overview = Overview(here.store, here.catalog, MemoryIndex(), freezes=[freeze])
    image = await overview.image(APP, "v1")
    assert image
    assert (image.root.digest, image.complete) == (old.digest, True)
    assert (await overview.detail(image)).frozen == freeze
    assert [image.root.digest async for image in overview.images() if image.tag] == [old.digest]


async def test_what_is_not_here(here: Here) -> None:
    """Neither by tag nor by digest, nor as bytes that only another repository may serve."""
    root = here.image([b"1"], repo=Repo("ghcr.io", "owner/app"), tag="v1")
    assert await _overview(here).image(APP, "v1") is None
    assert await _overview(here).image(APP, root.digest) is None
