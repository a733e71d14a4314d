"""Pins and freezes whose files are damaged: what they keep stays as far as that can be known, else all does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import structlog

from mirror.app.storage import make_purge
from mirror.config import load
from mirror.errors import ImageProtected, StoreError
from mirror.eviction.pinned_images import PinnedContent
from mirror.eviction.record_owners import UnreadableRecordOwners
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.oci.reference import Reference, Repo
from mirror.policy.image_names import Image
from mirror.policy.records import Freeze, ManifestRecord, Pin, TagRecord
from mirror.policy.unreadable_records import UnreadableRecord, record_file_name
from tests.flows.test_pins import APP, SIZE, Site, layer, pin, present, pressure, pull, running, tagged
from tests.support.clock import Clock
from tests.support.command import mirror as command
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import LiveMirror
from tests.support.memory_store import MemoryCatalog, MemoryPins
from tests.support.mirror_process import write_config

#: More than any of the tests puts into a mirror of this size.
_LARGE = "1MB"


def note(kind: str, root: Path) -> Path:
    """The only file of this kind."""
    [file] = (root / kind).iterdir()
    return file


def strange(kind: str, root: Path) -> Path:
    """A note that is empty, and for what nobody knows."""
    file = root / kind / f"{'0' * 32}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"")
    return file


def frozen(mirror: LiveMirror, tag: str) -> Freeze:
    """At what it points to."""
    record = mirror.app.storage.catalog.get_tag(APP, tag)
    assert record
    return Freeze(APP, tag, record.digest, record.media_type, record.size, "", mirror.clock())


@pytest.fixture
async def mirror(registry: FakeRegistry, tmp_path: Path) -> AsyncIterator[LiveMirror]:
    """Room for some ten layers; `app:v1` has two."""
    registry.add_image("library/app", "v1", [layer(1), layer(2)])
    async with running(registry, tmp_path / "store") as mirror:
        yield mirror


# ------------------------------------------------------------------------------------------------ in a whole mirror


@pytest.mark.parametrize("content", [b"", b'{"key": "docker.io/library/app v1",\n "regis'], ids=["empty", "cut"])
async def test_what_a_damaged_pin_is_for_stays(mirror: LiveMirror, registry: FakeRegistry, content: bytes) -> None:
    """By tag, through eviction after eviction, which goes on; the log says it once. Mended it is a pin like another."""
    first = await pull(mirror, "v1")
    pin(mirror, "v1")
    file = note("pins", mirror.root)
    file.write_bytes(content)
    others = await pressure(mirror, registry, 6)
    assert present(mirror, first) == first
    assert not present(mirror, others[0])
    [told] = mirror.events("pin or freeze cannot be read")
    assert told["file"] == str(file)
    assert "mirror pin docker.io/library/app:v1" in told["reason"]
    assert b"mirror_unreadable_notes 1.0" in (await mirror.ask("/metrics")).body
    pin(mirror, "v1")
    await mirror.app.storage.eviction.space.make_room(1)
    assert b"mirror_unreadable_notes 0.0" in (await mirror.ask("/metrics")).body


async def test_what_a_damaged_pin_of_a_digest_is_for_stays(mirror: LiveMirror, registry: FakeRegistry) -> None:
    """Found by the manifests that are here."""
    first = await pull(mirror, "v1")
    record = mirror.app.storage.catalog.get_tag(APP, "v1")
    assert record
    pin(mirror, record.digest)
    note("pins", mirror.root).write_bytes(b"")
    await pressure(mirror, registry, 6)
    assert present(mirror, first) == first


async def test_a_damaged_freeze_keeps_its_repository(mirror: LiveMirror, registry: FakeRegistry) -> None:
    """What it was at is not known, so that all that the repository has stays, old and new; other repositories go."""
    old = await pull(mirror, "v1")
    freeze = frozen(mirror, "v1")
    registry.add_image("library/app", "v1", [layer(3)], config=b'{"new": 1}')
    mirror.clock.forward(600)
    new = await pull(mirror, "v1")
    mirror.app.storage.freezes.put(freeze)
    pin(mirror, "v1")
    note("freezes", mirror.root).write_bytes(b"garbage")
    others = await pressure(mirror, registry, 6)
    assert present(mirror, old | new) == old | new
    assert not present(mirror, others[0])
    assert (await mirror.ask(f"/v2/library/app/manifests/{freeze.digest}")).status == 200


@pytest.mark.parametrize("kind", ["pins", "freezes"])
async def test_nothing_goes_if_the_image_is_unknown(mirror: LiveMirror, registry: FakeRegistry, kind: str) -> None:
    """Pulls are stored while there is room and go through uncached afterwards, all of them whole; the log names the
    file and what to do. Once it is gone things are as before."""
    first = await pull(mirror, "v1")
    mirror.clock.forward(3600)
    file = strange(kind, mirror.root)
    here: set[Digest] = set()
    for number in range(8):
        content = [layer(100 + 4 * number + each) for each in range(4)]
        registry.add_image("library/more", f"v{number}", content)
        assert (await mirror.ask(f"/v2/library/more/manifests/v{number}")).status == 200
        for one in content:
            answer = await mirror.ask(f"/v2/library/more/blobs/{Digest.of(one)}")
            assert (answer.status, answer.whole, answer.body) == (200, True, one)
            await mirror.idle()
            # what came before is still there
            assert here == present(mirror, here)
            here |= present(mirror, {Digest.of(one)})
    assert present(mirror, first) == first
    # up to the limit, not only to the high water
    assert (len(here) + 2) * SIZE == 950_000
    assert len(mirror.events("pin or freeze cannot be read")) == 1
    failing = mirror.events("store failed")[0]["reason"]
    assert str(file) in failing
    assert "restore the file, or delete it" in failing
    with pytest.raises(StoreError, match=str(file)):
        await mirror.app.storage.eviction.space.collect()
    file.unlink()
    await mirror.app.storage.eviction.space.collect()
    assert present(mirror, first) != first


async def test_interrupted_downloads_go_if_the_image_is_unknown(mirror: LiveMirror, registry: FakeRegistry) -> None:
    """They are nobody's, and what makes room without them is stored."""
    await pull(mirror, "v1")
    strange("pins", mirror.root)
    partial = mirror.app.storage.layout.ingest(Digest.of(b"left behind"), "docker.io")
    partial.write_bytes(bytes(860_000))
    content = layer(50)
    registry.add_image("library/more", "v1", [content])
    space = mirror.app.storage.eviction.space
    space._reclaim = lambda in_use: 0
    with pytest.raises(StoreError, match="not known"):
        await space.reserve(SIZE)

    def reclaim(in_use: bool) -> int:
        partial.unlink()
        return 860_000

    space._reclaim = reclaim
    (await space.reserve(SIZE)).release()
    assert not partial.exists()


async def test_a_folder_that_the_disk_does_not_give(mirror: LiveMirror, registry: FakeRegistry) -> None:
    """It is not a folder without pins: nothing goes, pulls go on."""
    first = await pull(mirror, "v1")
    (mirror.root / "pins").write_text("no folder")
    with pytest.raises(StoreError, match="Not a directory"):
        await mirror.app.storage.eviction.space.make_room(1)
    assert present(mirror, first) == first
    content = layer(50)
    registry.add_image("library/more", "v1", [content])
    assert (await mirror.ask(f"/v2/library/more/blobs/{Digest.of(content)}")).status in (200, 404)
    assert await pull(mirror, "v1") == first


# ------------------------------------------------------------------------------------------------------------ purging


async def test_purging_what_a_damaged_note_is_for(mirror: LiveMirror, registry: FakeRegistry, tmp_path: Path) -> None:
    """Refused, as if the note were whole; so is everything else of a repository with a damaged freeze, and where it is
    not known what a note is for, everything."""
    registry.add_image("library/app", "v2", [layer(3)])
    registry.add_image("library/else", "v1", [layer(4)])
    first = await pull(mirror, "v1")
    await pull(mirror, "v2")
    await pull(mirror, "v1", "library/else")
    purge = make_purge(load(None, {"store": {"root": str(mirror.root)}}), mirror.app.storage)
    pin(mirror, "v1")
    note("pins", mirror.root).write_bytes(b"")
    with pytest.raises(ImageProtected, match="app:v1"):
        await purge(Image(APP, "v1"))
    mirror.app.storage.freezes.put(frozen(mirror, "v1"))
    note("freezes", mirror.root).write_bytes(b"")
    with pytest.raises(ImageProtected, match="app:v1 is frozen, but at what cannot be read"):
        await purge(Image(APP, "v2"))
    lost = strange("freezes", mirror.root)
    elsewhere = Image(Repo("docker.io", "library/else"), "v1")
    with pytest.raises(StoreError, match=str(lost)):
        await purge(elsewhere)
    lost.unlink()
    assert (await purge(elsewhere)).blobs > 0
    assert present(mirror, first) == first


# ------------------------------------------------------------------------------------------------------ who tells it


async def test_commands_tell_it(mirror: LiveMirror, registry: FakeRegistry, tmp_path: Path) -> None:
    """`pins`, `freezes` and `check` list what they can, then name each file and what to do. The first two fail; the
    last must not, for a service that checks first would not start."""
    await pull(mirror, "v1")
    pin(mirror, "v1")
    mirror.app.storage.freezes.put(frozen(mirror, "v1"))
    config = write_config(tmp_path, {"docker.io": registry.url})
    asked = [("pins",), ("pins", "--json"), ("freezes",), ("freezes", "--json"), ("check",)]

    async def run(*words: str) -> tuple[int, str, str]:
        done = await asyncio.to_thread(command, *words, "--config", config)
        return done.status, done.out, done.err

    assert [(await run(*words))[0] for words in asked] == [0] * 5
    files = {kind: note(kind, mirror.root) for kind in ("pins", "freezes")}
    for file in files.values():
        file.write_bytes(b"")
    for words in asked:
        status, out, err = await run(*words)
        assert status == (0 if words == ("check",) else 1), words
        assert out
        assert str(files["freezes" if words[0] == "freezes" else "pins"]) in err
        assert "docker.io/library/app:v1" in err
    assert "unreadable" in (await run("pins"))[1]
    status, out, _ = await run("ls", "--json")
    assert status == 0
    assert '"frozen": true' in out
    strange("pins", mirror.root)
    assert "nothing is evicted or purged" in (await run("pins"))[2]


# ------------------------------------------------------------------------------------------------ what they are for


def unread(kind: str, reference: Reference, repo: Repo = APP, key: str = "") -> UnreadableRecord:
    """A note of which the name is left, and perhaps the key."""
    return UnreadableRecord(kind, f"/{kind}/x.json", record_file_name(f"{repo} {reference}"), "garbage", key)


class Watched(MemoryCatalog):
    """Counts searches."""

    searches = 0

    def repositories(self, after: str = "") -> list[Repo]:
        """Those that are here."""
        self.searches += 1
        return list(super().repositories(after))


def test_what_a_note_is_for() -> None:
    """By its text, else by the tags and, for a pin, the digests that are here; a freeze is never about a digest."""
    catalog = Watched()
    digest = Digest.of(b"x")
    catalog.put_tag(APP, TagRecord("v1", digest, OCI_MANIFEST, 1, 0.0))
    catalog.put_manifest(APP, ManifestRecord(digest, OCI_MANIFEST, 1, 0.0))
    clock = Clock(0.0)
    subjects = UnreadableRecordOwners(catalog, clock)
    by_text = unread("pins", "gone", key=f"{APP} gone")
    assert subjects.of([by_text]) == {by_text: (APP, "gone")}
    assert catalog.searches == 0
    by_tag, by_digest, strange = unread("freezes", "v1"), unread("pins", digest), unread("freezes", digest)
    found = {by_tag: (APP, "v1"), by_digest: (APP, digest)}
    assert subjects.find([by_tag, by_digest, strange]) == found
    with pytest.raises(StoreError, match=r"/freezes/x\.json"):
        subjects.of([by_tag, by_digest, strange])


def test_what_was_not_found_is_searched_for_once_a_minute() -> None:
    """A pull that waits for room must not wait for a search through all names each time."""
    catalog, clock = Watched(), Clock(0.0)
    subjects = UnreadableRecordOwners(catalog, clock)
    lost = unread("freezes", "v1")
    for _ in range(5):
        assert subjects.find([lost]) == {}
    assert catalog.searches == 1
    catalog.put_tag(APP, TagRecord("v1", Digest.of(b"x"), OCI_MANIFEST, 1, 0.0))
    clock.time += 61
    assert subjects.of([lost]) == {lost: (APP, "v1")}
    assert catalog.searches == 2
    assert subjects.find([]) == {}


@pytest.mark.parametrize(
    "key", ["", "bad", "docker.io/library/app", "docker.io/../app v1", "docker.io/library/app a b"]
)
def test_a_key_that_is_no_image(key: str) -> None:
    """It tells nothing."""
    assert unread("pins", "v1", key=key).subject is None


class Damaged(MemoryPins):
    """With pins that cannot be read."""

    def __init__(self, *lost: UnreadableRecord) -> None:
        super().__init__()
        self.lost = lost

    def look(self) -> tuple[list[Pin], tuple[UnreadableRecord, ...]]:
        """These, and the others."""
        return list(super().all()), self.lost


def content(
    site: Site, pins: Damaged, *freezes: UnreadableRecord, answer: Callable[..., Digest | None]
) -> PinnedContent:
    """What stays."""
    return PinnedContent(site.catalog, pins, (), site.names, frozen=lambda: ((), freezes), answer=answer)


def test_a_pinned_tag_whose_freeze_is_damaged() -> None:
    """What it answers cannot be told, which is no reason to tell nothing: its repository stays whole."""
    site = Site()
    roots = {tagged(site, "v1", b"a"), tagged(site, "v2", b"b")}

    def answer(_: Repo, tag: str) -> Digest | None:
        raise StoreError(f"{tag} is frozen, but at what cannot be read")

    pins = Damaged()
    pins.put(Pin(APP, "v1", "", 1.0))
    with pytest.raises(StoreError):
        content(site, pins, answer=answer).digests(0.0)
    kept = content(site, pins, unread("freezes", "v1"), answer=answer).digests(0.0)
    assert kept == {*roots, Digest.of(b"a"), Digest.of(b"b")}


def test_it_is_logged_once() -> None:
    """However often it is asked; again once it was mended in between."""
    site = Site()
    tagged(site, "v1", b"a")
    pins = Damaged(unread("pins", "v1"))
    keeping = content(site, pins, answer=lambda *_: None)
    with structlog.testing.capture_logs() as logs:
        for lost in (pins.lost, pins.lost, (), pins.lost):
            pins.lost = lost
            keeping.digests(0.0)
    assert [line["event"] for line in logs] == ["pin or freeze cannot be read"] * 2
