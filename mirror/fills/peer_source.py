"""Another replica as a source of cached blobs.

    open ── head ── first byte ──> the body is read ── to its end
      │       │         │                │
      └───────┴─────────┴────────────────┴── no sign for a while ──> "how far are you?", on a new connection
                                                 │
              no answer ─────────────────────────┤──> left at once: the next source, from the same byte
              twice: it has what it hardly ──────┤──> left
              sends, or does not fetch it        │
              it waits as well (slow upstream) ──┘──> waited for, as for the upstream itself, within reason

Before the head, "a while" is twice what nine of ten answers of that member take; afterwards it is a second. The member
sends the bytes of its growing file, but the last ones only when it has verified the whole. If all the bytes here are
those of another blob, every member that gave some is not asked for that blob again for some time; one that has sent
several whole blobs that were wrong is not asked for any.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from mirror import telemetry
from mirror.aio.caches import TtlCache
from mirror.aio.singleflight import cancel_and_wait
from mirror.errors import UpstreamError, UpstreamInvalid, UpstreamNotFound, UpstreamTimeout, UpstreamUnavailable
from mirror.fills.sources import PEER
from mirror.fills.watched_body import WatchedBody
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.cluster.ownership import MOST_HOPS, to_ask
from mirror.ports import Body, Liveness, Members, OrderedPurges, PeerBlobs

#: Seconds without a byte after which a member is asked how far it is.
_STALL: Final = 1.0
#: Seconds until the head of an answer is missed: at least, at most, and while nothing is known of the member. It is
#: then only asked whether it is alive, so a machine that is busy for a moment causes no second download.
_MISSED_LEAST: Final = 0.1
_MISSED_MOST: Final = 2.0
_MISSED_UNKNOWN: Final = 1.0
#: Bytes in that time that show that a member sends. One that has more, and sends fewer, is too slow.
_MOVES: Final = 64 << 10
#: The least seconds that a member gets to say how far it is.
_ALIVE: Final = 1.0
#: Looks in a row at which a member has what it does not send, or nothing, until it is left; and at which it only waits.
_MOST_IDLE: Final = 2
_MOST_PATIENT: Final = 600
#: Seconds for which a member is not asked for a blob of which it gave wrong bytes, and the most of these memories; so
#: many whole blobs that were wrong, until it is not asked for any.
_ACCUSED: Final = 600.0
_MOST_ACCUSED: Final = 10_000
_MOST_WRONG: Final = 3
#: Blobs that one process reads from other replicas at once, and seconds for which a further one waits. Each takes a
#: thread here while the member waits for its own source, and the member needs threads for that: if all of two replicas
#: waited for each other, none would be left to ask upstream. Nor may they be more than the connections of a member.
_AT_ONCE: Final = 64
_PATIENCE: Final = 60.0


class PeerReads:
    """How the flights of one process read blobs from other replicas."""

    def __init__(
        self,
        peers: PeerBlobs,
        members: Members,
        liveness: Liveness,
        *,
        purges: OrderedPurges | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        at_once: int = _AT_ONCE,
        patience: float = _PATIENCE,
    ) -> None:
        """A member that has not carried out one of the `purges` in a repository is not asked for blobs of it. `sleep`
        and `clock` count seconds. At most `at_once` blobs are read at the same time; others wait `patience` seconds for
        their turn.
        """
        self.peers: Final = peers
        self.liveness: Final = liveness
        self.sleep = sleep
        self.clock = clock
        self._turns = asyncio.Semaphore(at_once)
        #: Blobs that wait for their turn.
        self.waiting = 0
        self._patience = patience
        self._members = members
        self._purges = purges
        self._accused: TtlCache[tuple[str, Digest], bool] = TtlCache(
            _MOST_ACCUSED, _ACCUSED, clock, name="wrong blobs of peers"
        )
        #: How many whole blobs of a member were wrong.
        self._wrong: TtlCache[str, int] = TtlCache(_MOST_ACCUSED, _ACCUSED, clock)

    def __repr__(self) -> str:
        return f"<PeerReads {len(self._members.all())} members, {self.waiting} waiting, {len(self._accused)} wrong>"

    def sources(
        self,
        repo: Repo,
        digest: Digest,
        size: int | None,
        *,
        part: bool = False,
        hops: int = 0,
        besides: Collection[str] = (),
    ) -> list[PeerSource]:
        """The members to ask for a blob before its upstream, in this order. `size` is the size of the blob in bytes if
        a manifest of the repository says it. `part`: small parts are asked for, out of turn. `hops` counts the replicas
        that wait for this one, and `besides` are members that are not asked.
        """
        if hops >= MOST_HOPS:
            return []
        members = self._members
        return [
            PeerSource(self, member, repo, digest, size, hops + 1, part=part)
            for member in to_ask(members.own, repo.registry, digest, members.all(), members.is_up)
            if member not in besides and self._is_trusted(member, digest) and not self._may_keep(member, repo)
        ]

    @asynccontextmanager
    async def turn(self, *, waits: bool = True) -> AsyncIterator[None]:
        """One blob may be read here. Raises `UpstreamNotFound` if too many are read for too long; if it does not wait,
        at once.
        """
        if not waits and self._turns.locked():
            raise UpstreamNotFound("too many blobs are read from other replicas", upstream=PEER)
        self.waiting += 1
        try:
            async with asyncio.timeout(self._patience):
                await self._turns.acquire()
        except TimeoutError as error:
            raise UpstreamNotFound("too many blobs are read from other replicas", upstream=PEER) from error
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self._turns.release()

    def missed_after(self, member: str) -> float:
        """The seconds after which the head of a member's answer is missed."""
        usual = self.liveness.first_byte(member)
        return _MISSED_UNKNOWN if usual is None else min(max(2 * usual, _MISSED_LEAST), _MISSED_MOST)

    def _is_trusted(self, member: str, digest: Digest) -> bool:
        return (member, digest) not in self._accused and self._wrong.get(member, 0) < _MOST_WRONG

    def _may_keep(self, member: str, repo: Repo) -> bool:
        return self._purges is not None and self._purges.may_keep(member, repo)

    def accuse(self, member: str, digest: Digest, *, whole: bool) -> None:
        """Leave a member alone for this blob for some time, and for all blobs if several were wrong. `whole`: all bytes
        came from it.
        """
        self._accused[member, digest] = True
        if whole:
            self._wrong[member] = self._wrong.get(member, 0) + 1


class PeerSource:
    """`BlobSource` of one blob at one member. Not for two flights."""

    name: Final = PEER

    def __init__(
        self,
        reads: PeerReads,
        member: str,
        repo: Repo,
        digest: Digest,
        size: int | None,
        hops: int,
        *,
        part: bool = False,
    ) -> None:
        self._part = part
        self._reads = reads
        self.member = member
        self.repo = repo
        self.digest = digest
        self.size = size
        self._hops = hops
        self.gave = False
        #: True once all bytes of the blob have come from here.
        self._gave_all = False

    def __repr__(self) -> str:
        return f"<PeerSource {self.member} {self.digest}>"

    @asynccontextmanager
    async def pull(self, start: int, stop: int | None = None) -> AsyncIterator[Body]:
        """See `BlobSource`. Returns with the first byte: what fails before it is as if nobody had been asked. A member
        that runs an older version sends the rest of the blob, whatever `stop` is.
        """
        # others wait for a small part that is being asked for, and must not wait for turns as well
        async with self._reads.turn(waits=not self._part), self._watched(start, stop) as body:
            yield body

    @asynccontextmanager
    async def _watched(self, start: int, stop: int | None) -> AsyncIterator[Body]:
        ticket = self._reads.liveness.admit(self.member)
        if ticket is None:
            # nobody is asked, and nothing is counted as left
            telemetry.PEER_REQUESTS.labels("blob", "skipped").inc()
            raise UpstreamNotFound(f"{self.member} did not answer lately", upstream=PEER)
        watch = _Watch(self._reads, self, ticket, start)
        watching = asyncio.create_task(watch.run(), name=f"watch of {self.member}")
        try:
            async with AsyncExitStack() as stack:
                body = watch.body = WatchedBody(await self._open(stack, watch, start, stop), PEER)
                self.gave = True
                yield body
                # it was read to its end
                self._gave_all = not start and (stop is None or stop == body.size)
        finally:
            watch.end()
            await cancel_and_wait(watching)

    async def _open(self, stack: AsyncExitStack, watch: _Watch, start: int, stop: int | None) -> Body:
        opening = self._reads.peers.open(
            self.member,
            self.repo,
            self.digest,
            start,
            stop,
            size=self.size,
            hops=self._hops,
            heard=watch.heard,
            part=self._part,
        )
        try:
            async with asyncio.timeout(None) as waiting:
                watch.give_up = lambda: waiting.reschedule(asyncio.get_running_loop().time())
                with telemetry.client_span("peer blob", mirror__peer=self.member, mirror__digest=str(self.digest)):
                    return await stack.enter_async_context(opening)
        except TimeoutError as error:
            if not waiting.expired():
                raise
            raise UpstreamTimeout(f"{self.member} {watch.reason}", upstream=PEER) from error
        except UpstreamError as error:
            watch.refused(error)
            raise
        finally:
            watch.give_up = None

    async def accuse(self, reason: str) -> bool:
        """See `BlobSource`. Unless all bytes came from this member, those of another source may have been wrong."""
        self._reads.accuse(self.member, self.digest, whole=self._gave_all)
        if self._gave_all:
            telemetry.PEER_WRONG.inc()
            telemetry.log.error("peer gave wrong bytes", peer=self.member, digest=str(self.digest), reason=reason)
        return False


class _Watch:
    """Looks after one pull, and ends it if the member does not. It hands the ticket of the call back."""

    def __init__(self, reads: PeerReads, source: PeerSource, ticket: int, start: int) -> None:
        self._reads = reads
        self._source = source
        self._start = start
        self._began = reads.clock()
        self._ticket: int | None = ticket
        self._was_heard = False
        #: Set once bytes come.
        self.body: WatchedBody | None = None
        #: Ends the wait for the first byte; None when nobody waits.
        self.give_up: Callable[[], None] | None = None
        #: Why the member was left.
        self.reason = ""

    def heard(self) -> None:
        """The head of the answer is here."""
        if not self._was_heard:
            self._was_heard = True
            # without the size, the member waits for its own source first
            self._is_there(None if self._source.size is None else self._reads.clock() - self._began)

    def refused(self, error: UpstreamError) -> None:
        """Nothing was opened: the member is down, says no, or does not accept our requests."""
        if isinstance(error, UpstreamInvalid) or (isinstance(error, UpstreamUnavailable) and error.status is None):
            self._is_silent(str(error))
        else:
            self._is_there()

    def end(self) -> None:
        """The pull is over."""
        if (ticket := self._take_ticket()) is not None:
            self._reads.liveness.withdraw(self._source.member, ticket)

    async def run(self) -> None:
        """Returns when the member was left, if ever."""
        pause, idle, patient = self._reads.missed_after(self._source.member), 0, 0
        while True:
            before = self._signs()
            await self._reads.sleep(pause)
            pause = _STALL
            if self._has_moved(before) or not self._is_awaited():
                idle = patient = 0
                continue
            if self._signs() != before:
                # its own source may be as slow
                patient = 0
            silent = ""
            try:
                reason = await self._ask()
            except UpstreamError as error:
                reason = silent = f"does not answer: {error}"
            idle, patient = (idle + 1, patient) if reason else (0, patient + 1)
            is_over = silent or idle == _MOST_IDLE or patient == _MOST_PATIENT
            if is_over and not self._has_moved(before) and self._is_awaited():
                if silent:
                    self._is_silent(silent)
                self._leave(reason or "has had nothing to send for too long")
                return

    def _signs(self) -> tuple[bool, int]:
        return self._was_heard, self.body.received if self.body else -1

    def _has_moved(self, before: tuple[bool, int]) -> bool:
        was_heard, received = self._signs()
        return was_heard != before[0] or received - before[1] >= (_MOVES if before[1] >= 0 else 1)

    def _is_awaited(self) -> bool:
        return self.body.is_awaited if self.body else self.give_up is not None

    async def _ask(self) -> str:
        """Why the member is of no use now; empty if it waits for its own source. Raises `UpstreamError` if it does not
        answer.
        """
        source = self._source
        patience = max(self._reads.missed_after(source.member), _ALIVE)
        asking = asyncio.create_task(self._reads.peers.offset(source.member, source.repo, source.digest))
        timing = asyncio.ensure_future(self._reads.sleep(patience))
        try:
            await asyncio.wait({asking, timing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_and_wait(asking, timing)
        if asking.cancelled():
            raise UpstreamTimeout(f"nothing within {patience:g} s", upstream=PEER)
        offset = asking.result()
        if offset is None:
            return "does not fetch the blob"
        if source.size is not None and not self._was_heard:
            return "is there, and does not answer"
        here = self._start + (self.body.received if self.body else 0)
        return f"has {offset} bytes, and hardly sends any after {here}" if offset > here else ""

    def _leave(self, reason: str) -> None:
        self.reason = reason
        telemetry.log.warning("peer left", peer=self._source.member, digest=str(self._source.digest), reason=reason)
        if self.body:
            self.body.leave(f"{self._source.member} {reason}")
        elif self.give_up:
            self.give_up()

    def _is_there(self, seconds: float | None = None) -> None:
        if (ticket := self._take_ticket()) is not None:
            self._reads.liveness.answered(self._source.member, ticket, seconds)

    def _is_silent(self, reason: str) -> None:
        # a member that has answered, and falls silent later, needs a ticket of its own
        liveness, member = self._reads.liveness, self._source.member
        ticket = self._take_ticket()
        if ticket is None:
            ticket = liveness.admit(member)
        if ticket is not None:
            liveness.failed(member, ticket, reason)

    def _take_ticket(self) -> int | None:
        ticket, self._ticket = self._ticket, None
        return ticket
