"""Blobs that are read again because an image was pushed again: how many, how fast, and how often."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mirror.aio.background import BackgroundTasks
from mirror.aio.singleflight import SingleFlight
from mirror.errors import BlobUnreadable
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


class _Torn(LocalReader):
    """A file whose bytes the disk cannot read."""

    def pread(self, size: int, offset: int) -> bytes:
        raise BlobUnreadable("reading a blob: Input/output error")

    pread_once = pread


class _Contents(LocalContents):
    """Counts what is opened. Those in `torn` cannot be read; those in `failing` raise an error of ours."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self.opened: list[Digest] = []
        self.torn: set[Digest] = set()
        self.failing: dict[Digest, type[BaseException]] = {}

    def open(self, digest: Digest) -> tuple[BlobInfo, LocalReader]:
        self.opened.append(digest)
        if kind := self.failing.get(digest):
            raise kind
        info, reader = super().open(digest)
        if digest not in self.torn:
            return info, reader
        with closing(reader):
            return info, _Torn(os.dup(reader.fileno()))


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


async def test_what_the_disk_cannot_read_is_set_aside(make: Callable[[float | None], _Site]) -> None:
    """As a pull would do: otherwise the client that pushes it again is told that it is here."""
    site = make(None)
    torn, right = site.put(b"torn"), site.put(b"right")
    site.contents.torn.add(torn)
    site.rechecks.ask([torn, right])
    await site.ended()
    assert [blob.digest for blob in site.names.damaged()] == [torn]
    assert site.names.hosted(right).size == 5


@pytest.mark.parametrize("kind", [RuntimeError, asyncio.CancelledError])
async def test_an_error_with_one_does_not_stop_the_others(
    make: Callable[[float | None], _Site], kind: type[BaseException]
) -> None:
    site = make(None)
    failing, wrong = site.put(b"failing"), site.put(b"wrong", damaged=True)
    site.contents.failing[failing] = kind
    site.rechecks.ask([failing, wrong])
    await site.ended()
    assert [blob.digest for blob in site.names.damaged()] == [wrong]


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
    # a push whose thread comes to its end only now
    site.rechecks.ask([site.put(b"late")])
    assert "0 waiting" in repr(site.rechecks)
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "blobs read again"]
