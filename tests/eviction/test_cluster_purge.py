"""A purge that all replicas carry out: once, also those that were away, and the members that have not are named."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from mirror.errors import BucketUnavailable, ImageProtected, ManifestUnknown, StoreError
from mirror.eviction.cluster_purge import ClusterPurge
from mirror.eviction.known_purges import KnownPurges, Orders
from mirror.eviction.purge import Purged
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.image_names import Image, name_of
from mirror.ports.peers import Notice
from mirror.store.local.blobs import LocalStore
from mirror.store.local.json_records import JsonRecords
from mirror.store.local.layout import Layout
from mirror.store.objects.purge_orders import BucketPurgeOrders
from tests.support.memory_bucket import MemoryBucket

_REPO = Repo("docker.io", "library/app")
_IMAGE = Image(_REPO, "v1")
_BY_DIGEST = Image(_REPO, digest=Digest.parse(f"sha256:{'a' * 64}"))


class _Replica:
    """One of several, with the images on its disk."""

    def __init__(self, name: str, site: _Site) -> None:
        self.name = name
        self.site = site
        self.images = {_IMAGE, _BY_DIGEST}
        self.purged: list[Image] = []
        self.heeded = 0
        self.protects = False
        self.stands_still = False
        self.fails_for: Image | None = None
        layout = Layout(site.folder / name)
        # makes the folders
        LocalStore(layout)
        self.orders: Orders = (
            JsonRecords(layout, "purge-orders") if site.bucket is None else BucketPurgeOrders(site.bucket)
        )
        self.steady = 0.0
        self.known = KnownPurges(
            self.orders, JsonRecords(layout, "purges-done"), now=lambda: site.now, steady=lambda: self.steady
        )
        self.purge = ClusterPurge(
            self._purge,
            self._everywhere,
            self,
            self.known,
            is_shared=site.bucket is not None,
            now=lambda: site.now,
        )

    async def _purge(self, image: Image) -> Purged:
        if self.protects:
            raise ImageProtected(f"{image} is pinned")
        if image == self.fails_for:
            raise StoreError("a record is damaged")
        if image not in self.images:
            raise ManifestUnknown(f"{image} is not here")
        self.images.remove(image)
        self.purged.append(image)
        return Purged(name_of(image.repo, image.reference), image.repo, ("v1",), (), 3, 1000)

    async def _everywhere(self) -> None:
        if self.stands_still:
            raise StoreError("a worker stands still")
        self.heeded += 1

    async def send(self, notice: Notice, *, patience: float, to: Sequence[str] | None = None) -> Sequence[str]:
        """As the others of the site take it."""
        failed = []
        for other in self.site.others(self):
            if to is not None and other.name not in to:
                continue
            try:
                if other.name in self.site.away:
                    raise StoreError("away")
                await other.purge.effect(notice)
            except StoreError:
                failed.append(other.name)
        for event in self.site.afterwards:
            await event()
        return failed

    def hint(self, notice: Notice) -> None:
        """Purges are no hints."""
        raise AssertionError(notice)


class _Site:
    def __init__(self, folder: Path, bucket: MemoryBucket | None) -> None:
        self.folder = folder
        self.bucket = bucket
        self.now = 1_000_000.0
        self.away: set[str] = set()
        self.afterwards: list[Callable[[], Awaitable[None]]] = []
        self.replicas = [_Replica(name, self) for name in ("a", "b", "c")]

    def others(self, one: _Replica) -> list[_Replica]:
        """All but one."""
        return [replica for replica in self.replicas if replica is not one]


@pytest.fixture(params=["bucket", "disks"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> _Site:
    """Three replicas, with a bucket and without one."""
    return _Site(tmp_path, MemoryBucket() if request.param == "bucket" else None)


@pytest.mark.parametrize("image", [_IMAGE, _BY_DIGEST], ids=str)
async def test_132_all_replicas_purge_before_the_command_ends(site: _Site, image: Image) -> None:
    a, b, c = site.replicas
    purged = await a.purge(image)
    assert (purged.unconfirmed, purged.blobs) == ((), 3)
    assert [image in replica.images for replica in site.replicas] == [False] * 3
    assert (a.heeded, b.heeded, c.heeded) == (1, 1, 1)


async def test_what_only_another_replica_has_is_purged_there(site: _Site) -> None:
    a, b, _ = site.replicas
    a.images.clear()
    purged = await a.purge(_IMAGE)
    assert (purged.image, purged.tags, purged.bytes) == ("docker.io/library/app:v1", (), 0)
    assert _IMAGE not in b.images


async def test_what_a_peer_gave_back_meanwhile_is_purged_again(site: _Site) -> None:
    """Between the purge here and the one there, a pull here took it from there."""
    a, *_ = site.replicas

    async def pull() -> None:
        a.images.add(_IMAGE)

    site.afterwards.append(pull)
    await a.purge(_IMAGE)
    assert _IMAGE not in a.images


async def test_a_refused_purge_changes_nothing_anywhere(site: _Site) -> None:
    a, b, _ = site.replicas
    a.protects = True
    with pytest.raises(ImageProtected):
        await a.purge(_IMAGE)
    assert _IMAGE in b.images
    await b.purge.round()
    assert _IMAGE in b.images


async def test_a_replica_that_was_away_is_named_and_purges_when_it_is_back(site: _Site) -> None:
    a, b, c = site.replicas
    site.away.add("b")
    purged = await a.purge(_IMAGE)
    assert purged.unconfirmed == ("b",)
    assert (_IMAGE in b.images, _IMAGE in c.images) == (True, False)
    await a.purge.round()
    assert _IMAGE in b.images
    site.away.clear()
    if site.bucket is None:
        await a.purge.round()
    else:
        # it asks by itself, also if the one that was asked is gone
        await b.purge.round()
    assert _IMAGE not in b.images
    assert b.heeded == 1
    # once: what is pulled again stays
    b.images.add(_IMAGE)
    c.images.add(_IMAGE)
    for _ in range(2):
        for replica in (a, b, c):
            await replica.purge.round()
    assert (_IMAGE in b.images, _IMAGE in c.images) == (True, True)


async def test_a_replica_whose_worker_stands_still_has_not_confirmed(site: _Site) -> None:
    a, b, _ = site.replicas
    b.stands_still = True
    assert (await a.purge(_IMAGE)).unconfirmed == ("b",)
    b.stands_still = False
    await a.purge.round()
    assert b.heeded == 1


async def test_pins_of_another_replica_keep_its_image(site: _Site) -> None:
    a, b, _ = site.replicas
    b.protects = True
    assert (await a.purge(_IMAGE)).unconfirmed == ()
    assert _IMAGE in b.images


async def test_orders_are_forgotten_after_a_week(site: _Site) -> None:
    a, b, _ = site.replicas
    site.away.add("b")
    await a.purge(_IMAGE)
    site.now += 7 * 86400 + 1
    site.away.clear()
    for replica in site.replicas:
        await replica.purge.round()
    assert list(a.orders.all()) == []
    assert _IMAGE in b.images


async def test_a_replica_with_a_new_disk_heeds_what_is_in_the_bucket(tmp_path: Path) -> None:
    site = _Site(tmp_path, MemoryBucket())
    await site.replicas[0].purge(_IMAGE)
    new = _Replica("new", site)
    await new.purge.round()
    assert _IMAGE not in new.images


async def test_orders_of_several_replicas_at_once_are_all_kept() -> None:
    bucket = MemoryBucket()
    one, other = BucketPurgeOrders(bucket), BucketPurgeOrders(bucket)
    assert list(one.all()) == []
    other.put("b", {"n": 2})
    one.put("a", {"n": 1})
    assert {order["key"]: order["n"] for order in other.all()} == {"a": 1, "b": 2}
    assert one.drop("b")
    assert not other.drop("b")
    assert [order["key"] for order in other.all()] == ["a"]


async def test_a_purge_that_is_not_confirmed_is_known_everywhere(tmp_path: Path) -> None:
    """The image is restored nowhere, and the member that is away is not asked for its blobs: until it has confirmed."""
    site = _Site(tmp_path, MemoryBucket())
    a, _, c = site.replicas
    site.away.add("b")
    await a.purge(_IMAGE)
    await asyncio.to_thread(c.known.require)
    for known in (a.known, c.known):
        assert known.is_withheld(_REPO, "v1")
        assert not known.is_withheld(_REPO, "v2")
        assert (known.may_keep("b", _REPO), known.may_keep("c", _REPO)) == (True, False)
        assert not known.may_keep("b", Repo("docker.io", "library/other"))
        # they have carried it out
        await asyncio.to_thread(known.require_heeded)
    site.away.clear()
    await a.purge.round()
    c.steady = 11.0
    await asyncio.to_thread(c.known.require)
    assert not c.known.is_withheld(_REPO, "v1")
    assert not c.known.may_keep("b", _REPO)


async def test_a_replica_that_was_away_heeds_purges_before_it_writes(tmp_path: Path) -> None:
    """It has looked before it was frozen; after ten seconds that does not count any more."""
    site = _Site(tmp_path, MemoryBucket())
    a, b, _ = site.replicas
    await asyncio.to_thread(b.known.require_heeded)
    site.away.add("b")
    await a.purge(_IMAGE)
    b.steady = 10.0
    await asyncio.to_thread(b.known.require_heeded)
    b.steady = 10.1
    with pytest.raises(BucketUnavailable, match=r"purge of docker\.io/library/app v1 is not carried out"):
        await asyncio.to_thread(b.known.require_heeded)
    assert b.known.is_withheld(_REPO, "v1")
    await b.purge.round()
    await asyncio.to_thread(b.known.require_heeded)


async def test_after_a_start_the_orders_are_read_first(tmp_path: Path) -> None:
    """And while they cannot be read, nothing is known."""
    bucket = MemoryBucket()
    site = _Site(tmp_path, bucket)
    await site.replicas[0].purge(_IMAGE)
    new = _Replica("new", site)
    bucket.down = True
    for call in (new.known.require, new.known.require_heeded):
        with pytest.raises(BucketUnavailable, match="is down"):
            await asyncio.to_thread(call)
    bucket.down = False
    with pytest.raises(BucketUnavailable, match="not carried out here yet"):
        await asyncio.to_thread(new.known.require_heeded)


async def test_a_purge_that_fails_does_not_hold_up_the_others(tmp_path: Path) -> None:
    """It is tried again, and nothing is written to the bucket meanwhile."""
    site = _Site(tmp_path, MemoryBucket())
    a, b, _ = site.replicas
    site.away.add("b")
    await a.purge(_IMAGE)
    await a.purge(_BY_DIGEST)
    b.fails_for = _IMAGE
    with pytest.raises(StoreError, match="damaged"):
        await b.purge.round()
    assert b.purged == [_BY_DIGEST]
    with pytest.raises(BucketUnavailable):
        await asyncio.to_thread(b.known.require_heeded)
    b.fails_for = None
    await b.purge.round()
    await asyncio.to_thread(b.known.require_heeded)
