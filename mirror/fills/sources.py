"""Where the bytes of one blob come from: nearer sources first (a bucket, other replicas), and last the one that is
waited for: its upstream, or for hosted content the bucket.

    nearer ── absent, down, slow ──────────────────> the next source                      as if it had not been asked
       ├───── breaks off, stalls, another size ────> the next source, from the same byte  `SourceLeft`
       └───── all its bytes, of another digest ────> `accuse`: out of service; the flight fails, and the next one,
                                                     which begins at once, does without it

A nearer source is asked once, and nobody waits for it. For the last one, the fill waits and tries again by its own
rules (`filler.py`). That a bucket has a blob gives nobody a right to it: it is a source only for repositories one of
whose manifests names the blob. Another replica answers by the rights of the same repository, as upstream does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Final, Protocol, TypeAlias

from mirror import telemetry
from mirror.errors import StoreError, UpstreamError, UpstreamNotFound, UpstreamUnavailable
from mirror.ports import BlobParts, Body


class Pull(Protocol):
    """Opens a blob."""

    def __call__(self, start: int, stop: int | None = None, /) -> AbstractAsyncContextManager[Body]:
        """Opens the blob from the offset `start` up to, but not including, `stop` (None: to its end). Entering the
        context waits until the source has answered. A source need not heed the range: the body may begin before, and go
        on to the end of the blob. Raises `UpstreamError`.
        """


#: Called when upstream has answered for the blob in a repository, with its size in bytes (None: unknown).
OnAnswer: TypeAlias = Callable[[int | None], Awaitable[None]]

#: The names of a bucket and of another replica as sources.
BUCKET: Final = "bucket"
PEER: Final = "peer"

_BYTES: Final = {BUCKET: telemetry.BUCKET_BLOB_BYTES, PEER: telemetry.PEER_BLOB_BYTES}
_LEFT: Final = {BUCKET: telemetry.BUCKET_LEFT, PEER: telemetry.PEER_LEFT}


def count_received(source: str, count: int) -> None:
    """Counts the bytes that a nearer source, `BUCKET` or `PEER`, has given."""
    _BYTES[source].inc(count)


class SourceLeft(UpstreamUnavailable):
    """A source has broken off. The next one is asked at once, from the same byte."""


class BlobSource(Protocol):
    """One place from which a blob may come. Made for one flight: it may remember what it has given."""

    @property
    def name(self) -> str:
        """For people and metrics: `BUCKET`, `PEER`; empty for an upstream, which has the name of its registry."""

    @property
    def member(self) -> str:
        """The address of the replica that it is; empty for any other source."""

    @property
    def gave(self) -> bool:
        """True if it can be to blame for wrong bytes, because it has given some."""

    def pull(self, start: int, stop: int | None = None) -> AbstractAsyncContextManager[Body]:
        """Opens the blob; see `Pull`. Raises `UpstreamNotFound` if it does not have the blob, `UpstreamError`,
        `StoreError`.
        """

    async def accuse(self, reason: str) -> bool:
        """The bytes did not match the digest: makes sure that no other flight gets them. True if the source may be
        asked once more, because it was probably not to blame. Raises nothing.
        """


class FromUpstream:
    """The upstream of a blob, as a source. Its registry answers for wrong bytes: nothing is remembered of them here."""

    name: Final = ""
    member: Final = ""
    gave: Final = False

    def __init__(self, pull: Pull, parts: BlobParts | None = None) -> None:
        """`parts`: the same blob over several connections, whose `pull` it is; None: it comes by one."""
        self.pull = pull
        self.parts = parts

    async def accuse(self, reason: str) -> bool:
        """See `BlobSource`; `gave` says that it is never accused."""
        return False


class BlobSources:
    """The sources of one flight, in order, and which of them gives the bytes now. It is a `Pull`."""

    def __init__(self, *sources: BlobSource) -> None:
        """At least one."""
        self._all = sources
        self._next = 0
        #: Where a request to the last source is to end; None: where the caller says. Nearer sources need not be asked
        #: for pieces.
        self.last_stop: int | None = None

    def __repr__(self) -> str:
        return f"<BlobSources {[source.name or 'upstream' for source in self._all]} at {self._next}>"

    @classmethod
    def of(cls, pull: Pull) -> BlobSources:
        """Returns the sources, or the only one that a plain `pull` is."""
        return pull if isinstance(pull, cls) else cls(FromUpstream(pull))

    @property
    def name(self) -> str:
        """The name of the source that was opened last, or would be opened first; empty for an upstream."""
        return self.current.name

    @property
    def parts(self) -> BlobParts | None:
        """The blob at its upstream over several connections; None: it comes by one."""
        last = self._all[-1]
        return last.parts if isinstance(last, FromUpstream) else None

    async def take_turn(self) -> None:
        """Waits for a turn at the upstream, which is kept until `release`: see `BlobParts`. Also while a nearer source
        is asked, because upstream may have to be asked in its place.
        """
        if self.parts is not None:
            await self.parts.take_turn()

    def release(self) -> None:
        """Gives the turn back. Repeatable."""
        if self.parts is not None:
            self.parts.release()

    @property
    def current(self) -> BlobSource:
        """The source that was opened last, or is opened next."""
        return self._all[self._next]

    def __call__(self, start: int, stop: int | None = None) -> AbstractAsyncContextManager[Body]:
        """Opens the first source that has the blob; see `Pull`. Raises `SourceLeft` if a nearer one breaks off, and all
        that the last one raises.
        """
        if self._next == len(self._all) - 1:
            return self._all[-1].pull(start, stop if self.last_stop is None else self.last_stop)
        return self._open_nearer(start, stop)

    @asynccontextmanager
    async def _open_nearer(self, start: int, stop: int | None) -> AsyncIterator[Body]:
        async with AsyncExitStack() as stack:
            while True:
                source = self._all[self._next]
                is_last = self._next == len(self._all) - 1
                try:
                    end = self.last_stop if is_last and self.last_stop is not None else stop
                    body = await stack.enter_async_context(source.pull(start, end))
                    break
                except (UpstreamError, StoreError) as error:
                    if is_last:
                        raise
                    self._leave(source, error)
            try:
                yield body
            except UpstreamError as error:
                if is_last:
                    raise
                self._leave(source, error)
                raise SourceLeft(f"{source.name} broke off: {error}", upstream=source.name) from error

    def _leave(self, source: BlobSource, error: UpstreamError | StoreError) -> None:
        self._next += 1
        if not isinstance(error, UpstreamNotFound):
            _LEFT[source.name].labels(type(error).__name__).inc()

    def again(self) -> BlobSources:
        """The same sources for another try, without those that were left."""
        return BlobSources(*self._all[self._next :])

    async def accuse(self, reason: str) -> BlobSources | None:
        """All bytes are here and do not match the digest. Returns the sources for another try; None if no other source
        can be asked, and none may be asked again.
        """
        if not any(source.gave for source in self._all):
            return None
        again: list[BlobSource] = []
        for position, source in enumerate(self._all):
            if source.gave:
                if await source.accuse(reason):
                    again.append(source)
            # the last one may have given the rest; a nearer one that was asked and gave nothing does not have the blob
            elif position > self._next or source is self._all[-1]:
                again.append(source)
        return BlobSources(*again) if again else None
