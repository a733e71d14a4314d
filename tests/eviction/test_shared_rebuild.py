"""A lost index rebuilt by several processes, in parts that are done once. Row numbers: the list of faults."""

from __future__ import annotations

import asyncio
import math
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any, Final, TypeVar

import pytest

from mirror.errors import IndexUnavailable, StoreError
from mirror.eviction.giving_way import GivesWay
from mirror.eviction.reconcile import INCOMPLETE, MARK, Reconciled, reconcile
from mirror.eviction.shared_rebuild import ensure
from mirror.eviction.write_behind import WriteBehind
from mirror.index.embedded import EmbeddedIndex
from mirror.index.redis import RedisIndex
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.records import BlobRole, ContentRecord, References, Usage
from mirror.ports import BlobInfo, ContentIndex
from mirror.store.local.locks import FileLocks
from tests.support.free_locks import FreeLocks
from tests.support.here import Here
from tests.support.memory_index import MemoryIndex
from tests.support.memory_store import MemoryCatalog, MemoryStore
from tests.support.redis_server import RedisServer
from tests.support.stocked import Stocked

T = TypeVar("T")


class CountedStore(MemoryStore):
    """Counts what is read and looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.done: Counter[str] = Counter()

    def read(self, digest: Digest, limit: int) -> bytes:
        self.done["reads"] += 1
        return super().read(digest, limit)

    def stat(self, digest: Digest) -> Any:
        self.done["stats"] += 1
        return super().stat(digest)


class UnsortedStore(CountedStore):
    """Its folders are read in another order than that of an index."""

    def walk_part(self, digits: str) -> Iterator[BlobInfo]:
        return iter(sorted(super().walk_part(digits), key=lambda info: str(info.digest), reverse=True))


class CountedIndex(MemoryIndex):
    """Counts what is written, and lets other tasks go on at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.blobs: Counter[Digest] = Counter()
        self.manifests: Counter[Digest] = Counter()
        self.order: list[Digest] = []
        self.calls = 0

    async def put(self, records: Sequence[ContentRecord]) -> None:
        self.blobs.update(record.digest for record in records)
        self.order += [record.digest for record in records]
        self.calls += 1
        await asyncio.sleep(0)
        await super().put(records)

    async def link(self, repo: Repo, blobs: Mapping[Digest, int]) -> None:
        self.calls += 1
        await asyncio.sleep(0)
        await super().link(repo, blobs)

    async def record_references(self, manifests: Sequence[References]) -> None:
        self.manifests.update(each.digest for each in manifests)
        self.calls += 1
        await asyncio.sleep(0)
        await super().record_references(manifests)


async def no_sleep(_seconds: float) -> None:
    """Lets others go on."""
    await asyncio.sleep(0.001)


def stocked(repositories: int, store: CountedStore | None = None) -> tuple[CountedStore, MemoryCatalog]:
    """Images of three blobs; four in each repository, which share a layer."""
    store, catalog = store or CountedStore(), MemoryCatalog()
    here = Here(store, catalog)
    for number in range(repositories):
        repo = Repo("docker.io", f"team/app{number}")
        for image in range(4):
            here.image([f"{number} base".encode(), f"{number} {image}".encode()], repo=repo, tag=f"v{image}")
    store.done.clear()
    return store, catalog


async def everything(index: ContentIndex, store: MemoryStore, catalog: MemoryCatalog) -> tuple[Any, ...]:
    """All that an index says about a disk."""
    digests = [info.digest for info in store.walk()]
    repos = sorted(catalog.repositories())
    return (
        await index.usage(),
        *[await index.least_recently_used(role, 10_000) for role in BlobRole],
        {digest: set(below) for digest, below in (await index.successors(digests)).items()},
        await index.marker(),
        [[await index.linked(repo, digest) for digest in digests] for repo in repos],
    )


async def rebuild(
    store: MemoryStore, catalog: MemoryCatalog, index: ContentIndex, locks: FreeLocks
) -> Reconciled | None:
    """As one process."""
    return await ensure(store, catalog, index, try_hold=locks.try_hold, sleep=no_sleep)


# ------------------------------------------------------------------------------------------------------- together


async def test_it_is_done_only_when_needed() -> None:
    """An index without its mark is rebuilt, or with another one, and a whole one left alone."""
    store, catalog = stocked(2)
    index, locks = MemoryIndex(), FreeLocks()
    assert await rebuild(store, catalog, index, locks) is not None
    assert await rebuild(store, catalog, index, locks) is None
    for mark in ("of an older version", INCOMPLETE):
        await index.set_marker(mark)
        assert await rebuild(store, catalog, index, locks) is not None
    await index.clear()
    assert await rebuild(store, catalog, index, locks) is not None
    assert (await index.usage()).blobs == len(list(store.walk()))


@pytest.mark.parametrize("processes", [1, 2, 5])
async def test_processes_share_the_work(processes: int) -> None:
    """Each does a part of it; each manifest is read once, and each blob put once besides its part of the repositories.
    The index is as one process makes it.
    """
    store, catalog = stocked(60)
    index, locks = CountedIndex(), FreeLocks()
    results = await asyncio.gather(*(rebuild(store, catalog, index, locks) for _ in range(processes)))
    shares = [result for result in results if result is not None]
    assert len(shares) == processes
    assert all(share.manifests and share.blobs for share in shares)
    blobs = list(store.walk())
    assert sum(share.blobs for share in shares) == len(blobs)
    assert sum(share.manifests for share in shares) == 240
    assert not any(share.resumed for share in shares[:1])
    assert index.manifests == Counter(dict.fromkeys(index.manifests, 1))
    assert index.blobs == Counter(info.digest for info in blobs) + Counter(index.manifests)
    assert store.done["reads"] == 240
    alone = MemoryIndex()
    await reconcile(store, catalog, alone)
    assert await everything(index, store, catalog) == await everything(alone, store, catalog)
    assert not locks.held


async def test_blobs_are_written_in_the_order_of_an_index() -> None:
    """Neighbours together: in a large index each write would otherwise change a page of its own for each blob."""
    store, catalog = stocked(200, UnsortedStore())
    index = CountedIndex()
    await rebuild(store, catalog, index, FreeLocks())
    put = [str(digest) for digest in index.order if digest not in index.manifests]
    # what is written of a manifest comes with its repository before
    assert put == sorted(put)
    assert len(put) == len(set(put)) > 1000


async def test_twice_as_much_costs_twice_as_much() -> None:
    """In reads, looks at files and calls of the index, whatever is there already."""

    async def cost(repositories: int) -> tuple[int, int, int]:
        store, catalog = stocked(repositories)
        index = CountedIndex()
        await rebuild(store, catalog, index, FreeLocks())
        reads, stats = store.done["reads"], store.done["stats"]
        # the first folder is looked at for how large the store is
        return reads, stats - sum(1 for _ in store.walk_part("00")), index.calls

    few, many = await cost(100), await cost(200)
    assert many[0] == 2 * few[0]
    # one blob, the empty config, is the same in all images; and each part of the blobs is looked at first
    assert many[1] - 65 == 2 * (few[1] - 65)
    # one call for each repository's links, manifests and references; those of the blobs are batches of the parts
    assert many[2] - few[2] == 3 * 100


async def test_blobs_that_come_and_go_meanwhile() -> None:
    """What is added stays, what is evicted does not come back: at the end, index and disk agree."""
    store, catalog = stocked(30)
    index, locks = CountedIndex(), FreeLocks()
    gone = [info.digest for info in store.walk()][::7]
    working = [asyncio.ensure_future(rebuild(store, catalog, index, locks)) for _ in range(2)]
    number = 0
    while not all(each.done() for each in working):
        number += 1
        content = f"new {number}".encode()
        store.put(Digest.of(content), content)
        await index.put([ContentRecord(Digest.of(content), len(content), 1.0)])
        if gone:
            digest = gone.pop()
            store.delete(digest)
            await index.drop([digest])
        await asyncio.sleep(0)
    await asyncio.gather(*working)
    sizes = {info.digest: info.size for info in store.walk()}
    recorded = {digest async for batch in index.digests() for digest in batch}
    assert recorded >= sizes.keys()
    # a blob that was evicted between its look and its record is met, and dropped, by the comparison or an eviction
    await reconcile(store, catalog, index)
    assert await index.usage() == Usage(len(sizes), sum(sizes.values()))


async def test_strays_are_dropped_by_whoever_ends_it() -> None:
    """Records without a file, of an index that was only incomplete."""
    store, catalog = stocked(10)
    index = MemoryIndex()
    await index.put([ContentRecord(Digest.of(f"stray {number}".encode()), 1, 1.0) for number in range(50)])
    results = await asyncio.gather(*(rebuild(store, catalog, index, locks) for locks in [FreeLocks()] for _ in "ab"))
    assert sum(result.dropped for result in results if result) == 50
    sizes = [info.size for info in store.walk()]
    assert await index.usage() == Usage(len(sizes), sum(sizes))


async def test_a_manifest_that_cannot_be_read_is_a_part_that_is_not_done() -> None:
    """There is no mark, whichever process meets it; all else is done once, and only that part again."""
    store, catalog = stocked(40)
    unread = next(iter(catalog.manifest_digests(Repo("docker.io", "team/app3"))))
    readable = store.read

    def read(digest: Digest, limit: int) -> bytes:
        if digest == unread:
            raise StoreError("not now")
        return readable(digest, limit)

    store.read = read  # type: ignore[method-assign]
    index, locks = CountedIndex(), FreeLocks()
    results = await asyncio.gather(*(rebuild(store, catalog, index, locks) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [StoreError] * 3
    assert await index.marker() is None
    store.read = readable  # type: ignore[method-assign]
    before = index.manifests.total()
    result = await rebuild(store, catalog, index, locks)
    assert result is not None
    assert result.resumed
    assert result.blobs == 0
    assert index.manifests.total() - before == 4 * result.repositories < 40
    assert await index.marker() == MARK
    assert unread in await index.successors([unread])


async def test_each_step_is_short_and_clients_go_first_after_it() -> None:
    """However large a repository is, no write has more than a hundred rows, and after each clients get their turn."""
    store, catalog = CountedStore(), MemoryCatalog()
    here, repo = Here(store, catalog), Repo("docker.io", "team/large")
    layers = [[f"layer {image} {number}".encode() for number in range(20)] for image in range(150)]
    for image, contents in enumerate(layers):
        here.image(contents, repo=repo, tag=f"v{image}")
    rows: list[int] = []
    turns = 0

    class Measured(MemoryIndex):
        async def put(self, records: Sequence[ContentRecord]) -> None:
            rows.append(len(records))
            await super().put(records)

        async def link(self, repo: Repo, blobs: Mapping[Digest, int]) -> None:
            rows.append(len(blobs))
            await super().link(repo, blobs)

        async def touch(self, seen: Mapping[Digest, float]) -> None:
            rows.append(len(seen))
            await super().touch(seen)

        async def record_references(self, manifests: Sequence[References]) -> None:
            rows.append(10 * len(manifests))
            await super().record_references(manifests)

    class Counting:
        async def __call__(self, _took: float, /) -> None:
            nonlocal turns
            turns += 1
            assert turns == len(rows)

        def slices(self, items: Iterable[T]) -> Iterator[T]:
            for item in items:
                read.append(item)
                yield item

    read: list[object] = []
    index = Measured()
    await ensure(store, catalog, index, try_hold=FreeLocks().try_hold, give_way=Counting(), sleep=no_sleep)
    assert (await index.usage()).blobs == 150 * 21 + 1
    assert max(rows) == 100
    assert turns == len(rows) > 90
    # what threads read from the disk comes in slices, too: each manifest and each blob
    assert len(read) == 150 + 150 * 21 + 1


async def test_clients_go_first_only_if_there_are_any() -> None:
    """Pauses grow with the step, up to a limit, and end a second after the last use, also if that was written to the
    index meanwhile, and also if the clock was set back.
    """
    clock, pauses = [1000.0], list[float]()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    uses = WriteBehind(MemoryStore(), MemoryIndex(), now=lambda: clock[0])
    give_way = GivesWay(uses, now=lambda: clock[0], sleep=sleep)
    await give_way(0.01)
    assert pauses == []
    uses.touch(Digest.of(b"pulled"))
    for took in (0.01, 60.0):
        await give_way(took)
    assert pauses == [0.02, 0.2]
    clock[0] += 1.0
    await give_way(0.01)
    assert len(pauses) == 2
    uses.touch(Digest.of(b"pulled"))
    await uses.flush()
    await give_way(0.01)
    assert len(pauses) == 3
    clock[0] -= 500.0
    await give_way(0.01)
    assert len(pauses) == 3


async def test_clients_of_other_workers_go_first_as_well() -> None:
    """They wait for the same index. That a worker was idle for a while says nothing about the others."""
    clock, idle, pauses = [1000.0], [math.inf], list[float]()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    uses = WriteBehind(MemoryStore(), MemoryIndex(), now=lambda: clock[0])
    uses.idle_elsewhere = lambda: idle[0]
    give_way = GivesWay(uses, now=lambda: clock[0], sleep=sleep)
    await give_way(0.01)
    assert pauses == []
    idle[0] = 0.5
    await give_way(0.01)
    # whatever time it is
    clock[0] -= 500.0
    await give_way(0.01)
    assert pauses == [0.02, 0.02]
    idle[0] = 1.5
    await give_way(0.01)
    assert len(pauses) == 2
    uses.touch(Digest.of(b"pulled"))
    await give_way(0.01)
    assert len(pauses) == 3


def test_a_thread_may_ask_for_the_last_use_while_blobs_are_used() -> None:
    """Whatever is used between two steps of the interpreter."""
    uses, used, seconds, pauses = (
        WriteBehind(MemoryStore(), MemoryIndex(), now=lambda: 5.0),
        count(),
        count(),
        list[float](),
    )
    uses.touch(Digest.of(b"pulled"))
    give_way = GivesWay(uses, now=lambda: 5.0, clock=lambda: next(seconds), block=pauses.append)

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        frame.f_trace_opcodes = True
        if event == "opcode":
            uses.touch(Digest.of(b"%d" % next(used)))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        assert list(give_way.slices(range(3))) == [0, 1, 2]
    finally:
        sys.settrace(before)
    assert len(pauses) == 3
    assert next(used) > 10


def test_a_thread_that_reads_pauses_for_clients() -> None:
    """Slices are short, whatever an item takes. A use counts for a second."""
    clock, pauses = [1000.0], list[float]()

    class Used:
        used_at = float("-inf")

    uses = Used()
    give_way = GivesWay(uses, now=lambda: clock[0], clock=lambda: clock[0], block=pauses.append)

    def work(count: int, seconds: float) -> None:
        for _ in give_way.slices(range(count)):
            clock[0] += seconds

    work(100, 0.001)
    assert pauses == []
    uses.used_at = clock[0]
    work(10, 0.0004)
    assert pauses == pytest.approx([0.0024] * 3)
    work(1, 0.05)
    assert pauses[3:] == pytest.approx([0.1])
    work(1, 1.0)
    assert len(pauses) == 4


# --------------------------------------------------------------------------------------------------- interruptions


@pytest.mark.parametrize(
    "failing", ["put", "link", "record_references", "begin_rebuild", "rebuild_state", "note_rebuilt", "set_marker"]
)
async def test_an_interrupted_rebuild_shows(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows 49, 53: wherever the index goes away there is no mark and no lock, and the next run completes it."""
    store, catalog = stocked(20)
    index, locks = MemoryIndex(), FreeLocks()
    waits: list[float] = []

    async def fail(*_: object) -> None:
        raise IndexUnavailable("gone")

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    with monkeypatch.context() as patch:
        patch.setattr(index, failing, fail)
        with pytest.raises(IndexUnavailable):
            await ensure(store, catalog, index, try_hold=locks.try_hold, sleep=sleep)
    assert waits == [1.0, 2.0, 4.0, 8.0]
    assert await index.marker() is None
    assert not locks.held
    assert await rebuild(store, catalog, index, locks) is not None
    assert (await index.usage()).blobs == len(list(store.walk()))


async def test_the_index_is_lost_again_meanwhile(tmp_path: Path) -> None:
    """Row 49: emptied, or replaced by a new file, in the middle of a rebuild by two processes: what they do since is of
    no rebuild, nobody sets a mark, and the next rebuild begins at the beginning.
    """
    store, catalog = stocked(40)
    with RedisServer() as server:
        index = RedisIndex(server.address, store_id="test", budget=60.0, now=lambda: 0.0)
        await _lose(store, catalog, index, lambda: server.command("FLUSHALL"))
        await index.aclose()
    file = tmp_path / "index.sqlite"
    embedded = EmbeddedIndex(file)
    await _lose(store, catalog, embedded, file.unlink)
    await embedded.aclose()


async def _lose(store: MemoryStore, catalog: MemoryCatalog, index: ContentIndex, lose: Any) -> None:
    note, noted = index.note_rebuilt, 0

    async def note_rebuilt(part: str, blobs: int, token: str) -> None:
        nonlocal noted
        noted += 1
        if noted == 30:
            lose()
        await note(part, blobs, token)

    index.note_rebuilt = note_rebuilt  # type: ignore[method-assign]
    locks = FreeLocks()
    results = await asyncio.gather(*(rebuild(store, catalog, index, locks) for _ in range(2)), return_exceptions=True)
    assert any(isinstance(result, IndexUnavailable) for result in results)
    if await index.marker() is None:
        result = await rebuild(store, catalog, index, locks)
        assert result is not None
    alone = MemoryIndex()
    await reconcile(store, catalog, alone)
    assert await everything(index, store, catalog) == await everything(alone, store, catalog)


_KILLED: Final = """
import asyncio, os, signal, sys
from pathlib import Path
from mirror.eviction.shared_rebuild import ensure
from mirror.index.embedded import EmbeddedIndex
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from mirror.store.local.local_records import local_catalog
from mirror.store.local.locks import FileLocks

root, left = Path(sys.argv[1]), int(sys.argv[2])
layout = Layout(root)

async def main():
    index = EmbeddedIndex(root / "index.sqlite")
    names = sys.argv[3]
    call = getattr(index, names)
    async def counted(*arguments):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return await call(*arguments)
    setattr(index, names, counted)
    await ensure(LocalStore(layout), local_catalog(layout), index, try_hold=FileLocks(layout).try_hold)

asyncio.run(main())
"""


@pytest.fixture
async def embedded(tmp_path: Path) -> AsyncIterator[EmbeddedIndex]:
    index = EmbeddedIndex(tmp_path / "store" / "index.sqlite")
    yield index
    await index.aclose()


@pytest.mark.parametrize(
    ("after", "what"), [(3, "note_rebuilt"), (20, "note_rebuilt"), (40, "put"), (0, "begin_rebuild")]
)
async def test_a_kill_costs_the_part_that_was_under_way(
    tmp_path: Path, embedded: EmbeddedIndex, after: int, what: str
) -> None:
    """A process is killed with SIGKILL in the middle: the next one goes on behind what was noted, and the index is as
    if nothing had happened.
    """
    disk = Stocked(tmp_path / "store")
    for number in range(40):
        root = disk.image(f"team/app{number}", [f"layer {number}".encode(), b"shared"])
        disk.tag(f"team/app{number}", "v1", root)
    words = [sys.executable, "-c", _KILLED, str(disk.root), str(after), what]
    killed = await asyncio.to_thread(subprocess.run, words, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    state = await embedded.rebuild_state(MARK)
    done = state.done if state else {}
    assert (state is None) == (what == "begin_rebuild")
    assert await embedded.marker() is None
    locks = FileLocks(disk.layout)
    result = await ensure(disk.store, disk.catalog, embedded, try_hold=locks.try_hold)
    assert result is not None
    total = len(list(disk.store.walk()))
    assert result.resumed == bool(done)
    assert result.blobs == total - sum(done.values())
    if what == "note_rebuilt":
        assert len(done) == after
    alone = MemoryIndex()
    await reconcile(disk.store, disk.catalog, alone)
    assert await embedded.usage() == await alone.usage()
    for role in BlobRole:
        expected = await alone.least_recently_used(role, 1000)
        assert await embedded.least_recently_used(role, 1000) == expected
