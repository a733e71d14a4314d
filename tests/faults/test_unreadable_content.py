"""Content that cannot be read at the moment is not absent: every caller that drops, evicts, grants, imports, repairs or
decides is tried with each of its reads failing in turn, and with each file failing for good.

An image that stays never loses content. A caller either ends as if nothing had failed, or it raises, and a second try,
once the disk can be read again, ends as if nothing had failed.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mirror.app.building import build
from mirror.app.import_target import import_target
from mirror.app.storage import Storage, make_purge, open_storage
from mirror.bundles.export import select
from mirror.bundles.import_plan import plan_images
from mirror.bundles.importing import run_import
from mirror.bundles.inventory import ListedImage, take_inventory
from mirror.bundles.layout_source import LayoutSource
from mirror.config import Config
from mirror.errors import ImageProtected, MirrorError, RecordDamaged, StoreError
from mirror.eviction.reconcile import is_whole, reconcile
from mirror.eviction.scrub import Owner, Scrub, ScrubProgress
from mirror.graph.closure import read_closure
from mirror.graph.manifests import read_stored, stored_manifest
from mirror.intake.grants import Grants
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST, Descriptor
from mirror.oci.reference import Repo
from mirror.policy.image_names import Image
from mirror.policy.records import BlobRole, Freeze, Pin, Sighting, TagRecord
from tests.support.command import mirror as command
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import LiveMirror, live_mirror
from tests.support.memory_index import MemoryIndex
from tests.support.stocked import Stocked
from tests.support.unreadable import Refuse, every, nth, refusing

APP, TOOL = Repo("docker.io", "library/app"), Repo("docker.io", "team/tool")
SHARED, OWN, TOOLS = b"shared" * 200, b"own of v1" * 200, b"of the tool" * 200


@dataclass
class Disk:
    """A store with images that share layers: `app` v1 (an index), v2 and old, and `team/tool`."""

    root: Path
    first: Digest
    config: Config

    @property
    def stocked(self) -> Stocked:
        """As it is now."""
        return Stocked(self.root)

    def copy(self, to: Path) -> Disk:
        """The same disk once more."""
        shutil.copytree(self.root, to)
        return Disk(to, self.first, config_of(to))

    def blobs(self) -> set[Digest]:
        """All that are here."""
        return {info.digest for info in self.stocked.store.walk()}

    def records(self) -> set[str]:
        """Every record of a tag, a manifest or a history."""
        repositories = self.root / "repositories"
        return {str(path.relative_to(repositories)) for path in repositories.rglob("*") if path.is_file()}

    def require_complete(self) -> None:
        """Every manifest that is here, and that a repository has, has all that it names."""
        store, catalog = self.stocked.store, self.stocked.catalog
        for repo in catalog.repositories():
            for digest in catalog.manifest_digests(repo):
                manifest = stored_manifest(store, catalog, repo, digest)
                for child in (*manifest.manifests, *manifest.blobs) if manifest else ():
                    store.stat(child.digest)


def config_of(root: Path) -> Config:
    """Of a mirror with one sealed registry."""
    upstream = [{"name": "docker.io", "url": "http://127.0.0.1:9"}]
    sealed = [{"match": "docker.io/**", "offline": True}]
    content: dict[str, Any] = {"upstream": upstream, "route": sealed, "store": {"root": root, "capacity": "10GB"}}
    return Config(**content)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """Used long ago; `team/tool` the longest."""
    root = tmp_path / "store"
    made = Stocked(root)
    amd64 = made.image("library/app", [SHARED, OWN])
    made.tag("library/app", "v1", first := made.index("library/app", {"amd64": amd64}))
    made.tag("library/app", "v2", made.image("library/app", [SHARED, b"own of v2" * 200]))
    made.tag("team/tool", "v1", made.image("team/tool", [SHARED, TOOLS]))
    made.image("library/app", [b"a signature"], subject=first)
    made.catalog.put_history(APP, "v1", (Sighting(Digest.of(b"before"), OCI_MANIFEST, 1, 1.0, 2.0),))
    for number, repo in enumerate((TOOL, APP)):
        for each in made.catalog.manifest_digests(repo):
            os.utime(made.layout.blob(each), (1_000_000 + number * 1000,) * 2)
    return Disk(root, first.digest, config_of(root))


#: What is done to a disk; it may raise `MirrorError`.
Action = Callable[[Disk], Awaitable[None]]


async def with_every_fault(disk: Disk, act: Action) -> AsyncIterator[tuple[Disk, str, MirrorError | None]]:
    """A copy of the disk for each fault, after `act` on it: first without a fault, then with each read failing once,
    then with each file failing for good; which fault it was, and what `act` raised.
    """
    good = disk.copy(disk.root.with_name("good"))
    with refusing(good.root, lambda _count, _path: False, 0) as reads:
        await act(good)
    yield good, "none", None
    below = [str(Path(path).relative_to(good.root)) for path in reads]
    assert below, "nothing is read, so nothing is tried"
    faults: list[tuple[str, Callable[[Path], Refuse], int]] = [
        (f"read {number} of {path}", lambda _root, number=number: nth(number), errno.EMFILE)  # type: ignore[misc]
        for number, path in enumerate(below)
    ]
    faults += [
        (f"every read of {path}", lambda root, path=path: every(str(root / path)), errno.EIO)  # type: ignore[misc]
        for path in sorted(set(below))
    ]
    for number, (name, refuse, error) in enumerate(faults):
        copy = disk.copy(disk.root.with_name(f"copy {number}"))
        trouble: MirrorError | None = None
        with refusing(copy.root, refuse(copy.root), error):
            try:
                await act(copy)
            except MirrorError as raised:
                trouble = raised
        yield copy, name, trouble
        shutil.rmtree(copy.root)


@asynccontextmanager
async def opened(disk: Disk) -> AsyncIterator[Storage]:
    """Its storage."""
    async with open_storage(disk.config) as storage:
        yield storage


# ------------------------------------------------------------------------------------------------------- what drops


@pytest.mark.parametrize("by_digest", [False, True])
async def test_36_37_purge(disk: Disk, by_digest: bool) -> None:
    """Content that other images need stays; a purge that cannot be decided says so, has changed nothing except perhaps
    the names of its own image, and a second purge succeeds.
    """

    async def purge(copy: Disk) -> None:
        async with opened(copy) as storage:
            image = Image(APP, None, copy.first) if by_digest else Image(APP, "v1")
            await make_purge(copy.config, storage)(image)

    before = disk.blobs(), disk.records()
    after: tuple[set[Digest], set[str]] | None = None
    async for copy, fault, trouble in with_every_fault(disk, purge):
        after = after or (copy.blobs(), copy.records())
        assert after[0] < before[0]
        assert copy.blobs() >= after[0], fault
        assert copy.records() >= after[1], fault
        copy.require_complete()
        if trouble is None:
            assert copy.records() == after[1], fault
            # a blob that could not be deleted is loose now: eviction takes it first
            assert all(digest.hex in fault for digest in copy.blobs() - after[0]), fault
            continue
        assert isinstance(trouble, StoreError), fault
        if "blobs of it stay" not in str(trouble):
            assert (copy.blobs(), copy.records()) == before, fault
            assert "is not purged, because it is not known what must stay" in str(trouble), fault
            await purge(copy)
            assert (copy.blobs(), copy.records()) == after, fault


@pytest.mark.parametrize("damage", ["a manifest", "a tag"])
async def test_39_purge_beside_what_is_damaged(disk: Disk, damage: str) -> None:
    """It is unknown what the damaged record names: the purge is refused with advice, and nothing has changed."""
    [tool] = disk.stocked.catalog.manifest_digests(TOOL)
    if damage == "a manifest":
        disk.stocked.plant(tool, b"garbage")
        image, why = Image(APP, "v1"), "mirror verify"
    else:
        (Path(disk.stocked.layout.tags(APP)) / "v2").write_bytes(b"{")
        image, why = Image(APP, "v1"), "pull or import it again"
    before = disk.blobs(), disk.records()
    async with opened(disk) as storage:
        with pytest.raises(StoreError, match=why):
            await make_purge(disk.config, storage)(image)
    assert (disk.blobs(), disk.records()) == before


@pytest.mark.parametrize("indexed", [False, True])
async def test_36_37_eviction(disk: Disk, indexed: bool) -> None:
    """Images go as wholes or not at all, by the index or by the disk alone; the pinned one stays."""
    async with opened(disk) as storage:
        storage.pins.put(Pin(APP, "v2", "", 1.0))
        if indexed:
            await reconcile(storage.store, storage.catalog, storage.index)

    async def evict(copy: Disk) -> None:
        async with opened(copy) as storage:
            await storage.eviction.space.make_room(len(TOOLS))

    [tool] = disk.stocked.catalog.manifest_digests(TOOL)
    before = disk.blobs()
    async for copy, fault, trouble in with_every_fault(disk, evict):
        copy.require_complete()
        if trouble is None:
            assert tool not in copy.blobs() or tool.hex in fault, fault
            assert Digest.of(SHARED) in copy.blobs(), fault
        else:
            assert isinstance(trouble, StoreError), fault
            assert copy.blobs() == before, fault


async def test_36_37_the_index_is_rebuilt(disk: Disk) -> None:
    """It is whole and right, or known not to be whole; no record of a manifest that is here is dropped."""
    records = disk.records()
    index = MemoryIndex()

    async def rebuild(copy: Disk) -> None:
        nonlocal index
        index = MemoryIndex()
        await reconcile(copy.stocked.store, copy.stocked.catalog, index)

    linked: dict[Digest, int | None] = {}
    async for copy, fault, trouble in with_every_fault(disk, rebuild):
        assert copy.records() == records, fault
        assert await is_whole(index) == (trouble is None), fault
        if trouble is not None:
            assert isinstance(trouble, StoreError), fault
            continue
        loose = {record.digest for record in await index.least_recently_used(BlobRole.LOOSE, 100)}
        assert not loose, fault
        linked = linked or {digest: await index.linked(APP, digest) for digest in disk.blobs()}
        assert {digest: await index.linked(APP, digest) for digest in disk.blobs()} == linked, fault


async def test_36_37_what_the_index_has_and_the_disk_does_not_give(disk: Disk) -> None:
    """A record of the index only goes if its file is gone for certain."""
    stray = Digest.of(b"stray")
    index = MemoryIndex()

    async def rebuild(copy: Disk) -> None:
        nonlocal index
        index = MemoryIndex()
        await reconcile(copy.stocked.store, copy.stocked.catalog, index)
        # what is one too many makes the next one look for strays
        record = await index.get(copy.first)
        assert record
        await index.put([type(record)(stray, 1, 1.0)])
        await reconcile(copy.stocked.store, copy.stocked.catalog, index)

    async for copy, fault, trouble in with_every_fault(disk, rebuild):
        if trouble is None:
            assert await index.get(stray) is None, fault
            for digest in copy.blobs():
                assert await index.get(digest) is not None, fault


async def test_36_37_repair(disk: Disk) -> None:
    """A damaged layer is fetched again for the repository that names it, or waits: it never counts as unneeded."""
    layer = Digest.of(TOOLS)
    disk.stocked.plant(layer, b"garbage")
    progress = ScrubProgress(0.0)

    async def scrub(copy: Disk) -> None:
        nonlocal progress
        progress = ScrubProgress(0.0)

        async def fetch(owner: Owner, digest: Digest) -> None:
            assert (owner, digest) == (Owner(TOOL, False), layer)
            copy.stocked.store.put(layer, TOOLS)

        each = Scrub(copy.stocked.store, copy.stocked.catalog, fetch_again=fetch)
        await each.check(layer, progress)
        await each.repair(progress)

    async for copy, fault, trouble in with_every_fault(disk, scrub):
        assert progress.unneeded == 0, fault
        if trouble is None and not progress.unreadable and not progress.lost:
            assert copy.stocked.has(TOOLS), fault
        elif progress.damaged:
            in_place = layer in copy.blobs()
            assert in_place or progress.waiting == [layer] or progress.lost == [layer], fault


# ----------------------------------------------------------------------------------------- what grants, and decides


async def test_36_37_rights(disk: Disk) -> None:
    """A cold process without an index gives the size or `StoreError`, never the answer that there is no right."""
    sizes: list[int | None] = []

    async def ask(copy: Disk) -> None:
        sizes.clear()
        grants = Grants(MemoryIndex(), copy.stocked.catalog, copy.stocked.store)
        sizes.append(await grants.size(APP, Digest.of(OWN)))

    async for _, fault, trouble in with_every_fault(disk, ask):
        if trouble is None:
            assert sizes == [len(OWN)], fault
        else:
            assert isinstance(trouble, StoreError), fault
            assert "not certain" in str(trouble), fault


async def test_36_37_a_right_that_others_give_is_enough(disk: Disk) -> None:
    """One manifest that cannot be read does not take away what another one grants, nor does it grant anything."""
    copy = disk.copy(disk.root.with_name("copy"))
    other = next(iter(copy.stocked.catalog.manifest_digests(TOOL)))
    made = copy.stocked.image("team/tool", [b"in another image"])
    grants = Grants(MemoryIndex(), copy.stocked.catalog, copy.stocked.store)
    with refusing(copy.root, every(str(copy.stocked.layout.blob(other))), errno.EIO):
        assert await grants.size(TOOL, Digest.of(b"in another image")) == len(b"in another image")
        assert await grants.size(TOOL, made.digest) == made.size
        for _ in range(2):
            with pytest.raises(StoreError, match="not certain"):
                await grants.size(TOOL, Digest.of(OWN))
    assert await grants.size(TOOL, Digest.of(OWN)) is None
    assert await grants.size(TOOL, Digest.of(TOOLS)) == len(TOOLS)


async def test_36_37_a_sealed_site_answers(disk: Disk) -> None:
    """Tag, manifest, blob and referrers: the content that is here, or 503; never 404."""

    async def pull(copy: Disk) -> None:
        async with build(copy.config) as app:
            repository = app.router.repository(APP)
            assert (await repository.manifest("v1")).digest == copy.first
            content = await repository.blob(Digest.of(OWN))
            content.close()
            assert len((await repository.referrers(copy.first)).items) == 1
            assert (await repository.tags("", 100)).items == ("v1", "v2")

    async for _, fault, trouble in with_every_fault(disk, pull):
        assert trouble is None or isinstance(trouble, StoreError), fault


@pytest.mark.parametrize("frozen", [False, True])
async def test_36_37_a_tag_of_an_upstream(registry: FakeRegistry, tmp_path: Path, frozen: bool) -> None:
    """A tag that is frozen, or held back by the minimum age, answers the old digest or 503, never the new digest or
    404; and its records stay on the disk.
    """
    old = registry.add_image("library/app", "v1", [b"old layer"])
    rule = {"match": "**", "minimum_age": "7d", "tag_ttl": "1s"}
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, route=[rule]) as mirror:
        known = await _known_and_moved(mirror, registry, old, frozen)
        target = "/v2/library/app/manifests/v1"

        async def ask() -> tuple[int, str | None]:
            mirror.clock.forward(60)
            # nothing is answered from memory
            mirror.app.shared.caches.forget(APP, ["v1"], [old])
            got = await mirror.ask(target)
            return got.status, got.headers.get("Docker-Content-Digest")

        with refusing(mirror.root, lambda _count, _path: False, 0) as reads:
            assert await ask() == (200, str(old))
        for number in range(len(reads)):
            with refusing(mirror.root, nth(number), errno.EMFILE):
                status, digest = await ask()
            assert (status, digest) == (200, str(old)) or status == 503, reads[number]
            assert mirror.app.storage.catalog.get_history(APP, "v1")[: len(known)] == known, reads[number]
        for path in sorted(set(reads)):
            if f"{os.sep}blobs{os.sep}" in path:
                continue
            with refusing(mirror.root, every(path), errno.EIO):
                status, digest = await ask()
            assert (status, digest) == (200, str(old)) or status == 503, path
        assert await ask() == (200, str(old))


async def _known_and_moved(
    mirror: LiveMirror, registry: FakeRegistry, old: Digest, frozen: bool
) -> tuple[Sighting, ...]:
    """The tag was pulled, and has moved upstream since; what its history says."""
    record = TagRecord("v1", old, OCI_MANIFEST, 1, mirror.clock())
    mirror.app.storage.catalog.put_tag(APP, record)
    long_ago = mirror.clock() - 90 * 86400
    mirror.app.storage.catalog.put_history(APP, "v1", (Sighting(old, OCI_MANIFEST, 1, long_ago, long_ago),))
    assert (await mirror.ask(f"/v2/library/app/manifests/{old}")).status == 200
    if frozen:
        mirror.app.storage.freezes.put(Freeze(APP, "v1", old, OCI_MANIFEST, 1, "", mirror.clock()))
    registry.add_image("library/app", "v1", [b"new layer"])
    mirror.clock.forward(3600)
    assert (await mirror.ask("/v2/library/app/manifests/v1")).headers["Docker-Content-Digest"] == str(old)
    return mirror.app.storage.catalog.get_history(APP, "v1")


async def test_54_a_damaged_tag(disk: Disk, registry: FakeRegistry, tmp_path: Path) -> None:
    """Row 54: sealed, it is an error that says so, not a tag that is not here; with an upstream it is asked for again,
    and written anew.
    """
    (Path(disk.stocked.layout.tags(APP)) / "v1").write_bytes(b"{")
    async with build(disk.config) as app:
        with pytest.raises(RecordDamaged, match=r"the record of the tag docker\.io/library/app:v1 is damaged"):
            await app.router.repository(APP).manifest("v1")
    digest = registry.add_image("library/app", "v1", [b"layer"])
    async with live_mirror(tmp_path / "other", {"docker.io": registry.url}) as mirror:
        file = Path(mirror.app.storage.layout.tags(APP)) / "v1"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"{")
        assert (await mirror.ask("/v2/library/app/manifests/v1")).headers["Docker-Content-Digest"] == str(digest)
        record = mirror.app.storage.catalog.get_tag(APP, "v1")
        assert record
        assert record.digest == digest


# --------------------------------------------------------------------------------------- what is taken in, and out


async def test_36_37_import(disk: Disk, tmp_path: Path) -> None:
    """An image is in as a whole with its tag, or the tag is as it was; what tags have pointed to is never lost."""
    config = tmp_path / "bundle.toml"
    source = Stocked(tmp_path / "source")
    new = source.image("library/app", [SHARED, b"own of the next v1"])
    source.tag("library/app", "v1", new)
    config.write_text(
        f'[store]\nroot = "{source.root}"\ncapacity = "1GB"\n[[upstream]]\nname = "docker.io"\nurl = "http://127.0.0.1:9"\n'
    )
    bundle = tmp_path / "bundle.tar"
    done = await asyncio.to_thread(command, "export", "library/app:v1", "-o", bundle, "-c", config)
    assert done.status == 0, done
    history = disk.stocked.catalog.get_history(APP, "v1")

    async def take(copy: Disk) -> None:
        async with opened(copy) as storage:
            with LayoutSource(bundle) as layout:
                image = ListedImage(APP, "v1", new)
                plan = plan_images([(image, layout)], storage.store, may_serve=lambda _repo, _digest: False)
                site = import_target(copy.config, storage)
                await run_import(plan, site)

    async for copy, fault, trouble in with_every_fault(disk, take):
        copy.require_complete()
        catalog = copy.stocked.catalog
        record = catalog.get_tag(APP, "v1")
        assert record
        assert catalog.get_history(APP, "v1")[: len(history)] == history, fault
        assert (record.digest == new.digest) == (trouble is None), fault
        if trouble is not None:
            assert isinstance(trouble, StoreError), fault
            await take(copy)
        assert copy.stocked.tagged("library/app") == new.digest, fault
        seen = [one.digest for one in copy.stocked.catalog.get_history(APP, "v1")]
        assert seen == [Digest.of(b"before"), disk.first, new.digest], fault


async def test_36_37_inventory_and_export(disk: Disk) -> None:
    """All that is here, or an error: a bundle or an inventory never lacks something because it could not be read."""
    found: list[object] = []

    async def take(copy: Disk) -> None:
        found.clear()
        store, catalog = copy.stocked.store, copy.stocked.catalog

        def answers(repo: Repo, tag: str) -> Digest | None:
            record = catalog.get_tag(repo, tag)
            return record.digest if record else None

        found.append(take_inventory(store, catalog).to_bytes())
        selection = select(
            store, catalog, [Image(APP, "v1")], answers=answers, may_serve=lambda _repo, _digest: True, referrers=True
        )
        found.append(selection.inventory().to_bytes())

    expected: list[object] = []
    async for _, fault, trouble in with_every_fault(disk, take):
        expected = expected or list(found)
        if trouble is None:
            assert found == expected, fault
        else:
            assert isinstance(trouble, StoreError), fault


async def test_36_37_what_people_are_shown(disk: Disk) -> None:
    """A listing goes on without what cannot be read; only what cannot be listed ends it."""
    async with opened(disk) as storage:
        storage.pins.put(Pin(APP, "v2", "", 1.0))
    path = Path(disk.stocked.layout.tags(APP)) / "v1"
    with refusing(disk.root, every(str(path)), errno.EIO):
        done = await asyncio.to_thread(command, "ls", "--json", "-c", _write_config(disk))
    assert done.status == 0, done
    assert "docker.io/library/app:v2" in done.out
    assert "docker.io/library/app:v1" not in done.out


def _write_config(disk: Disk) -> Path:
    file = disk.root.with_suffix(".toml")
    file.write_text(
        f'[store]\nroot = "{disk.root}"\ncapacity = "1GB"\n[[upstream]]\nname = "docker.io"\nurl = "http://127.0.0.1:9"\n'
    )
    return file


async def test_36_a_closure_is_not_read_in_part(disk: Disk) -> None:
    """A caller that decides by the content of an image gets an error if the content cannot be read."""
    store, catalog = disk.stocked.store, disk.stocked.catalog
    stored = read_stored(store, catalog, APP, disk.first)
    assert stored
    child = stored.manifest.manifests[0].digest
    root = Descriptor(stored.record.media_type, disk.first, stored.record.size)
    with (
        refusing(disk.root, every(str(disk.stocked.layout.blob(child))), errno.EMFILE),
        pytest.raises(StoreError, match="Too many open files"),
    ):
        read_closure(store, catalog, APP, root)
    assert read_closure(store, catalog, APP, root).complete


async def test_36_a_pinned_image_stays_as_it_was_last_known(disk: Disk) -> None:
    """By what its tag pointed to before; a process that never knew it evicts nothing."""
    async with opened(disk) as storage:
        storage.pins.put(Pin(APP, "v2", "", 1.0))
        known = storage.eviction.pinned.digests(time.time())
        path = str(Path(storage.layout.tags(APP)) / "v2")
        with refusing(disk.root, every(path), errno.EIO):
            assert storage.eviction.pinned.digests(time.time()) == known
            with pytest.raises(StoreError, match="is not purged"):
                await make_purge(disk.config, storage)(Image(APP, "v1"))
            async with opened(disk) as another:
                with pytest.raises(
                    StoreError, match=r"what the pinned docker\.io/library/app:v2 points to is not known"
                ):
                    another.eviction.pinned.digests(time.time())
        with pytest.raises(ImageProtected):
            await make_purge(disk.config, storage)(Image(APP, "v2"))
