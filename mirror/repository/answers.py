"""The answers of a repository: manifests, and the content of blobs. The server sends all kinds of blob content alike.

StoredContent    the blob is in the store: all of it may be sent at once
GrowingContent   the blob is being received: more may be sent as bytes arrive
UncachedContent  the store cannot take the blob: it is streamed from upstream to this one client through memory
"""

from __future__ import annotations

import asyncio
import sys
from bisect import bisect_right
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Protocol

from mirror.aio.threads import run_uninterrupted
from mirror.errors import BlobDamaged, DigestMismatch, StoreError, UpstreamInvalid
from mirror.fills.flight import Flight
from mirror.fills.lazy_content import FilePiece
from mirror.fills.sources import BlobSources, SourceLeft, count_received
from mirror.oci.digest import Digest, hasher
from mirror.oci.manifest import Manifest
from mirror.oci.span import Span
from mirror.policy.history import TagOverride
from mirror.policy.send_limit import WITHHELD
from mirror.ports import BlobReader, Body

_CHUNK: Final = 256 * 1024


class Outcome(Enum):
    """How an answer came about, as metrics, log and the `Cache-Status` header show it."""

    HIT = "hit"
    MISS = "miss"
    JOINED = "joined"
    REVALIDATED = "revalidated"
    STALE = "stale"
    #: Hosted content in a bucket that does not answer, as this replica saw it last.
    LAST_SEEN = "last-seen"
    BYPASS = "bypass"
    #: HEAD of content that is not here. Its type and size were known here, so upstream was not asked.
    DESCRIBED = "described"
    #: HEAD of content that is not here. Upstream was asked for its type and size, and nothing was stored.
    ASKED = "asked"
    #: The client was sent to the bucket for the bytes.
    REDIRECTED = "redirected"
    NONE = "none"

    @property
    def is_old(self) -> bool:
        """True if there may be a newer answer, and nobody could be asked for it."""
        return self in (Outcome.STALE, Outcome.LAST_SEEN)


@dataclass(frozen=True, slots=True)
class ManifestAnswer:
    """A manifest, or for HEAD perhaps only its descriptor: `manifest` is None if it was not fetched. `size` in bytes.

    `override` is the reason if a tag is answered with another digest than upstream's.
    """

    digest: Digest
    media_type: str
    size: int
    manifest: Manifest | None
    outcome: Outcome
    upstream: str
    override: TagOverride | None = None

    @classmethod
    def of(
        cls, manifest: Manifest, outcome: Outcome, upstream: str, override: TagOverride | None = None
    ) -> ManifestAnswer:
        """Returns the answer with the manifest itself."""
        size = len(manifest.content)
        return cls(manifest.digest, manifest.media_type, size, manifest, outcome, upstream, override)

    @property
    def content(self) -> bytes | None:
        """The manifest's exact bytes; None if it was not fetched."""
        return None if self.manifest is None else self.manifest.content

    def read(self) -> Manifest:
        """Returns the manifest. Answers to GET always have it; raises `TypeError` if this answer does not."""
        if self.manifest is None:
            raise TypeError(f"an answer without its manifest: {self.digest}")
        return self.manifest


@dataclass(frozen=True, slots=True)
class BlobStat:
    """The answer to HEAD of a blob: `size` in bytes, None if upstream does not say it."""

    size: int | None
    outcome: Outcome
    upstream: str


@dataclass(frozen=True, slots=True)
class Listing:
    """A list of tags or referrers, and how it came about."""

    items: tuple[Any, ...]
    outcome: Outcome
    upstream: str
    #: True if more items follow: lists are given page by page.
    more: bool = False

    @classmethod
    def page(cls, tags: Sequence[str], last: str, count: int, outcome: Outcome, upstream: str) -> Listing:
        """Returns a page of at most `count` tags after `last`, cut from the whole, sorted list."""
        start = bisect_right(tags, last)
        return cls(tuple(tags[start : start + count]), outcome, upstream, start + count < len(tags))


class BlobContent(Protocol):
    """The content of a blob that is to be sent."""

    digest: Digest
    outcome: Outcome
    upstream: str

    @property
    def size(self) -> int | None:
        """Size in bytes; None if upstream does not say it in its headers."""

    @property
    def source(self) -> str:
        """The name of what gives the bytes, if it is neither the store nor the upstream, as far as is known."""

    @property
    def reader(self) -> BlobReader | None:
        """Reads the bytes that may be sent, as many as `wait_past` returns; None if only `from_upstream` has them."""

    async def wait_past(self, position: int) -> int:
        """Waits until more than `position` bytes may be sent. Returns how many, or at most `position` at the end."""

    def from_upstream(self, span: Span | None, sent: Span | None = None) -> AsyncGenerator[bytes]:
        """Returns the bytes of a span (None: all) from upstream, if `reader` cannot give them. The last bytes are held
        back until the digest is verified. To be closed (`aclose`): until then the turn at upstream is taken.

        `sent` is the span that the client has already received from `reader`.
        """

    def failed(self) -> None:
        """Call it if `reader` failed and `from_upstream` is not used: the stored blob is then checked, so that the next
        answer is not sent from wrong bytes.
        """

    def close(self) -> None:
        """Releases the content. Repeatable."""


class PartialContent(Protocol):
    """Parts of a blob that are sent before the whole is verified (`LazyContent`)."""

    @property
    def size(self) -> int:
        """Of the whole blob, in bytes."""

    @property
    def upstream(self) -> str:
        """The name of the registry."""

    @property
    def parts(self) -> tuple[Span, ...]:
        """In the order of the request."""

    @property
    def outcome(self) -> Outcome:
        """How it came about, so far."""

    def pieces(self, part: Span) -> AsyncGenerator[FilePiece | bytes]:
        """Yields the bytes of one of the parts, in order, as they come. Raises `MirrorError`."""

    async def aclose(self) -> None:
        """Releases the content. Repeatable."""


class UpstreamStream:
    """Streams a blob from upstream to one client through memory."""

    def __init__(
        self,
        digest: Digest,
        upstream: str,
        sources: Callable[[], BlobSources],
        executor: Executor,
        received: Callable[[int], None] = lambda count: None,
    ) -> None:
        """`sources` is called for each stream. `received` is called at the end of each answer of upstream with the
        number of bytes that it had.
        """
        self.digest = digest
        self.upstream = upstream
        self._sources = sources
        self._executor = executor
        self._received = received

    async def read(
        self, span: Span | None, size: int | None, sent: Span | None = None, reader: BlobReader | None = None
    ) -> AsyncGenerator[bytes]:
        """Yields the bytes of the span (None: all).

        The whole blob is read and hashed even for a part of it: the last bytes are held back until the digest is
        verified. Bytes `sent` from `reader` came from another, unverified answer of upstream, so they are compared with
        this one. `size` is the size in bytes that the client was given: it may come from a wrong manifest, and an
        answer cut to that size would look complete. Raises `UpstreamError`; `DigestMismatch` or `UpstreamInvalid`
        before the last bytes; `BlobDamaged` if the bytes `sent` differ; `StoreError`.
        """
        sources = self._sources()
        hashing = hasher(self.digest)
        buffer = bytearray(_CHUNK)
        offset, unsent = 0, b""

        def receive(body: Body) -> bytes:
            received = body.readinto(memoryview(buffer))
            fresh = bytes(memoryview(buffer)[:received])
            hashing.update(fresh)
            if sent and reader:
                start, stop = max(sent.start, offset), min(sent.stop, offset + received)
                if start < stop and reader.pread(stop - start, start) != fresh[start - offset : stop - offset]:
                    raise BlobDamaged(f"what was sent of {self.digest} is not what upstream has")
            return fresh

        while True:
            began = offset
            try:
                async with sources(offset) as body:
                    if body.start < offset:
                        await run_uninterrupted(self._executor, _skip, body, offset - body.start, stop=body.abort)
                    while fresh := await run_uninterrupted(self._executor, receive, body, stop=body.abort):
                        start, stop = (0, sys.maxsize) if span is None else (span.start, span.stop)
                        wanted = fresh[max(0, start - offset) : max(0, stop - offset)]
                        offset += len(fresh)
                        unsent += wanted
                        if len(unsent) > WITHHELD:
                            yield unsent[:-WITHHELD]
                            unsent = unsent[-WITHHELD:]
                break
            except SourceLeft:
                # the next source goes on from the same byte
                continue
            finally:
                self._count(sources, offset - began)
        if hashing.hexdigest() != self.digest.hex:
            wrong = f"the {offset} bytes received are not {self.digest}"
            await sources.accuse(wrong)
            raise DigestMismatch(wrong, upstream=self.upstream)
        if size not in (None, offset):
            raise UpstreamInvalid(
                f"{self.digest} has {offset} bytes, but the client was given {size} as its size", upstream=self.upstream
            )
        if unsent:
            yield unsent

    def _count(self, sources: BlobSources, received: int) -> None:
        if sources.name:
            count_received(sources.name, received)
        else:
            self._received(received)


def _skip(body: Body, count: int) -> None:
    """Blocking: reads the first bytes of a body, which an earlier answer has given already."""
    buffer = memoryview(bytearray(min(count, _CHUNK)))
    while count and (received := body.readinto(buffer[:count])):
        count -= received


def no_stream(digest: Digest, registry: str, executor: Executor, why: str) -> UpstreamStream:
    """Returns the fallback for a disk that fails in mid-body, if there is no upstream. It raises `StoreError` and says
    `why`.
    """

    @asynccontextmanager
    async def nowhere(start: int, stop: int | None = None) -> AsyncIterator[Body]:
        raise StoreError(f"{digest} cannot be read, and {why}")
        yield

    return UpstreamStream(digest, registry, lambda: BlobSources.of(nowhere), executor)


class StoredContent:
    """A blob in the store, opened. It can be read to its end even if it is evicted meanwhile."""

    outcome = Outcome.HIT
    source = ""

    def __init__(
        self, digest: Digest, size: int, reader: BlobReader, stream: UpstreamStream, recheck: Callable[[Digest], None]
    ) -> None:
        """`recheck` is called with the digest if the disk does not give the bytes that it should have."""
        self.digest = digest
        self.size: int | None = size
        self.reader: BlobReader | None = reader
        self.upstream = stream.upstream
        self._size = size
        self._reader = reader
        self._stream = stream
        self._recheck = recheck

    async def wait_past(self, position: int) -> int:
        return self._size

    def from_upstream(self, span: Span | None, sent: Span | None = None) -> AsyncGenerator[bytes]:
        self.failed()
        return self._stream.read(span, self.size, sent, self.reader)

    def failed(self) -> None:
        self._recheck(self.digest)

    def close(self) -> None:
        self._reader.close()


class GrowingContent:
    """A blob that is being received: a follower of its flight."""

    def __init__(self, flight: Flight, stream: UpstreamStream, outcome: Outcome) -> None:
        self.digest = flight.digest
        self.outcome = outcome
        self.upstream = stream.upstream
        self._flight = flight
        self._stream = stream
        self._closed = False

    def __repr__(self) -> str:
        return f"<GrowingContent of {self._flight!r}>"

    @property
    def size(self) -> int | None:
        return self._flight.size

    @property
    def reader(self) -> BlobReader | None:
        return self._flight.reader

    @property
    def source(self) -> str:
        return self._flight.source

    async def wait_past(self, position: int) -> int:
        try:
            return await self._flight.wait_past(position)
        except DigestMismatch:
            if not await self._change_over(position):
                raise
        return await self.wait_past(position)

    async def _change_over(self, position: int) -> bool:
        """Follows the flight that has begun in place of this one, whose bytes were wrong. False if there is none, or if
        the client has been sent bytes, or reads from the file already: that is certain only of small blobs.
        """
        successor, size = self._flight.successor, self._flight.size
        if successor is None or position or size is None or size > WITHHELD:
            return False
        successor.follow()
        self._flight.leave()
        self._flight = successor
        await asyncio.shield(successor.announced)
        return True

    async def wait_for_end(self) -> bool:
        """Returns once the flight is over. True if this process has filled it.

        If True, the blob is stored or cannot be stored. If False, another process may still be filling it.
        """
        await self._flight.over.wait()
        return self._flight.filled_here

    @property
    def stored(self) -> bool:
        """True if the fill of this process ended with the blob in the store; it may have been dropped since."""
        return self._flight.stored

    def from_upstream(self, span: Span | None, sent: Span | None = None) -> AsyncGenerator[bytes]:
        return self._stream.read(span, self.size, sent, self.reader)

    def failed(self) -> None:
        """Does nothing: the flight checks the digest itself."""

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._flight.leave()


class UncachedContent:
    """A blob that the store cannot take; `why` is the reason, for people."""

    outcome = Outcome.BYPASS
    source = ""
    reader: BlobReader | None = None

    def __init__(self, digest: Digest, size: int | None, stream: UpstreamStream, why: str) -> None:
        self.digest = digest
        self.size = size
        self.upstream = stream.upstream
        self.why = why
        self._stream = stream

    async def wait_past(self, position: int) -> int:
        return position

    def from_upstream(self, span: Span | None, sent: Span | None = None) -> AsyncGenerator[bytes]:
        return self._stream.read(span, self.size)

    def failed(self) -> None:
        """Does nothing: there is no reader."""

    def close(self) -> None:
        """Does nothing: nothing is open between calls."""
