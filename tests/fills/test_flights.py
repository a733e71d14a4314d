"""One transfer per registry and digest, whoever asks, leaves, breaks or dies."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from mirror.errors import (
    DigestMismatch,
    StoreError,
    StoreFull,
    UpstreamInvalid,
    UpstreamNotFound,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from mirror.fills.flight import Flight
from mirror.oci.digest import Digest
from mirror.policy.send_limit import WITHHELD
from mirror.ports import BlobInfo, BlobReader, BlobStore, Body
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from tests.support.following import read_to_end
from tests.support.hangar import CONTENT, DIGEST, HALF, SIZE, GatedBody, GatedUpstream, Hangar, reached
from tests.support.memory_store import MemoryStore


@pytest.fixture(params=["memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    """Of both kinds."""
    return MemoryStore() if request.param == "memory" else LocalStore(Layout(tmp_path))


@pytest.fixture
async def make(store: BlobStore) -> AsyncIterator[Callable[[], Hangar]]:
    """Makes processes that share the store; the files of each are its own."""
    async with AsyncExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(16))

        def hangar(patience: float = 30.0) -> Hangar:
            own = LocalStore(store.layout) if isinstance(store, LocalStore) else store
            made = Hangar(own, executor, patience)
            stack.push_async_callback(made.flights.aclose)
            return made

        yield hangar


@pytest.fixture
def hangar(make: Callable[[], Hangar]) -> Hangar:
    """One process."""
    return make()


async def test_many_followers_one_download(hangar: Hangar, store: BlobStore) -> None:
    """However many ask for an absent blob, upstream is asked once, and each has every byte (row 57)."""
    upstream = GatedUpstream()
    flights = await asyncio.gather(*(hangar.join(upstream) for _ in range(50)))
    bodies = asyncio.gather(*(read_to_end(flight) for flight in flights))
    upstream.gate.set()
    assert set(await bodies) == {CONTENT}
    await flights[0].over.wait()
    assert upstream.starts == [0]
    assert store.read(DIGEST, SIZE) == CONTENT
    assert hangar.landed == [BlobInfo(DIGEST, SIZE)]
    assert hangar.room.open == 0


async def test_bytes_are_sent_while_the_blob_grows(hangar: Hangar) -> None:
    """Followers have the first bytes long before the last have come, from wherever they begin."""
    upstream = GatedUpstream()
    flight = await hangar.join(upstream)
    await reached(lambda: flight.sendable == HALF)
    assert flight.reader.pread(10, 1000) == CONTENT[1000:1010]
    assert flight.size == SIZE
    assert not flight.landed
    assert "/1048576 bytes, 1 followers, test, flying>" in repr(flight)


async def test_the_end_is_held_back_until_the_digest_is_known(hangar: Hangar, store: BlobStore) -> None:
    """All bytes but the last may leave unverified; of a wrong blob nobody gets the whole (row 4)."""
    wrong = CONTENT[:-1] + b"\0"
    upstream = GatedUpstream(wrong, gate_at=SIZE - 100)
    flight = await hangar.join(upstream)
    await reached(lambda: flight.received == SIZE - 100)
    assert flight.sendable == SIZE - WITHHELD
    upstream.gate.set()
    with pytest.raises(DigestMismatch):
        await read_to_end(flight)
    await flight.over.wait()
    assert list(store.walk()) == []
    assert store.growing() == {}


async def test_the_first_follower_may_leave_like_any_other(hangar: Hangar) -> None:
    """When the one who began it leaves, the others notice nothing; when all leave, the fill goes on (rows 23, 24)."""
    upstream = GatedUpstream()
    first = asyncio.create_task(hangar.join(upstream))
    second = asyncio.create_task(hangar.join(upstream))
    await asyncio.sleep(0)
    first.cancel()
    flight = await second
    assert flight.followers == 1
    flight.leave()
    upstream.gate.set()
    await flight.over.wait()
    assert hangar.landed == [BlobInfo(DIGEST, SIZE)]


async def test_a_refusal_reaches_every_joiner_as_it_is(hangar: Hangar, store: BlobStore) -> None:
    """Before upstream's headers an error is an ordinary exception, hence a clean answer; nothing is left on disk."""
    upstream = GatedUpstream()
    upstream.refusals = [UpstreamNotFound("no such blob", upstream="test", status=404)]
    results = await asyncio.gather(*(hangar.join(upstream) for _ in range(5)), return_exceptions=True)
    assert {type(result) for result in results} == {UpstreamNotFound}
    assert upstream.starts == [0]
    await reached(lambda: not hangar.flights.active())
    assert store.growing() == {}


async def test_a_refusal_of_one_repository_is_not_another_ones(hangar: Hangar) -> None:
    """Who joined a flight of a repository that upstream refuses is not refused with it: it is tried for them."""
    refused, allowed = GatedUpstream(), GatedUpstream(is_open=True)
    refused.refusals = [UpstreamNotFound("no such blob", upstream="test", status=404)]
    flights = hangar.flights
    mine = asyncio.create_task(flights.join(DIGEST, refused.pull, upstream="test", on_behalf="a/private"))
    theirs = [
        asyncio.create_task(flights.join(DIGEST, allowed.pull, upstream="test", on_behalf="b/public")) for _ in range(9)
    ]
    with pytest.raises(UpstreamNotFound):
        await mine
    assert {await read_to_end(await one) for one in theirs} == {CONTENT}
    assert allowed.starts == [0]


async def test_a_broken_body_is_resumed_where_it_broke(hangar: Hangar) -> None:
    """Followers see no seam where upstream broke off: the rest comes by a range (rows 1, 7, 8)."""
    upstream = GatedUpstream(is_open=True)
    upstream.troubles = [UpstreamUnavailable("cut", upstream="test"), UpstreamUnavailable("cut", upstream="test")]
    flight = await hangar.join(upstream)
    assert await read_to_end(flight) == CONTENT
    assert upstream.starts == [0, HALF, HALF]
    assert len(hangar.slept) == 2


async def test_three_breaks_without_progress_are_enough(hangar: Hangar, store: BlobStore) -> None:
    """A dead upstream breaks the clients' connections; what has come stays, and the next request goes on from there."""
    upstream = GatedUpstream(is_open=True)
    upstream.troubles = [UpstreamUnavailable("cut", upstream="test") for _ in range(9)]
    flight = await hangar.join(upstream)
    with pytest.raises(UpstreamUnavailable):
        await read_to_end(flight)
    await flight.over.wait()
    assert upstream.starts == [0, HALF, HALF, HALF]
    assert store.growing() == {DIGEST: HALF}
    upstream.troubles.clear()
    again = await hangar.join(upstream)
    assert await read_to_end(again) == CONTENT
    assert upstream.starts[4:] == [HALF]


async def test_upstream_asks_for_patience_in_the_middle(hangar: Hangar) -> None:
    """A short Retry-After is waited for; a long one ends the flight (row 10)."""
    upstream = GatedUpstream(is_open=True)
    upstream.troubles = [UpstreamThrottled("slow down", upstream="test", status=429, retry_after=3)]
    assert await read_to_end(await hangar.join(upstream)) == CONTENT
    assert hangar.slept == [3.5]
    other = GatedUpstream(CONTENT[1:], is_open=True)
    other.troubles = [UpstreamThrottled("slow down", upstream="test", status=429, retry_after=600)]
    with pytest.raises(UpstreamThrottled):
        await read_to_end(await hangar.join(other, digest=Digest.of(CONTENT[1:])))


async def test_a_size_that_contradicts_the_manifest(hangar: Hangar, store: BlobStore) -> None:
    """Upstream's answer says the size that clients are told, and the digest judges its bytes (row 3)."""
    flight = await hangar.join(GatedUpstream(is_open=True), size=SIZE + 1)
    assert flight.size == SIZE
    assert await read_to_end(flight) == CONTENT
    await flight.over.wait()
    assert store.read(DIGEST, SIZE) == CONTENT


async def test_a_size_that_changes_in_the_middle_is_refused(hangar: Hangar, store: BlobStore) -> None:
    """Clients were promised the first one: an answer that says another is not gone on with (row 3)."""
    upstream = GatedUpstream()
    upstream.troubles = [UpstreamUnavailable("cut", upstream="test")]
    flight = await hangar.join(upstream)
    await reached(lambda: flight.received == HALF)
    upstream.says = SIZE + 1
    upstream.gate.set()
    with pytest.raises(UpstreamInvalid):
        await read_to_end(flight)
    await flight.over.wait()
    assert store.growing() == {}


async def test_a_size_that_upstream_does_not_say(hangar: Hangar, store: BlobStore) -> None:
    """Without a length the end of the stream proves nothing: the digest decides (row 2)."""
    upstream = GatedUpstream(is_open=True)
    upstream.says = None
    flight = await hangar.join(upstream)
    assert await read_to_end(flight) == CONTENT
    short = GatedUpstream(CONTENT[:-5], is_open=True)
    short.says = None
    await flight.over.wait()
    store.delete(DIGEST)
    with pytest.raises(DigestMismatch):
        await read_to_end(await hangar.join(short))


async def test_a_blob_that_landed_meanwhile_is_not_fetched(hangar: Hangar, store: BlobStore) -> None:
    """Between a caller's look and its joining the blob may have come: the flight looks once more."""
    store.put(DIGEST, CONTENT)
    upstream = GatedUpstream()
    flight = await hangar.join(upstream)
    assert await read_to_end(flight) == CONTENT
    assert upstream.starts == []


async def test_eviction_takes_nothing_from_a_follower(hangar: Hangar, store: BlobStore) -> None:
    """A blob that is dropped while it is read is read to its end (row 60)."""
    flight = await hangar.join(GatedUpstream(is_open=True))
    await flight.over.wait()
    store.delete(DIGEST)
    assert await read_to_end(flight) == CONTENT
    flight.leave()


async def test_no_room_at_the_start(hangar: Hangar) -> None:
    """Where the store has no room for it, the joiner is told before anything was sent, and nothing stays reserved."""
    hangar.room.full = True
    with pytest.raises(StoreFull):
        await hangar.join(GatedUpstream())
    assert hangar.room.open == 0


async def test_two_processes_one_download(make: Callable[[], Hangar]) -> None:
    """A second process follows the file that the first one fills, with the end held back all the same (row 44)."""
    filler, follower = make(), make()
    upstream, unused = GatedUpstream(), GatedUpstream()
    one = await filler.join(upstream)
    two = await follower.join(unused)
    await reached(lambda: two.sendable == HALF)
    assert two.size == SIZE
    upstream.gate.set()
    assert await read_to_end(two) == CONTENT
    assert await read_to_end(one) == CONTENT
    assert unused.starts == []
    await asyncio.gather(one.over.wait(), two.over.wait())
    assert (len(filler.landed), len(follower.landed)) == (1, 0)


@pytest.mark.parametrize(("new", "pause"), [(3600.0, 0.001), (0.0, 0.005)])
async def test_a_follower_looks_most_often_for_the_first_bytes(
    make: Callable[[], Hangar], monkeypatch: pytest.MonkeyPatch, new: float, pause: float
) -> None:
    """Until bytes of a file that another process fills are here, the pauses are shortest while the download is new."""
    monkeypatch.setattr("mirror.fills.flights._NEW", new)
    filler, follower = make(), make()
    upstream = GatedUpstream(gate_at=0)
    pauses: list[float] = []

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    follower.flights._filler.sleep = noted
    await filler.join(upstream)
    flight = await follower.join(GatedUpstream())
    await reached(lambda: len(pauses) > 3)
    assert set(pauses) == {pause}
    upstream.gate.set()
    assert await read_to_end(flight) == CONTENT


async def test_a_follower_takes_over(make: Callable[[], Hangar]) -> None:
    """When the filling process goes, another resumes at the same byte, and its clients see no seam (rows 53, 58)."""
    filler, follower = make(), make()
    dying, upstream = GatedUpstream(), GatedUpstream(is_open=True)
    one = await filler.join(dying)
    two = await follower.join(upstream)
    await reached(lambda: two.sendable == HALF)
    await filler.flights.aclose()
    assert await read_to_end(two) == CONTENT
    assert upstream.starts == [HALF]
    assert dying.aborted == 1
    with pytest.raises(StoreError):
        await read_to_end(one)


async def test_closing_gives_every_thread_and_file_back(make: Callable[[], Hangar], store: BlobStore) -> None:
    """A flight that is cancelled anywhere leaves its partial, and no task, thread or lock behind (row 63)."""
    for gate_at in (0, HALF, SIZE):
        hangar = make()
        upstream = GatedUpstream(gate_at=gate_at)
        joining = asyncio.create_task(hangar.join(upstream))
        await reached(lambda upstream=upstream: bool(upstream.starts))  # type: ignore[misc]  # bound to the loop's own
        await hangar.flights.aclose()
        await asyncio.gather(joining, return_exceptions=True)
        assert not hangar.flights.active()
        ingest = store.ingest(DIGEST, "test")
        assert ingest.try_lock()
        ingest.abort(keep=False)
        ingest.close()
        assert hangar.room.open == 0


async def test_a_filler_that_hangs_is_given_up(
    make: Callable[..., Hangar], store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that holds the lock and does nothing, as under SIGSTOP, makes others go on without the store."""
    monkeypatch.setattr("mirror.fills.flights._STUCK", 0.0)
    stopped = store.ingest(DIGEST, "test")
    assert stopped.try_lock()
    with pytest.raises(StoreError, match="makes no progress"):
        await make(patience=0.0).join(GatedUpstream())
    stopped.close()


async def test_closing_publishes_whole_blobs(make: Callable[[], Hangar], store: BlobStore) -> None:
    """A blob that clients have had whole is published and remembered, even if the mirror stops in that moment."""
    hangar = make()
    flight = await hangar.join(GatedUpstream(is_open=True))
    while not flight.landed:
        await flight.wait_past(flight.sendable)
    await hangar.flights.aclose()
    assert hangar.landed == [BlobInfo(DIGEST, SIZE)]
    assert store.read(DIGEST, SIZE) == CONTENT


async def test_the_grant_comes_before_followers_learn_the_size(make: Callable[[], Hangar]) -> None:
    """Other processes take the announced size as the sign that upstream has answered: the grant must be there first."""
    filler, follower = make(), make()
    order: list[str] = []
    release = asyncio.Event()

    async def answered(_size: int | None) -> None:
        order.append("asked")
        await release.wait()
        order.append("answered")

    upstream = GatedUpstream(is_open=True)
    one = asyncio.create_task(filler.flights.join(DIGEST, upstream.pull, upstream="test", on_answer=answered))
    await reached(lambda: bool(order))
    two: asyncio.Task[Flight] = asyncio.create_task(follower.join(GatedUpstream()))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not two.done()
    release.set()
    flight = await two
    assert order == ["asked", "answered"]
    assert await read_to_end(flight) == CONTENT
    await one


async def test_a_full_disk_in_the_middle_makes_room_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC in mid-write evicts and resumes; followers see no seam (row 34)."""
    store = MemoryStore(disk=HALF)
    with ThreadPoolExecutor(4) as executor:
        hangar = Hangar(store, executor)
        make_room = hangar.room.make_room

        async def grow(size: int) -> None:
            await make_room(size)
            store.disk = 1 << 30

        monkeypatch.setattr(hangar.room, "make_room", grow)
        upstream = GatedUpstream(is_open=True)
        assert await read_to_end(await hangar.join(upstream)) == CONTENT
        assert len(hangar.room.made) == 1
        assert len(upstream.starts) == 2
        assert 0 < upstream.starts[1] <= HALF


async def test_a_disk_that_stays_full_is_not_emptied_for_it() -> None:
    """Where eviction does not help, the followers are told after a few tries, and go on without the store (row 34)."""
    with ThreadPoolExecutor(4) as executor:
        hangar = Hangar(MemoryStore(disk=HALF), executor)
        with pytest.raises(StoreFull):
            await read_to_end(await hangar.join(GatedUpstream(is_open=True)))
        assert len(hangar.room.made) == 2


# ------------------------------------------------------------------- one blob, several registries (row 135)


@pytest.fixture(params=[1, 2], ids=["one process", "two processes"])
def processes(request: pytest.FixtureRequest, make: Callable[[], Hangar]) -> tuple[Hangar, Hangar]:
    """Where the bad registry's clients are, and where the good one's are."""
    first = make()
    return first, first if request.param == 1 else make()


async def test_135_a_slow_registry_delays_only_its_own_clients(processes: tuple[Hangar, Hangar]) -> None:
    """The good registry's clients have their blob while the bad one's waits, and then the bad one's have it, too."""
    slow, fast = processes
    dripping, good = GatedUpstream(gate_at=1200), GatedUpstream(is_open=True)
    held_up = await slow.join(dripping, registry="bad.example.com")
    flight = await fast.join(good, registry="test")
    assert await read_to_end(flight) == CONTENT
    assert good.starts == [0]
    assert await read_to_end(held_up) == CONTENT
    assert not dripping.gate.is_set()
    await held_up.over.wait()
    assert dripping.aborted == 1


async def test_135_a_registry_that_does_not_answer_is_not_waited_for(processes: tuple[Hangar, Hangar]) -> None:
    """Its clients, too, have the blob once another registry has sent it and it is verified."""
    slow, fast = processes
    silent = SilentUpstream()
    waiting = asyncio.create_task(slow.join(silent, registry="bad.example.com"))
    await silent.asked.wait()
    assert await read_to_end(await fast.join(GatedUpstream(is_open=True))) == CONTENT
    assert await read_to_end(await waiting) == CONTENT


async def test_135_a_partial_belongs_to_its_registry(processes: tuple[Hangar, Hangar], store: BlobStore) -> None:
    """Rubbish that one registry has left is no beginning of what another one sends."""
    bad, good = processes
    rubbish = GatedUpstream(bytes(SIZE), is_open=True)
    rubbish.troubles = [UpstreamThrottled("not now", upstream="bad.example.com", retry_after=600)]
    with pytest.raises(UpstreamThrottled):
        await read_to_end(await bad.join(rubbish, registry="bad.example.com"))
    await reached(lambda: not bad.flights.active())
    assert store.growing() == {DIGEST: HALF}
    upstream = GatedUpstream(is_open=True)
    assert await read_to_end(await good.join(upstream)) == CONTENT
    assert upstream.starts == [0]


async def test_135_wrong_bytes_reach_no_client_of_another_registry(
    processes: tuple[Hangar, Hangar], store: BlobStore
) -> None:
    """Clients of the one that lies have a broken answer, at the latest once the right bytes are there."""
    bad, good = processes
    lying, upstream = GatedUpstream(bytes(SIZE)), GatedUpstream()
    lied_to = await bad.join(lying, registry="bad.example.com")
    flight = await good.join(upstream)
    await reached(lambda: lied_to.sendable == flight.sendable == HALF)
    upstream.gate.set()
    assert await read_to_end(flight) == CONTENT
    with pytest.raises(DigestMismatch):
        await read_to_end(lied_to)
    await lied_to.over.wait()
    assert store.read(DIGEST, SIZE) == CONTENT
    assert store.growing() == {}


async def test_135_a_size_is_the_word_of_its_registry_alone(processes: tuple[Hangar, Hangar]) -> None:
    """A wrong one breaks the answers that were begun with it, and no others."""
    bad, good = processes
    lying = GatedUpstream()
    lying.says = SIZE + 1000
    lied_to = await bad.join(lying, registry="bad.example.com")
    assert lied_to.size == SIZE + 1000
    flight = await good.join(GatedUpstream(is_open=True))
    assert flight.size == SIZE
    assert await read_to_end(flight) == CONTENT
    with pytest.raises(UpstreamInvalid, match="but upstream says"):
        await read_to_end(lied_to)


async def test_135_other_processes_follow_a_copy_from_the_store(make: Callable[[], Hangar]) -> None:
    """Followers of a bad registry's flight, in a process that does not carry it out, have the whole blob as well."""
    filling, following, good = make(), make(), make()
    dripping = GatedUpstream(gate_at=1200)
    filled_here = await filling.join(dripping, registry="bad.example.com")
    watched = await following.join(GatedUpstream(), registry="bad.example.com")
    await reached(lambda: watched.received == 1200)
    assert await read_to_end(await good.join(GatedUpstream(is_open=True))) == CONTENT
    assert await read_to_end(watched) == CONTENT
    assert await read_to_end(filled_here) == CONTENT
    assert [each.filled_here for each in (filled_here, watched)] == [True, False]


async def test_135_a_blob_that_is_dropped_again_is_received_to_its_end(
    hangar: Hangar, store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blob that cannot be opened is no reason to leave an upstream that gives it."""
    monkeypatch.setattr("mirror.fills.filler._LOOK_FOR_PUBLISHED", 0.0)
    looked = threading.Event()

    def refuse(_store: BlobStore, _digest: Digest) -> tuple[BlobInfo, BlobReader]:
        looked.set()
        raise StoreError("no descriptors are left")

    upstream = GatedUpstream()
    flight = await hangar.join(upstream)
    store.put(DIGEST, CONTENT)
    monkeypatch.setattr(type(store), "open", refuse)
    await reached(looked.is_set)
    upstream.gate.set()
    assert await read_to_end(flight) == CONTENT
    await flight.over.wait()
    assert upstream.aborted == 0


class SilentUpstream(GatedUpstream):
    """Takes the request and does not answer."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    @asynccontextmanager
    async def pull(self, start: int, stop: int | None = None) -> AsyncIterator[Body]:
        """As `Pull`."""
        self.asked.set()
        await asyncio.Event().wait()
        yield GatedBody(self, start)


def cut(store: BlobStore) -> None:
    """Half of the blob's bytes are gone, as after a bad restore of the disk."""
    store.put(DIGEST, CONTENT)
    if isinstance(store, MemoryStore):
        store.damage(DIGEST, CONTENT[:HALF])
    else:
        assert isinstance(store, LocalStore)
        os.chmod(store.layout.blob(DIGEST), 0o600)
        os.truncate(store.layout.blob(DIGEST), HALF)


@pytest.mark.parametrize("size", [SIZE, None])
async def test_39_a_cut_file_that_appears_while_a_flight_begins(
    hangar: Hangar, store: BlobStore, size: int | None
) -> None:
    """The blob was not here when the client asked, and a file of its name is when the flight begins: it is believed
    only if it is right. A cut one is set aside, and its followers get the whole blob.
    """
    cut(store)
    upstream = GatedUpstream(is_open=True)
    flight = await hangar.join(upstream, size=size)
    assert await read_to_end(flight) == CONTENT
    await flight.over.wait()
    assert upstream.starts == [0]
    assert [one.size for one in store.quarantined()] == [HALF]
    # what is right is believed, whatever somebody's manifest says of its size
    for said in (SIZE, None, 5):
        flight = await hangar.join(upstream, size=said)
        assert await read_to_end(flight) == CONTENT
        await flight.over.wait()
    assert upstream.starts == [0]


async def test_39_a_cut_file_that_appears_while_upstream_is_silent(hangar: Hangar, store: BlobStore) -> None:
    """It is not taken for a blob that another registry's flight has published."""
    silent = SilentUpstream()
    waiting = asyncio.create_task(hangar.join(silent))
    await silent.asked.wait()
    cut(store)
    await reached(lambda: bool(store.quarantined()))
    store.put(DIGEST, CONTENT)
    assert await read_to_end(await waiting) == CONTENT


@pytest.mark.parametrize("right", [True, False])
async def test_41_a_filler_that_died_before_its_commit(hangar: Hangar, store: BlobStore, right: bool) -> None:
    """Row 41: all bytes are here, and nobody has verified them. Right ones are taken as they are; wrong ones cost the
    next client nothing but the download.
    """
    filling = store.ingest(DIGEST, "test")
    assert filling.try_lock()
    filling.resume()
    filling.expect(SIZE)
    content = CONTENT if right else bytes(SIZE)
    filling.fill(GatedBody(GatedUpstream(content, is_open=True), 0), lambda: None)
    filling.close()
    upstream = GatedUpstream(is_open=True)
    flight = await hangar.join(upstream, size=SIZE)
    assert await read_to_end(flight) == CONTENT
    await flight.over.wait()
    assert upstream.starts == ([] if right else [0])
    assert store.read(DIGEST, SIZE) == CONTENT
