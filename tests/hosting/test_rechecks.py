"""Blobs that are read again because an image was pushed again: how many, how fast, and how often."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mirror.aio.background import BackgroundTasks
from mirror.aio.singleflight import SingleFlight
from mirror.intake import rechecks
from mirror.intake.integrity import Integrity
from mirror.intake.rechecks import Rechecks
from mirror.oci.digest import Digest
from mirror.ports import BlobInfo
from mirror.store.hosted.blob_names import HostedNames
from mirror.store.hosted.contents import LocalContents
from mirror.store.local.blobs import LocalReader, LocalStore
from mirror.store.local.layout import Layout
from tests.support.live_mirror import until
from tests.support.stepped_time import SteppedTime

_MIB = 1 << 20


class _Contents(LocalContents):
    """Counts what is opened."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self.opened: list[Digest] = []

    def open(self, digest: Digest) -> tuple[BlobInfo, LocalReader]:
        self.opened.append(digest)
        return super().open(digest)


@dataclass
class _Site:
    """Hosted blobs on a disk. Time passes only if a test lets it."""

    root: Path
    rate: float | None = None
    time: SteppedTime = field(default_factory=SteppedTime)

    def __post_init__(self) -> None:
        self.layout = LocalStore(Layout(self.root)).layout
        self.names, self.contents = HostedNames(self.layout), _Contents(self.layout)
        integrity = Integrity(self.contents, SingleFlight(), BackgroundTasks())
        self.rechecks = Rechecks(self.contents, integrity, self.rate, clock=self.time, sleep=self.time.sleep)

    def put(self, content: bytes, *, damaged: bool = False) -> Digest:
        """A hosted blob, perhaps with other bytes of the same size."""
        digest = Digest.of(content)
        self.names.put(digest, content)
        if damaged:
            file = Path(self.layout.hosted_blob(digest))
            file.chmod(0o600)
            file.write_bytes(bytes(len(content)))
        return digest

    async def ended(self) -> None:
        """Nothing waits any more."""
        await until(lambda: "0 waiting" in repr(self.rechecks))


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[[float | None], _Site]]:
    sites: list[_Site] = []

    def make(rate: float | None = None) -> _Site:
        sites.append(_Site(tmp_path, rate))
        return sites[-1]

    yield make
    for site in sites:
        await site.rechecks.aclose()


async def test_what_is_wrong_is_set_aside_and_nothing_else(make: Callable[[float | None], _Site]) -> None:
    site = make(None)
    wrong, right, gone = site.put(b"wrong", damaged=True), site.put(b"right"), Digest.of(b"gone")
    site.rechecks.ask([gone, wrong, right])
    await site.ended()
    assert [blob.digest for blob in site.names.damaged()] == [wrong]
    assert site.names.hosted(right).size == 5


async def test_what_is_right_is_not_read_again_for_an_hour(make: Callable[[float | None], _Site]) -> None:
    site = make(None)
    digest = site.put(b"right")
    for _ in range(3):
        site.rechecks.ask([digest, digest])
        await site.ended()
    assert len(site.contents.opened) == 1
    site.time.now += 3601.0
    site.rechecks.ask([digest])
    await site.ended()
    assert len(site.contents.opened) == 2


async def test_it_reads_no_faster_than_a_scrub(make: Callable[[float | None], _Site]) -> None:
    site = make(2.0 * _MIB)
    site.rechecks.ask([site.put(b"a" * 4 * _MIB), site.put(b"b" * 2 * _MIB)])
    await site.time.go_on(lambda: "0 waiting" in repr(site.rechecks))
    assert site.time.now == pytest.approx(3.0)


async def test_few_wait_and_none_when_the_mirror_stops(
    make: Callable[[float | None], _Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rechecks, "_MOST_WAITING", 2)
    site = make(1.0)
    site.rechecks.ask([site.put(content) for content in (b"one", b"two", b"three")])
    assert "2 waiting" in repr(site.rechecks)
    await until(lambda: site.time.sleeping == 1)
    await site.rechecks.aclose()
    assert len(site.contents.opened) == 1
    assert "0 waiting" in repr(site.rechecks)
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "blobs read again"]
