"""Pinned images, and images as what eviction counts: in a whole mirror, from pull to eviction."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mirror.errors import ImageProtected, IndexUnavailable, StoreError, StoreFull
from mirror.eviction.pinned_images import PinnedContent, pinned_images, why_pinned
from mirror.graph.references import ReferenceReader, names_of
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.oci.reference import Reference, Repo
from mirror.policy.image_names import Image
from mirror.policy.pins import PinRule
from mirror.policy.records import Freeze, ManifestRecord, Pin, TagRecord
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from mirror.store.local.local_records import local_pins
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import LiveMirror, live_mirror, noise, until
from tests.support.memory_store import MemoryCatalog, MemoryPins, MemoryStore
from tests.support.redis_server import RedisServer

#: Bytes of every layer.
SIZE = 50_000
APP = Repo("docker.io", "library/app")


def layer(seed: int) -> bytes:
    """Of its own for each number."""
    return noise(SIZE, seed)


@asynccontextmanager
async def running(
    registry: FakeRegistry, root: Path, capacity: str = "1MB", **settings: Any
) -> AsyncIterator[LiveMirror]:
    """A mirror whose index knows the disk."""
    async with live_mirror(
        root,
        {"docker.io": registry.url},
        store={"capacity": capacity},
        **settings,
    ) as mirror:
        await mirror.rebuilt()
        yield mirror


async def pull(mirror: LiveMirror, reference: str, name: str = "library/app") -> set[Digest]:
    """As clients do it, every platform; all digests of the image."""
    got = await mirror.ask(f"/v2/{name}/manifests/{reference}")
    assert got.status == 200, got
    digests = {Digest.parse(got.headers["Docker-Content-Digest"])}
    for child in got.json.get("manifests", []):
        digests |= await pull(mirror, child["digest"], name)
    for blob in [got.json["config"], *got.json["layers"]] if "layers" in got.json else []:
        answer = await mirror.ask(f"/v2/{name}/blobs/{blob['digest']}")
        assert answer.status == 200, answer
        digests.add(Digest.parse(blob["digest"]))
    await mirror.idle()
    return digests


def present(mirror: LiveMirror, digests: set[Digest]) -> set[Digest]:
    """Those of them that are on disk."""
    return {digest for digest in digests if mirror.blob_file(digest).exists()}


async def pressure(mirror: LiveMirror, registry: FakeRegistry, images: int, layers: int = 5) -> list[set[Digest]]:
    """Pull images of `layers` times `SIZE` bytes that nobody has seen before."""
    pulled = []
    for number in range(images):
        content = [layer(1000 * number + each + 17) for each in range(layers)]
        registry.add_image("library/other", f"p{number}", content, config=f"{number}".encode())
        mirror.clock.forward(10)
        pulled.append(await pull(mirror, f"p{number}", "library/other"))
    return pulled


def pin(mirror: LiveMirror, reference: Reference, until: float | None = None) -> None:
    """As `mirror pin` does it, through the disk alone."""
    local_pins(Layout(mirror.root)).put(Pin(APP, reference, "needed", mirror.clock(), until))


async def test_a_pinned_image_survives_pressure(registry: FakeRegistry, tmp_path: Path) -> None:
    """Three times the capacity passes through: the pinned image stays whole, others go, pulls never fail."""
    registry.add_image("library/app", "v1", [layer(1), layer(2)])
    async with running(registry, tmp_path / "store") as mirror:
        kept = await pull(mirror, "v1")
        pin(mirror, "v1")
        others = await pressure(mirror, registry, 12)
        assert present(mirror, kept) == kept
        assert not present(mirror, others[0])
        assert present(mirror, others[-1]) == others[-1]
        used = sum(info.size for info in mirror.app.storage.store.walk())
        assert used <= 1_000_000


async def test_a_pin_in_the_middle_of_an_eviction(registry: FakeRegistry, tmp_path: Path) -> None:
    """What was chosen before the pin goes before the pin is answered: how much the answer says is here stays here."""
    registry.add_image("library/app", "v1", [layer(1), layer(2)])
    async with running(registry, tmp_path / "store") as mirror:
        content = await pull(mirror, "v1")
        # an eviction of another process, which has looked at the pins and has not deleted yet
        async with mirror.app.storage.locks.hold("evict"):
            pinning = asyncio.create_task(mirror.app.admin.images.pin(Image(APP, "v1"), {}))
            await until(lambda: bool(mirror.app.storage.pins.all()))
            for digest in content:
                await asyncio.to_thread(mirror.app.storage.store.delete, digest)
            assert not pinning.done()
        assert (await pinning)["state"] != "complete"


async def test_a_pin_in_the_middle_of_a_purge(registry: FakeRegistry, tmp_path: Path) -> None:
    """A purge that has looked at the pins, and has dropped nothing yet, is refused by a pin that comes meanwhile."""
    registry.add_image("library/app", "v1", [layer(1), layer(2)])
    async with running(registry, tmp_path / "store") as mirror:
        content = await pull(mirror, "v1")
        async with mirror.app.storage.locks.hold("evict"):
            purging = asyncio.create_task(mirror.app.admin.images.purge(Image(APP, "v1")))
            await until(mirror.app.storage.eviction.evictor._ours.locked)
            pin(mirror, "v1")
        with pytest.raises(ImageProtected):
            await purging
        assert present(mirror, content) == content
        assert mirror.app.storage.catalog.get_tag(APP, "v1") is not None


async def test_without_its_pin_it_goes(registry: FakeRegistry, tmp_path: Path) -> None:
    """The same image, unpinned or with a pin that is over, goes first: it is the coldest."""
    registry.add_image("library/app", "v1", [layer(1), layer(2)])
    async with running(registry, tmp_path / "store") as mirror:
        kept = await pull(mirror, "v1")
        pin(mirror, "v1", until=mirror.clock() + 5)
        await mirror.app.storage.eviction.space.collect()
        with pytest.raises(StoreFull, match="pinned"):
            await mirror.app.storage.eviction.space.make_room(1)
        assert present(mirror, kept) == kept
        mirror.clock.forward(5)
        await mirror.app.storage.eviction.space.make_room(1)
        assert not present(mirror, kept)


async def test_a_pinned_tag_that_moves(registry: FakeRegistry, tmp_path: Path) -> None:
    """The pin holds what the tag points to now; what it pointed to before may go."""
    registry.add_image("library/app", "v1", [layer(1), layer(2)])
    async with running(registry, tmp_path / "store") as mirror:
        old = await pull(mirror, "v1")
        pin(mirror, "v1")
        registry.add_image("library/app", "v1", [layer(3), layer(4)], config=b'{"new": 1}')
        mirror.clock.forward(301)
        new = await pull(mirror, "v1")
        await pressure(mirror, registry, 6)
        assert present(mirror, new) == new
        assert not present(mirror, old)


async def test_a_frozen_tag_that_is_pinned(registry: FakeRegistry, tmp_path: Path) -> None:
    """What a pinned tag answers because it is frozen stays, whatever upstream has said of it last."""
    registry.add_image("library/app", "v1", [layer(1), layer(2)])
    async with running(registry, tmp_path / "store") as mirror:
        old = await pull(mirror, "v1")
        pin(mirror, "v1")
        record = mirror.app.storage.catalog.get_tag(APP, "v1")
        assert record
        freeze = Freeze(APP, "v1", record.digest, record.media_type, record.size, "", mirror.clock())
        registry.add_image("library/app", "v1", [layer(3)], config=b'{"new": 1}')
        mirror.clock.forward(301)
        await pull(mirror, "v1")
        mirror.app.storage.freezes.put(freeze)
        await pressure(mirror, registry, 6)
        assert present(mirror, old) == old


async def test_what_a_frozen_tag_answers_stays(registry: FakeRegistry, tmp_path: Path) -> None:
    """Whole, although nobody pinned it and upstream has moved the tag; after the freeze it goes."""
    registry.add_image("library/app", "v1", [layer(1), layer(2)])
    async with running(registry, tmp_path / "store") as mirror:
        frozen = await pull(mirror, "v1")
        record = mirror.app.storage.catalog.get_tag(APP, "v1")
        assert record
        freeze = Freeze(APP, "v1", record.digest, record.media_type, record.size, "", mirror.clock())
        registry.add_image("library/app", "v1", [layer(3), layer(4)])
        mirror.clock.forward(600)
        await pull(mirror, "v1")
        mirror.app.storage.freezes.put(freeze)
        others = await pressure(mirror, registry, 12)
        assert present(mirror, frozen) == frozen
        assert not present(mirror, others[0])
        mirror.app.storage.freezes.drop(APP, "v1")
        await pressure(mirror, registry, 12, layers=4)
        assert not present(mirror, frozen)


async def test_a_pin_that_comes_before_the_pull(registry: FakeRegistry, tmp_path: Path) -> None:
    """A pinned image that is not here yet stays once it is, and each platform that is pulled later too."""
    children = [registry.add_image("library/app", None, [layer(n)], config=f'{{"n": {n}}}'.encode()) for n in (1, 2)]
    registry.add_index("library/app", "v1", children)
    async with running(registry, tmp_path / "store") as mirror:
        pin(mirror, "v1")
        index = await mirror.ask("/v2/library/app/manifests/v1")
        one = await pull(mirror, str(children[0]))
        await pressure(mirror, registry, 3)
        two = await pull(mirror, str(children[1]))
        await pressure(mirror, registry, 6, layers=6)
        whole = {*one, *two, Digest.parse(index.headers["Docker-Content-Digest"])}
        assert present(mirror, whole) == whole


async def test_a_rule_of_the_configuration(registry: FakeRegistry, tmp_path: Path) -> None:
    """Images whose names fit stay, others of the same repository go."""
    registry.add_image("library/app", "v1.0", [layer(1)])
    registry.add_image("library/app", "v2.0", [layer(2)], config=b'{"v": 2}')
    rule = {"match": "docker.io/library/*:v1.*", "reason": "the old stable"}
    async with running(registry, tmp_path / "store", pin=[rule]) as mirror:
        kept, gone = await pull(mirror, "v1.0"), await pull(mirror, "v2.0")
        await pressure(mirror, registry, 6)
        assert present(mirror, kept) == kept
        assert not present(mirror, gone)


async def test_pins_hold_whatever_becomes_of_redis(registry: FakeRegistry, tmp_path: Path) -> None:
    """Flushed, rebuilt or killed in between: pins are on the disk, and what is not pinned goes image by image."""
    registry.add_image("library/app", "v1", [layer(1), layer(2)])
    with RedisServer() as redis:
        url = f"unix://{redis.socket}"
        async with running(registry, tmp_path / "store", "10MB", index={"url": url, "timeout": "60s"}) as mirror:
            kept = await pull(mirror, "v1")
            pin(mirror, "v1")
            others = await pressure(mirror, registry, 3)
            space = mirror.app.storage.eviction.space
            # else the index may be rebuilt before the disk has the times of use, which are ahead of the real clock
            await mirror.app.storage.eviction.write_behind.flush()
            redis.command("FLUSHALL")
            await space.make_room(1)
            assert [len(present(mirror, each)) for each in others] == [0, 7, 7]
            redis.kill()
            with pytest.raises(IndexUnavailable):
                await mirror.app.storage.index.usage()
            await space.make_room(1)
            assert [len(present(mirror, each)) for each in others] == [0, 0, 7]
            assert present(mirror, kept) == kept


async def test_an_image_used_by_head_alone_stays_warm(registry: FakeRegistry, tmp_path: Path) -> None:
    """A client that has every layer asks for the tag alone: its image is used, with all platforms that are here."""
    for name, seed in (("v1", 1), ("v2", 3)):
        children = [
            registry.add_image("library/app", None, [layer(seed + n)], config=f'{{"n": {seed + n}}}'.encode())
            for n in range(2)
        ]
        registry.add_index("library/app", name, children)
    async with running(registry, tmp_path / "store") as mirror:
        first, second = await pull(mirror, "v1"), await pull(mirror, "v2")
        mirror.clock.forward(100)
        assert (await mirror.ask("/v2/library/app/manifests/v1", method="HEAD")).status == 200
        await mirror.app.storage.eviction.space.make_room(1)
        assert present(mirror, first) == first
        assert not present(mirror, second)


async def test_shared_layers_stay_with_the_warm_image(registry: FakeRegistry, tmp_path: Path) -> None:
    """The cold image goes with what only it needs; the warm one is whole and pulls without upstream."""
    registry.add_image("library/app", "v1", [layer(1), layer(2)])
    registry.add_image("library/app", "v2", [layer(1), layer(3)], config=b'{"v": 2}')
    async with running(registry, tmp_path / "store") as mirror:
        cold = await pull(mirror, "v1")
        mirror.clock.forward(10)
        warm = await pull(mirror, "v2")
        await mirror.app.storage.eviction.space.make_room(1)
        assert present(mirror, cold | warm) == warm
        asked = registry.count("blobs", "GET")
        assert await pull(mirror, "v2") == warm
        assert registry.count("blobs", "GET") == asked


async def test_loose_blobs_go_first(registry: FakeRegistry, tmp_path: Path) -> None:
    """A blob that no cached manifest names goes before the coldest image, though it was used later."""
    registry.add_image("library/app", "v1", [layer(1)])
    loose = registry.add_blob("library/app", layer(2))
    async with running(registry, tmp_path / "store") as mirror:
        image = await pull(mirror, "v1")
        mirror.clock.forward(3600)
        assert (await mirror.ask(f"/v2/library/app/blobs/{loose}")).status == 200
        await mirror.landed(loose)
        mirror.clock.forward(600)
        victims = await mirror.app.storage.eviction.space.plan(1)
        assert [(each.digest, each.images) for each in victims] == [(loose, ())]
        await mirror.app.storage.eviction.space.make_room(1)
        assert present(mirror, {loose, *image}) == image


async def test_an_evicted_image_is_fetched_again(registry: FakeRegistry, tmp_path: Path) -> None:
    """Its links stay, so that a later pull brings the same bytes back, and it is warm then."""
    registry.add_image("library/app", "v1", [layer(1)])
    registry.add_image("library/app", "v2", [layer(2)], config=b'{"v": 2}')
    async with running(registry, tmp_path / "store") as mirror:
        first, second = await pull(mirror, "v1"), await pull(mirror, "v2")
        space = mirror.app.storage.eviction.space
        await space.make_room(2 * SIZE)
        assert not present(mirror, first | second)
        mirror.clock.forward(10)
        assert await pull(mirror, "v2") == second
        assert present(mirror, first | second) == second
        mirror.clock.forward(10)
        assert await pull(mirror, "v1") == first
        await space.make_room(1)
        assert present(mirror, first | second) == first


async def test_uses_that_only_one_worker_knows(registry: FakeRegistry, tmp_path: Path) -> None:
    """Two workers on one store: what one of them was asked for by HEAD, the other does not drop."""
    registry.add_image("library/app", "v1", [layer(1)])
    registry.add_image("library/app", "v2", [layer(2)], config=b'{"v": 2}')
    async with running(registry, tmp_path / "store") as one, running(registry, tmp_path / "store") as other:
        first, second = await pull(one, "v1"), await pull(one, "v2")
        other.clock.forward(3600)
        assert (await other.ask("/v2/library/app/manifests/v1", method="HEAD")).status == 200
        await other.app.storage.eviction.write_behind.flush()
        await one.app.storage.eviction.space.make_room(1)
        assert present(one, first | second) == first


# ----------------------------------------------------------------------------------- which images are pinned, and why


class Site:
    """A store, a catalog and pins in memory, with one tagged image."""

    def __init__(self) -> None:
        self.store, self.catalog, self.pins = MemoryStore(), MemoryCatalog(), MemoryPins()
        self.names = ReferenceReader(self.store, self.catalog)
        self.answers: dict[str, Digest] = {}

    def content(
        self, rules: Sequence[PinRule] = (), is_hosted: Callable[[Repo], bool] = lambda _: False
    ) -> PinnedContent:
        """What stays."""
        return PinnedContent(
            self.catalog,
            self.pins,
            rules,
            self.names,
            frozen=lambda: ((), ()),
            answer=lambda _, tag: self.answers.get(tag),
            is_hosted=is_hosted,
        )


def tagged(site: Site, tag: str, *layers: bytes) -> Digest:
    """An image of the repository."""
    listed = [{"mediaType": "x/y", "digest": str(Digest.of(one)), "size": len(one)} for one in layers]
    content = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": listed}).encode()
    digest = Digest.of(content)
    site.store.put(digest, content)
    site.catalog.put_manifest(APP, ManifestRecord(digest, OCI_MANIFEST, len(content), 0.0))
    site.catalog.put_tag(APP, TagRecord(tag, digest, OCI_MANIFEST, len(content), 0.0))
    return digest


def test_why_an_image_is_pinned() -> None:
    """By its tag, by its digest, by another tag of the same digest, or by a rule; a pin by hand goes before a rule."""
    site = Site()
    first = tagged(site, "v1", b"a")
    tagged(site, "also", b"a")
    tagged(site, "v2", b"b")
    site.pins.put(Pin(APP, "v1", "by hand", 1.0))
    site.pins.put(Pin(APP, "gone", "not here", 1.0))
    site.pins.put(Pin(APP, "over", "", 1.0, 2.0))
    rules = [PinRule("docker.io/library/app:v*", "a rule")]
    pinned = pinned_images(site.pins, rules, site.catalog, 5.0)
    assert {(image.reference, image.reason, image.root is not None) for image in pinned} == {
        ("v1", "by hand", True),
        ("gone", "not here", False),
        ("v2", "a rule", True),
    }
    assert [each.reason for each in why_pinned(pinned, APP, tag="v1")] == ["by hand"]
    assert [each.reason for each in why_pinned(pinned, APP, tag="also", digest=first)] == ["by hand"]
    assert [each.rule for each in why_pinned(pinned, APP, tag="v2")] == ["docker.io/library/app:v*"]
    assert why_pinned(pinned, APP, tag="also") == []
    assert why_pinned(pinned, Repo("docker.io", "library/other"), tag="v1", digest=first) == []


def test_what_stays_for_a_pin() -> None:
    """The manifest and all that it names, whether that is here or not."""
    site = Site()
    root = tagged(site, "v1", b"here", b"absent")
    site.store.put(Digest.of(b"here"), b"here")
    content = site.content()
    assert content.digests(0.0) == set()
    site.pins.put(Pin(APP, "v1", "", 1.0))
    assert content.digests(0.0) == {root, Digest.of(b"here"), Digest.of(b"absent")}
    site.pins.put(Pin(APP, Digest.of(b"never seen"), "", 1.0))
    assert Digest.of(b"never seen") in content.digests(0.0)


def test_a_pinned_tag_that_answers_something_else() -> None:
    """Frozen or held back, a tag keeps what it answers as well as what it points to upstream."""
    site = Site()
    old, new = tagged(site, "v1", b"old"), tagged(site, "v1", b"new")
    site.pins.put(Pin(APP, "v1", "", 1.0))
    site.answers["v1"] = old
    assert site.content().digests(0.0) == {old, Digest.of(b"old"), new, Digest.of(b"new")}


def test_a_tag_that_cannot_be_read_at_the_moment_unpins_nothing() -> None:
    """Its last answer stands for as long as the pin does."""
    site = Site()
    root = tagged(site, "v1", b"a")
    site.pins.put(Pin(APP, "v1", "", 1.0))
    content = site.content()
    assert root in content.digests(0.0)
    site.catalog.drop_tag(APP, "v1")
    assert root in content.digests(0.0)
    site.pins.drop(APP, "v1")
    assert content.digests(0.0) == set()
    site.pins.put(Pin(APP, "v1", "", 1.0))
    assert content.digests(0.0) == set()


def test_a_hosted_tag_that_cannot_be_read_stops_no_eviction() -> None:
    """Though a rule matches it: what is hosted is not evicted, so nobody needs to know what it points to."""
    hosted = Repo("corp", "team/app")

    class Unreadable(MemoryCatalog):
        def get_tag(self, repo: Repo, tag: str) -> TagRecord | None:
            if repo == hosted:
                raise StoreError("the disk cannot be read")
            return super().get_tag(repo, tag)

    site = Site()
    site.catalog = Unreadable()
    root = tagged(site, "v1", b"here")
    site.catalog.put_tag(hosted, TagRecord("v1", root, OCI_MANIFEST, 1, 0.0))
    site.pins.put(Pin(hosted, "v1", "from before it was hosted", 1.0))
    rules = [PinRule("**/*:*", "everything")]
    with pytest.raises(StoreError):
        site.content(rules).digests(2.0)
    kept = site.content(rules, is_hosted=lambda repo: repo == hosted).digests(2.0)
    assert kept == {root, Digest.of(b"here")}


def test_pins_that_the_disk_does_not_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder or a note that cannot be read is an error, not an absence of pins."""
    layout = Layout(tmp_path / "store")
    LocalStore(layout)
    pins = local_pins(layout)
    pins.put(Pin(APP, "v1", "", 1.0))

    def fail(*_: object, **__: object) -> bytes:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        with pytest.raises(StoreError, match="reading a record"):
            list(pins.all())
    with monkeypatch.context() as patch:
        patch.setattr("mirror.store.local.json_records.os.listdir", fail)
        with pytest.raises(StoreError, match=r"listing .*pins"):
            list(pins.all())
    assert len(list(pins.all())) == 1


def test_what_people_call_a_manifest() -> None:
    """Every tag that points to it; where there is none, its repository; nothing for one that nobody has."""
    site = Site()
    first, second = tagged(site, "v1", b"a"), tagged(site, "v2", b"b")
    tagged(site, "also", b"a")
    site.catalog.drop_tag(APP, "v2")
    stranger = Digest.of(b"stranger")
    assert names_of(site.catalog, {first, second, stranger}) == {
        first: ["docker.io/library/app:also", "docker.io/library/app:v1"],
        second: ["docker.io/library/app"],
        stranger: [],
    }


async def test_every_worker_lists_names(registry: FakeRegistry, tmp_path: Path) -> None:
    """A manifest that the index has forgotten the names of is told again by a worker that reads it from the disk."""
    registry.add_image("library/app", "v1", [layer(1)])
    async with running(registry, tmp_path / "store") as mirror:
        image = await pull(mirror, "v1")
        index = mirror.app.storage.index
        root = Digest.parse(
            (await mirror.ask("/v2/library/app/manifests/v1", method="HEAD")).headers["Docker-Content-Digest"]
        )
        await index.drop([root])
    async with running(registry, tmp_path / "store") as mirror:
        await pull(mirror, "v1")
        # what is read from the disk is written to the index behind the answer
        await until(lambda: not mirror.app.shared.background)
        found = await mirror.app.storage.index.successors([root])
        assert {each.record.digest for each in found[root]} == image - {root}
