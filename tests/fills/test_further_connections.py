"""Large blobs over several connections: each byte comes once, and whatever happens to a further connection, the blob
comes as it would without it.
"""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from structlog.testing import capture_logs

from mirror import telemetry
from mirror.aio.memo import Memo
from mirror.errors import DigestMismatch, StoreError, StoreFull, UpstreamError, UpstreamThrottled
from mirror.fills.filler import Filler
from mirror.fills.flight import Flight
from mirror.fills.flights import Flights
from mirror.fills.further_connections import ConnectionMemory, FurtherConnections, _Connection
from mirror.fills.out_of_turn import OutOfTurn
from mirror.fills.sources import BlobSources, FromUpstream
from mirror.oci.digest import Digest
from mirror.oci.span import Span
from mirror.policy.fills.fill_ahead import RampUp
from mirror.ports import BlobInfo, Ingest, Spans
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from mirror.store.local.span_file import SpanClaim
from mirror.upstream.registry import RegistryUpstream
from tests.support.cancelling import Baseline, cancelled_everywhere
from tests.support.clock import Clock
from tests.support.fake_registry import (
    FakeRegistry,
    Fault,
    cut,
    ignore_range,
    refuse_ranges,
    reset,
    silence,
    stall,
    status,
    throttle,
    wrong_bytes,
)
from tests.support.following import read_to_end
from tests.support.hangar import EndlessRoom, reached
from tests.support.ranged_upstream import RangedBody
from tests.support.registry_upstream import registry_upstream
from tests.support.scripted import Answering, Request, Script, Stall, reply

_MIB = 1 << 20
_SIZE = 24 * _MIB + 4321
_LAYER = random.Random(59).randbytes(_SIZE)
_DIGEST = Digest.of(_LAYER)
_NAME = "team/app"
#: Seconds of a pause, from which on it is one that upstream asked for.
_ASKED_FOR = 5.0


class Site:
    """Flights of one process, by a clock that stands still, from a registry for which three connections were best."""

    def __init__(
        self,
        registry: FakeRegistry,
        upstream: RegistryUpstream,
        store: LocalStore,
        executor: ThreadPoolExecutor,
        clock: Clock,
    ) -> None:
        self.registry = registry
        self.upstream = upstream
        self.store = store
        self.room = EndlessRoom()
        self.clock = clock
        #: True while the filler waits because upstream has asked it to.
        self.is_left_alone = False
        #: The body of the filler's first request waits here.
        self.gate = Stall()
        self._gates: list[Stall] = [self.gate]

        async def note(info: BlobInfo, flight: Flight) -> None: ...

        async def nap(seconds: float) -> None:
            # a wait that upstream asked for ends by the clock: a fill may not use up its tries before a test goes on
            await asyncio.sleep(0.001)
            if seconds >= _ASKED_FOR:
                until, self.is_left_alone = clock.time + seconds, True
                await reached(lambda: clock.time >= until)
                self.is_left_alone = False

        self.filler = Filler(
            store, self.room, executor, published=note, sleep=nap, clock=self.clock, jitter=lambda: 0.0
        )
        self.flights = Flights(self.filler)
        self.filler.connections.note_best("test", 3)

    def hold(self) -> Stall:
        """Another gate, open at the end at the latest."""
        self._gates.append(Stall())
        return self._gates[-1]

    def let_go(self) -> None:
        """Open all gates."""
        for gate in self._gates:
            gate.release()

    async def join(self) -> Flight:
        """The flight, whose filler stands at the gate."""
        self.registry.fail("blobs", stall(self.gate, after=_MIB))
        return await self.begin()

    async def join_two_ahead(self) -> Flight:
        """The flight, whose filler and two further connections stand at gates, these after two MiB each."""
        gates = [self.hold(), self.hold()]
        self.registry.fail("blobs", stall(self.gate, after=_MIB))
        for gate in gates:
            self.registry.fail("blobs", stall(gate, 2 * _MIB))
        flight = await self.begin()
        await reached(lambda: all(gate.reached.is_set() for gate in gates))
        return flight

    async def begin(self) -> Flight:
        parts = self.upstream.parts(_NAME, _DIGEST)
        sources = BlobSources(FromUpstream(parts.pull, parts))
        return await self.flights.join(_DIGEST, sources, upstream="test", size=_SIZE)

    def connections(self, spans: Spans) -> FurtherConnections:
        """Further connections of no flight, which put their bytes into these spans."""

        async def open_spans(size: int) -> Spans:
            return spans

        return FurtherConnections(
            self.upstream.parts(_NAME, _DIGEST),
            "test",
            _DIGEST,
            self.filler.connections,
            self.filler.executor,
            label="test",
            spans=open_spans,
            sleep=asyncio.sleep,
            clock=self.clock,
        )

    async def finish(self, flight: Flight, *, leaves: bool = False) -> None:
        """To the last byte, published. `leaves`: files beside the blob may be left, which are swept later."""
        try:
            assert await read_to_end(flight) == _LAYER
        finally:
            flight.leave()
        await flight.over.wait()
        assert self.store.read(_DIGEST, _SIZE) == _LAYER
        assert leaves or not list(self.store.layout.ingests.iterdir())

    def asked(self) -> list[str]:
        """The ranges that were asked for."""
        return [request.header("Range") or "" for request in self.registry.of_kind("blobs")]


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as made:
        made.add_blob(_NAME, _LAYER)
        yield made


@pytest.fixture
async def site(registry: FakeRegistry, tmp_path: Path) -> AsyncIterator[Site]:
    with ThreadPoolExecutor(16) as executor:
        memo, clock = Memo(), Clock()
        upstream = registry_upstream(
            "test", registry.url, executor=executor, memo=memo, clock=clock, connections_per_blob=3
        )
        made = Site(registry, upstream, LocalStore(Layout(tmp_path)), executor, clock)
        yield made
        made.let_go()
        await made.flights.aclose()
        await upstream.aclose()
        await memo.aclose()


def _received() -> int:
    return int(sum(count for _, count in telemetry.counted("mirror_upstream_bytes")))


def _given_back(reason: str) -> int:
    found = telemetry.counted("mirror_connections_given_back")
    return int(sum(count for labels, count in found if labels["reason"] == reason))


async def test_each_byte_once(site: Site) -> None:
    """Three connections at once, of which two bring bytes from ahead, while the filler's own waits."""
    before = _received()
    flight = await site.join()
    await reached(lambda: site.registry.count("blobs") >= 4)
    site.gate.release()
    await site.finish(flight)
    assert _received() - before == _SIZE
    ranges = sorted(
        (int(text[6:].partition("-")[0]), int(text.partition("-")[2] or _SIZE - 1)) for text in site.asked()
    )
    assert [first for first, _ in ranges] == [0, *(last + 1 for _, last in ranges[:-1])]
    assert ranges[-1][1] == _SIZE - 1
    assert len(ranges) < 20


async def test_bytes_that_the_filler_copies_meanwhile_are_no_gap(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """They leave the spans for the prefix between two looks: no further connection fetches them again."""
    copied = Span(0, 20 * _MIB)
    spans = site.store.spans(_DIGEST, "test", _SIZE)
    assert spans is not None
    claim = spans.claim(copied)
    assert claim is not None
    claim.fill(RangedBody(_LAYER, copied, lambda count: None), lambda offset: None)
    claim.release()
    prefix = SimpleNamespace(offset=0)
    look = spans.taken

    def copied_meanwhile(wanted: Span) -> Sequence[Span]:
        prefix.offset = copied.stop
        spans.punch(copied)
        return look(wanted)

    monkeypatch.setattr(spans, "taken", copied_meanwhile)
    connections = site.connections(spans)
    connections._ingest = cast(Ingest, prefix)
    assert await connections._claim(_SIZE) is None
    rest = await connections._claim(_SIZE)
    if rest is not None:
        assert rest.span.start >= copied.stop
        rest.release()
    spans.close()
    await connections.aclose()


def _turns(site: Site) -> OutOfTurn:
    sources = BlobSources(FromUpstream(site.upstream.parts(_NAME, _DIGEST).pull))
    flight = Flight(_DIGEST, "test", _SIZE, None, sources, site.store)
    return OutOfTurn(
        flight,
        site.filler.executor,
        label="test",
        memory=site.filler.connections,
        sleep=asyncio.sleep,
        clock=site.clock,
    )


async def test_spans_that_were_dropped_stay_open_for_who_copies(site: Site) -> None:
    """A further connection opens others meanwhile, which must not be taken for them: descriptors are used again."""
    turns = _turns(site)
    copied = await turns.spans(_SIZE)
    assert copied is not None
    copied.drop()
    others = await turns.spans(_SIZE)
    assert others is not None
    assert others is not copied
    assert "closed" not in repr(copied)
    turns.close()


async def test_spans_are_opened_beside_the_loop(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that hangs may have their lock. Two that ask at once get the same; one that was cancelled leaves none
    open.
    """
    loop, opened, let_go = threading.get_ident(), [], threading.Event()
    really = site.store.spans

    def open_slowly(digest: Digest, registry: str, size: int | None) -> Spans | None:
        assert threading.get_ident() != loop
        let_go.wait()
        opened.append(really(digest, registry, size))
        return opened[-1]

    monkeypatch.setattr(site.store, "spans", open_slowly)
    turns = _turns(site)
    cancelled = asyncio.ensure_future(turns.spans(_SIZE))
    asking = [asyncio.ensure_future(turns.spans(_SIZE)) for _ in range(2)]
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.sleep(0)
    let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    unwanted, used = opened[0], [await each for each in asking]
    assert len(opened) == 2
    assert used == [opened[1], opened[1]]
    assert "closed" in repr(unwanted)
    turns.close()


async def test_a_trial_begins_with_the_first_byte_of_a_new_connection(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are there go on to their next parts meanwhile: that says nothing of the one that is tried."""
    trials = []
    monkeypatch.setattr(RampUp, "is_sending", lambda ramp, now, received: trials.append(received))
    spans = site.store.spans(_DIGEST, "test", _SIZE)
    assert spans is not None
    connections = site.connections(spans)
    first, second = spans.claim(Span(_MIB, 2 * _MIB)), spans.claim(Span(4 * _MIB, 5 * _MIB))
    assert first is not None
    assert second is not None
    connection = _Connection(first)
    assert await connections._receive(connection, _SIZE)
    connection.takes(second)
    assert await connections._receive(connection, _SIZE)
    await asyncio.sleep(0)
    assert spans.count() == 2 * _MIB
    assert len(trials) == 1
    spans.close()


async def test_a_connection_that_is_given_back_before_it_begins_leaves_no_claim(site: Site) -> None:
    """Nobody else would fetch these bytes, and whoever needs them would wait for nothing."""
    spans = site.store.spans(_DIGEST, "test", _SIZE)
    assert spans is not None
    connections = site.connections(spans)
    connections._ramp.wanted = 3
    connections._ingest = cast(Ingest, SimpleNamespace(offset=0))
    # what nobody holds any more is not to be found by chance
    gc.disable()
    try:
        assert await connections._begin(_SIZE)
        assert spans.taken(Span(0, _SIZE))
        await connections.aclose()
        assert not spans.taken(Span(0, _SIZE))
    finally:
        gc.enable()
    spans.close()


async def test_a_connection_is_not_late_with_a_part_for_the_one_before(site: Site) -> None:
    """How long the filler has waited for it counts anew with each part."""
    spans = site.store.spans(_DIGEST, "test", _SIZE)
    assert spans is not None
    connections = site.connections(spans)
    connections._own_rate = _MIB
    first, second = spans.claim(Span(_MIB, 2 * _MIB)), spans.claim(Span(4 * _MIB, 5 * _MIB))
    assert first is not None
    assert second is not None
    connection = _Connection(first)
    connections._running.add(connection)
    connection.received = _MIB // 2
    connections.hurry(_MIB)
    site.clock.time += 0.9
    connection.takes(second)
    connection.received = 1
    connections.hurry(4 * _MIB)
    site.clock.time += 0.2
    connections.hurry(4 * _MIB)
    assert not connection.is_cut
    site.clock.time += 0.9
    connections.hurry(4 * _MIB)
    assert connection.is_cut
    for claim in (first, second):
        claim.release()
    spans.close()


async def test_one_connection_is_one_request(site: Site) -> None:
    """If that was best, nothing else is asked for."""
    site.filler.connections.note_best("test", 1)
    flight = await site.begin()
    await site.finish(flight)
    assert site.asked() == [""]


def _another_part(request: Request, answer: Answering) -> Script:
    return reply(206, b"x" * 100, {"Content-Range": f"bytes 0-99/{_SIZE}"})


def _another_size(request: Request, answer: Answering) -> Script:
    first = request.start
    return reply(206, b"x" * 100, {"Content-Range": f"bytes {first}-{first + 99}/{_SIZE + 1}"})


def _less(request: Request, answer: Answering) -> Script:
    first = request.start
    last = first + (int((request.header("Range") or "").partition("-")[2]) - first) // 2
    return reply(206, _LAYER[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{_SIZE}"})


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (cut(_MIB + 5), "failed"),
        (reset(_MIB + 5), "failed"),
        (ignore_range, "no parts"),
        (_another_part, "no parts"),
        (_another_size, "no parts"),
        (status(416), "no parts"),
        (throttle(), "throttled"),
        (status(503), "failed"),
        (status(503, {"Retry-After": "9"}), "throttled"),
        (status(401), "failed"),
        (status(404), "failed"),
    ],
)
async def test_further_connections_that_fail(site: Site, fault: Fault, reason: str) -> None:
    """Faults rows 1, 3, 8, 10, 12, 22: they are given back, and what they have brought stays."""
    before, ended = _received(), _given_back(reason)
    # the first request is the filler's own
    site.registry.fail("blobs", stall(site.gate, after=_MIB))
    site.registry.fail("blobs", fault, times=2)
    flight = await site.begin()
    await reached(lambda: _given_back(reason) - ended == 2)
    site.gate.release()
    await site.finish(flight)
    # a cut connection may have had bytes of a block that was not whole
    assert _SIZE <= _received() - before <= _SIZE + 2 * (64 << 10)
    assert site.upstream.health()[0].state == "ok"
    assert site.filler.connections.best("test") == (1 if reason in ("throttled", "no parts") else 3)


async def test_parts_that_are_shorter_than_asked(site: Site) -> None:
    """Faults row 22: a server may send less; the rest is asked for anew."""
    before = _received()
    site.registry.fail("blobs", stall(site.gate, after=_MIB))
    site.registry.fail("blobs", _less, times=4)
    flight = await site.begin()
    await reached(lambda: site.registry.count("blobs") >= 7)
    site.gate.release()
    await site.finish(flight)
    # blocks that were not whole come again
    assert _SIZE <= _received() - before <= _SIZE + 4 * (64 << 10)


@pytest.mark.parametrize("after", [None, 0, 3 * _MIB])
async def test_further_connections_that_stand_still(site: Site, after: int | None) -> None:
    """Faults rows 6 and 7: the filler waits a moment for them, then fetches their bytes itself."""
    before, ended = _received(), _given_back("slow")
    gates = [site.hold(), site.hold()]
    site.registry.fail("blobs", stall(site.gate, after=_MIB))
    for gate in gates:
        site.registry.fail("blobs", silence(gate) if after is None else stall(gate, after))
    flight = await site.begin()
    await reached(lambda: all(gate.reached.is_set() for gate in gates))
    site.gate.release()
    reading = asyncio.create_task(site.finish(flight))
    while not reading.done():
        site.clock.time += 0.3
        await asyncio.sleep(0.01)
    await reading
    assert _given_back("slow") - ended == 2
    assert _received() - before <= _SIZE + 2 * (3 * _MIB)


async def test_an_upstream_that_serves_no_parts(site: Site) -> None:
    """Faults row 22: the filler takes the whole as it comes, and nobody else asks; the next blob is asked for whole."""
    before = _received()
    site.registry.fail("blobs", ignore_range)
    flight = await site.begin()
    await site.finish(flight)
    assert site.registry.count("blobs") == 1
    assert _received() - before == _SIZE
    assert not _sends_parts(site)
    site.store.delete(_DIGEST)
    flight = await site.begin()
    await site.finish(flight)
    assert site.asked()[1:] == [""]


async def test_the_whole_comes_while_others_bring_parts(site: Site) -> None:
    """Row 22: an upstream that ignores the range of a later request sends their bytes to the filler as well."""
    before, ended = _received(), _given_back("no gain")
    flight = await site.join_two_ahead()
    site.registry.fail("blobs", ignore_range)
    site.gate.release()
    await reached(lambda: _given_back("no gain") - ended == 2)
    site.let_go()
    await site.finish(flight)
    assert site.registry.count("blobs") == 4
    # what they had brought by then comes twice
    assert _received() - before <= _SIZE + 2 * 2 * _MIB


async def test_the_filler_is_throttled(site: Site) -> None:
    """Faults row 10: then the others are not wanted either."""
    site.registry.fail("blobs", cut(_MIB))
    site.registry.fail("blobs", throttle(), times=30)
    flight = await site.begin()
    # a further connection may be throttled before the filler's own is
    await reached(lambda: site.filler.connections.best("test") == 1 and site.is_left_alone)
    site.registry.heal()
    # longer than it asked to be left alone, shorter than the filler's patience
    site.clock.time += 8
    await site.finish(flight)


async def test_wrong_bytes_of_a_further_connection(site: Site) -> None:
    """Faults row 4: the clients' connections break before the last bytes, and nothing of it is used again."""
    site.registry.fail("blobs", stall(site.gate, after=_MIB))
    site.registry.fail("blobs", wrong_bytes, times=2)
    flight = await site.begin()
    await reached(lambda: site.registry.count("blobs") >= 3)
    site.gate.release()
    with pytest.raises(DigestMismatch):
        await read_to_end(flight)
    flight.leave()
    await flight.over.wait()
    again = flight.successor or await site.begin()
    if flight.successor is not None:
        again.follow()
    await site.finish(again)


async def test_no_turn_is_free(site: Site, registry: FakeRegistry, tmp_path: Path) -> None:
    """Every connection counts as a download: if others have all turns, the blob comes over one."""
    site.upstream._blobs = asyncio.Semaphore(1)
    flight = await site.join()
    await reached(site.gate.reached.is_set)
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert registry.count("blobs") == 1
    site.gate.release()
    await site.finish(flight)
    assert not site.upstream._blobs.locked()


async def test_room_is_given_back_though_connections_end_slowly(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blob was published meanwhile: whoever ends the fill cancels it again while it waits for the connections."""
    end = FurtherConnections.aclose

    async def cancelled_again(connections: FurtherConnections) -> None:
        await end(connections)
        raise asyncio.CancelledError

    monkeypatch.setattr(FurtherConnections, "aclose", cancelled_again)
    flight = await site.join()
    site.store.put(_DIGEST, _LAYER)
    await site.finish(flight)
    assert site.room.open == 0


async def test_a_mistake_in_measuring_is_logged_and_ends_no_fill(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without further connections the blob comes over one."""

    def sample(*measured: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(RampUp, "sample", sample)
    with capture_logs() as lines:
        await site.finish(await site.begin())
    assert [line["event"] for line in lines if line["log_level"] == "error"] == ["connections for a blob crashed"]


@pytest.mark.parametrize("kind", [StoreFull, StoreError])
async def test_34_a_disk_that_takes_nothing_out_of_turn(
    site: Site, monkeypatch: pytest.MonkeyPatch, kind: type[StoreError]
) -> None:
    """Faults row 34: the filler goes on alone."""

    def fill(claim: SpanClaim, body: object, grown: Callable[[int], None]) -> None:
        raise kind("the disk takes nothing")

    monkeypatch.setattr(SpanClaim, "fill", fill)
    ended = _given_back("store")
    flight = await site.join()
    await reached(lambda: _given_back("store") > ended)
    site.gate.release()
    await site.finish(flight)


async def test_65_a_mirror_that_stops(site: Site) -> None:
    """Row 65: no task, claim or descriptor is left, the partial is kept, and what came out of turn is not lost."""
    await site.finish(await site.begin())
    site.store.delete(_DIGEST)
    before = _received()
    baseline = Baseline()
    flight = await site.join_two_ahead()
    await site.flights.aclose()
    flight.leave()
    site.let_go()
    await baseline.reached()
    again = await site.begin()
    await site.finish(again)
    # up to what the kernel had, and the blocks that were not whole
    assert _received() - before <= _SIZE + 3 * (64 << 10)


@pytest.mark.parametrize("inside", ["Flights._run", "FurtherConnections._look_after", "FurtherConnections._run"])
async def test_63_cancelled_at_every_await(site: Site, inside: str) -> None:
    """Row 63: whatever is cancelled, nothing of it is left, and the next pull has every byte."""
    # so that all connections are there that may stay open
    await site.finish(await site.begin())
    site.store.delete(_DIGEST)
    baseline = Baseline()

    async def scenario() -> None:
        site.filler.connections.note_best("test", 3)
        flight = None
        try:
            flight = await site.begin()
            assert await read_to_end(flight) == _LAYER
        except (StoreError, asyncio.CancelledError):
            pass
        finally:
            if flight is not None:
                flight.leave()
        await reached(lambda: not site.flights.active())
        await site.finish(await site.begin(), leaves=True)
        assert site.room.open == 0
        site.store.delete(_DIGEST)
        await baseline.reached()

    assert await cancelled_everywhere(inside, scenario) > 1


async def test_41_a_partial_with_bytes_ahead_is_taken_over(site: Site, tmp_path: Path) -> None:
    """Rows 41 and 58: another process goes on with the prefix and with what came out of turn."""
    before = _received()
    flight = await site.join_two_ahead()
    spans = site.store.spans(_DIGEST, "test", None)
    assert spans is not None
    await reached(lambda: spans.count() > 3 * _MIB)
    await site.flights.aclose()
    flight.leave()
    assert spans.count() > 3 * _MIB
    spans.close()
    with ThreadPoolExecutor(16) as executor:
        other = Site(site.registry, site.upstream, LocalStore(Layout(tmp_path)), executor, site.clock)
        await other.finish(await other.begin())
        await other.flights.aclose()
    assert _received() - before <= _SIZE + 3 * (64 << 10)


def _sends_parts(site: Site) -> bool:
    """Whether the memory would believe that several connections are best: not of an upstream that sends the whole."""
    memory = site.filler.connections
    before = memory.best("test")
    memory.note_best("test", 3)
    found = memory.best("test") == 3
    memory.note_best("test", before or 1)
    return found


def _forget(site: Site) -> None:
    """As after a start: nothing is known of the upstream."""
    site.filler.connections = ConnectionMemory(site.clock)


_REFUSALS = [(429, {"Retry-After": "120"}), (503, {"Retry-After": "9"}), (503, {}), (403, {}), (416, {}), (400, {})]


def _takes_parts(site: Site, code: int, headers: dict[str, str]) -> bool:
    """Whether the next blob is asked for over one connection, and, as it should be, the upstream counts as one that
    sends parts only if it has asked for fewer requests.
    """
    assert site.filler.connections.best("test") == 1
    return _sends_parts(site) == (code == 429 or "Retry-After" in headers)


@pytest.mark.parametrize(("code", "headers"), _REFUSALS)
async def test_a_refused_first_part(site: Site, code: int, headers: dict[str, str]) -> None:
    """A blob of which no part may be asked for comes as it would over one connection; the next one is asked for
    whole.
    """
    _forget(site)
    before = _received()
    site.registry.fail("blobs", refuse_ranges(code, headers), times=100)
    await site.finish(await site.begin())
    first, second = site.asked()
    assert first.startswith("bytes=0-")
    assert second == ""
    assert _received() - before == _SIZE
    assert site.upstream.health()[0].state == "ok"
    assert _takes_parts(site, code, headers)
    site.store.delete(_DIGEST)
    await site.finish(await site.begin())
    assert site.asked()[2:] == [""]


@pytest.mark.parametrize(("code", "headers"), _REFUSALS)
async def test_a_refused_later_part(site: Site, code: int, headers: dict[str, str]) -> None:
    """Clients have bytes of the first part when the second is refused: the blob goes on, and they notice nothing."""
    _forget(site)
    site.registry.fail("blobs", refuse_ranges(code, headers, but=1), times=100)
    await site.finish(await site.begin())
    first, second, *more = site.asked()
    assert first.startswith("bytes=0-")
    assert not second.startswith("bytes=0-")
    # once more, unless the status says that it was the range
    assert more == ([""] if code == 416 else ["", second])
    assert site.upstream.health()[0].state == "ok"
    assert _takes_parts(site, code, headers)


@pytest.mark.parametrize(("code", "headers"), _REFUSALS)
async def test_a_partial_that_cannot_be_resumed(site: Site, tmp_path: Path, code: int, headers: dict[str, str]) -> None:
    """It is not asked for in vain for ever: the next pull has every byte, and the next blob is asked for whole."""
    _forget(site)
    flight = await site.join()
    await reached(lambda: flight.received >= _MIB)
    await site.flights.aclose()
    flight.leave()
    site.let_go()
    site.registry.forget()
    site.registry.fail("blobs", refuse_ranges(code, headers), times=100)
    with ThreadPoolExecutor(16) as executor:
        other = Site(site.registry, site.upstream, LocalStore(Layout(tmp_path)), executor, site.clock)
        _forget(other)
        await other.finish(await other.begin())
        await other.flights.aclose()
    first, *more = site.asked()
    assert not first.startswith("bytes=0-")
    assert more == ([""] if code == 416 else ["", first])
    assert site.upstream.health()[0].state == "ok"
    assert _takes_parts(other, code, headers)


@pytest.mark.parametrize(("code", "headers"), [(429, {"Retry-After": "120"}), (503, {}), (403, {})])
async def test_a_part_that_is_refused_once(site: Site, code: int, headers: dict[str, str]) -> None:
    """An upstream that refuses for a moment goes on with parts: what is here does not come again."""
    _forget(site)
    before = _received()
    site.registry.fail("blobs", lambda request, answer: answer(request))
    site.registry.fail("blobs", status(code, headers))
    await site.finish(await site.begin())
    first, second, third, fourth, *_ = site.asked()
    assert (third, fourth) == ("", second)
    assert first != second
    assert _received() - before == _SIZE
    assert _sends_parts(site)


async def test_an_upstream_that_throttles_everything(site: Site) -> None:
    """It is left alone for as long as it wants, and the whole is not tried in the place of each part."""
    _forget(site)
    site.registry.fail("blobs", throttle(), times=100)
    with pytest.raises(UpstreamThrottled) as caught:
        await site.begin()
    assert caught.value.retry_after == 7
    first, second = site.asked()
    assert first.startswith("bytes=0-")
    assert second == ""
    with pytest.raises(UpstreamThrottled):
        await site.begin()
    assert len(site.asked()) == 2
    assert not site.upstream._blobs.locked()
    site.clock.time += 8
    _forget(site)
    with pytest.raises(UpstreamThrottled):
        await site.begin()
    assert site.asked()[2:] == [first]
    site.clock.time += 60
    _forget(site)
    with pytest.raises(UpstreamThrottled):
        await site.begin()
    assert site.asked()[3:] == [first, ""]


@pytest.mark.parametrize(("fault", "kind"), [(status(403), "UpstreamDenied"), (status(400), "UpstreamInvalid")])
async def test_an_upstream_that_refuses_everything(site: Site, fault: Fault, kind: str) -> None:
    """The error is that of the part."""
    _forget(site)
    site.registry.fail("blobs", fault, times=100)
    with pytest.raises(UpstreamError) as caught:
        await site.begin()
    assert type(caught.value).__name__ == kind
    assert site.asked()[1:] == [""]
