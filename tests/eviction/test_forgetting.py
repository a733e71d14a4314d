"""What is forgotten of a disk, in which order, and what stays because somebody needs it at that moment."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from mirror.errors import StoreError
from mirror.eviction.forgetting import Forgetting, Forgotten, Old, forget_old
from mirror.graph.manifests import has_blob
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.oci.reference import Reference, Repo
from mirror.policy.hosted_records import BlobLink, LinkState
from mirror.policy.pins import PinRule
from mirror.policy.records import Freeze, ManifestRecord, Pin, Sighting, TagRecord
from mirror.policy.unreadable_records import record_file_name
from mirror.store.local.blobs import LocalStore
from mirror.store.local.cached_records import LocalCachedRecords
from mirror.store.local.layout import Layout
from mirror.store.local.local_records import local_freezes, local_pins, local_repository_records
from mirror.store.local.locks import FileLocks
from tests.support.clock import Clock
from tests.support.hooked import Hooked
from tests.support.memory_index import MemoryIndex

APP = Repo("docker.io", "library/app")
BELOW = Repo("docker.io", "library/app/below")
HOSTED = Repo("corp", "app")
#: Seconds.
AFTER = 1000.0
BYTES = b'{"schemaVersion": 2}'
DIGEST = Digest.of(BYTES)


class Site:
    """A disk, and what forgets its old records, by a clock that the test moves."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        self.store = LocalStore(self.layout)
        self.records = Hooked(LocalCachedRecords(self.layout))
        self.pins, self.freezes = local_pins(self.layout), local_freezes(self.layout)
        self.locks = FileLocks(self.layout, secret=self.store.id)
        self.index = MemoryIndex()
        self.clock = Clock(1_000_000.0)
        self.turns = 0
        self.after: Callable[[Repo], float | None] = lambda repo: None if repo.registry == "corp" else AFTER

    def forgetting(self, *rules: PinRule) -> Forgetting:
        return Forgetting(
            self.records,
            self.pins,
            rules,
            self.freezes,
            is_here=lambda _repo, digest: has_blob(self.store, digest),
            after=lambda repo: self.after(repo),
            hold=self.locks.try_hold_now,
            now=self.clock,
        )

    def forget(self, old: Sequence[Old]) -> tuple[Forgotten, Mapping[Repo, Sequence[Digest]]]:
        """One turn, of what an earlier walk has found."""
        forgetting = self.forgetting()
        return forgetting.forget(old, forgetting.kept())

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        self.turns += 1
        yield

    async def walk(self, *rules: PinRule) -> Forgotten:
        """One walk of a process that begins now."""
        return await forget_old(self.forgetting(*rules), self.index, self.turn)

    async def walks(self) -> list[Forgotten]:
        """As many as forget something."""
        done = []
        while (walked := await self.walk()).is_any:
            done.append(walked)
        return done

    def tag(self, name: str, repo: Repo = APP, digest: Digest = DIGEST) -> None:
        """A tag that upstream was asked for now, and the record of its manifest; no bytes."""
        now = self.clock()
        self.records.put_history(repo, name, [Sighting(digest, OCI_MANIFEST, 1, now, now)])
        self.records.put_tag(repo, TagRecord(name, digest, OCI_MANIFEST, 1, now))
        self.manifest(digest, repo)

    def manifest(self, digest: Digest = DIGEST, repo: Repo = APP) -> None:
        self.records.put_manifest(repo, ManifestRecord(digest, OCI_MANIFEST, 1, self.clock()))

    def break_file(self, path: str) -> None:
        Path(path).write_text("{")

    def put_bytes(self) -> None:
        self.store.put(DIGEST, BYTES)

    def files(self) -> set[str]:
        """Of records, below `repositories`."""
        root = self.layout.repositories
        return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}

    def folders(self) -> list[str]:
        """Likewise."""
        root = self.layout.repositories
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_dir())


class Pauses:
    """Counts how often the walk gives way between turns."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self, took: float, /) -> None:
        self.count += 1

    def slices(self, items: Iterable[Any]) -> Iterator[Any]:
        yield from items


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Empty."""
    return Site(tmp_path / "store")


def _files_of(*tags: str, digest: Digest = DIGEST) -> set[str]:
    named = {f"docker.io/library/app/{folder}/{tag}" for tag in tags for folder in ("_tags", "_history")}
    return named | {f"docker.io/library/app/_manifests/sha256-{digest.hex}"}


async def test_what_nobody_asks_for_goes_tag_manifest_folders(site: Site) -> None:
    """The record of the manifest a walk later than its last tag; then nothing is left, not even the registry's."""
    site.tag("v1")
    site.tag("v2")
    site.clock.time += AFTER - 1
    assert await site.walks() == []
    site.clock.time += 1
    first = await site.walk()
    assert (first.tags, first.manifests, first.repositories) == (2, 0, 0)
    assert site.files() == {f"docker.io/library/app/_manifests/sha256-{DIGEST.hex}"}
    await site.index.link(APP, {DIGEST: 1})
    second = await site.walk()
    assert (second.tags, second.manifests, second.repositories) == (0, 1, 1)
    assert site.folders() == []
    assert await site.index.linked(APP, DIGEST) is None
    assert await site.walk() == Forgotten()


async def test_asked_for_again(site: Site) -> None:
    """Only the other tag goes, and the manifest of both stays."""
    site.tag("old")
    site.tag("asked")
    site.clock.time += AFTER
    site.tag("asked")
    assert [walked.tags for walked in await site.walks()] == [1]
    assert site.files() == _files_of("asked")


async def test_content_that_is_here_keeps_its_names(site: Site) -> None:
    """However old: it may be all that there is while upstream is away. Once it is evicted, they go."""
    site.tag("v1")
    site.store.put(DIGEST, BYTES)
    site.clock.time += 100 * AFTER
    assert await site.walks() == []
    site.store.delete(DIGEST)
    assert len(await site.walks()) == 2


async def test_pinned_and_frozen(site: Site) -> None:
    """A tag or digest that is pinned by hand, by a rule, or frozen; an expired pin keeps nothing."""
    names = ["pinned", "expired", "ruled", "frozen", "free"]
    digests: dict[str, Digest] = {name: Digest.of(name.encode()) for name in names}
    for name, digest in digests.items():
        site.tag(name, digest=digest)
    alone = Digest.of(b"alone")
    site.manifest(alone)
    now = site.clock()
    pinned: list[tuple[Reference, float | None]] = [("pinned", None), ("expired", now + 1), (alone, None)]
    for reference, until in pinned:
        site.pins.put(Pin(APP, reference, "", now, until))
    site.freezes.put(Freeze(APP, "frozen", digests["frozen"], OCI_MANIFEST, 1, "", now))
    site.clock.time += AFTER
    rule = PinRule("docker.io/library/*:rul*")
    assert (await site.walk(rule)).tags == 2
    assert (await site.walk(rule)).manifests == 2
    assert not (await site.walk(rule)).is_any
    assert site.records.tags(APP) == ["frozen", "pinned", "ruled"]
    stayed = {digests["frozen"], digests["pinned"], digests["ruled"], alone}
    assert set(site.records.manifest_digests(APP)) == stayed


@pytest.mark.parametrize("kind", ["pins", "freezes"])
async def test_nothing_goes_while_a_pin_or_freeze_cannot_be_read(site: Site, kind: str) -> None:
    """It may be for anything."""
    site.tag("v1")
    site.clock.time += AFTER
    folder = site.layout.records(kind)
    folder.mkdir()
    site.break_file(f"{folder}/{record_file_name('of something')}.json")
    with pytest.raises(StoreError):
        await site.walk()
    assert site.files() == _files_of("v1")


async def test_hosted_and_sealed_repositories_are_left_alone(site: Site) -> None:
    """So is one of an upstream that has records of a time when it was hosted."""
    once = Repo("ghcr.io", "app")
    link = BlobLink(DIGEST, 1, LinkState.LINKED, site.clock())
    for repo in (HOSTED, once):
        local_repository_records(site.layout).put_link(repo, link)
        site.tag("v1", repo)
    site.tag("v1")
    site.after = lambda repo: None if repo in (HOSTED, APP) else AFTER
    before = site.files()
    site.clock.time += 100 * AFTER
    assert await site.walks() == []
    assert site.files() == before
    assert site.turns == 0


async def test_a_history_without_its_tag(site: Site) -> None:
    """Of a tag that upstream has dropped: it goes as late. One that cannot be parsed says nothing, and goes."""
    site.tag("dropped")
    site.records.drop_tag(APP, "dropped")
    site.clock.time += AFTER - 1
    site.tag("v1")
    site.break_file(f"{site.layout.history(APP)}/broken")
    assert (await site.walk()).tags == 1
    assert "dropped" in site.records.histories(APP)
    site.clock.time += 1
    assert (await site.walk()).tags == 1
    assert site.files() == _files_of("v1")


async def test_damaged_records_stay(site: Site) -> None:
    """The next answer of upstream replaces them."""
    site.tag("v1")
    site.break_file(f"{site.layout.tags(APP)}/v1")
    site.break_file(f"{site.layout.manifests(APP)}/sha256-{DIGEST.hex}")
    site.clock.time += AFTER
    before = site.files()
    assert await site.walks() == []
    assert site.files() == before


async def test_a_repository_that_cannot_be_read_stops_no_other(site: Site) -> None:
    """It stays as it is, and the walk says so."""
    other = Repo("docker.io", "library/other")
    site.tag("v1")
    site.tag("v1", other)
    site.clock.time += AFTER
    read = site.records.tag

    def tag(repo: Repo, tag: str) -> Any:
        if repo == APP:
            raise StoreError("EIO")
        return read(repo, tag)

    setattr(site.records, "tag", tag)  # noqa: B010 - for mypy, it is a method of another class
    walked = await site.walk()
    assert (walked.tags, walked.unread) == (1, 1)
    assert site.records.tags(APP) == ["v1"]


async def test_what_cannot_be_deleted_stops_nothing_else(site: Site) -> None:
    """The disk refuses it, for example."""
    site.tag("v1")
    site.tag("v2")
    site.clock.time += AFTER
    drop = site.records.drop_tag

    def drop_tag(repo: Repo, tag: str, **more: Any) -> None:
        if tag == "v1":
            raise StoreError("read-only")
        drop(repo, tag, **more)

    setattr(site.records, "drop_tag", drop_tag)  # noqa: B010 - for mypy, it is a method of another class
    walked = await site.walk()
    assert (walked.tags, walked.unread) == (1, 1)
    assert site.files() == _files_of("v1")


async def test_a_folder_with_another_repository_below_stays(site: Site) -> None:
    """`library/app` goes, `library/app/below` stays."""
    site.tag("v1")
    site.clock.time += AFTER
    site.tag("v1", BELOW)
    assert sum(walked.repositories for walked in await site.walks()) == 1
    assert list(site.records.repositories()) == [BELOW]
    assert site.folders()[:3] == ["docker.io", "docker.io/library", "docker.io/library/app"]
    site.clock.time += AFTER
    await site.walks()
    assert site.folders() == []


# ------------------------------------------------------------------------------- at the moment of the deletion


async def test_a_tag_whose_lock_is_held_stays(site: Site) -> None:
    """A client asks for it."""
    site.tag("v1")
    site.clock.time += AFTER
    async with site.locks.hold(f"tag {APP}:v1"):
        assert not (await site.walk()).is_any
    assert (await site.walk()).tags == 1


async def test_a_tag_that_was_asked_for_since_the_walk_stays(site: Site) -> None:
    """With its history, also by a client that did not get the lock in time."""
    site.tag("v1")
    site.clock.time += AFTER
    for moment, call in (("before", "tag"), ("after", "tag"), ("before", "drop_tag"), ("before", "drop_history")):
        old = [each for each in site.forgetting().old() if each]
        assert old == [Old(APP, "v1")]
        getattr(site.records, moment)(call, lambda: site.tag("v1"))
        done, gone = site.forget(old)
        assert (done.tags, gone) == (0, {}), call
        assert site.files() == _files_of("v1"), call
        assert not site.records.pending
        site.clock.time += AFTER


async def test_a_manifest_that_comes_at_that_moment_is_not_lost(site: Site) -> None:
    """Its bytes first, then its record, with the same content as before, as an import writes it."""
    site.manifest()
    at = site.clock()
    record = ManifestRecord(DIGEST, OCI_MANIFEST, 1, at)
    site.clock.time += AFTER

    def comes() -> None:
        site.store.put(DIGEST, BYTES)
        site.records.put_manifest(APP, record)

    for moment in ("before", "after"):
        getattr(site.records, moment)("drop_manifest", comes)
        old = [each for each in site.forgetting().old() if each]
        site.forget(old)
        assert not site.records.pending
        assert site.records.get_manifest(APP, DIGEST) == record
        site.store.delete(DIGEST)


async def test_only_the_bytes_come_at_that_moment(site: Site) -> None:
    """The record has not been written yet, and stays."""
    site.manifest()
    site.clock.time += AFTER
    site.records.before("drop_manifest", site.put_bytes)
    assert not (await site.walk()).is_any
    assert site.files() == {f"docker.io/library/app/_manifests/sha256-{DIGEST.hex}"}


async def test_pins_and_freezes_made_since_the_walk(site: Site) -> None:
    """They are read before each turn."""
    site.tag("pinned")
    site.tag("frozen")
    site.clock.time += AFTER
    old = [each for each in site.forgetting().old() if each]
    site.pins.put(Pin(APP, "pinned", "", site.clock()))
    site.freezes.put(Freeze(APP, "frozen", DIGEST, OCI_MANIFEST, 1, "", site.clock()))
    done, _ = site.forget(old)
    assert not done.is_any
    assert site.files() == _files_of("pinned", "frozen")


@pytest.mark.parametrize("call", ["rename", "mkdir"])
def test_a_record_is_written_while_its_empty_folders_go(site: Site, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer makes them again."""
    done, removed = getattr(os, call), list[bool]()

    def removes_first(*arguments: Any, **named: Any) -> Any:
        # the last step before the first record is there
        if not removed and "/_history" in str(arguments[-2 if call == "mkdir" else 1]):
            removed.append(site.records.prune(APP))
        return done(*arguments, **named)

    monkeypatch.setattr(os, call, removes_first)
    site.tag("v1")
    monkeypatch.undo()
    assert removed == [True]
    assert site.files() == _files_of("v1")


async def test_many_at_once(site: Site) -> None:
    """In turns that are short, because pulls wait for them while the disk is full, with a pause after each; all go."""
    for number in range(600):
        site.tag(f"v{number}", Repo("docker.io", f"library/app{number % 7}"))
    site.clock.time += AFTER
    pauses = Pauses()
    walked = await forget_old(site.forgetting(), site.index, site.turn, give_way=pauses)
    assert (walked.tags, walked.looked_at) == (600, 607)
    assert 10 <= site.turns <= 12
    assert pauses.count == site.turns
    await site.walks()
    assert site.folders() == []


def test_a_turn_does_not_read_all_names_of_its_repositories(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository with a million tags has thousands of turns, which pulls may wait for."""
    for number in range(300):
        site.tag(f"v{number}", digest=Digest.of(str(number).encode()))
    scandir, read = os.scandir, list[str]()

    @contextmanager
    def counted(path: Any) -> Iterator[Iterator[os.DirEntry[str]]]:
        def entries(found: Iterable[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
            for entry in found:
                read.append(entry.name)
                yield entry

        with scandir(path) as found:
            yield entries(found)

    monkeypatch.setattr(os, "scandir", counted)
    assert not site.records.prune(APP)
    assert len(read) == 1


async def test_no_turn_waits_for_pins_and_freezes(site: Site) -> None:
    """Those of other replicas are in the bucket, which may take long to answer."""
    site.tag("v1")
    site.clock.time += AFTER
    pins = Hooked(site.pins)
    turns: list[int] = []
    setattr(site, "pins", pins)  # noqa: B010 - for mypy, it is another class

    @asynccontextmanager
    async def turn() -> AsyncIterator[None]:
        before = pins.calls["look"]
        yield
        turns.append(pins.calls["look"] - before)

    await forget_old(site.forgetting(), site.index, turn)
    assert turns == [0]
    assert pins.calls["look"] == 1


async def test_a_disk_that_can_only_be_read(site: Site) -> None:
    """What could not be deleted is counted, and one reason is logged."""
    for number in range(100):
        site.tag(f"v{number}")
    site.clock.time += AFTER
    site.records.fail("drop_tag", StoreError("read-only"))
    with structlog.testing.capture_logs() as lines:
        walked = await site.walk()
    assert (walked.tags, walked.unread) == (0, 100)
    [line] = [line for line in lines if line["event"] == "records not forgotten"]
    assert (line["count"], line["reason"]) == (100, "read-only")
    site.records.fail("drop_tag", None)
    assert (await site.walk()).tags == 100


async def test_a_walk_that_is_cancelled_ends_its_deletions(site: Site) -> None:
    """In its turn."""
    site.tag("v1")
    site.clock.time += AFTER
    task: asyncio.Task[Forgotten] | None = None
    loop = asyncio.get_running_loop()

    def cancel() -> None:
        assert task is not None
        loop.call_soon_threadsafe(task.cancel)

    site.records.before("drop_tag", cancel)
    task = asyncio.create_task(site.walk())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert site.records.histories(APP) == []
