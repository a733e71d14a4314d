"""Further connections of a fill fetch bytes ahead of the prefix into the spans, while that makes the whole faster.

    answered ── upstream serves parts ──> the pace is measured ──> connections are begun, kept, given back ──> aclose
                                                │
         one connection: gap behind the prefix ── claimed ── opened ── received ──> the next gap
                                                     └── no turn, refused, broken, cut ──> given back; what came stays

A further connection is never needed: whatever happens to it, the filler fetches the rest. It waits for no turn at the
upstream, is asked for once, and its failure is no failure of the upstream (`BlobParts.further`). The filler's own
connection always goes on at the prefix; it waits for a further one that is there before it only while that brings
about as much as its own would (`hurry`). All connections end before the blob is verified, and whenever the fill ends.

What an upstream does is remembered for some minutes: that it ignores or refuses ranges, or wants few requests, and how
many connections were best.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Final

from mirror import telemetry
from mirror.aio.caches import TtlCache
from mirror.aio.singleflight import cancel_and_wait
from mirror.aio.threads import run_uninterrupted
from mirror.errors import (
    BlobDamaged,
    StoreError,
    UpstreamError,
    UpstreamInvalid,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from mirror.oci.digest import Digest
from mirror.oci.span import Span
from mirror.policy.fills.fill_ahead import RampUp, further_span, is_straggler, own_stop
from mirror.policy.fills.span_blocks import gaps
from mirror.ports import BlobParts, Body, Claim, Ingest, SaysStop, SaysThrottled, SaysWaiting, Spans

#: Seconds between two looks at the pace.
_TICK: Final = 0.05
#: Bytes that have arrived and wait, from which on this machine is slower than the upstream.
_MANY: Final = 512 << 10
#: Bytes out of turn that may wait for the filler.
_MOST_AHEAD: Final = 512 << 20
#: Seconds until a turn is looked for again when none was free.
_NO_TURN: Final = 1.0
#: Seconds for which it is remembered what an upstream does, and how many upstreams are remembered.
_REMEMBERED: Final = 300.0
_MOST_REMEMBERED: Final = 1000


class ConnectionMemory:
    """How many connections were best for the blobs of each upstream lately, by the name of its registry."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` counts seconds."""
        self._best: TtlCache[str, int] = TtlCache(_MOST_REMEMBERED, _REMEMBERED, clock)
        self._whole: TtlCache[str, bool] = TtlCache(_MOST_REMEMBERED, _REMEMBERED, clock)

    def __repr__(self) -> str:
        return f"<ConnectionMemory {dict(self._best)}>"

    def best(self, upstream: str) -> int | None:
        """The number of connections that was best; None if that is not known."""
        return 1 if upstream in self._whole else self._best.get(upstream)

    def note_best(self, upstream: str, connections: int) -> None:
        """A fill has found out how many are best; 1 also if the upstream wants fewer requests."""
        self._best[upstream] = connections

    def note_whole(self, upstream: str) -> None:
        """The upstream sends the whole blob, or nothing, when it is asked for a part."""
        self._whole[upstream] = True


class _Connection:
    """One further connection, and the part that it fetches."""

    def __init__(self, claim: Claim) -> None:
        self.task: asyncio.Task[None] | None = None
        self.claim = claim
        #: What it reads; None while it waits for its answer.
        self.body: Body | None = None
        #: Bytes of this part so far.
        self.received = 0
        self.is_cut = False
        #: True once it has brought a byte, of this part or of one before.
        self.has_begun = False

    def __repr__(self) -> str:
        return f"<_Connection for {self.claim.span}, {self.received} bytes{', cut' if self.is_cut else ''}>"

    @property
    def ends(self) -> int | None:
        """Where its answer ends."""
        return self.body.stop if isinstance(self.body, SaysStop) else None

    def fetches(self, offset: int) -> bool:
        """True if the byte is one of its part."""
        return self.claim.span.start <= offset < self.claim.span.stop

    def takes(self, claim: Claim) -> None:
        """It goes on with the next part."""
        self.claim = claim

    def cut(self) -> None:
        """End the part here."""
        self.is_cut = True
        self.claim.cut()
        if self.body is not None:
            self.body.abort()
        elif self.task is not None:
            self.task.cancel()


class FurtherConnections:
    """The further connections of one fill. On the event loop only."""

    def __init__(
        self,
        parts: BlobParts,
        upstream: str,
        digest: Digest,
        memory: ConnectionMemory,
        executor: Executor,
        *,
        label: str,
        spans: Callable[[int], Awaitable[Spans | None]],
        sleep: Callable[[float], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        """`spans` opens those of the blob, given its size in bytes; None: they are not to be used. `label` is the
        configured upstream that the registry `upstream` belongs to.
        """
        self._parts = parts
        self._upstream = upstream
        self._digest = digest
        self._memory = memory
        self._executor = executor
        self._label = label
        self._spans = spans
        self._sleep = sleep
        self._clock = clock
        self._ramp = RampUp(parts.most, memory.best(upstream))
        self._began: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._running: set[_Connection] = set()
        self._no_turn_until = float("-inf")
        #: Bytes of the filler's requests that are over, and of further parts that are.
        self._received = 0
        self._ingest: Ingest | None = None
        #: The filler's own request, from its opening to its end, and its answer.
        self._own: Span | None = None
        self._body: Body | None = None
        self._own_since = 0.0
        #: The bytes a second of the filler's last request.
        self._own_rate = 0.0
        #: What the filler waits for: the part of a further connection, since when, and the bytes that it had then.
        self._awaited: tuple[Claim, float, int] | None = None

    def __repr__(self) -> str:
        return f"<FurtherConnections {len(self._running)} of {self._ramp!r}>"

    # --------------------------------------------------------------------------------------- called by the filler

    def next_stop(self, ingest: Ingest, size: int, stop: int | None) -> int | None:
        """Where the filler's next request is to end, which may go up to `stop` (None: to the end of the blob, which has
        `size` bytes). It is the filler's until `ended`.
        """
        self.ended()
        self._ingest, self._awaited = ingest, None
        seconds = 0.0 if self._began is None else self._clock() - self._began
        end = own_stop(self._ramp, ingest.offset, size, seconds) or size
        end = end if stop is None else min(stop, end)
        self._own = Span(ingest.offset, end)
        return end if end < size else None

    def answered(self, body: Body, size: int | None) -> None:
        """The filler's request has been answered by the upstream itself. `size` is that of the whole blob, in bytes."""
        if self._began is None:
            self._began = self._clock()
        own, self._body = self._own, body
        self._own_since = self._clock()
        if own is None or size is None:
            return
        ends = body.stop if isinstance(body, SaysStop) else None
        is_bounded = own.stop < size
        if body.start != own.start or (is_bounded and (ends is None or ends > own.stop)):
            if isinstance(body, SaysThrottled) and body.throttled is not None:
                self._memory.note_best(self._upstream, 1)
            else:
                self._memory.note_whole(self._upstream)
            self._ramp.alone()
            self._own = Span(own.start, size)
            # the filler is sent their bytes as well
            for each in self._running:
                self._note_end("no gain")
                each.cut()
        elif is_bounded and self._task is None and self._parts.most > 1:
            rest = size - own.start
            self._task = asyncio.create_task(self._look_after(size, rest), name=f"connections for {self._digest}")

    def ended(self) -> None:
        """The filler's request is over, well or not. Repeatable."""
        self._body = None
        own, self._own = self._own, None
        if own is not None and self._ingest is not None:
            count, seconds = max(0, self._ingest.offset - own.start), self._clock() - self._own_since
            self._received += count
            if count and seconds > 0:
                self._own_rate = count / seconds

    def hurry(self, offset: int) -> None:
        """The filler waits for the bytes from `offset` on: ends a further connection that is too slow with them."""
        found = next((each for each in self._running if each.fetches(offset)), None)
        if found is None:
            self._awaited = None
        elif self._awaited is None or self._awaited[0] is not found.claim:
            self._awaited = found.claim, self._clock(), found.received
        else:
            _, since, before = self._awaited
            brought = found.received - before
            if is_straggler(self._clock() - since, brought, self._own_rate, has_begun=found.received > 0):
                self._awaited = None
                self._note_end("slow")
                self._ramp.lost()
                found.cut()

    def throttled(self) -> None:
        """The upstream wants fewer requests: no more connections than the filler's own."""
        self._memory.note_best(self._upstream, 1)
        self._ramp.alone()

    async def aclose(self) -> None:
        """Ends all connections, and returns once they have ended. Repeatable."""
        self.ended()
        tasks = (self._task, *(each.task for each in self._running))
        try:
            await cancel_and_wait(*(task for task in tasks if task is not None))
        finally:
            self._task = None
            self._running.clear()
            self._parts.release()
            if self._ramp.has_learnt:
                self._memory.note_best(self._upstream, self._ramp.wanted)

    # ------------------------------------------------------------------------------------------ in the background

    async def _look_after(self, size: int, rest: int) -> None:
        """Measures, and begins connections. `rest` bytes were missing when this began."""
        try:
            while True:
                self._measure(rest)
                while len(self._running) + 1 < self._ramp.wanted and await self._begin(size):
                    pass
                await self._sleep(_TICK)
        except Exception:
            telemetry.log.exception("connections for a blob crashed", digest=str(self._digest))
            self._ramp.alone()

    def _measure(self, rest: int) -> None:
        received = self._total()
        bodies = [body for body in (self._body, *(each.body for each in self._running)) if body is not None]
        behind = sum(isinstance(body, SaysWaiting) and body.waiting() >= _MANY for body in bodies)
        self._ramp.sample(self._clock(), received, rest - received, behind / len(bodies) if bodies else None)

    def _total(self) -> int:
        """The bytes that all connections have brought."""
        own = max(0, self._ingest.offset - self._own.start) if self._own and self._ingest else 0
        return self._received + own + sum(each.received for each in self._running)

    async def _begin(self, size: int) -> bool:
        """Begins one more connection. False if there is nothing for it to fetch, or no turn."""
        claim = None if self._clock() < self._no_turn_until else await self._claim(size)
        if claim is None:
            return False
        connection = _Connection(claim)
        self._running.add(connection)
        connection.task = asyncio.create_task(self._run(connection, size), name=f"connection for {self._digest}")
        connection.task.add_done_callback(lambda _: self._ended(connection))
        return True

    def _ended(self, connection: _Connection) -> None:
        self._running.discard(connection)
        # a task that is cancelled before it begins runs no `finally`
        connection.claim.release()

    async def _claim(self, size: int) -> Claim | None:
        """Claims the next part for a further connection; None if there is none, or spans cannot be used."""
        if self._ingest is None:
            return None
        try:
            spans = await self._spans(size)
            if spans is None:
                self._ramp.alone()
                return None
            wanted = Span(self._end_of_own(self._ingest), size)
            # in this order, see `Spans.taken`
            taken = spans.taken(wanted)
            here = spans.here(wanted)
            if sum(run.length for run in here) >= _MOST_AHEAD:
                # the filler has to copy them first
                return None
            free = gaps(wanted, [*taken, *here])
            span = further_span(self._ramp, free, size)
            claim = None if span is None else spans.claim(span)
            if claim is not None and claim.span.start < self._end_of_own(self._ingest):
                # a thread of the filler has copied these bytes meanwhile: they are no gap, but in the prefix
                claim.release()
                return None
            return claim
        except StoreError as error:
            self._note_end("store", error)
            self._ramp.alone()
            return None

    def _end_of_own(self, ingest: Ingest) -> int:
        """The offset before which the bytes are in the prefix, or asked for by the filler itself."""
        return self._own.stop if self._own else ingest.offset

    async def _run(self, connection: _Connection, size: int) -> None:
        try:
            while await self._receive(connection, size):
                if connection.is_cut:
                    return
                if len(self._running) + 1 > self._ramp.wanted:
                    self._note_end("no gain")
                    return
                claim = await self._claim(size)
                if claim is None:
                    return
                connection.takes(claim)
        except UpstreamThrottled as error:
            self._note_end("throttled", error)
            self.throttled()
        except UpstreamInvalid as error:
            self._note_end("no parts", error)
            self._memory.note_whole(self._upstream)
            self._ramp.alone()
        except (UpstreamError, BlobDamaged) as error:
            self._note_end("failed", error)
            self._ramp.lost()
        except StoreError as error:
            self._note_end("store", error)
            self._ramp.alone()
        except Exception:
            telemetry.log.exception("connection for a blob crashed", digest=str(self._digest))
            self._ramp.lost()

    async def _receive(self, connection: _Connection, size: int) -> bool:
        """Receives the part that the connection has claimed. False if there was no turn for it. Raises `UpstreamError`,
        `StoreError`.
        """
        claim, loop = connection.claim, asyncio.get_running_loop()
        start, stop = claim.offset, claim.span.stop

        def grown(offset: int) -> None:
            if not connection.has_begun:
                connection.has_begun = True
                loop.call_soon_threadsafe(self._has_first_byte)
            connection.received = offset - start

        try:
            async with self._parts.further(start, stop, size) as body:
                if body is None:
                    self._no_turn_until = self._clock() + _NO_TURN
                    return False
                connection.body = body
                if not connection.is_cut:
                    await run_uninterrupted(self._executor, claim.fill, body, grown, stop=body.abort)
                return True
        except UpstreamUnavailable:
            if connection.is_cut or (connection.received and claim.offset == connection.ends):
                # the rest is fetched by the filler; or the answer had less than was asked for, and there is a new gap
                return True
            raise
        finally:
            connection.body = None
            claim.release()
            count, connection.received = connection.received, 0
            self._received += count
            telemetry.UPSTREAM_BYTES.labels(self._label).inc(count)
            telemetry.FURTHER_BYTES.labels(self._label).inc(count)

    def _has_first_byte(self) -> None:
        self._ramp.is_sending(self._clock(), self._total())

    def _note_end(self, reason: str, error: Exception | None = None) -> None:
        telemetry.CONNECTIONS_GIVEN_BACK.labels(self._label, reason).inc()
        telemetry.log.info(
            "connection given back",
            digest=str(self._digest),
            upstream=self._upstream,
            reason=f"{reason}: {error}" if error else reason,
        )
