"""What all workers are doing: each publishes its own status and reads that of the others
(`store/local/status_board.py`).

    each second: own status has changed ─────────────────> published
                 another process has purged something ──> forgotten here too

A worker that is asked combines its own current status with what the others published last.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from typing import Annotated, Any, Final, Literal, Protocol

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from mirror.fills.flights import Flights
from mirror.ports import BucketHealth
from mirror.rounds import run_rounds
from mirror.values.json_types import Bytes, Count, Seconds, Timestamp, about
from mirror.values.timestamps import moment

_EVERY: Final = 1.0
#: Downloads that one worker lists one by one.
_MOST: Final = 500

State = Literal["ok", "failing", "throttled", "down"]
#: States of an address, from best to worst.
_STATES: Final[tuple[State, ...]] = ("ok", "failing", "throttled", "down")

# ---------------------------------------------------------------------------------- what one worker publishes


class FlightJson(TypedDict):
    """A download in progress."""

    digest: str
    repository: Annotated[str | None, about("The repository whose pull began it.")]
    upstream: str
    received: Bytes
    size: Annotated[Bytes | None, about("Size of the whole; null: not known yet.")]
    followers: Annotated[Count, about("Number of clients that read it while it grows.")]
    filling: Annotated[bool, about("A worker of this mirror downloads it; false: another mirror on this store does.")]
    workers: Annotated[list[Count], about("Process ids of the workers that fill or follow it.")]


@dataclass(frozen=True, slots=True)
class LoginStatus:
    """Whether credentials can be obtained, or are accepted: the last failure, until the next success. Times are epoch
    seconds.
    """

    provider: str
    reason: str | None
    since: float
    failed_at: float
    worked_at: float


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """One address of an upstream. `retry_at` is in epoch seconds. `logins` are first obtaining credentials, then being
    accepted with them. `reason` says why the last request failed; empty if the state is `ok`.
    """

    url: str
    state: State
    failures: int
    retry_at: float
    logins: Sequence[LoginStatus] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class BudgetStatus:
    """The pulls that an upstream allows in `window` seconds, as it stated at `seen` (epoch seconds)."""

    limit: int
    remaining: int
    window: float
    seen: float


@dataclass(frozen=True, slots=True)
class UpstreamStatus:
    """One upstream."""

    name: str
    endpoints: Sequence[EndpointStatus]
    budget: BudgetStatus | None


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """Another replica as one worker sees it. `since` is in epoch seconds, None if the worker has not asked it;
    `first_byte` are the seconds within which nine of ten of its answers began, None if there were none.
    """

    address: str
    up: bool
    since: float | None
    reason: str
    version: str
    first_byte: float | None


@dataclass(frozen=True, slots=True)
class ReplicaWork:
    """What a worker publishes as a part of a replica: how it sees the others, and the notices of purges it has heeded;
    `every` is how often it looks, in seconds.
    """

    peers: Callable[[], Sequence[PeerStatus]]
    purges: Callable[[], Sequence[str]]
    every: float = 0.2


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker, by its process id; `started` is in epoch seconds. In a cluster, `peers` is how it sees the other
    replicas, and `purges` are the notices of purges that it has heeded.
    """

    worker: int
    started: float
    flights: Sequence[FlightJson]
    upstreams: Sequence[UpstreamStatus]
    bucket: BucketHealth | None = None
    peers: Sequence[PeerStatus] = ()
    purges: Sequence[str] = ()


_STATUS: Final = TypeAdapter(WorkerStatus)

# ----------------------------------------------------------------------------------------- what is answered


class WorkerJson(TypedDict):
    """A worker process."""

    worker: Annotated[Count, about("Its process id.")]
    uptime: Seconds
    flights: Annotated[Count, about("Number of downloads that it fills or follows.")]


class CredentialsFailureJson(TypedDict):
    """Why the mirror's own credentials cannot be obtained, or are refused."""

    provider: str
    reason: str
    since: Timestamp | None


class PeerJson(TypedDict):
    """Another replica of the cluster."""

    address: str
    up: Annotated[bool, about("It answers. False: a worker leaves it alone, or it was not asked yet.")]
    since: Annotated[Timestamp | None, about("Since when it answers, or does not; null: it was not asked yet.")]
    reason: Annotated[str | None, about("Why it is not up.")]
    version: Annotated[str | None, about("The version of its program; null: not known yet.")]
    first_byte: Annotated[Seconds | None, about("Nine of ten answers began within this time; null: there were none.")]


class EndpointJson(TypedDict):
    """An address of an upstream."""

    url: str
    state: State
    failures: Annotated[Count, about("Number of calls in a row without an answer.")]
    retry_in: Annotated[Seconds, about("Seconds until the mirror sends it a request again.")]
    reason: Annotated[str | None, about("Why the last request failed; null: the state is `ok`, or it is not known.")]
    credentials: Annotated[CredentialsFailureJson | None, about("Null: no failure is known.")]


class BudgetJson(TypedDict):
    """The pulls that an upstream allows."""

    limit: Count
    remaining: Count
    window: Annotated[Seconds, about("Seconds for which `limit` counts.")]
    seen: Annotated[Timestamp | None, about("When the upstream stated these numbers.")]
    resets_in: Seconds


class UpstreamJson(TypedDict):
    """An upstream, with the best state of its addresses."""

    name: str
    state: State
    endpoints: list[EndpointJson]
    budget: BudgetJson | None


# ------------------------------------------------------------------------------------------------- the workers


class SharedStatus(Protocol):
    """A board on which the processes of one store publish their status. All calls block briefly and raise
    `StoreError`.
    """

    def open(self) -> None:
        """Begin to publish."""

    def publish(self, status: Mapping[str, Any]) -> None:
        """Publish this status in place of the one before."""

    def others(self) -> list[dict[str, Any]]:
        """The last published status of every other live process."""

    def close(self) -> None:
        """Withdraw the published status."""


class Workers:
    """The status of all workers; each process has one. `look` is called each second."""

    def __init__(
        self,
        board: SharedStatus,
        flights: Flights,
        upstreams: Callable[[], list[UpstreamStatus]],
        *,
        bucket: Callable[[], BucketHealth | None] = lambda: None,
        look: Callable[[], Awaitable[None]] | None = None,
        replica: ReplicaWork | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`replica` is what a worker of a cluster publishes besides; None without other replicas."""
        self._board = board
        self._flights = flights
        self._upstreams = upstreams
        self._bucket = bucket
        self._look = look
        self._replica = replica
        self._every = replica.every if replica is not None else _EVERY
        self._sleep = sleep
        self._started = time.time()
        self._published: WorkerStatus | None = None

    def __repr__(self) -> str:
        return f"<Workers as seen by {os.getpid()}, up {self.uptime:.0f} s>"

    @property
    def uptime(self) -> float:
        """Seconds since this process started."""
        return _uptime(self._started)

    async def run(self) -> None:
        """Publish this worker's status each second; until cancelled."""
        is_open = False

        async def publish() -> None:
            nonlocal is_open
            if not is_open:
                await asyncio.to_thread(self._board.open)
                is_open = True
            if self._look is not None:
                await self._look()
            await self._publish()

        try:
            await run_rounds(
                publish,
                self._every,
                failed="worker status cannot be written",
                crashed="writing of worker status crashed",
                once=True,
                sleep=self._sleep,
            )
        finally:
            self._board.close()

    async def _publish(self) -> None:
        status = self._own()
        if status != self._published:
            await asyncio.to_thread(self._board.publish, asdict(status))
            self._published = status

    def _own(self) -> WorkerStatus:
        flights: list[FlightJson] = [
            {
                "digest": str(flight.digest),
                "repository": None if flight.on_behalf is None else str(flight.on_behalf),
                "upstream": flight.upstream,
                "received": flight.received,
                "size": flight.size,
                "followers": flight.followers,
                "filling": flight.filled_here,
                "workers": [os.getpid()],
            }
            for flight in list(self._flights.active())[:_MOST]
        ]
        replica = self._replica
        return WorkerStatus(
            os.getpid(),
            self._started,
            flights,
            self._upstreams(),
            self._bucket(),
            replica.peers() if replica is not None else (),
            replica.purges() if replica is not None else (),
        )

    async def _all(self) -> list[WorkerStatus]:
        return [self._own(), *await asyncio.to_thread(_published, self._board)]

    async def workers(self) -> list[WorkerJson]:
        """All workers, sorted by process id. Raises `StoreError`."""
        return _workers_json(await self._all())

    async def flights(self) -> list[FlightJson]:
        """The downloads under way, merged over all workers: one for each digest and upstream. Raises `StoreError`."""
        merged: dict[tuple[str, str], FlightJson] = {}
        for flight in (flight for status in await self._all() for flight in status.flights):
            known = merged.setdefault((flight["upstream"], flight["digest"]), flight)
            if known is not flight:
                known["workers"] += flight["workers"]
                known["followers"] += flight["followers"]
                known["received"] = max(known["received"], flight["received"])
                known["size"] = flight["size"] if known["size"] is None else known["size"]
                known["filling"] = known["filling"] or flight["filling"]
        return list(merged.values())

    async def peers(self) -> list[PeerJson]:
        """The other replicas, by address: the worst that any worker has seen of each. Raises `StoreError`."""
        merged: dict[str, PeerStatus] = {}
        for peer in (peer for status in await self._all() for peer in status.peers):
            known = merged.get(peer.address)
            merged[peer.address] = peer if known is None else _merged_peer(known, peer)
        return [_peer_json(merged[address]) for address in sorted(merged)]

    async def have_heeded(self, purges: Iterable[str]) -> bool:
        """True if every worker has heeded these notices of purges. Raises `StoreError`."""
        wanted = set(purges)
        return all(wanted <= set(status.purges) for status in await self._all())

    async def buckets(self) -> list[BucketHealth]:
        """How the bucket has answered each worker. Raises `StoreError`."""
        return [status.bucket for status in await self._all() if status.bucket is not None]

    async def upstreams(self) -> list[UpstreamJson]:
        """The upstreams by name: the worst state that any worker knows of each address, and the latest budget. Raises
        `StoreError`.
        """
        merged: dict[str, UpstreamStatus] = {}
        for status in await self._all():
            for upstream in status.upstreams:
                known = merged.get(upstream.name)
                merged[upstream.name] = upstream if known is None else _merged(known, upstream)
        return [_upstream_json(merged[name]) for name in sorted(merged)]


def published_workers(board: SharedStatus) -> list[WorkerJson]:
    """The workers of a mirror that does not answer, sorted by process id. Blocking. Raises `StoreError`."""
    return _workers_json(_published(board))


def _published(board: SharedStatus) -> list[WorkerStatus]:
    """What other processes have published."""
    found = []
    for published in board.others():
        try:
            found.append(_STATUS.validate_python(published))
        except ValidationError:
            # another version of the mirror on the same store may publish another form
            continue
    return found


def _workers_json(statuses: Iterable[WorkerStatus]) -> list[WorkerJson]:
    return [
        {"worker": status.worker, "uptime": _uptime(status.started), "flights": len(status.flights)}
        for status in sorted(statuses, key=lambda status: status.worker)
    ]


def _uptime(started: float) -> float:
    return round(max(0.0, time.time() - started), 1)


def _merged_peer(one: PeerStatus, other: PeerStatus) -> PeerStatus:
    worst = min(one, other, key=lambda peer: (peer.since is None, peer.up, -(peer.since or 0.0)))
    times = [peer.first_byte for peer in (one, other) if peer.first_byte is not None]
    return replace(worst, version=one.version or other.version, first_byte=max(times, default=None))


def _peer_json(peer: PeerStatus) -> PeerJson:
    return {
        "address": peer.address,
        "up": peer.up,
        "since": moment(peer.since) if peer.since is not None else None,
        "reason": peer.reason or None,
        "version": peer.version or None,
        "first_byte": round(peer.first_byte, 3) if peer.first_byte is not None else None,
    }


def _merged(one: UpstreamStatus, other: UpstreamStatus) -> UpstreamStatus:
    endpoints = {endpoint.url: endpoint for endpoint in one.endpoints}
    for endpoint in other.endpoints:
        known = endpoints.get(endpoint.url)
        if known is not None:
            logins = [_merged_login(*pair) for pair in zip_longest(known.logins, endpoint.logins)]
            endpoint = replace(max(known, endpoint, key=lambda each: _STATES.index(each.state)), logins=logins)
        endpoints[endpoint.url] = endpoint
    budgets = [budget for budget in (one.budget, other.budget) if budget is not None]
    latest = max(budgets, key=lambda budget: budget.seen, default=None)
    return UpstreamStatus(one.name, tuple(endpoints.values()), latest)


def _merged_login(one: LoginStatus | None, other: LoginStatus | None) -> LoginStatus:
    """The results of two workers for one check. The latest result counts, because a worker that no longer calls the
    address keeps publishing its last result.
    """
    known = [login for login in (one, other) if login is not None]
    if len(known) == 1:
        return known[0]
    worked_at = max(login.worked_at for login in known)
    failing = [login for login in known if login.reason is not None and login.failed_at > worked_at]
    if not failing:
        return replace(known[0], reason=None, worked_at=worked_at)
    latest = max(failing, key=lambda login: login.failed_at)
    return replace(latest, since=min(login.since for login in failing), worked_at=worked_at)


def _failure(logins: Iterable[LoginStatus]) -> CredentialsFailureJson | None:
    """The first failing check, or None. The order matters: without credentials, being let in with them cannot
    succeed.
    """
    for login in logins:
        if login.reason is not None:
            return {"provider": login.provider, "reason": login.reason, "since": moment(login.since)}
    return None


def _upstream_json(upstream: UpstreamStatus) -> UpstreamJson:
    now = time.time()
    budget: BudgetJson | None = None
    if upstream.budget is not None:
        resets_at = upstream.budget.seen + upstream.budget.window
        budget = {
            "limit": upstream.budget.limit,
            "remaining": upstream.budget.remaining,
            "window": upstream.budget.window,
            "seen": moment(upstream.budget.seen),
            "resets_in": round(max(0.0, resets_at - now), 1),
        }
    return {
        "name": upstream.name,
        # the upstream works as long as one address does
        "state": min((endpoint.state for endpoint in upstream.endpoints), key=_STATES.index, default="ok"),
        "endpoints": [
            {
                "url": endpoint.url,
                "state": endpoint.state,
                "failures": endpoint.failures,
                "retry_in": round(max(0.0, endpoint.retry_at - now), 1),
                "reason": endpoint.reason or None,
                "credentials": _failure(endpoint.logins),
            }
            for endpoint in upstream.endpoints
        ],
        "budget": budget,
    }
