"""Receives the bytes of one fill, over as many answers as needed.

what is here out of turn ── copied ──> a source is asked for what follows ──> received ──> … ──> every byte is here
  ^                                      │
  ├── the next source ─── from a nearer one that is absent, slow or breaks off
  ├── after a pause ───── from upstream, if it does not answer or breaks off, for as long as it is waited for
  └── after an eviction ─ if the disk is full
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from mirror import telemetry
from mirror.aio.threads import run_uninterrupted
from mirror.errors import (
    StoreError,
    StoreFull,
    UpstreamCircuitOpen,
    UpstreamError,
    UpstreamInvalid,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from mirror.fills.flight import NOTICE_BYTES, Flight
from mirror.fills.out_of_turn import BoundedBody, OutOfTurn
from mirror.fills.outages import Outages
from mirror.fills.room import ReservedSpace, Room
from mirror.fills.sources import OnAnswer, SourceLeft, count_received
from mirror.policy.send_limit import Tries, next_try
from mirror.ports import Body, Ingest

#: How often a full disk is answered by eviction. The disk may report "full" for a reason that eviction does not cure (a
#: file-size limit), and the cache must not be emptied for it.
_TRIES_WHEN_FULL: Final = 2


@dataclass(frozen=True, slots=True)
class FillTools:
    """What a download uses. `executor` runs the threads that receive. `label` is, for the metrics, the configured
    upstream that the flight's registry belongs to. `outages` knows which registries do not answer. An upstream that
    does not answer is waited for `patience` seconds, measured by `clock`.
    """

    executor: Executor
    room: Room
    label: str
    outages: Outages
    patience: float = 30.0
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    jitter: Callable[[], float] = random.random
    clock: Callable[[], float] = time.monotonic


class FillDownload:
    """See the head of this file."""

    def __init__(
        self,
        flight: Flight,
        ingest: Ingest,
        on_answer: OnAnswer | None,
        out_of_turn: OutOfTurn | None,
        tools: FillTools,
    ) -> None:
        """Bytes that are here `out_of_turn` are not asked for; None: there are none."""
        self._flight = flight
        self._ingest = ingest
        self._on_answer = on_answer
        self._out_of_turn = out_of_turn
        self._tools = tools
        self._tries = Tries(tools.clock())
        self._tries_when_full = 0
        self._reservation: ReservedSpace | None = None
        #: Where the present request begins, and whether it was answered.
        self._start = ingest.offset
        self._is_answered = False
        #: True once upstream has answered for the blob in its repository.
        self._is_granted = False
        #: True once another process was seen to receive a blob from this registry during an outage.
        self._others_sent = False

    def __repr__(self) -> str:
        return f"<FillDownload {self._ingest.offset}/{self._flight.size}, {self._tries}>"

    async def run(self) -> None:
        """Receives every byte. Raises `UpstreamError` if upstream is given up, `StoreError`, `BlobDamaged`."""
        try:
            while not await self._receive_some():
                pass
        finally:
            try:
                if self._out_of_turn:
                    await self._out_of_turn.end_connections()
            finally:
                if self._reservation:
                    self._reservation.release()

    async def _receive_some(self) -> bool:
        """Asks once. True if every byte is here then. False: to be called again, after a pause if there must be one.
        Raises like `run`.
        """
        flight, ingest = self._flight, self._ingest
        self._start, self._is_answered = ingest.offset, False
        try:
            return await self._ask()
        except SourceLeft as error:
            self._log_interruption(error, 0)
        except (UpstreamUnavailable, UpstreamThrottled) as error:
            if self._out_of_turn:
                self._out_of_turn.request_ended(error)
            wait = await self._pause_after(error)
            if wait is None:
                raise
            if not isinstance(error, UpstreamCircuitOpen):
                self._log_interruption(error, self._tries.breaks + self._tries.refusals)
            await self._tools.sleep(wait)
        except StoreFull:
            if not flight.announced.done() or self._tries_when_full == _TRIES_WHEN_FULL:
                raise
            self._tries_when_full += 1
            # other files took the reserved space; without more room the followers go on uncached
            await self._tools.room.make_room(NOTICE_BYTES if flight.size is None else flight.size - ingest.offset)
        finally:
            if self._out_of_turn:
                self._out_of_turn.request_ended()
            self._count_received(max(0, ingest.offset - self._start))
        return False

    async def _ask(self) -> bool:
        """Takes what is here out of turn, asks for what follows, and receives one body. True if every byte is here."""
        flight, ingest, stop = self._flight, self._ingest, None
        if self._out_of_turn:
            try:
                stop = await self._out_of_turn.next_stop(ingest)
            finally:
                # what was copied does not count as received
                self._start = ingest.offset
            if flight.announced.done() and self._start == flight.size:
                return True
        async with flight.sources(self._start, stop) as body:
            self._is_answered, flight.source = True, flight.sources.name
            self._tools.outages.answered(self._asked, self._tools.clock())
            await self._receive(body, stop)
        if not self._out_of_turn or flight.size in (None, ingest.offset):
            return True
        if ingest.offset == self._start:
            raise UpstreamUnavailable(f"no byte from {self._start} on was sent", upstream=flight.upstream)
        return False

    async def _receive(self, body: Body, stop: int | None) -> None:
        """Receives one body, which was asked for up to `stop`. Raises `UpstreamError`, `StoreError`, `BlobDamaged`."""
        flight, ingest, out_of_turn = self._flight, self._ingest, self._out_of_turn
        is_disputed = None not in (flight.size, body.size) and flight.size != body.size
        size = self._agree(body.size)
        if out_of_turn:
            flight.size = size = out_of_turn.agree(size)
        if self._reservation is None:
            self._reservation = await self._tools.room.reserve(None if size is None else size - ingest.offset)
        if self._on_answer and not (self._is_granted and out_of_turn):
            # before `expect`: followers take an announced size as proof that upstream has answered
            await self._on_answer(size)
        self._is_granted = True
        ingest.expect(size)
        flight.announce(ingest.reader)
        if out_of_turn:
            out_of_turn.answered(body)
            await self._write_piece(body, stop, out_of_turn)
        else:
            await self._write(body)
        if is_disputed:
            # the body may have been cut: its connection may still carry the rest, so do not reuse it
            body.abort()

    def _agree(self, answered: int | None) -> int | None:
        """Returns the size of the whole blob in bytes (None: unknown), given the size in upstream's answer.

        Until clients have been given a size, upstream's answer overrides the manifest: the digest judges the bytes.
        Afterwards a different size raises `UpstreamInvalid`.
        """
        flight = self._flight
        if flight.announced.done() and answered is not None and flight.size is not None and answered != flight.size:
            raise UpstreamInvalid(
                f"{flight.digest} has {answered} bytes upstream, but {flight.size} were expected",
                upstream=flight.upstream,
            )
        flight.size = answered if answered is not None else flight.size
        return flight.size

    async def _write(self, body: Body) -> None:
        """Receives one body to its end. Raises `UpstreamError`, `StoreError`, `BlobDamaged`."""
        flight, ingest = self._flight, self._ingest
        with telemetry.span("fill", mirror__upstream=flight.upstream, mirror__offset=ingest.offset):
            try:
                await run_uninterrupted(self._tools.executor, ingest.fill, body, flight.watch(ingest), stop=body.abort)
            except UpstreamError as error:
                count_error(flight, self._tools.label, type(error).__name__)
                raise

    async def _write_piece(self, body: Body, stop: int | None, out_of_turn: OutOfTurn) -> None:
        """Like `_write`, but not beyond what somebody else is fetching by now. `stop` is where the request ends."""
        ingest, clock = self._ingest, self._tools.clock
        claim = await out_of_turn.hold(ingest, stop)
        before, began = ingest.offset, clock()
        try:
            end = self._flight.size if stop is None else stop
            if claim is not None and end is not None and claim.span.stop < end:
                await self._write(BoundedBody(body, claim.span.stop))
                # the rest is not wanted any more
                body.abort()
            else:
                await self._write(body)
            out_of_turn.has_received(ingest.offset - before, clock() - began)
        finally:
            if claim is not None:
                claim.release()

    # ---------------------------------------------------------------------------------- an upstream that is waited for

    async def _pause_after(self, error: UpstreamError) -> float | None:
        """Returns the seconds until upstream is asked again, after this error; None: give up.

        A fill whose headers are known waits for `patience` seconds. One without headers gives up at once, so that its
        clients get a clean error, unless the outage is sudden or another process is receiving from this registry: then
        it waits until `patience` seconds of the outage have passed.
        """
        tools, outages, now = self._tools, self._tools.outages, self._tools.clock()
        has_moved = self._ingest.offset > self._start
        self._tries = self._tries.broken(now, progress=has_moved) if self._is_answered else self._tries.refused(error)
        if has_moved:
            outages.answered(self._asked, now)
        if _is_unreachable(error):
            outages.refused(self._asked, now)
        if self._flight.announced.done():
            return next_try(error, self._tries, now - self._tries.since, tools.patience, tools.jitter())
        waited = outages.waited(self._asked, now)
        if waited >= tools.patience or not _is_unreachable(error):
            return None
        if not outages.is_sudden(self._asked) and not await self._is_sending_others():
            return None
        return next_try(error, self._tries, waited, tools.patience, tools.jitter())

    async def _is_sending_others(self) -> bool:
        """True if another process is receiving a blob from this flight's registry, or was when this was asked before:
        it may be done once upstream is back, before this process has asked again. False if the disk cannot tell.
        """
        flight = self._flight
        if not self._others_sent:
            with suppress(StoreError):
                self._others_sent = await run_uninterrupted(
                    self._tools.executor, flight.store.is_filling, flight.upstream, flight.digest
                )
        return self._others_sent

    @property
    def _asked(self) -> str:
        """Whose outages concern the flight now."""
        return self._flight.sources.name or self._flight.upstream

    # ------------------------------------------------------------------------------------------------ metrics, log

    def _count_received(self, count: int) -> None:
        if self._flight.source:
            count_received(self._flight.source, count)
        else:
            telemetry.UPSTREAM_BYTES.labels(self._tools.label).inc(count)

    def _log_interruption(self, error: UpstreamError, failures: int) -> None:
        telemetry.log.warning(
            "fill interrupted",
            digest=str(self._flight.digest),
            offset=self._ingest.offset,
            size=self._flight.size,
            upstream=self._flight.upstream,
            reason=str(error),
            failures=failures,
        )


def count_error(flight: Flight, label: str, error: str) -> None:
    """Counts an error of the flight's upstream; a nearer source counts its own. `label`: see `FillTools`."""
    if not flight.source:
        telemetry.UPSTREAM_ERRORS.labels(label, error).inc()


def _is_unreachable(error: UpstreamError) -> bool:
    """True if upstream could not be reached at all: the next connection may succeed a moment later."""
    return isinstance(error, UpstreamUnavailable) and not isinstance(error, UpstreamTimeout) and error.status is None
