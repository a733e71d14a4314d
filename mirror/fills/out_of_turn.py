"""The bytes of a growing blob that came out of turn, as its filler uses them.

    prefix ──────>|== here ==|       gap       |== claimed ==|       gap
                  copied     asked of a source  waited for,   asked of a source …
                             up to the claim    then copied

Nothing here is needed for a fill: if spans cannot be read, or are wrong, the filler fetches every byte itself. Nothing
of them is trusted either: the digest of the whole is checked at the end. If it does not match, they are dropped, and
whoever was sent some of them is reported.

On a route with lazy parts the filler asks for one piece after another, and claims each, so that no part is fetched
twice. A claim is made once the source has answered: nobody waits for a turn at upstream while others wait for the
claim.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Final

from mirror import telemetry
from mirror.aio.threads import run_uninterrupted
from mirror.errors import StoreError, UpstreamThrottled, reason_of
from mirror.fills.flight import Flight, InParts
from mirror.fills.further_connections import ConnectionMemory, FurtherConnections
from mirror.fills.looks import Looks
from mirror.fills.wrong_parts import report_wrong_parts
from mirror.oci.span import Span
from mirror.policy.fills.fill_ahead import LEAST_REST
from mirror.policy.fills.fill_steps import Fetch, Step, Take, next_step, piece_of
from mirror.policy.fills.span_blocks import BLOCK
from mirror.ports import BlobReader, Body, Claim, Ingest, Spans, SupportsFileno, SupportsSplice

#: Bytes of the map that are looked at in one go, in bytes of the blob.
_WINDOW: Final = 4 << 30
#: A blob of at most so many bytes is never asked for in parts: a single block would be half of it.
_SMALL: Final = 2 * BLOCK
#: Seconds without a new block after which a claim is not waited for any more: bytes that come twice are better than
#: none.
_STUCK: Final = 20.0
#: The same after a claim that was not waited for, until one moves: a frozen process may have many.
_STUCK_AGAIN: Final = 1.0
#: Bytes that are copied before their room in `.spans` is given back.
_COPIED: Final = 8 << 20


class SpansUnreadable(StoreError):
    """Bytes that came out of turn cannot be read. The filler fetches them."""


class OutOfTurn:
    """The spans of one fill.

    next_stop ── copies what is here, waits for what is claimed ──> a source is asked, up to there ──> hold ──> …
       └── all bytes are here ──> verified ──> settle ──> committed ──> drop
                                      └── of another digest ──> report
    """

    def __init__(
        self,
        flight: Flight,
        executor: Executor,
        *,
        label: str,
        memory: ConnectionMemory,
        sleep: Callable[[float], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        """`label` is the configured upstream that the flight's registry belongs to. `memory` knows how many connections
        were best for each upstream.
        """
        self._flight = flight
        self._executor = executor
        self._label = label
        self._sleep = sleep
        self._clock = clock
        self._further = None
        parts = flight.sources.parts
        if parts is not None and not (self.is_lazy and (flight.size or 0) < LEAST_REST):
            self._further = FurtherConnections(
                parts,
                flight.upstream,
                flight.digest,
                memory,
                executor,
                label=label,
                spans=self.spans,
                sleep=sleep,
                clock=clock,
            )
        self._spans: Spans | None = None
        #: Held while spans are opened: the filler and its further connections use the same.
        self._opening = asyncio.Lock()
        self._given_up = False
        self._piece = piece_of(0, 0)
        #: Seconds for which a claim that does not move is waited for.
        self._patience = _STUCK
        #: True if some bytes of the present request are here.
        self._skips = False
        #: True if any byte of the growing blob came from spans.
        self.used = False

    def __repr__(self) -> str:
        return f"<OutOfTurn {self._spans}{', used' if self.used else ''}{', given up' if self._given_up else ''}>"

    @property
    def is_lazy(self) -> bool:
        """True if clients may ask for parts of the blob."""
        return self._flight.in_parts is InParts.LAZY

    async def spans(self, size: int | None = None) -> Spans | None:
        """The spans of the growing blob; with a `size` they are made if there are none. None if there are none, or they
        are not to be used. Raises `StoreFull`, `StoreError`.
        """
        async with self._opening:
            if self._given_up:
                return None
            if self._spans is not None and not self._spans.in_place:
                # not closed here: a thread may be copying from them, and its descriptors would be those of other files
                self._spans = None
            if self._spans is None:
                # in a thread: a process that hangs may have their lock
                opened = await run_uninterrupted(self._executor, self._open, size, unwanted=_close)
                if self._given_up:
                    _close(opened)
                    return None
                self._spans = opened
            return self._spans

    def _open(self, size: int | None) -> Spans | None:
        """Blocking."""
        return self._flight.store.spans(self._flight.digest, self._flight.upstream, size)

    async def next_stop(self, ingest: Ingest) -> int | None:
        """Copies what is next and here, and waits for what others fetch. Returns where the next request ends; None: at
        the end of the blob. All bytes may be here afterwards. Raises `StoreFull` if the prefix cannot grow.
        """
        self._flight.sources.last_stop = None
        looks, patient = Looks(self._sleep, self._clock, ingest.offset), True
        while True:
            step = await self._look(ingest, patient=patient)
            if isinstance(step, Fetch):
                self._skips = step.skips
                return self._bounded(ingest, step.stop)
            if isinstance(step, Take):
                if not await self._take(ingest, step.span):
                    return None
                looks.begin(ingest.offset)
                patient = True
                continue
            if looks.moved(step.reach):
                self._patience = _STUCK
            elif looks.still > self._patience:
                self._patience = min(_STUCK, _STUCK_AGAIN)
                telemetry.log.info("claim not waited for", digest=str(self._flight.digest), offset=ingest.offset)
                patient = False
                continue
            if self._further is not None:
                self._further.hurry(step.reach)
            await looks.pause()

    async def _look(self, ingest: Ingest, *, patient: bool) -> Step:
        with self._needless():
            spans = await self.spans()
            if spans is not None and self._flight.size in (None, spans.size) and ingest.offset < spans.size:
                window = Span(ingest.offset, min(spans.size, ingest.offset + _WINDOW))
                # in this order, see `Spans.taken`
                taken = spans.taken(window)
                here = spans.here(window)
                answered = self._flight.announced.done()
                step = next_step(ingest.offset, spans.size, here, taken, answered=answered, patient=patient)
                if isinstance(step, Fetch) and step.stop is None and window.stop < spans.size:
                    return Fetch(window.stop, step.skips)
                return step
        return Fetch(None)

    def _bounded(self, ingest: Ingest, stop: int | None) -> int | None:
        size = self._flight.size
        if self._given_up or size is None:
            return stop
        if self.is_lazy:
            # whole blocks: others can claim no less
            piece_end = (ingest.offset + self._piece) // BLOCK * BLOCK
            stop = stop if piece_end >= (size if stop is None else stop) else piece_end
        if self._further is not None:
            self._flight.sources.last_stop = self._further.next_stop(ingest, size, stop)
        return stop

    def answered(self, body: Body) -> None:
        """A source has answered: what comes now is the beginning, or the next piece."""
        if self._further is not None and not self._flight.sources.name and not self._given_up:
            self._further.answered(body, self._flight.size)

    def request_ended(self, error: Exception | None = None) -> None:
        """The request is over, perhaps with an error. Repeatable."""
        if self._further is not None:
            self._further.ended()
            if isinstance(error, UpstreamThrottled):
                self._further.throttled()

    async def end_connections(self) -> None:
        """Ends what fetches bytes ahead, and gives the turn at the upstream back. Repeatable."""
        try:
            if self._further is not None:
                await self._further.aclose()
        finally:
            self._flight.sources.release()

    async def _take(self, ingest: Ingest, span: Span) -> bool:
        """Copies bytes that are here. False if they cannot be read; nothing is asked of spans any more then."""
        spans = self._spans
        if spans is None:
            return False
        body = _SpanBody(spans, span, punches=not self.is_lazy)
        try:
            self.used = True
            await run_uninterrupted(self._executor, ingest.fill, body, self._flight.watch(ingest), stop=body.abort)
        except SpansUnreadable as error:
            self._give_up(error)
            return False
        finally:
            body.close()
        return True

    def agree(self, size: int | None) -> int | None:
        """Returns the size of the whole blob in bytes (None: unknown), given what upstream or a manifest says: spans of
        another size are dropped. If neither says it, that of the spans counts.
        """
        spans = self._spans
        if spans is None or size == spans.size:
            return size
        if size is None:
            return spans.size
        with self._needless():
            spans.drop()
        self.close()
        return size

    async def hold(self, ingest: Ingest, stop: int | None) -> Claim | None:
        """Claims the bytes that a source has begun to give, so that nobody else asks for them. The caller releases the
        claim. The bytes behind `span.stop` are somebody else's. None if nothing is claimed.
        """
        size = self._flight.size
        if not self.is_lazy or self._skips or size is None or not max(ingest.offset, _SMALL) < size:
            return None
        if stop is None and size - ingest.offset > 2 * self._piece:
            # the request was made before the size was known, and has no end: parts of so much need not wait for it
            return None
        with self._needless():
            spans = await self.spans(size)
            claim = None if spans is None else spans.claim(Span(ingest.offset, size if stop is None else stop))
            if claim is not None and claim.span.start <= ingest.offset:
                return claim
            if claim is not None:
                claim.release()
        return None

    def has_received(self, count: int, seconds: float) -> None:
        """A request has brought `count` bytes in `seconds`."""
        self._piece = piece_of(count, seconds)

    async def settle(self, reader: BlobReader) -> None:
        """The blob, which `reader` reads, is verified: drops the spans. Reports who was sent some of them if they
        differ from the blob.
        """
        with self._needless():
            await run_uninterrupted(self._executor, self._settle, reader)

    def _settle(self, reader: BlobReader) -> None:
        """Blocking. `reader` reads the verified blob."""
        spans = self._open(None)
        if spans is None:
            return
        try:
            served = spans.served()
            if served and not spans.are_of(reader):
                self._report(served)
            spans.drop()
        finally:
            spans.close()

    async def report(self) -> None:
        """The digest of the blob does not match: drops the spans, and reports who was sent some of them."""
        with self._needless():
            await run_uninterrupted(self._executor, self._drop_wrong)

    def _drop_wrong(self) -> None:
        spans = self._open(None)
        if spans is None:
            return
        try:
            served = spans.served()
            if served or self.is_lazy:
                # in this order: another process that finds no spans any more makes none
                self._flight.store.avoid_parts(self._flight.upstream, self._flight.digest)
            self._report(served)
        finally:
            spans.drop()
            spans.close()

    def _report(self, served: Sequence[Mapping[str, object]]) -> None:
        report_wrong_parts(self._flight.digest, self._flight.upstream, self._label, served)

    def close(self) -> None:
        """Repeatable."""
        spans, self._spans = self._spans, None
        if spans is not None:
            spans.close()

    def _give_up(self, error: StoreError) -> None:
        telemetry.log.warning(
            "bytes out of turn not used",
            digest=str(self._flight.digest),
            upstream=self._flight.upstream,
            reason=str(error),
        )
        self._given_up = True
        self.close()

    @contextmanager
    def _needless(self) -> Iterator[None]:
        """Whatever the store cannot do about spans is no reason to end a fill."""
        try:
            yield
        except StoreError as error:
            self._give_up(error)


def _close(spans: Spans | None) -> None:
    if spans is not None:
        spans.close()


class _SpanBody:
    """Bytes that are here, as a `Body` whose bytes the kernel can move. Raises `SpansUnreadable`."""

    def __init__(self, spans: Spans, span: Span, *, punches: bool) -> None:
        """`punches`: what was read is dropped from the spans, a few megabytes later."""
        self.start = span.start
        self.size: int | None = spans.size
        self._spans = spans
        self._stop = span.stop
        self._punches = punches
        self._position = span.start
        #: Bytes before this are in the growing file: whoever asks for the next ones has written those before.
        self._written = span.start
        #: The piece that is open.
        self._piece = Span(span.start, span.start)
        self._reader: BlobReader | None = None
        self._aborted = False

    def __repr__(self) -> str:
        return f"<_SpanBody {self._position}/{self._stop}>"

    def readinto(self, buffer: memoryview) -> int:
        reader = self._opened()
        if reader is None:
            return 0
        try:
            piece = reader.pread(min(len(buffer), self._piece.stop - self._position), self._position)
        except StoreError as error:
            raise SpansUnreadable(str(error)) from error
        if not piece:
            raise SpansUnreadable(f"byte {self._position} of the spans is not there")
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def plain_socket(self) -> tuple[int, int] | None:
        """See `SupportsSplice`: a file does as well."""
        reader = self._opened()
        if not isinstance(reader, SupportsFileno):
            return None
        try:
            os.lseek(reader.fileno(), self._position, os.SEEK_SET)
        except OSError as error:
            raise SpansUnreadable(f"seeking in spans: {reason_of(error)}") from error
        return reader.fileno(), self._piece.stop - self._position

    def advance(self, count: int) -> None:
        self._position += count

    def _opened(self) -> BlobReader | None:
        """The reader of the next bytes; None at the end."""
        if self._aborted:
            raise SpansUnreadable("the copy was given up")
        self._written = self._position
        if self._position >= self._piece.stop:
            self.close()
            if self._position >= self._stop:
                return None
            self._piece = Span(self._position, min(self._stop, self._position + _COPIED))
            try:
                self._reader = self._spans.open(self._piece)
            except StoreError as error:
                raise SpansUnreadable(str(error)) from error
        if self._reader is None:
            raise SpansUnreadable("the bytes are not here any more")
        return self._reader

    def abort(self) -> None:
        self._aborted = True

    def close(self) -> None:
        """Close the open piece; what was copied of it is given back to the disk. Repeatable."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()
            if self._punches:
                self._spans.punch(Span(self._piece.start, self._written))


class BoundedBody:
    """The bytes of another body up to an offset: a `Body` that ends there."""

    def __init__(self, body: Body, stop: int) -> None:
        self.start = body.start
        self.size = body.size
        self.abort = body.abort
        self._body = body
        self._splices = body if isinstance(body, SupportsSplice) else None
        self._rest = max(0, stop - body.start)

    def __repr__(self) -> str:
        return f"<BoundedBody {self._rest} bytes more of {self._body}>"

    def readinto(self, buffer: memoryview) -> int:
        if not self._rest:
            return 0
        count = self._body.readinto(buffer[: self._rest])
        self._rest -= count
        return count

    def plain_socket(self) -> tuple[int, int] | None:
        """See `SupportsSplice`."""
        offered = self._splices.plain_socket() if self._splices else None
        return (offered[0], min(offered[1], self._rest)) if offered and self._rest else None

    def advance(self, count: int) -> None:
        if self._splices:
            self._rest -= count
            self._splices.advance(count)
