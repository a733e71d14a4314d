"""An upstream for flights that heeds ranges, counts every byte that it gives, and puts bytes into spans out of turn."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from mirror.errors import UpstreamUnavailable
from mirror.oci.digest import Digest
from mirror.oci.span import Span
from mirror.ports import BlobStore, Body


class RangedBody:
    """The bytes of one answer. Breaks at `breaks_at`, an offset of the blob."""

    def __init__(self, content: bytes, span: Span, given: Callable[[int], None], breaks_at: int | None = None) -> None:
        self.start = span.start
        self.size: int | None = len(content)
        self._content = content
        self._position = span.start
        self._stop = span.stop
        self._given = given
        self._breaks_at = breaks_at
        self.aborted = False

    def readinto(self, buffer: memoryview) -> int:
        """The next piece. Raises `UpstreamUnavailable` where it breaks."""
        if self.aborted or (self._breaks_at is not None and self._position >= self._breaks_at):
            raise UpstreamUnavailable("cut", upstream="test")
        end = min(self._stop, self._position + min(len(buffer), 50_000))
        end = end if self._breaks_at is None else min(end, self._breaks_at)
        piece = self._content[self._position : end]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        self._given(len(piece))
        return len(piece)

    def abort(self) -> None:
        """As `Body`."""
        self.aborted = True


class RangedUpstream:
    """Gives one blob."""

    def __init__(self, content: bytes, *, heeds: bool = True) -> None:
        """`heeds`: it heeds ranges."""
        self.content = content
        self.heeds = heeds
        self.asked: list[Span] = []
        self.given = 0
        self.bodies: list[RangedBody] = []
        #: Where the next answers break.
        self.breaks: list[int | None] = []
        #: Called when a request has been answered, with its span.
        self.answered: Callable[[Span], None] = lambda _: None
        #: Called with the number of bytes before they are given.
        self.giving: Callable[[int], None] = lambda _: None

    @asynccontextmanager
    async def pull(self, start: int, stop: int | None = None) -> AsyncIterator[Body]:
        """As `Pull`."""
        span = Span(start, len(self.content) if stop is None else stop)
        self.asked.append(span)
        self.answered(span)
        yield self.body(span if self.heeds else Span(0, len(self.content)))

    def body(self, span: Span) -> RangedBody:
        """An answer with these bytes."""
        body = RangedBody(self.content, span, self._count, self.breaks.pop(0) if self.breaks else None)
        self.bodies.append(body)
        return body

    def _count(self, count: int) -> None:
        self.giving(count)
        self.given += count


def put_spans(
    store: BlobStore, content: bytes, wanted: Sequence[Span], *, registry: str = "test", named: Digest | None = None
) -> None:
    """Puts bytes of the blob `named` (None: of the content) into its spans, in whole blocks, as a part fetch does."""
    spans = store.spans(named or Digest.of(content), registry, len(content))
    assert spans is not None
    for each in wanted:
        while claim := spans.claim(each):
            claim.fill(RangedBody(content, claim.span, lambda _: None), lambda _: None)
            claim.release()
    spans.close()
