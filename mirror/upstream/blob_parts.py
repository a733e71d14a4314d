"""One blob in parts, over one connection after another and over several at once.

    turn ── taken by the first part ──> kept while parts end as they should ──> the last part, an error, `release`
    `take_turn` ── a turn before the first part ──> kept, also after an error ──> `release`
    further ── a turn of its own, only if one is free ──> one part ──> given back

Whoever waits for a turn waits in the order of asking. A flight that gave its turn back after each part would wait
behind all blobs that were asked for meanwhile, and its clients with it.

Small parts take their turn first: they claim bytes, for which a flight with a turn waits. If they waited for a turn
meanwhile, each would wait for the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, TypeAlias

from mirror.errors import UpstreamError, UpstreamInvalid, UpstreamUnavailable
from mirror.ports import Body
from mirror.upstream.http.body import EncodedBody, HttpBody

#: Opens a part, for which there is a turn: its start and its stop (None: the end of the blob).
Open: TypeAlias = Callable[[int, int | None], AbstractAsyncContextManager[Body]]
#: Opens a part by a further connection: its start, its stop, and the size of the whole blob.
OpenFurther: TypeAlias = Callable[[int, int, int], Coroutine[Any, Any, HttpBody]]

#: Opens a part at the first member that answers, by a function of its number; gives that number as well. The flag is
#: True for small parts.
Race: TypeAlias = Callable[
    [Callable[[int], AbstractAsyncContextManager[Body]], bool], AbstractAsyncContextManager[tuple[int, Body]]
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

    def __init__(self, turns: asyncio.Semaphore, open_part: Open, open_further: OpenFurther, most: int) -> None:
        """`turns` are those of all blobs at this address."""
        self.most = most
        self._turns = turns
        self._open = open_part
        self._open_further = open_further
        self._has_turn = False
        #: True if the turn is kept until `release`.
        self._keeps = False

    def __repr__(self) -> str:
        return f"<RegistryBlobParts of {self.most} connections{', has a turn' if self._has_turn else ''}>"

    async def take_turn(self) -> None:
        """See `BlobParts`."""
        await self._turn()
        self._keeps = True

    async def _turn(self) -> None:
        if not self._has_turn:
            await self._turns.acquire()
            self._has_turn = True

    @asynccontextmanager
    async def pull(self, start: int, stop: int | None = None) -> AsyncIterator[Body]:
        """See `BlobParts`. Not for several tasks at once."""
        await self._turn()
        keeps = False
        try:
            async with self._open(start, stop) as body:
                yield body
            keeps = stop is not None
        finally:
            if not (keeps or self._keeps):
                self.release()

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
        first: Callable[[], int],
        failed: Callable[[int, UpstreamError], None],
    ) -> None:
        """`first` gives the number of the member that small parts are asked of first. `failed` is called with the
        number and the error of a member that failed after its first part.
        """
        self._members = members
        self._race = race
        self._first = first
        self._failed = failed
        #: The number of the member that has answered.
        self._at: int | None = None
        #: True if a turn was taken before the first part.
        self._is_small = False

    def __repr__(self) -> str:
        return f"<EndpointBlobParts at {self._at} of {len(self._members)}>"

    @property
    def most(self) -> int:
        """See `BlobParts`."""
        return self._members[-1 if self._at is None else self._at].most

    async def take_turn(self) -> None:
        """See `BlobParts`. If another member answers, the first part waits for a turn there."""
        self._is_small = True
        await self._members[self._first() if self._at is None else self._at].take_turn()

    @asynccontextmanager
    async def pull(self, start: int, stop: int | None = None) -> AsyncIterator[Body]:
        """See `BlobParts`. Not for several tasks at once."""
        try:
            if self._at is None:
                racing = self._race(lambda number: self._members[number].pull(start, stop), self._is_small)
                async with racing as (at, body):
                    self._at = at
                    self._release(besides=at)
                    yield body
            else:
                async with self._again(self._at, start, stop) as body:
                    yield body
        except BaseException:
            self._at = None
            raise

    @asynccontextmanager
    async def _again(self, at: int, start: int, stop: int | None) -> AsyncIterator[Body]:
        try:
            async with self._members[at].pull(start, stop) as body:
                yield body
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
