"""Fills of blobs of which some bytes came out of turn: each byte comes once, and nothing depends on them."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from mirror.errors import DigestMismatch, StoreError, UpstreamUnavailable
from mirror.fills.flight import Flight, InParts
from mirror.oci.digest import Digest
from mirror.oci.span import Span
from mirror.policy.fills.span_blocks import BLOCK, joined
from mirror.store.local import durable, pump, span_file
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout, map_of, spans_of
from mirror.store.local.span_file import SpanFile
from tests.support.following import read_to_end
from tests.support.hangar import Hangar, reached
from tests.support.ranged_upstream import RangedUpstream, put_spans
from tests.support.store_suite import Pieces

_SIZE = 40 * BLOCK + 1234
CONTENT = random.Random(16).randbytes(_SIZE)
DIGEST = Digest.of(CONTENT)
BOTH = pytest.mark.parametrize("in_parts", [InParts.AHEAD, InParts.LAZY], ids=["ahead", "lazy"])


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """On this disk."""
    return LocalStore(Layout(tmp_path))


@pytest.fixture
async def make(store: LocalStore) -> AsyncIterator[Callable[[], Hangar]]:
    """Makes processes that share the store; the files of each are its own."""
    async with AsyncExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(16))

        def hangar() -> Hangar:
            made = Hangar(LocalStore(store.layout), executor)
            stack.push_async_callback(made.flights.aclose)
            return made

        yield hangar


@pytest.fixture
def hangar(make: Callable[[], Hangar]) -> Hangar:
    """One process."""
    return make()


async def _fill(hangar: Hangar, upstream: RangedUpstream, in_parts: InParts, *, size: int | None = _SIZE) -> Flight:
    flight = await hangar.flights.join(DIGEST, upstream.pull, upstream="test", size=size, in_parts=in_parts)
    try:
        assert await read_to_end(flight) == CONTENT
    finally:
        flight.leave()
        await flight.over.wait()
    return flight


def _left(store: LocalStore) -> list[str]:
    return sorted(file.name for file in store.layout.ingests.iterdir())


def _note_of_wrong(store: LocalStore, in_parts: InParts) -> list[str]:
    """What is left of a blob that was wrong."""
    return [f"{store.layout.ingest(DIGEST, 'test').name}.avoid"] if in_parts is InParts.LAZY else []


def _blocks(*numbers: int) -> list[Span]:
    return joined([Span(number * BLOCK, min((number + 1) * BLOCK, _SIZE)) for number in numbers])


_PATTERNS = {
    "none": [],
    "one in the middle": [20],
    "the first": [0],
    "the last": [40],
    "first and last": [0, 40],
    "every second": list(range(0, 41, 2)),
    "all but the first": list(range(1, 41)),
    "all but the last": list(range(40)),
    "all": list(range(41)),
    "two runs": [3, 4, 5, 30, 31],
}


@BOTH
@pytest.mark.parametrize("size", [_SIZE, None], ids=["known", "unknown"])
@pytest.mark.parametrize("numbers", _PATTERNS.values(), ids=_PATTERNS.keys())
async def test_each_byte_comes_once(
    hangar: Hangar, store: LocalStore, numbers: list[int], size: int | None, in_parts: InParts
) -> None:
    """Upstream gives the gaps; of what is here at the beginning, one byte, whose answer gives the right to the rest."""
    put_spans(store, CONTENT, _blocks(*numbers))
    upstream = RangedUpstream(CONTENT)
    await _fill(hangar, upstream, in_parts, size=size)
    here = sum(span.length for span in _blocks(*numbers))
    assert upstream.given == _SIZE - here + (0 in numbers)
    assert store.read(DIGEST, _SIZE) == CONTENT
    assert _left(store) == []
    assert hangar.room.open == 0


@BOTH
async def test_many_small_runs_do_not_cost_a_request_each(
    hangar: Hangar, store: LocalStore, in_parts: InParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond a number of runs, their bytes are fetched again rather than by thousands of requests."""
    monkeypatch.setattr("mirror.policy.fills.fill_steps._MOST_RUNS", 5)
    put_spans(store, CONTENT, _blocks(*range(1, 40, 2)))
    upstream = RangedUpstream(CONTENT)
    await _fill(hangar, upstream, in_parts)
    assert len(upstream.asked) <= 10


@BOTH
@pytest.mark.parametrize("seed", range(5))
async def test_broken_answers_go_on_where_they_broke(
    hangar: Hangar, store: LocalStore, seed: int, in_parts: InParts
) -> None:
    """Rows 1, 7 and 8: whatever breaks, at whatever byte, no byte comes twice."""
    chance = random.Random(seed)
    numbers = [number for number in range(1, 41) if chance.random() < 0.5]
    put_spans(store, CONTENT, _blocks(*numbers))
    upstream = RangedUpstream(CONTENT)
    # each of the first answers breaks after its first bytes
    upstream.answered = lambda span: upstream.breaks.append(
        span.start + 1 + chance.randrange(span.length) if len(upstream.asked) < 9 else None
    )
    await _fill(hangar, upstream, in_parts)
    assert upstream.given == _SIZE - sum(span.length for span in _blocks(*numbers))


async def test_an_upstream_that_ignores_ranges_gives_the_whole(hangar: Hangar, store: LocalStore) -> None:
    """The spans are of no use then, and do no harm (row 22)."""
    put_spans(store, CONTENT, _blocks(5, 6, 20))
    upstream = RangedUpstream(CONTENT, heeds=False)
    await _fill(hangar, upstream, InParts.AHEAD)
    assert upstream.given == _SIZE
    assert _left(store) == []


@BOTH
async def test_wrong_spans_are_dropped_and_the_next_try_is_plain(
    hangar: Hangar, store: LocalStore, in_parts: InParts
) -> None:
    """A map that lies about one block: the digest tells, and a fresh fill without spans follows (row 4)."""
    lies = CONTENT[: 20 * BLOCK] + bytes(BLOCK) + CONTENT[21 * BLOCK :]
    put_spans(store, lies, _blocks(20, 21), named=DIGEST)
    upstream = RangedUpstream(CONTENT)
    flight = await hangar.flights.join(DIGEST, upstream.pull, upstream="test", size=_SIZE, in_parts=in_parts)
    with pytest.raises(DigestMismatch):
        await read_to_end(flight)
    flight.leave()
    again = flight.successor
    assert again is not None
    await again.over.wait()
    assert store.read(DIGEST, _SIZE) == CONTENT
    assert upstream.given == _SIZE - 2 * BLOCK + _SIZE
    assert hangar.wrong == ([(DIGEST, "test")] if in_parts is InParts.LAZY else [])
    # the other workers ask for no part of it for some time
    assert store.avoids_parts("test", DIGEST, 600) is (in_parts is InParts.LAZY)
    assert _left(store) == _note_of_wrong(store, in_parts)


@BOTH
async def test_a_whole_that_a_dead_process_left_is_wrong(hangar: Hangar, store: LocalStore, in_parts: InParts) -> None:
    """It may have been put together of these spans: they are dropped with it, and one fill is enough."""
    lies = CONTENT[: 20 * BLOCK] + bytes(BLOCK) + CONTENT[21 * BLOCK :]
    put_spans(store, lies, _blocks(20), named=DIGEST)
    left = store.ingest(DIGEST, "test")
    assert left.try_lock()
    left.expect(_SIZE)
    left.fill(Pieces(lies), lambda: None)
    left.close()
    upstream = RangedUpstream(CONTENT)
    await _fill(hangar, upstream, in_parts)
    assert upstream.given == _SIZE
    assert _left(store) == _note_of_wrong(store, in_parts)


async def test_a_wrong_upstream_is_asked_twice_not_for_ever(hangar: Hangar, store: LocalStore) -> None:
    """If the plain try is wrong as well, it ends there."""
    wrong = bytes(len(CONTENT))
    put_spans(store, wrong, _blocks(20), named=DIGEST)
    upstream = RangedUpstream(wrong)
    flight = await hangar.flights.join(DIGEST, upstream.pull, upstream="test", size=_SIZE, in_parts=InParts.AHEAD)
    with pytest.raises(DigestMismatch):
        await read_to_end(flight)
    assert flight.successor is not None
    await flight.successor.over.wait()
    assert isinstance(flight.successor.error, DigestMismatch)
    assert flight.successor.successor is None
    assert _left(store) == []


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The reports of wrong parts."""
    reports: list[object] = []
    monkeypatch.setattr("mirror.fills.out_of_turn.report_wrong_parts", lambda *what: reports.append(what))
    return reports


async def test_who_was_served_wrong_bytes_is_reported(
    hangar: Hangar, store: LocalStore, reported: list[object]
) -> None:
    """Also if the whole that came is right: a span that differs from it was given to somebody."""
    lies = CONTENT[: 20 * BLOCK] + bytes(BLOCK) + CONTENT[21 * BLOCK :]
    put_spans(store, lies, _blocks(20), named=DIGEST)
    spans = store.spans(DIGEST, "test", None)
    assert spans is not None
    spans.note_served({"repository": "test/app"})
    upstream = RangedUpstream(CONTENT, heeds=False)
    await _fill(hangar, upstream, InParts.LAZY)
    assert reported == [(DIGEST, "test", "test", [{"upstream": "test", "repository": "test/app"}])]
    assert _left(store) == []


async def test_who_was_served_right_bytes_is_not_reported(
    hangar: Hangar, store: LocalStore, reported: list[object]
) -> None:
    """Nothing was wrong."""
    put_spans(store, CONTENT, _blocks(20))
    spans = store.spans(DIGEST, "test", None)
    assert spans is not None
    spans.note_served({"repository": "test/app"})
    await _fill(hangar, RangedUpstream(CONTENT), InParts.LAZY)
    assert reported == []


@BOTH
async def test_spans_that_cannot_be_read_are_fetched(
    hangar: Hangar, store: LocalStore, in_parts: InParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 36: a bad sector under bytes out of turn costs their bytes, and nothing else."""
    put_spans(store, CONTENT, _blocks(5, 6, 7, 20))

    def broken(*_: object) -> None:
        raise StoreError("reading spans: Input/output error")

    monkeypatch.setattr(SpanFile, "open", broken)
    upstream = RangedUpstream(CONTENT)
    await _fill(hangar, upstream, in_parts)
    assert upstream.given == _SIZE


@BOTH
@pytest.mark.parametrize("verb", ["here", "taken"])
async def test_a_map_that_cannot_be_read_is_not_needed(
    hangar: Hangar, store: LocalStore, in_parts: InParts, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for the map."""
    put_spans(store, CONTENT, _blocks(5, 6, 7, 20))

    def broken(*_: object) -> None:
        raise StoreError("reading a map of spans: Input/output error")

    monkeypatch.setattr(SpanFile, verb, broken)
    upstream = RangedUpstream(CONTENT)
    await _fill(hangar, upstream, in_parts)
    assert upstream.given == _SIZE


async def test_no_room_for_a_map_is_no_reason_to_fail(
    hangar: Hangar, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 34: a fill of a lazy route goes on without claims."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(span_file, "_pwrite", full)
    await _fill(hangar, RangedUpstream(CONTENT), InParts.LAZY)
    assert _left(store) == []


@BOTH
async def test_34_no_room_for_what_is_copied(
    hangar: Hangar, store: LocalStore, in_parts: InParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy into the growing file meets a full disk: room is made, and it goes on where it was."""
    put_spans(store, CONTENT, _blocks(*range(5, 20)))
    upstream = RangedUpstream(CONTENT)
    write, refused = durable.write_all, list[bool]()

    def full(descriptor: int, piece: bytes | memoryview) -> None:
        if os.fstat(descriptor).st_size == 5 * BLOCK and not refused:
            refused.append(True)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(descriptor, piece)

    monkeypatch.setattr(pump, "write_all", full)
    monkeypatch.setattr(pump._Splice, "move", lambda *_: None)
    await _fill(hangar, upstream, in_parts)
    assert refused
    assert len(hangar.room.made) == 1
    assert upstream.given == _SIZE - 15 * BLOCK


@BOTH
async def test_53_another_process_goes_on_with_the_spans(
    store: LocalStore, in_parts: InParts, make: Callable[[], Hangar]
) -> None:
    """The filler ends in the middle: whoever follows takes what it has received, and what came out of turn."""
    put_spans(store, CONTENT, _blocks(*range(15, 30)))
    upstream = RangedUpstream(CONTENT)
    first, second = make(), make()
    hang = threading.Event()
    upstream.giving = lambda _: None if upstream.given < 10 * BLOCK else (hang.wait(60), None)[1]
    flight = await first.flights.join(DIGEST, upstream.pull, upstream="test", size=_SIZE, in_parts=in_parts)
    await reached(lambda: upstream.given >= 10 * BLOCK)
    ended = asyncio.create_task(first.flights.aclose())
    await reached(lambda: upstream.bodies[-1].aborted)
    hang.set()
    await ended
    flight.leave()
    rest = RangedUpstream(CONTENT)
    await _fill(second, rest, in_parts)
    assert upstream.given + rest.given == _SIZE - 15 * BLOCK


async def test_dropped_files_do_not_matter(hangar: Hangar, store: LocalStore) -> None:
    """Somebody deletes the files in the middle of the fill (a purge, an operator)."""
    put_spans(store, CONTENT, _blocks(5, 20))
    upstream = RangedUpstream(CONTENT)

    def drop(_: Span) -> None:
        for name in (map_of, spans_of):
            name(store.layout.ingest(DIGEST, "test")).unlink(missing_ok=True)

    upstream.answered = drop
    await _fill(hangar, upstream, InParts.AHEAD)


async def test_a_claim_is_waited_for_and_then_taken(hangar: Hangar, store: LocalStore) -> None:
    """What somebody else fetches is not fetched again, however long it takes, as long as it comes."""
    spans = store.spans(DIGEST, "test", _SIZE)
    assert spans is not None
    claim = spans.claim(Span(10 * BLOCK, 30 * BLOCK))
    assert claim is not None
    upstream, other = RangedUpstream(CONTENT), RangedUpstream(CONTENT)
    filling = asyncio.create_task(_fill(hangar, upstream, InParts.AHEAD))
    await reached(lambda: len(hangar.slept) > 10)
    await asyncio.to_thread(claim.fill, other.body(claim.span), lambda _: None)
    claim.release()
    await filling
    assert upstream.asked == [Span(0, 10 * BLOCK), Span(30 * BLOCK, _SIZE)]
    assert upstream.given + other.given == _SIZE


async def test_a_claimant_that_dies_leaves_its_blocks(hangar: Hangar, store: LocalStore) -> None:
    """What it has brought is taken, the rest is fetched."""
    spans = store.spans(DIGEST, "test", _SIZE)
    assert spans is not None
    claim = spans.claim(Span(10 * BLOCK, 30 * BLOCK))
    assert claim is not None
    upstream, other = RangedUpstream(CONTENT), RangedUpstream(CONTENT)
    filling = asyncio.create_task(_fill(hangar, upstream, InParts.AHEAD))
    await reached(lambda: len(hangar.slept) > 10)
    other.breaks.append(20 * BLOCK + 5)
    with pytest.raises(UpstreamUnavailable):
        await asyncio.to_thread(claim.fill, other.body(claim.span), lambda _: None)
    claim.release()
    await filling
    assert upstream.asked == [Span(0, 10 * BLOCK), Span(20 * BLOCK, _SIZE)]


async def test_a_claimant_that_stands_still_is_not_waited_for(
    hangar: Hangar, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen process must not stop the fills of others (row 53)."""
    monkeypatch.setattr("mirror.fills.out_of_turn._STUCK", 0.0)
    spans = store.spans(DIGEST, "test", _SIZE)
    assert spans is not None
    claim = spans.claim(Span(10 * BLOCK, 30 * BLOCK))
    assert claim is not None
    upstream = RangedUpstream(CONTENT)
    await _fill(hangar, upstream, InParts.AHEAD)
    assert upstream.given == _SIZE
    claim.release()


async def test_a_frozen_process_is_waited_for_once(
    hangar: Hangar, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many blocks it has claimed (row 53)."""
    now = [0.0]

    async def sleep(seconds: float) -> None:
        now[0] += seconds
        await asyncio.sleep(0)

    filler = hangar.flights._filler
    monkeypatch.setattr(filler, "sleep", sleep)
    monkeypatch.setattr(filler, "_clock", lambda: now[0])
    monkeypatch.setattr("mirror.policy.fills.fill_steps._LEAST_PIECE", 2 * BLOCK)
    monkeypatch.setattr("mirror.policy.fills.fill_steps._MOST_PIECE", 2 * BLOCK)
    spans = store.spans(DIGEST, "test", _SIZE)
    assert spans is not None
    claims = [spans.claim(Span(number * BLOCK, (number + 1) * BLOCK)) for number in range(5, 40, 5)]
    upstream = RangedUpstream(CONTENT)
    await _fill(hangar, upstream, InParts.LAZY)
    assert upstream.given == _SIZE
    assert now[0] < 40
    for claim in claims:
        assert claim is not None
        claim.release()


async def test_a_part_that_is_fetched_meanwhile_is_not_fetched_again(hangar: Hangar, store: LocalStore) -> None:
    """On a lazy route, a claim that was made before the answer ends the piece of the filler."""
    claims = []
    upstream, other = RangedUpstream(CONTENT), RangedUpstream(CONTENT)

    def claim_some(span: Span) -> None:
        if len(upstream.asked) == 1:
            spans = store.spans(DIGEST, "test", _SIZE)
            assert spans is not None
            claim = spans.claim(Span(25 * BLOCK, 27 * BLOCK))
            assert claim is not None
            claim.fill(other.body(claim.span), lambda _: None)
            claims.append(claim)

    upstream.answered = claim_some
    await _fill(hangar, upstream, InParts.LAZY)
    assert upstream.given + other.given == _SIZE


async def test_the_filler_claims_what_it_fetches_on_a_lazy_route(hangar: Hangar, store: LocalStore) -> None:
    """A part of the piece under way is waited for, a part behind it is free."""
    upstream = RangedUpstream(CONTENT)
    spans = store.spans(DIGEST, "test", _SIZE)
    assert spans is not None
    free: list[bool] = []
    upstream.giving = lambda _: free.append(spans.claim(Span(0, BLOCK)) is not None)
    await _fill(hangar, upstream, InParts.LAZY)
    assert set(free) == {False}


async def test_a_fill_without_spans_asks_for_none(
    hangar: Hangar, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ordinary fill makes no call for what it does not use."""

    def never(*_: object) -> None:
        raise AssertionError("nobody asked for this")

    monkeypatch.setattr(LocalStore, "spans", never)
    await _fill(hangar, RangedUpstream(CONTENT), InParts.NO)
