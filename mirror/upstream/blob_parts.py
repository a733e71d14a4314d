"""One blob in parts, over one connection after another and over several at once.

    turn ── taken by the first part ──> kept while parts end as they should ──> the last part, an error, `release`
    further ── a turn of its own, only if one is free ──> one part ──> given back
    `take_turn` ── a turn before the first part ──> kept, also after an error ──> `release`
       ^                                             └── pull: asks once ── no turn at another address, or a pause
       └── the caller has waited ──────────────────────────────────────────  before the next try ──> `AskAgain`

Whoever waits for a turn waits in the order of asking. A flight that gave its turn back after each part would wait
behind all blobs that were asked for meanwhile, and its clients with it.

Small parts take their turn before they claim bytes. If they waited for a turn with a claim, a flight that has a turn
could wait for these bytes, and each would wait for the other. Once they have claimed, they wait for an answer and for
nothing else: all others who want these bytes would wait with them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, TypeAlias

from mirror.errors import AskAgain, UpstreamError, UpstreamInvalid, UpstreamUnavailable
from mirror.ports import Body
from mirror.upstream.http.body import EncodedBody, HttpBody

#: Opens a part, for which there is a turn: its start, its stop (None: the end of the blob), and the tries before this
#: one, in which case `AskAgain` is raised in place of a pause; None: it is tried again after pauses.
Open: TypeAlias = Callable[[int, int | None, int | None], AbstractAsyncContextManager[Body]]
#: Opens a part by a further connection: its start, its stop, and the size of the whole blob.
OpenFurther: TypeAlias = Callable[[int, int, int], Coroutine[Any, Any, HttpBody]]

#: Opens a part at the first member that answers, by a function of its number; gives that number as well. For small
#: parts, the errors of members that are not asked any more, to which others are added; None: the part is not small.
Race: TypeAlias = Callable[
    [Callable[[int], AbstractAsyncContextManager[Body]], dict[int, UpstreamError] | None],
    AbstractAsyncContextManager[tuple[int, Body]],
]


@contextmanager
def closed_after(body: HttpBody | EncodedBody) -> Iterator[None]:
    """Closes the body at the end. If its answer was invalid, its end is not trusted either: the connection is not used
    again.
    """
    try:
        yield
    except UpstreamInvalid:
        body.abort()
        raise
    finally:
        body.close()


class RegistryBlobParts:
    """`BlobParts` at one address."""

    def __init__(
        self,
        upstream: str,
        turns: asyncio.Semaphore,
        open_part: Open,
        open_further: OpenFurther,
        prepare: Callable[[], Awaitable[None]],
        most: int,
    ) -> None:
        """`turns` are those of all blobs at this address. `prepare` makes sure, if it can, that a token is at hand.
        `upstream` is the registry's name.
        """
        self.most = most
        self._upstream = upstream
        self._turns = turns
        self._open = open_part
        self._open_further = open_further
        self._prepare = prepare
        self._has_turn = False
        #: True if the turn is kept until `release`.
        self._keeps = False
        #: True for small parts: whoever asks for them waits in `take_turn` alone.
        self._is_small = False
        #: The tries of the present small part.
        self._tries = 0

    def __repr__(self) -> str:
        return f"<RegistryBlobParts of {self.most} connections{', has a turn' if self._has_turn else ''}>"

    async def take_turn(self) -> None:
        """See `BlobParts`."""
        self._is_small = True
        await self._prepare()
        await self._turn()
        self._keeps = True

    async def _turn(self) -> None:
        if not self._has_turn:
            await self._turns.acquire()
            self._has_turn = True

    @asynccontextmanager
    async def pull(self, start: int, stop: int | None = None) -> AsyncIterator[Body]:
        """See `BlobParts`. Not for several tasks at once."""
        if self._is_small:
            async with self.pull_at_once(start, stop) as body:
                yield body
            return
        await self._turn()
        keeps = False
        try:
            async with self._open(start, stop, None) as body:
                yield body
            keeps = stop is not None
        finally:
            if not (keeps or self._keeps):
                self.release()

    @asynccontextmanager
    async def pull_at_once(self, start: int, stop: int | None = None) -> AsyncIterator[Body]:
        """Like `pull` of a small part, also without a turn, if one is free. Raises `AskAgain`."""
        if not self._has_turn and self._turns.locked():
            raise AskAgain("no turn is free", upstream=self._upstream, retry_after=0.0)
        # does not wait: a turn is free
        await self._turn()
        self._keeps = True
        try:
            async with self._open(start, stop, self._tries) as body:
                self._tries = 0
                yield body
        except AskAgain:
            self._tries += 1
            raise

    @asynccontextmanager
    async def further(self, start: int, stop: int, size: int) -> AsyncIterator[Body | None]:
        """See `BlobParts`."""
        if self._turns.locked():
            yield None
            return
        # does not wait: a turn is free
        async with self._turns:
            body = await self._open_further(start, stop, size)
            with closed_after(body):
                yield body

    def release(self) -> None:
        """See `BlobParts`."""
        self._keeps = False
        if self._has_turn:
            self._has_turn = False
            self._turns.release()


class EndpointBlobParts:
    """`BlobParts` at several addresses: all parts come from the one that has answered, while that goes well."""

    def __init__(
        self,
        members: Sequence[RegistryBlobParts],
        race: Race,
        first: Callable[[Collection[int]], int],
        failed: Callable[[int, UpstreamError], None],
    ) -> None:
        """`first` gives the number of the member that small parts are asked of first, besides some. `failed` is called
        with the number and the error of a member that failed after its first part.
        """
        self._members = members
        self._race = race
        self._first = first
        self._failed = failed
        #: The number of the member that has answered.
        self._at: int | None = None
        #: The members that cannot give the present part, and why; None if parts are not small.
        self._failures: dict[int, UpstreamError] | None = None

    def __repr__(self) -> str:
        return f"<EndpointBlobParts at {self._at} of {len(self._members)}>"

    @property
    def most(self) -> int:
        """See `BlobParts`."""
        return self._members[-1 if self._at is None else self._at].most

    async def take_turn(self) -> None:
        """See `BlobParts`: a turn at the member that is asked next."""
        if self._failures is None:
            self._failures = {}
        number = self._first(self._failures) if self._at is None else self._at
        # whoever has a turn here and waits for one there makes others wait who need neither
        self._release(besides=number)
        await self._members[number].take_turn()

    @asynccontextmanager
    async def pull(self, start: int, stop: int | None = None) -> AsyncIterator[Body]:
        """See `BlobParts`. Not for several tasks at once."""
        try:
            if self._at is None:
                async with self._race(lambda number: self._pull_at(number, start, stop), self._failures) as (at, body):
                    self._at = at
                    self._release(besides=at)
                    if self._failures:
                        self._failures.clear()
                    yield body
            else:
                async with self._again(self._at, start, stop) as body:
                    yield body
        except AskAgain:
            # of the same members
            raise
        except BaseException:
            self._at = None
            if self._failures:
                self._failures.clear()
            raise

    def _pull_at(self, number: int, start: int, stop: int | None) -> AbstractAsyncContextManager[Body]:
        member = self._members[number]
        return member.pull(start, stop) if self._failures is None else member.pull_at_once(start, stop)

    @asynccontextmanager
    async def _again(self, at: int, start: int, stop: int | None) -> AsyncIterator[Body]:
        try:
            async with self._pull_at(at, start, stop) as body:
                yield body
        except AskAgain:
            raise
        except (UpstreamUnavailable, UpstreamInvalid) as error:
            self._failed(at, error)
            raise

    @asynccontextmanager
    async def further(self, start: int, stop: int, size: int) -> AsyncIterator[Body | None]:
        """See `BlobParts`."""
        if self._at is None:
            yield None
            return
        async with self._members[self._at].further(start, stop, size) as body:
            yield body

    def release(self) -> None:
        """See `BlobParts`."""
        self._release()

    def _release(self, besides: int | None = None) -> None:
        for number, member in enumerate(self._members):
            if number != besides:
                member.release()
