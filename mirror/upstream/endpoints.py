"""Several addresses of one upstream: mirrors of it, tried in order, and last the registry itself.

A call:

    order ── ask the first ──┬── answer ───────────────────────────────────────> returned to the caller
      ^                      ├── any error, also 404: ask the next at once           (the body of a blob then
      │                      └── slow: after `hedge_after`, ask the next too          comes from this endpoint)
      │                              the first answer wins, the others are cancelled
      └── endpoints that are down come last; before them comes the endpoint that gave this blob just now: the blob is
          requested again because its body broke off, or did not have its digest

The last endpoint is the registry itself: if all endpoints fail, its error is raised. A 404 of a mirror proves nothing.
Each endpoint has its own connections, credentials and back-off: nothing that belongs to one is sent to another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from typing import Any, Final, Generic, TypeVar

from mirror import telemetry
from mirror.aio.caches import TtlCache
from mirror.aio.closing import close_all
from mirror.aio.singleflight import cancel_and_wait
from mirror.errors import (
    AskAgain,
    UpstreamCircuitOpen,
    UpstreamError,
    UpstreamInvalid,
    UpstreamNotFound,
    UpstreamUnavailable,
)
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, Manifest
from mirror.oci.reference import Reference
from mirror.policy.upstream.budget import Budget
from mirror.policy.upstream.endpoint_order import in_order
from mirror.policy.upstream.retrying import CLOSED, Circuit
from mirror.ports import Body, TagBatch
from mirror.upstream.blob_parts import EndpointBlobParts
from mirror.upstream.endpoint_health import Health
from mirror.upstream.registry import RegistryUpstream

T = TypeVar("T")

#: For how many seconds, and for how many blobs, it is remembered which endpoint gave them.
_AVOID_FOR: Final = 60.0
_MOST_REMEMBERED: Final = 4096


class EndpointsUpstream:
    """An `Upstream` over several endpoints.

    `hedge_after` is in seconds; None: wait for an answer, however slow. `clock` counts seconds.
    """

    def __init__(
        self,
        members: Sequence[RegistryUpstream],
        *,
        hedge_after: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`members` are in the order in which they are tried, the registry itself last."""
        self.members = tuple(members)
        self.name = self.members[-1].name
        self._hedge_after = hedge_after
        self._clock = clock
        self._circuits: list[Circuit] = [CLOSED] * len(self.members)
        self._probing: set[int] = set()
        #: The endpoint that gave a blob just now.
        self._given: TtlCache[Digest, int] = TtlCache(
            _MOST_REMEMBERED, _AVOID_FOR, lambda: self._clock(), name="endpoint answers"
        )

    @property
    def patience(self) -> float:
        """The patience of the registry itself; that of its mirrors does not count (see `Upstream`)."""
        return self.members[-1].patience

    @property
    def budget(self) -> Budget | None:
        """The pulls that the registry itself still allows us; None if it does not say."""
        return self.members[-1].budget

    def health(self) -> list[Health]:
        """The health of each address, in the configured order."""
        pairs = zip(self.members, self._circuits, strict=True)
        return [health for member, circuit in pairs for health in member.health(circuit)]

    async def resolve(self, repo: str, reference: Reference) -> Descriptor:
        """See `Upstream`."""
        return await self._first(lambda member: member.resolve(repo, reference))

    async def manifest(self, repo: str, reference: Reference) -> Manifest:
        """See `Upstream`."""
        return await self._first(lambda member: member.manifest(repo, reference))

    @asynccontextmanager
    async def blob(self, repo: str, digest: Digest, start: int = 0, stop: int | None = None) -> AsyncIterator[Body]:
        """See `Upstream`. If the same blob is requested again soon, other endpoints are tried first."""
        opening = self._opened(digest, lambda member: member.blob(repo, digest, start, stop))
        async with opening as (_, body):
            yield body

    def parts(self, repo: str, digest: Digest) -> EndpointBlobParts:
        """See `Upstream`."""
        return EndpointBlobParts(
            [member.parts(repo, digest) for member in self.members],
            lambda open_at, failures: self._opened(
                digest if failures is None else None, lambda member: open_at(self.members.index(member)), failures
            ),
            lambda besides: next(number for number in self._order() if number not in besides),
            self._failed,
        )

    @asynccontextmanager
    async def _opened(
        self,
        digest: Digest | None,
        open_at: Callable[[RegistryUpstream], AbstractAsyncContextManager[Body]],
        failures: dict[int, UpstreamError] | None = None,
    ) -> AsyncIterator[tuple[int, Body]]:
        """The body of the first member that answers, and the number of that member. None for a digest: it does not
        matter who gave the blob before, nor will it. Small parts of one blob come from the same member. `failures` are
        those of members that are not asked any more.
        """

        async def enter(member: RegistryUpstream) -> tuple[AsyncExitStack, Body]:
            async with AsyncExitStack() as stack:
                body = await stack.enter_async_context(open_at(member))
                return stack.pop_all(), body
            raise AssertionError("unreachable")

        async def leave(entered: tuple[AsyncExitStack, Body]) -> None:
            await entered[0].aclose()

        race = _Race(self._order(digest), self.members, enter, leave, self._hedge_after, self._failed, failures)
        number, (stack, body) = await self._run(race)
        if digest is not None:
            self._given[digest] = number
        async with stack:
            try:
                yield number, body
            except (UpstreamUnavailable, UpstreamInvalid) as error:
                self._failed(number, error)
                raise

    async def blob_size(self, repo: str, digest: Digest) -> int | None:
        """See `Upstream`."""
        return await self._first(lambda member: member.blob_size(repo, digest))

    async def tags(self, repo: str, after: str = "") -> AsyncGenerator[TagBatch, None]:
        """See `Upstream`. All batches come from the endpoint that gave the first: a mirror's list counts as whole."""

        async def enter(member: RegistryUpstream) -> tuple[AsyncGenerator[TagBatch, None], TagBatch]:
            batches = member.tags(repo, after)
            try:
                return batches, await anext(batches)
            except BaseException:
                await batches.aclose()
                raise

        async def leave(entered: tuple[AsyncGenerator[TagBatch, None], TagBatch]) -> None:
            await entered[0].aclose()

        race = _Race(self._order(), self.members, enter, leave, self._hedge_after, self._failed)
        number, (batches, first) = await self._run(race)
        self._circuits[number] = CLOSED
        async with aclosing(batches):
            yield first
            try:
                async for batch in batches:
                    yield batch
            except (UpstreamUnavailable, UpstreamInvalid) as error:
                self._failed(number, error)
                raise
        self._circuits[number] = CLOSED

    async def referrers(self, repo: str, digest: Digest) -> list[Descriptor]:
        """See `Upstream`. An empty list is believed only from the registry itself; of a mirror it counts as a 404."""
        last = self.members[-1]

        async def ask(member: RegistryUpstream) -> list[Descriptor]:
            referrers = await member.referrers(repo, digest)
            if not referrers and member is not last:
                raise UpstreamNotFound(f"{member.url} has no referrers of {digest}", upstream=self.name, status=404)
            return referrers

        return await self._first(ask)

    async def aclose(self) -> None:
        """Close every endpoint. Repeatable."""
        await close_all(*(member.aclose for member in self.members))

    async def _first(self, ask: Callable[[RegistryUpstream], Coroutine[Any, Any, T]]) -> T:
        race = _Race(self._order(), self.members, ask, _forget, self._hedge_after, self._failed)
        number, answer = await self._run(race)
        self._circuits[number] = CLOSED
        return answer

    async def _run(self, race: _Race[T]) -> tuple[int, T]:
        now = self._clock()
        probes = {n for n in race.order if self._circuits[n].verdict(now).probe and n not in self._probing}
        self._probing |= probes
        try:
            return await race.run()
        finally:
            self._probing -= probes

    def _order(self, digest: Digest | None = None) -> list[int]:
        avoid = self._given.get(digest) if digest else None
        return in_order(self._circuits, self._clock(), probing=self._probing, avoid=avoid)

    def _failed(self, number: int, error: UpstreamError) -> None:
        if isinstance(error, UpstreamCircuitOpen | AskAgain):
            return  # the endpoint was not asked, or will be asked again
        url = self.members[number].url
        telemetry.ENDPOINT_FAILURES.labels(self.name, url, type(error).__name__).inc()
        if not isinstance(error, UpstreamUnavailable | UpstreamInvalid):
            return  # the endpoint answered: not found, denied or throttled
        before = self._circuits[number]
        self._circuits[number] = before.failed(self._clock())
        if self._circuits[number].delay and not before.delay:
            telemetry.log.warning("endpoint paused", upstream=self.name, endpoint=url, reason=str(error))

    def __repr__(self) -> str:
        return f"<EndpointsUpstream {self.name} at {', '.join(member.url for member in self.members)}>"


class _Race(Generic[T]):
    """One call, to one endpoint after another or to several at once; the first answer wins.

    `discard` releases an answer that lost. `failed` is called with the number and the error of each failed endpoint.
    `errors` are those of endpoints that have failed before, and are not asked; others are added.
    """

    def __init__(
        self,
        order: Sequence[int],
        members: Sequence[RegistryUpstream],
        ask: Callable[[RegistryUpstream], Coroutine[Any, Any, T]],
        discard: Callable[[T], Awaitable[None]],
        hedge_after: float | None,
        failed: Callable[[int, UpstreamError], None],
        errors: dict[int, UpstreamError] | None = None,
    ) -> None:
        self._errors = {} if errors is None else errors
        self.order = [number for number in order if number not in self._errors]
        self._waiting = list(self.order)
        self._members = members
        self._ask = ask
        self._discard = discard
        self._hedge_after = hedge_after
        self._failed = failed
        self._running: dict[asyncio.Task[T], int] = {}
        #: What the caller has to wait for, of endpoints that may answer then.
        self._again: list[AskAgain] = []

    async def run(self) -> tuple[int, T]:
        """The number and the answer of the winner. Raises the error of the last member if all fail, and `AskAgain` if
        some have not been asked to the end.
        """
        winner: asyncio.Task[T] | None = None
        try:
            winner = await self._winner()
        finally:
            await self._end_others(winner)
        if winner is not None:
            return self._running[winner], winner.result()
        if self._again:
            # the longest: an address that has failed is asked again too, and not before its pause is over
            raise max(self._again, key=lambda error: error.retry_after)
        raise self._errors[len(self._members) - 1]

    async def _winner(self) -> asyncio.Task[T] | None:
        """The first task that ends with an answer; None if all fail."""
        while self._running or self._waiting:
            if not self._running:
                self._ask_next()
            patience = self._hedge_after if self._waiting else None
            done, _ = await asyncio.wait(self._running, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=self._running.__getitem__):
                if not self._lost(task):
                    return task
            if not done:
                self._ask_next()
        return None

    def _ask_next(self) -> None:
        number = self._waiting.pop(0)
        self._running[asyncio.create_task(self._ask(self._members[number]))] = number

    def _lost(self, task: asyncio.Task[T]) -> bool:
        error = task.exception()
        if error is None:
            return False
        number = self._running.pop(task)
        if not isinstance(error, UpstreamError):
            raise error
        if isinstance(error, AskAgain):
            self._again.append(error)
        else:
            self._errors[number] = error
        self._failed(number, error)
        return True

    async def _end_others(self, winner: asyncio.Task[T] | None) -> None:
        """Ends all tasks but the winner, and discards what they have. If this is cancelled, or fails, nobody gets the
        winner's answer either.
        """
        others = [task for task in self._running if task is not winner]
        try:
            await close_all(lambda: cancel_and_wait(*others), *(partial(self._discard_answer, task) for task in others))
        except BaseException:
            if winner is not None:
                await self._discard_answer(winner)
            raise

    async def _discard_answer(self, task: asyncio.Task[T]) -> None:
        """Discards what a task that has ended brought, if anything."""
        if not task.cancelled() and task.exception() is None:
            await self._discard(task.result())


async def _forget(_answer: object) -> None:
    """Discard an answer that holds no resources."""
