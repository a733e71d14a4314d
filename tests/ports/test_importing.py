"""Taking images in: in which order, what an interruption leaves, and that it goes on, on a store on disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mirror.bundles.import_plan import ImportPlan, ImportSource, plan_images
from mirror.bundles.importing import ImportResult, ImportTarget, IndexBatch, run_import
from mirror.bundles.inventory import Inventory, ListedImage, read_inventory, take_inventory
from mirror.bundles.layout_source import FileBody
from mirror.errors import BundleError, IndexUnavailable, StoreFull
from mirror.graph.manifests import read_stored
from mirror.intake.grants import Grants, granted_by
from mirror.intake.intake import Intake
from mirror.intake.tag_history import TagHistories, TamperProofClock
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.history import AgeRule
from mirror.policy.records import BlobRole
from mirror.ports import Body
from mirror.store.local.local_records import local_freezes
from mirror.store.local.locks import FileLocks
from tests.support.memory_index import MemoryIndex
from tests.support.stocked import Stocked

_NOW = 1_800_000_000.0


class _Of:
    """Another site's store as a source."""

    def __init__(self, site: Stocked, damaged: bytes = b"") -> None:
        self._site = site
        self._damaged = Digest.of(damaged)

    def size(self, digest: Digest) -> int | None:
        path = Path(self._site.layout.blob(digest))
        return path.stat().st_size if path.exists() else None

    def vouches(self, digest: Digest) -> bool:
        return self.size(digest) is not None

    def manifest(self, digest: Digest) -> bytes | None:
        path = Path(self._site.layout.blob(digest))
        return path.read_bytes() if path.exists() else None

    @contextmanager
    def body(self, digest: Digest, start: int, on_read: Callable[[int], None]) -> Iterator[FileBody]:
        path = Path(self._site.layout.blob(digest))
        if digest == self._damaged:
            path = path.with_suffix(".damaged")
            path.write_bytes(bytes(self.size(digest) or 0))
        with path.open("rb") as file:
            yield FileBody(file.fileno(), 0, path.stat().st_size, start, on_read)


class _Room:
    """Remembers what was requested for."""

    def __init__(self) -> None:
        self.reserved: list[int | None] = []
        self.released = 0
        self.full = False
        self.requested = asyncio.Event()

    async def reserve(self, size: int | None) -> _Room:
        if self.full:
            raise StoreFull("pinned")
        self.reserved.append(size)
        self.requested.set()
        return self

    async def make_room(self, size: int) -> None:
        raise AssertionError

    def release(self) -> None:
        self.released += 1


class _Target:
    def __init__(self, root: Path) -> None:
        self.stocked = Stocked(root)
        self.index = MemoryIndex()
        self.room = _Room()
        self.touched: list[Digest] = []

    @property
    def site(self) -> ImportTarget:
        store, catalog = self.stocked.store, self.stocked.catalog
        clocks = TamperProofClock(lambda: _NOW, steady=lambda: 0.0)
        histories = TagHistories(catalog, local_freezes(self.stocked.layout), clocks)
        index = IndexBatch(self.index, self.touched.append, lambda: _NOW)
        return ImportTarget(
            store=store,
            catalog=catalog,
            histories=histories,
            intake=Intake(store, catalog, histories, Grants(self.index, catalog, store), index),
            index=index,
            room=self.room,
            exclusive=FileLocks(self.stocked.layout).hold,
            age=lambda _: AgeRule(),
            now=lambda: _NOW,
        )

    def plan(self, source: Stocked, *, damaged: bytes = b"") -> ImportPlan:
        images = take_inventory(source.store, source.catalog).images
        of = _Of(source, damaged)
        ordered = sorted(images, key=lambda image: image.order)
        return self.plan_of([(image, of) for image in ordered], skip_damaged=bool(damaged))

    def plan_of(self, images: Iterable[tuple[ListedImage, ImportSource]], *, skip_damaged: bool = False) -> ImportPlan:
        """Its repositories may serve what their manifests name."""
        return plan_images(images, self.stocked.store, may_serve=self.may_serve, skip_damaged=skip_damaged)

    def may_serve(self, repo: Repo, digest: Digest) -> bool:
        catalog, store = self.stocked.catalog, self.stocked.store
        stored = (read_stored(store, catalog, repo, each) for each in catalog.manifest_digests(repo))
        return any(digest in granted_by(manifest) for manifest in stored if manifest)

    async def take(self, source: Stocked, on_read: Callable[[int], None] = lambda _: None) -> ImportResult:
        return await run_import(self.plan(source), self.site, on_read=on_read)


@pytest.fixture
def source(tmp_path: Path) -> Stocked:
    """Two images that share a layer, one of them of two platforms."""
    made = Stocked(tmp_path / "source")
    one = made.image("a/one", [b"shared" * 300_000, b"own of one"])
    made.tag("a/one", "v1", made.index("a/one", {"amd64": one, "arm64": made.image("a/one", [b"of arm64" * 100_000])}))
    made.tag("b/two", "v1", made.image("b/two", [b"shared" * 300_000, b"own of two"]))
    return made


@pytest.fixture
def target(tmp_path: Path) -> _Target:
    """Empty."""
    return _Target(tmp_path / "target")


def _images(stocked: Stocked) -> Inventory:
    return take_inventory(stocked.store, stocked.catalog)


async def test_an_import_is_complete(source: Stocked, target: _Target) -> None:
    """The same images and blobs; the index knows sizes, last use and grants; tags are fresh."""
    admitted = await target.take(source)
    assert _images(target.stocked) == _images(source)
    assert admitted.written == _images(source).blobs
    assert not admitted.here
    assert target.room.reserved == [_images(source).size]
    assert target.room.released == 1
    for digest, size in admitted.written.items():
        record = await target.index.get(digest)
        assert record is not None
        assert (record.size, record.last_used) == (size, _NOW)
    assert await target.index.linked(Repo("docker.io", "b/two"), Digest.of(b"own of two")) == len(b"own of two")
    assert await target.index.linked(Repo("docker.io", "b/two"), Digest.of(b"own of one")) is None
    # what an image names goes together with it, never on its own: nothing that was taken in is loose
    assert await target.index.least_recently_used(BlobRole.LOOSE, 100) == []
    assert len(await target.index.least_recently_used(BlobRole.ROOT, 100)) == len(
        take_inventory(source.store, source.catalog).images
    )
    tag = target.stocked.catalog.get_tag(Repo("docker.io", "a/one"), "v1")
    assert tag is not None
    assert tag.fetched_at == _NOW


async def test_an_interruption_leaves_complete_images(source: Stocked, tmp_path: Path) -> None:
    """A tag is here with everything below it or not at all, and the next import brings the rest."""
    total = _images(source).size
    for number, limit in enumerate(range(0, total, total // 12)):
        target = _Target(tmp_path / f"target {number}")
        remaining = limit

        def on_read(count: int) -> None:
            nonlocal remaining
            remaining -= count
            if remaining < 0:
                raise BundleError("interrupted")

        with pytest.raises(BundleError, match="interrupted"):
            await target.take(source, on_read)
        assert target.room.released == 1
        taken = _images(target.stocked)
        for image in taken.images:
            if image.tag:
                plan = target.plan_of([(image, _Of(target.stocked))])
                plan.require_complete(partial=False)
        again = await target.take(source)
        assert _images(target.stocked) == _images(source)
        assert not again.written.keys() & taken.blobs.keys()


async def test_an_interrupted_blob_continues(source: Stocked, target: _Target) -> None:
    """Its bytes are hashed again, not read again from the source."""
    big = Digest.of(b"shared" * 300_000)
    place = target.stocked.layout.ingest(big, "")

    def on_read(_: int) -> None:
        if place.exists() and place.stat().st_size > 1_000_000:
            raise BundleError("interrupted")

    with pytest.raises(BundleError, match="interrupted"):
        await target.take(source, on_read)
    partial = target.stocked.store.growing()[big]
    assert partial > 1_000_000
    starts: dict[Digest, int] = {}
    plan = target.plan(source)

    class Watching(_Of):
        @contextmanager
        def body(self, digest: Digest, start: int, on_read: Callable[[int], None]) -> Iterator[FileBody]:
            starts[digest] = start
            with super().body(digest, start, on_read) as body:
                yield body

    of = Watching(source)
    await run_import(target.plan_of([(planned.image, of) for planned in plan.images]), target.site)
    assert starts[big] == partial
    assert _images(target.stocked) == _images(source)


async def test_a_wrong_partial_is_replaced(source: Stocked, target: _Target) -> None:
    """A wrong partial of an upstream is discarded once its digest fails."""
    big = Digest.of(b"shared" * 300_000)
    ingest = target.stocked.store.ingest(big, "")
    assert ingest.try_lock()
    ingest.expect(1_800_000)
    body: Any = _Bytes(b"wrong" * 1000)
    ingest.fill(body, lambda: None)
    ingest.close()
    assert target.stocked.store.growing()[big] == 5000
    await target.take(source)
    assert _images(target.stocked) == _images(source)


class _Bytes:
    """A body out of memory."""

    start = 0
    size: int | None = None

    def __init__(self, content: bytes) -> None:
        self._content = content

    def readinto(self, buffer: memoryview) -> int:
        read = min(len(buffer), len(self._content))
        buffer[:read], self._content = self._content[:read], self._content[read:]
        return read

    def abort(self) -> None:
        """Never requested."""


async def test_another_process_fills_the_same_blob(source: Stocked, target: _Target) -> None:
    """The import waits for it, and does not write the blob again."""
    content = b"shared" * 300_000
    digest = Digest.of(content)
    ingest = target.stocked.store.ingest(digest, "")
    assert ingest.try_lock()
    taking = asyncio.create_task(target.take(source))
    await target.room.requested.wait()
    body: Body = _Bytes(content)
    await asyncio.to_thread(ingest.fill, body, lambda: None)
    assert not taking.done()
    ingest.verify()
    ingest.commit()
    ingest.close()
    admitted = await taking
    assert digest in admitted.here
    assert _images(target.stocked) == _images(source)


async def test_a_cancelled_import_can_be_repeated(source: Stocked, target: _Target) -> None:
    """No thread runs on, and no file stays locked."""
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_read(_: int) -> None:
        loop.call_soon_threadsafe(begun.set)

    taking = asyncio.create_task(target.take(source, on_read))
    await begun.wait()
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert target.room.released == 1
    await target.take(source)
    assert _images(target.stocked) == _images(source)


async def test_a_tag_is_written_last(source: Stocked, target: _Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are synced before the tag, and the tag before the next image."""
    steps: list[str] = []

    def watch(owner: Any, name: str) -> None:
        work = getattr(owner, name)

        def watched(*arguments: Any) -> Any:
            steps.append(f"{type(owner).__name__}.{name}")
            return work(*arguments)

        monkeypatch.setattr(owner, name, watched)

    watch(target.stocked.store, "flush")
    for name in ("flush", "put_manifest", "put_tag"):
        watch(target.stocked.catalog, name)
    await target.take(source)
    link, tag, flush = "RecordCatalog.put_manifest", "RecordCatalog.put_tag", "RecordCatalog.flush"
    durable = ["LocalStore.flush", flush]
    end = [*durable, tag, *durable]
    assert steps == [link, link, link, *end, link, *end]


async def test_a_tag_that_moves(source: Stocked, target: _Target) -> None:
    """Its history has both digests, and the result names the earlier one."""
    old = target.stocked.image("b/two", [b"older"])
    target.stocked.tag("b/two", "v1", old)
    admitted = await target.take(source)
    assert admitted.moved == {"docker.io/b/two:v1": old.digest}
    history = target.stocked.catalog.get_history(Repo("docker.io", "b/two"), "v1")
    assert [sighting.digest for sighting in history] == [old.digest, source.tagged("b/two")]


async def test_a_blob_of_another_size_is_replaced(source: Stocked, target: _Target) -> None:
    """The stored blob is set aside, and the source's is written."""
    target.stocked.plant(Digest.of(b"own of two"), b"rubbish of another size")
    await target.take(source)
    assert target.stocked.has(b"own of two")
    assert len(list(target.stocked.layout.quarantine.iterdir())) == 1


async def test_a_damaged_manifest_is_replaced(source: Stocked, target: _Target) -> None:
    """Manifests are small enough to be hashed each time."""
    root = source.tagged("b/two")
    assert root
    target.stocked.plant(root, b"{}")
    await target.take(source)
    assert _images(target.stocked) == _images(source)


async def test_damaged_blobs_are_skipped_on_request(source: Stocked, target: _Target) -> None:
    """A skipped blob is named, and its image is imported without it; otherwise the import ends before the image's
    tag.
    """
    wrong = b"own of two"
    admitted = await run_import(target.plan(source, damaged=wrong), target.site, skip_damaged=True)
    assert list(admitted.damaged) == [Digest.of(wrong)]
    assert target.stocked.tagged("b/two") == source.tagged("b/two")
    assert not target.stocked.has(wrong)
    assert not target.stocked.store.growing()
    strict = _Target(target.stocked.root.with_name("strict"))
    with pytest.raises(BundleError, match=f"{Digest.of(wrong)}.*; 1 of 2 images are imported"):
        await run_import(strict.plan(source, damaged=wrong), strict.site)
    assert strict.stocked.tagged("b/two") is None
    assert strict.stocked.tagged("a/one") == source.tagged("a/one")


async def test_a_blob_evicted_during_the_import(source: Stocked, target: _Target) -> None:
    """The tag of its image is not written."""
    target.stocked.blob(b"own of two")
    plan = target.plan(source)

    def on_read(_: int) -> None:
        target.stocked.store.delete(Digest.of(b"own of two"))

    class Without(_Of):
        def size(self, digest: Digest) -> int | None:
            return None if digest == Digest.of(b"own of two") else super().size(digest)

    of = Without(source)
    images = [(planned.image, of) for planned in plan.images]
    plan = plan_images(images, target.stocked.store, may_serve=lambda _repo, _digest: True)
    plan.require_complete(partial=False)
    with pytest.raises(StoreFull, match="was evicted during the import"):
        await run_import(plan, target.site, on_read=on_read)
    assert target.stocked.tagged("b/two") is None


async def test_no_room(source: Stocked, target: _Target) -> None:
    """The error says how much is needed, and nothing is written."""
    target.room.full = True
    with pytest.raises(StoreFull, match=r"no room for the 2\.6 MB to import: pinned"):
        await target.take(source)
    assert not _images(target.stocked).blobs


async def test_blobs_that_are_here_count_as_used(source: Stocked, target: _Target) -> None:
    """So that making room does not evict them."""
    await target.take(source)
    assert not target.touched
    await target.take(source)
    assert set(target.touched) == set(_images(source).blobs)
    assert target.room.reserved[1] == 0


async def test_without_an_index(source: Stocked, target: _Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is the truth: everything is imported, and the result says that the index was not updated."""

    async def down(*_: object) -> None:
        raise IndexUnavailable("down")

    monkeypatch.setattr(target.index, "put", down)
    admitted = await target.take(source)
    assert not admitted.index_updated
    assert _images(target.stocked) == _images(source)


async def test_indexes_are_nested_to_a_limit(source: Stocked, target: _Target) -> None:
    """A chain of twenty is refused."""
    root = source.image("c/deep", [b"x"])
    for _ in range(20):
        root = source.index("c/deep", {"amd64": root})
    source.tag("c/deep", "v1", root)
    image = ListedImage(Repo("docker.io", "c/deep"), "v1", root)
    plan = target.plan_of([(image, _Of(source))])
    assert list(plan.refused) == ["docker.io/c/deep:v1"]


def test_inventories_read_back(source: Stocked) -> None:
    """An inventory's bytes are always the same, and reading them gives the same inventory."""
    taken = _images(source)
    assert read_inventory(taken.to_bytes()) == Inventory(
        tuple(sorted(taken.images, key=lambda image: image.order)), taken.blobs
    )
    assert read_inventory(taken.to_bytes()).to_bytes() == taken.to_bytes()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"mirrorInventory": 2}',
        b'{"mirrorInventory": 1, "images": [], "blobs": [{"digest": "sha256:x", "size": 1}]}',
        b'{"mirrorInventory": 1, "images": [], "blobs": [{"digest": "sha256:' + b"a" * 64 + b'", "size": "1"}]}',
        b'{"mirrorInventory": 1, "images": [{"registry": "../..", "repository": "a", "tag": "b"}], "blobs": []}',
        b'{"mirrorInventory": 1, "images": 7, "blobs": []}',
        b'{"mirrorInventory": 1, "images": [], "blobs": [7]}',
        b"[" * 100_000,
    ],
)
def test_invalid_inventories(content: bytes) -> None:
    """They are refused as such."""
    with pytest.raises(BundleError, match="inventory"):
        read_inventory(content)


def test_duplicates_in_an_inventory(source: Stocked) -> None:
    """Two entries of one blob or image could be understood differently."""
    text = _images(source).to_bytes().decode()
    for start in (' {"registry"', ' {"digest"'):
        line = next(line for line in text.splitlines() if line.startswith(start)).removesuffix(",")
        with pytest.raises(BundleError, match="twice"):
            read_inventory(text.replace(line, f"{line},\n{line}", 1).encode())
