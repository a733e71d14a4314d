"""Hashing what is stored: what is found, what is mended, at which pace, and how it goes on after an interruption."""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mirror.app.storage import SCRUB_LOCK, scrub_records
from mirror.errors import StoreError
from mirror.eviction.scrub import (
    Scrub,
    ScrubProgress,
    dangling_records,
    read_progress,
    scrub_all,
    scrub_image,
    scrub_when_due,
)
from mirror.graph.blob_places import BlobPlaces
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor
from mirror.ports import BlobReader
from mirror.store.local.layout import Layout
from tests.support.fake_registry import FakeRegistry
from tests.support.here import APP, Here
from tests.support.live_mirror import LiveMirror, live_mirror, noise, until
from tests.support.memory_store import MemoryCatalog, MemoryStore

_LAYER = noise(3 << 20)
_DIGEST = Digest.of(_LAYER)
_AT = "/v2/library/app"


@pytest.fixture
def image(registry: FakeRegistry) -> Digest:
    """What v1 points to."""
    return registry.add_image("library/app", "v1", [_LAYER])


@pytest.fixture
async def full(mirror: LiveMirror, image: Digest) -> LiveMirror:
    """A mirror that has all of v1."""
    assert (await mirror.ask(f"{_AT}/manifests/v1")).status == 200
    for digest in (_DIGEST, Digest.of(b"{}")):
        await mirror.ask(f"{_AT}/blobs/{digest}")
        await mirror.landed(digest)
        await mirror.logged("request", path=f"{_AT}/blobs/{digest}")
    return mirror


@pytest.fixture
async def sealed(full: LiveMirror) -> AsyncIterator[LiveMirror]:
    """Another mirror on the same store, sealed."""
    async with live_mirror(full.root, {"docker.io": "http://127.0.0.1:9"}, offline=True) as running:
        yield running


def _flip(file: Path, at: int = 1_500_000) -> None:
    file.chmod(0o600)
    with file.open("r+b") as opened:
        opened.seek(at)
        [byte] = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte ^ 1]))


def _truncate(file: Path) -> None:
    file.chmod(0o600)
    os.truncate(file, file.stat().st_size // 2)


async def _everything(mirror: LiveMirror, **more: Any) -> ScrubProgress:
    scrub = mirror.app.scrub(rate=None, **more)
    return await scrub_all(scrub, mirror.app.storage.store, scrub_records(mirror.app.storage.layout))


async def test_a_sound_store(full: LiveMirror) -> None:
    """Every blob is hashed once and nothing is found; upstream is not asked; metrics tell of it."""
    requests = len(full.events("request"))
    progress = await _everything(full)
    assert (progress.blobs, progress.damaged, progress.good) == (3, 0, True)
    assert progress.bytes == sum(info.size for info in full.app.storage.store.walk())
    assert progress.complete_at is not None
    metrics = (await full.ask("/metrics")).body.decode()
    for name in (
        "mirror_scrubbed_bytes_total",
        "mirror_scrub_damaged_blobs_total",
        "mirror_scrub_last_complete_timestamp_seconds",
    ):
        assert name in metrics
    assert len(full.events("request")) == requests


@pytest.mark.parametrize("harm", [_flip, _truncate])
async def test_a_damaged_layer_is_fetched_again(full: LiveMirror, registry: FakeRegistry, harm: Any) -> None:
    """It goes to quarantine, upstream gives it again, and clients get it whole."""
    file = full.blob_file(_DIGEST)
    harm(file)
    registry.forget()
    progress = await _everything(full)
    assert (progress.damaged, progress.repaired, progress.lost, progress.waiting) == (1, 1, [], [])
    assert registry.count("blobs", "GET") == 1
    assert file.read_bytes() == _LAYER
    assert (full.root / "quarantine" / f"sha256-{_DIGEST.hex}").exists()
    assert (await full.ask(f"{_AT}/blobs/{_DIGEST}")).body == _LAYER


async def test_a_damaged_manifest_is_fetched_again(full: LiveMirror, image: Digest) -> None:
    """Although memory would still answer it: it must be on the disk."""
    _flip(full.blob_file(image), at=10)
    progress = await _everything(full)
    assert (progress.damaged, progress.repaired, progress.lost) == (1, 1, [])
    assert image.matches(full.blob_file(image).read_bytes())


async def test_manifest_and_layer_at_once(full: LiveMirror, image: Digest) -> None:
    """The manifest comes first, or nobody would know whose the layer is."""
    progress = ScrubProgress(0.0)
    scrub = full.app.scrub(rate=None)
    for digest in (_DIGEST, image):
        _flip(full.blob_file(digest), at=10)
    root = Descriptor("", image, -1)
    missing = await scrub_image(scrub, full.app.storage.store, full.app.storage.catalog, APP, root, progress)
    assert missing == []
    assert full.blob_file(_DIGEST).read_bytes() == _LAYER


async def test_a_sealed_mirror_reports_the_loss(sealed: LiveMirror) -> None:
    """Nothing can be fetched; the damaged file is in quarantine and clients are told that the layer is not here."""
    _flip(sealed.blob_file(_DIGEST))
    progress = await _everything(sealed)
    assert (progress.damaged, progress.repaired, progress.lost, progress.good) == (1, 0, [_DIGEST], False)
    assert (sealed.root / "quarantine" / f"sha256-{_DIGEST.hex}").exists()
    assert (await sealed.ask(f"{_AT}/blobs/{_DIGEST}")).code == "BLOB_UNKNOWN"
    assert sealed.events("damaged blob lost")[0]["repository"] == str(APP)


async def test_without_repair(full: LiveMirror, registry: FakeRegistry) -> None:
    """What is damaged leaves service all the same."""
    _flip(full.blob_file(_DIGEST))
    registry.forget()
    progress = await _everything(full, repair=False)
    assert progress.lost == [_DIGEST]
    assert not full.blob_file(_DIGEST).exists()
    assert not registry.requests


async def test_what_upstream_does_not_have_any_more(full: LiveMirror, registry: FakeRegistry) -> None:
    """Is lost, and named."""
    _flip(full.blob_file(_DIGEST))
    registry.clear()
    assert (await _everything(full)).lost == [_DIGEST]
    assert full.events("damaged blob not repaired")


async def test_what_no_image_needs(full: LiveMirror) -> None:
    """A damaged blob that no manifest names is set aside, and that is all right."""
    stray = Here.at(full.root)
    stray.blob(b"stray")
    _flip(full.blob_file(Digest.of(b"stray")), at=1)
    progress = await _everything(full)
    assert (progress.damaged, progress.unneeded, progress.good) == (1, 1, True)


async def test_open_readers_read_on(full: LiveMirror) -> None:
    """A reader that has the file open keeps it when it is set aside."""
    _, reader = full.app.storage.store.open(_DIGEST)
    _flip(full.blob_file(_DIGEST))
    progress = await _everything(full)
    assert progress.repaired == 1
    assert len(reader.pread(len(_LAYER) + 1, 0)) == len(_LAYER)
    reader.close()


async def test_files_that_vanish_meanwhile(full: LiveMirror) -> None:
    """Evicted under the scrub: nothing is wrong with that."""
    scrub = full.app.scrub(rate=None)
    full.blob_file(_DIGEST).unlink()
    progress = ScrubProgress(0.0)
    await scrub.check(_DIGEST, progress)
    assert (progress.blobs, progress.damaged) == (0, 0)


async def test_an_image_of_which_something_is_missing(full: LiveMirror, sealed: LiveMirror, image: Digest) -> None:
    """What is missing is fetched as well; sealed, it is named."""
    root = Descriptor("", image, -1)
    full.blob_file(_DIGEST).unlink()
    for mirror, wanted in ((sealed, [_DIGEST]), (full, [])):
        storage = mirror.app.storage
        progress = ScrubProgress(0.0)
        scrub = mirror.app.scrub(rate=None)
        missing = await scrub_image(scrub, storage.store, storage.catalog, APP, root, progress)
        assert [node.digest for node in missing] == wanted
    assert full.blob_file(_DIGEST).read_bytes() == _LAYER


async def test_records_without_content(full: LiveMirror, image: Digest) -> None:
    """Tags and manifests whose bytes are gone are told, with the image's name."""
    storage = full.app.storage
    assert list(dangling_records(storage.catalog, BlobPlaces.only(storage.store))) == []
    full.blob_file(image).unlink()
    records = list(dangling_records(storage.catalog, BlobPlaces.only(storage.store)))
    assert records == [f"{APP}@{image}: its manifest is gone"]
    storage.catalog.drop_manifest(APP, image)
    [said] = dangling_records(storage.catalog, BlobPlaces.only(storage.store))
    assert said.startswith(f"{APP}:v1: points to {image}")
    (Path(storage.layout.tags(APP)) / "v1").write_text("{")
    [said] = dangling_records(storage.catalog, BlobPlaces.only(storage.store))
    assert said.startswith(f"{APP}:v1: the record")


# ------------------------------------------------------------------------------------------------ pace and memory


class _Time:
    """Passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


async def test_the_rate(full: LiveMirror) -> None:
    """Three megabytes at one megabyte per second take three seconds."""
    time = _Time()
    store = full.app.storage.store
    scrub = Scrub(store, full.app.storage.catalog, rate=1e6, now=time, sleep=time.sleep)
    progress = ScrubProgress(0.0)
    await scrub.check(_DIGEST, progress)
    assert time.now == pytest.approx(len(_LAYER) / 1e6)


def _cached(descriptor: int) -> list[bool]:
    """Whether any page of each MiB of a file is in memory (mincore(2))."""
    size = os.fstat(descriptor).st_size
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(None, ctypes.c_size_t(size), mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    pages = (ctypes.c_ubyte * (size // mmap.PAGESIZE))()
    assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages) == 0
    libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
    each = (1 << 20) // mmap.PAGESIZE
    return [any(page & 1 for page in pages[start : start + each]) for start in range(0, len(pages), each)]


def test_reading_leaves_the_page_cache_as_it_was() -> None:
    """What was cached before is so afterwards, and what was not is not."""
    # /tmp may be a file system that is nothing but page cache
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        here = Here.at(Path(folder))
        here.blob(_LAYER)
        _, reader = here.store.open(_DIGEST)
        _read_and_look(reader)


def _read_and_look(reader: BlobReader) -> None:
    descriptor = reader.fileno()  # type: ignore[attr-defined]  # of the one class that is on disk
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    os.pread(descriptor, 1 << 20, 1 << 20)
    assert _cached(descriptor) == [False, True, False]
    read = bytearray()
    while piece := reader.pread_once(1 << 20, len(read)):  # type: ignore[attr-defined]
        read += piece
    assert bytes(read) == _LAYER
    assert _cached(descriptor) == [False, True, False]
    reader.close()


# ------------------------------------------------------------------------------------------------------ going on


class _Stopping:
    """Cancels the scrub after so many pieces."""

    def __init__(self, pieces: int) -> None:
        self._left = pieces

    def __call__(self, _size: int) -> None:
        self._left -= 1
        if self._left == 0:
            task = asyncio.current_task()
            assert task
            task.cancel()


async def test_an_interrupted_scrub_goes_on(tmp_path: Path) -> None:
    """After the last blob that was done; what it had found before is in its summary."""
    here = Here.at(tmp_path / "store")
    for number in range(50):
        here.blob(b"%d" % number)
    layout = Layout(tmp_path / "store")
    digests = [info.digest for info in here.store.walk()]
    _flip(Path(layout.blob(digests[3])), at=0)
    notes = scrub_records(layout)
    stopping = Scrub(here.store, here.catalog, read=_Stopping(20))
    task = asyncio.create_task(scrub_all(stopping, here.store, notes))
    with pytest.raises(asyncio.CancelledError):
        await task
    half = read_progress(notes)
    assert half
    assert half.complete_at is None
    assert half.after in digests[10:20]
    assert half.waiting == [digests[3]]
    assert half.bytes < sum(info.size for info in here.store.walk())
    read: list[int] = []
    progress = await scrub_all(Scrub(here.store, here.catalog, read=read.append), here.store, notes)
    assert len(read) == 49 - digests.index(half.after)
    assert (progress.blobs, progress.damaged, progress.unneeded) == (50, 1, 1)
    assert read_progress(notes) == progress
    again = await scrub_all(Scrub(here.store, here.catalog), here.store, notes)
    assert (again.blobs, again.damaged) == (49, 0)


async def test_progress_that_makes_no_sense_is_none(tmp_path: Path) -> None:
    """A note from elsewhere begins anew rather than in the middle."""
    here = Here.at(tmp_path / "store")
    here.blob(b"x")
    notes = scrub_records(Layout(tmp_path / "store"))
    for progress in ({"begunAt": 1, "after": "sha256:zz"}, {"begunAt": 1, "after": 5}, {"after": None}):
        notes.put("everything", progress)
        assert read_progress(notes) is None
    assert (await scrub_all(Scrub(here.store, here.catalog), here.store, notes)).blobs == 1


async def test_damage_that_passes_is_no_damage() -> None:
    """Wrong once and right the next time: memory or a cable erred, and the blob stays."""
    store = MemoryStore()
    here = Here(store, MemoryCatalog())
    here.blob(b"good")
    digest = Digest.of(b"good")
    store.damage(digest, b"evil")
    scrub = Scrub(store, here.catalog, read=lambda _: store.damage(digest, b"good"))
    progress = ScrubProgress(0.0)
    await scrub.check(digest, progress)
    assert (progress.damaged, store.stat(digest).size) == (0, 4)


async def test_what_cannot_be_read_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault may be elsewhere; it is reported and not taken away."""
    store = MemoryStore()
    here = Here(store, MemoryCatalog())
    here.blob(b"good")

    def fail(*_: object) -> bytes:
        raise StoreError("reading a blob: Input/output error")

    monkeypatch.setattr("tests.support.memory_store.MemoryReader.pread", fail)
    progress = ScrubProgress(0.0)
    await Scrub(store, here.catalog).check(Digest.of(b"good"), progress)
    assert (progress.unreadable, progress.good) == ([Digest.of(b"good")], False)
    assert store.stat(Digest.of(b"good")).size == 4


# ------------------------------------------------------------------------------------------------------ on schedule


async def test_on_schedule(full: LiveMirror) -> None:
    """Not before its time, by one process alone, and then again after the same time."""
    storage = full.app.storage
    notes = scrub_records(storage.layout)
    clock = _Time()
    scrub = full.app.scrub(rate=None)
    looks: list[float | None] = []

    async def sleep(_seconds: float) -> None:
        progress = await asyncio.to_thread(read_progress, notes)
        looks.append(progress.complete_at if progress else None)
        clock.now += 60
        if len(looks) == 5:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await scrub_when_due(
            scrub,
            storage.store,
            notes,
            every=100,
            since=0.0,
            try_hold=lambda: storage.locks.try_hold(SCRUB_LOCK),
            now=clock,
            sleep=sleep,
        )
    assert looks == [None, None, 120.0, 120.0, 240.0]


async def test_another_process_is_at_it(full: LiveMirror) -> None:
    """Whoever does not get the lock does nothing, and looks again later."""
    storage = full.app.storage
    lease = await storage.locks.try_hold(SCRUB_LOCK)
    assert lease is not None

    async def sleep(_seconds: float) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await scrub_when_due(
            full.app.scrub(rate=None),
            storage.store,
            scrub_records(storage.layout),
            every=1,
            since=0.0,
            try_hold=lambda: storage.locks.try_hold(SCRUB_LOCK),
            sleep=sleep,
        )
    lease.release()
    assert read_progress(scrub_records(storage.layout)) is None


async def test_a_running_mirror_scrubs_itself(registry: FakeRegistry, tmp_path: Path) -> None:
    """As the configuration says; damage is mended under the running mirror."""
    here = Here.at(tmp_path / "store")
    layer = Digest.of(_LAYER)
    registry.add_image("library/app", "v1", [_LAYER])
    here.image([_LAYER], tag="v1", config={})
    file = Path(Layout(tmp_path / "store").blob(layer))
    _flip(file)
    scrub = {"every": "1ms", "rate": "1GB"}
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, scrub=scrub) as mirror:
        await until(lambda: mirror.events("scrub ended"))
        assert await asyncio.to_thread(file.read_bytes) == _LAYER
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, scrub={"every": 0}) as mirror:
        await mirror.rebuilt()
        assert not mirror.events("scrub started")
