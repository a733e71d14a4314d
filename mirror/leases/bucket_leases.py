"""Leases in a bucket: of all replicas of a cluster, one does a piece of work.

    free ── try_hold ──> ours ── renewed every 5 s ──> … ── release ──> free
                          ├── not renewed for 15 s, or the object is another's ──> lost
                          └── the process dies, or is frozen ── another replica sees the same version for 20 s
                                                                 ──> that replica's, by compare-and-set

    leases/<name>      JSON: {"name", "holder", "since", "nonce"}; free: without a holder

No two clocks are compared. Each renewal writes a nonce that nobody has used, so an object that has the same version at
two looks was not renewed between them; how long that is, the replica that looks knows by its own clock. The holder
counts the time since it has sent the last renewal that succeeded, by a clock that goes on while the machine sleeps: so
it counts the lease as lost before anybody else can take it, and a holder that was frozen knows it at its first look.

A lease is never deleted: a deletion cannot depend on a version, and could arrive late.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import secrets
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Protocol

from mirror.aio.cancellation import raise_if_cancelled
from mirror.aio.threads import run_uninterrupted
from mirror.clock import steady_time
from mirror.errors import RecordChanged, StoreError
from mirror.leases.fenced_records import FencedRecords
from mirror.ports import ABSENT, Expected, NotChanged, ObjectReader, ObjectWriter, Records, Version
from mirror.telemetry import LEASES_LOST, LEASES_TAKEN_OVER, log

#: The folder of all leases.
LEASES: Final = "leases/"
#: A lease of such a name has it in its key; other names are hashed.
_PLAIN: Final = re.compile(r"[a-z][0-9a-z-]{0,99}")
#: Bytes. No lease is larger.
_LIMIT: Final = 64 << 10
#: Threads that take, renew and release leases.
_THREADS: Final = 4
#: Seconds for which `aclose` waits until leases are released.
_PATIENCE: Final = 5.0
_FIRST_WAIT: Final = 0.002


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """Seconds: how often a lease is renewed, after which time without renewal its holder counts it as lost, and after
    which time with the same version another replica takes it. `ask_again` is the longest pause of whoever waits.
    """

    renew_every: float = 5.0
    lost_after: float = 15.0
    taken_after: float = 20.0
    ask_again: float = 1.0

    def __post_init__(self) -> None:
        if not self.renew_every < self.lost_after < self.taken_after:
            raise ValueError("a lease must be renewed before it is lost, and lost before it is taken")


@dataclass(frozen=True, slots=True)
class LeaseState:
    """Who has a lease, since when (epoch seconds, by the holder's clock). `holder` is empty if the lease is free."""

    name: str
    holder: str
    since: float


class LeaseObjects(ObjectReader, ObjectWriter, Protocol):
    """What leases need of a bucket."""


@dataclass(frozen=True, slots=True)
class _Taken:
    """An object that this process has just written: its version, and when the request was begun."""

    version: Version
    nonce: str
    began: float
    since: float


@dataclass(slots=True)
class _Seen:
    """An object of another holder: its version, its state, and since when this process has seen that version."""

    version: Version
    state: LeaseState
    at: float


class BucketLease:
    """See `mirror.ports.Lease`. `lost` also looks at the clock, so that a holder that was frozen knows at once."""

    def __init__(self, leases: BucketLeases, name: str, taken: _Taken) -> None:
        self.name: Final = name
        self.lost: Final = _Lost(self._is_overdue)
        self.since: Final = taken.since
        self._leases = leases
        self._version = taken.version
        self._renewed_at = taken.began
        #: All nonces that may be in the object although their writes got no answer.
        self._nonces = {taken.nonce}
        self._writing = threading.Lock()
        self._released = False
        self._keeping: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<BucketLease {self.name} {'released' if self._released else 'lost' if self.lost.is_set() else 'held'}>"

    def __enter__(self) -> BucketLease:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.release()

    def fence(self, records: Records) -> Records:
        """See `Lease.fence`."""
        return FencedRecords(records, self)

    def release(self) -> None:
        if self._released:
            return
        self._released = True
        if self._keeping is not None:
            self._keeping.cancel()
        self._leases.released(self)

    def still_held(self) -> bool:
        """Blocking: renews the lease, to be sure. Raises `StoreError` if the bucket cannot say."""
        return not self._released and self.renew() and not self.lost.is_set()

    def renew(self) -> bool:
        """Blocking: False if another replica has taken the lease. Raises `StoreError`."""
        with self._writing:
            return self._write(lambda nonce: self._leases.content(self.name, nonce, self.since))

    def free(self) -> None:
        """Blocking: lets others have the lease, if it is still ours. Raises `StoreError`."""
        with self._writing:
            self._write(lambda nonce: self._leases.content(self.name, nonce, None))

    def _write(self, content: Callable[[str], bytes]) -> bool:
        nonce, began = secrets.token_hex(8), self._leases.clock()
        self._nonces.add(nonce)
        while True:
            try:
                version = self._leases.bucket.write(key_of(self.name), content(nonce), expect=self._version)
            except RecordChanged:
                ours = self._ours()
                if ours is None:
                    return False
                self._version = ours
                continue
            self._version, self._nonces, self._renewed_at = version, {nonce}, began
            return True

    def _ours(self) -> Version | None:
        """The version of the object if a write of ours made it whose answer was lost; None if another did."""
        found = self._leases.bucket.read(key_of(self.name), _LIMIT)
        if found is None or isinstance(found, NotChanged) or found.version == self._version:
            return None
        return found.version if _parse(found.content)[1] in self._nonces else None

    def _is_overdue(self) -> bool:
        if self._released:
            return False
        return self._leases.clock() - self._renewed_at > self._leases.times.lost_after

    def begin_keeping(self, keeping: asyncio.Task[None]) -> None:
        """The task that renews this lease."""
        self._keeping = keeping

    @property
    def left(self) -> float:
        """Seconds until the lease counts as lost."""
        return self._leases.times.lost_after - (self._leases.clock() - self._renewed_at)

    def lose(self, reason: str) -> None:
        """The lease may be another's from now on."""
        if not self._released and not self.lost.is_noted:
            log.warning("lease lost", lease=self.name, reason=reason)
            LEASES_LOST.inc()
        self.lost.set()


class _Lost(asyncio.Event):
    """Is set as soon as the time is over, whether or not anybody has noticed."""

    def __init__(self, is_overdue: Callable[[], bool]) -> None:
        super().__init__()
        self._is_overdue = is_overdue

    @property
    def is_noted(self) -> bool:
        """Whether somebody has set it."""
        return super().is_set()

    def is_set(self) -> bool:
        return super().is_set() or self._is_overdue()


class BucketLeases:
    """`Locks` of all replicas. Belongs to one event loop. No thread is started before the first call."""

    def __init__(
        self,
        bucket: LeaseObjects,
        holder: str,
        *,
        times: LeaseTimes | None = None,
        clock: Callable[[], float] = steady_time,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`holder` names this replica, for people. `clock` must not stop while the machine sleeps; `now` is in epoch
        seconds, for people. `check` blocks, and raises `StoreError` if this replica should not do such work now.
        """
        self.bucket: Final = bucket
        self.times: Final = times or LeaseTimes()
        self.clock: Final = clock
        self._holder = holder
        self._now = now
        self._sleep = sleep
        self._check = check
        self._pool = ThreadPoolExecutor(_THREADS, "leases")
        self._held: dict[str, BucketLease] = {}
        self._seen: dict[str, _Seen] = {}
        self._freeing: set[Future[None]] = set()

    def __repr__(self) -> str:
        return f"<BucketLeases of {self._holder}, held {sorted(self._held)}>"

    def content(self, name: str, nonce: str, since: float | None) -> bytes:
        """The object of a lease that this replica has since then; None: that is free."""
        said: dict[str, object] = {"name": name, "nonce": nonce}
        if since is not None:
            said |= {"holder": self._holder, "since": since}
        return json.dumps(said).encode()

    # ------------------------------------------------------------------------------------------------------- taking

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[BucketLease]:
        """See `Locks.hold`."""
        wait = _FIRST_WAIT
        while (lease := await self.try_hold(name)) is None:
            await self._sleep(min(wait, self.times.ask_again))
            wait *= 2
        with lease:
            yield lease

    async def try_hold(self, name: str) -> BucketLease | None:
        """See `Locks.try_hold`. The lease of a replica that is gone is taken by a call that comes at least
        `times.taken_after` seconds after another one.
        """
        if name in self._held:
            return None
        taken = await run_uninterrupted(
            self._pool, self._take, name, unwanted=lambda taken: self._give_back(name, taken)
        )
        if taken is None:
            return None
        lease = BucketLease(self, name, taken)
        self._held[name] = lease
        lease.begin_keeping(asyncio.get_running_loop().create_task(self._keep(lease)))
        return lease

    async def is_held(self, name: str) -> bool:
        """See `Locks.is_held`."""
        if name in self._held:
            return True
        return await run_uninterrupted(self._pool, self._is_held, name)

    def _is_held(self, name: str) -> bool:
        seen = self._look(name)
        return isinstance(seen, _Seen) and not self._is_abandoned(seen)

    def _is_abandoned(self, seen: _Seen) -> bool:
        return self.clock() - seen.at >= self.times.taken_after

    def _take(self, name: str) -> _Taken | None:
        """Blocking: writes the lease, if it is free, or if nobody renews it."""
        seen = self._look(name)
        if isinstance(seen, _Seen) and not self._is_abandoned(seen):
            return None
        self._check()
        nonce, began, since = secrets.token_hex(8), self.clock(), self._now()
        expect = seen.version if isinstance(seen, _Seen) else seen
        try:
            version = self.bucket.write(key_of(name), self.content(name, nonce, since), expect=expect)
        except RecordChanged:
            return None
        self._seen.pop(name, None)
        if isinstance(seen, _Seen):
            log.warning("lease taken over", lease=name, holder=seen.state.holder, since=seen.state.since)
            LEASES_TAKEN_OVER.inc()
        return _Taken(version, nonce, began, since)

    def _look(self, name: str) -> _Seen | Expected:
        """Another's lease, as this process has seen it; if it is free, the version to expect."""
        known = self._seen.get(name)
        found = self.bucket.read(key_of(name), _LIMIT, unless=known.version if known else None)
        if found is None:
            self._seen.pop(name, None)
            return ABSENT
        if isinstance(found, NotChanged) or (known is not None and known.version == found.version):
            assert known is not None  # noqa: S101 - asked only if there is one
            return known
        state, _nonce = _parse(found.content)
        if state is not None and not state.holder:
            self._seen.pop(name, None)
            return found.version
        seen = _Seen(found.version, state or LeaseState(name, "", 0.0), self.clock())
        self._seen[name] = seen
        return seen

    # ------------------------------------------------------------------------------------------------------ keeping

    async def _keep(self, lease: BucketLease) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._sleep(self.times.renew_every)
            if lease.lost.is_set():
                lease.lose("it was not renewed in time")
                return
            renewing = loop.run_in_executor(self._pool, lease.renew)
            # a bucket that does not answer must not hide that the time is over
            await asyncio.wait({renewing}, timeout=max(0.0, lease.left))
            if not renewing.done():
                renewing.add_done_callback(_ignore)
                lease.lose("the bucket does not answer")
                return
            try:
                if not renewing.result():
                    lease.lose("another replica has taken it")
                    return
            except StoreError as error:
                log.info("lease not renewed", lease=lease.name, reason=str(error))
            except (Exception, asyncio.CancelledError) as error:
                raise_if_cancelled(error)
                # whatever the error: this goes on, so that the holder learns it once the time is over
                log.exception("renewal of a lease crashed", lease=lease.name)

    def released(self, lease: BucketLease) -> None:
        """Called by a lease that is released: the object is written behind."""
        if self._held.get(lease.name) is lease:
            del self._held[lease.name]
        if not lease.lost.is_set():
            self._behind(lease.free)

    def _give_back(self, name: str, taken: _Taken | None) -> None:
        if taken is not None:
            self._behind(BucketLease(self, name, taken).free)

    def _behind(self, work: Callable[[], None]) -> None:
        def quiet() -> None:
            # otherwise the lease expires
            with suppress(StoreError):
                work()

        with suppress(RuntimeError):
            freeing = self._pool.submit(quiet)
            self._freeing.add(freeing)
            freeing.add_done_callback(self._freeing.discard)

    async def aclose(self) -> None:
        """Release all leases, and wait a few seconds until that is written. Repeatable."""
        for lease in list(self._held.values()):
            lease.release()
        try:
            if pending := [asyncio.wrap_future(each) for each in list(self._freeing)]:
                await asyncio.wait(pending, timeout=_PATIENCE)
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)


class LeaseBoard:
    """Who has which lease, for people. All calls block."""

    def __init__(self, bucket: ObjectReader, work: Mapping[str, str]) -> None:
        """`work` are the leases that are shown, and what people call their work."""
        self._bucket = bucket
        self._work = dict(work)

    def __repr__(self) -> str:
        return f"<LeaseBoard {', '.join(self._work)}>"

    def states(self) -> Sequence[LeaseState]:
        """The leases that a replica has, or had when it was lost. Raises `StoreError`."""
        found = [(work, self._state(name)) for name, work in self._work.items()]
        return [replace(state, name=work) for work, state in found if state is not None and state.holder]

    def _state(self, name: str) -> LeaseState | None:
        found = self._bucket.read(key_of(name), _LIMIT)
        return None if found is None or isinstance(found, NotChanged) else _parse(found.content)[0]


def key_of(name: str) -> str:
    """The key of a lease."""
    plain = name if _PLAIN.fullmatch(name) else f"_{hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}"
    return f"{LEASES}{plain}"


def _parse(content: bytes) -> tuple[LeaseState | None, str]:
    """What the object of a lease says, and its nonce; None if it is damaged: then somebody may have it."""
    try:
        said = json.loads(content)
        state = LeaseState(str(said["name"]), str(said.get("holder", "")), float(said.get("since", 0.0)))
        return state, str(said["nonce"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, ""


def _ignore(renewing: asyncio.Future[bool]) -> None:
    """Takes the error of a renewal that nobody waits for any more."""
    if not renewing.cancelled():
        renewing.exception()
