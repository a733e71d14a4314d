"""What a repository gives for a blob. The server sends any of these in the same way: what may be sent, then more.

StoredContent    in the store: all of it may be sent at once
GrowingContent   on its way: more may be sent as it comes
UncachedContent  the store cannot take it: from upstream to this one client, through a little memory
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from mirror.aio.threads import to_its_end
from mirror.errors import BlobDamaged, DigestMismatch, UpstreamInvalid
from mirror.fills.flights import Flight
from mirror.oci.digest import Digest, hasher
from mirror.oci.manifest import Manifest
from mirror.oci.span import Span
from mirror.policy.history import TagOverride
from mirror.policy.send_limit import HELD_BACK
from mirror.ports import BlobReader, Body

__all__ = [
    "BlobContent",
    "GrowingContent",
    "ManifestAnswer",
    "Outcome",
    "StoredContent",
    "UncachedContent",
    "UpstreamStream",
]

_CHUNK: Final = 256 * 1024


class Outcome(Enum):
    """How an answer came about; metric, log and `Cache-Status` tell it."""

    HIT = "hit"
    MISS = "miss"
    JOINED = "joined"
    REVALIDATED = "revalidated"
    STALE = "stale"
    BYPASS = "bypass"
    #: HEAD of something that is not here; a manifest that is here says its type and size, so upstream was not asked.
    DESCRIBED = "described"
    #: HEAD of something that is not here; upstream was asked for its type and size, and nothing was stored.
    ASKED = "asked"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class ManifestAnswer:
    """A manifest, or for HEAD perhaps only what points to it. `size` in bytes; `manifest` None if it was not fetched.

    `kept` says why a tag answers another digest than upstream would.
    """

    digest: Digest
    media_type: str
    size: int
    manifest: Manifest | None
    outcome: Outcome
    upstream: str
    kept: TagOverride | None = None

    @classmethod
    def of(cls, manifest: Manifest, outcome: Outcome, upstream: str, kept: TagOverride | None = None) -> ManifestAnswer:
        """The answer that has the manifest itself."""
        size = len(manifest.content)
        return cls(manifest.digest, manifest.media_type, size, manifest, outcome, upstream, kept)

    @property
    def content(self) -> bytes | None:
        """The exact bytes."""
        return None if self.manifest is None else self.manifest.content

    def read(self) -> Manifest:
        """The manifest of an answer to GET, which always has it. Raises `TypeError` for one that has not."""
        if self.manifest is None:
            raise TypeError(f"an answer without its manifest: {self.digest}")
        return self.manifest


class BlobContent(Protocol):
    """A blob to be sent."""

    digest: Digest
    outcome: Outcome
    upstream: str

    @property
    def size(self) -> int | None:
        """In bytes; None where upstream does not say it before the end."""

    @property
    def reader(self) -> BlobReader | None:
        """Bytes that may be sent up to what `beyond` says; None: only `rest` has them."""

    async def beyond(self, position: int) -> int:
        """Wait until more than `position` bytes may be sent; returns how many, or at most `position` at the end."""

    def rest(self, span: Span | None, sent: Span | None = None) -> AsyncIterator[bytes]:
        """The bytes of a span (None: all) when the store gave up on them: verified, the last ones held back.

        `sent` is what the client has already from `reader`.
        """

    def failed(self) -> None:
        """`reader` did not give what it should have, and the caller does without `rest`: the blob is looked at, so that
        the next answer is not sent from wrong bytes.
        """

    def close(self) -> None:
        """Repeatable."""


class UpstreamStream:
    """Streams a blob from upstream through memory."""

    def __init__(
        self,
        digest: Digest,
        upstream: str,
        pull: Callable[[int], AbstractAsyncContextManager[Body]],
        executor: Executor,
        received: Callable[[int], None] = lambda count: None,
    ) -> None:
        """`received` is told how many bytes upstream has sent, each time that it was asked."""
        self.digest = digest
        self.upstream = upstream
        self._pull = pull
        self._executor = executor
        self._received = received

    async def stream(
        self, span: Span | None, size: int | None, sent: Span | None = None, reader: BlobReader | None = None
    ) -> AsyncIterator[bytes]:
        """The span's bytes. The whole blob is read and hashed even for a part of it: unverified bytes never leave
        whole. Nor do they as the end of others: what was `sent` from `reader` came from another answer of upstream,
        which nobody has verified, and must be the same as in this one. `size` in bytes is what the client was told of
        the whole: a manifest may have said it wrongly, and an answer cut to that would look complete. Raises
        `UpstreamError`, `DigestMismatch` before the last bytes, `StoreError`.
        """
        loop = asyncio.get_running_loop()
        hashing = hasher(self.digest)
        buffer = bytearray(_CHUNK)
        offset, held = 0, b""

        def receive() -> bytes:
            received = body.readinto(memoryview(buffer))
            fresh = bytes(memoryview(buffer)[:received])
            hashing.update(fresh)
            if sent and reader:
                start, stop = max(sent.start, offset), min(sent.stop, offset + received)
                if start < stop and reader.pread(stop - start, start) != fresh[start - offset : stop - offset]:
                    raise BlobDamaged(f"what was sent of {self.digest} is not what upstream has")
            return fresh

        try:
            async with self._pull(0) as body:
                while True:
                    fresh = await to_its_end(loop.run_in_executor(self._executor, receive), stop=body.abort)
                    if not fresh:
                        break
                    wanted = fresh if span is None else fresh[max(0, span.start - offset) : max(0, span.stop - offset)]
                    offset += len(fresh)
                    held += wanted
                    if len(held) > HELD_BACK:
                        yield held[:-HELD_BACK]
                        held = held[-HELD_BACK:]
        finally:
            self._received(offset)
        if hashing.hexdigest() != self.digest.hex:
            raise DigestMismatch(f"the {offset} bytes received are not {self.digest}", upstream=self.upstream)
        if size not in (None, offset):
            raise UpstreamInvalid(
                f"{self.digest} has {offset} bytes, where the client was told {size}", upstream=self.upstream
            )
        if held:
            yield held


class StoredContent:
    """A blob that was present when it was opened; it can be read to its end even if it is evicted meanwhile."""

    outcome = Outcome.HIT

    def __init__(
        self, digest: Digest, size: int, reader: BlobReader, passing: UpstreamStream, doubt: Callable[[Digest], None]
    ) -> None:
        """`doubt` is told where the disk does not give what it should have."""
        self.digest = digest
        self.size: int | None = size
        self.reader: BlobReader | None = reader
        self.upstream = passing.upstream
        self._size = size
        self._reader = reader
        self._passing = passing
        self._doubt = doubt

    async def beyond(self, position: int) -> int:
        return self._size

    def rest(self, span: Span | None, sent: Span | None = None) -> AsyncIterator[bytes]:
        self.failed()
        return self._passing.stream(span, self.size, sent, self.reader)

    def failed(self) -> None:
        self._doubt(self.digest)

    def close(self) -> None:
        self._reader.close()


class GrowingContent:
    """A blob on its way, followed."""

    def __init__(self, flight: Flight, passing: UpstreamStream, outcome: Outcome) -> None:
        self.digest = flight.digest
        self.outcome = outcome
        self.upstream = passing.upstream
        self._flight = flight
        self._passing = passing
        self._left = False

    @property
    def size(self) -> int | None:
        return self._flight.size

    @property
    def reader(self) -> BlobReader | None:
        return self._flight.reader

    async def beyond(self, position: int) -> int:
        return await self._flight.beyond(position)

    async def settled(self) -> bool:
        """Returns once the flight is over in every respect; whether this process has filled it.

        If so the blob is stored by now, or the store does without it; if not, another process may still be at it.
        """
        await self._flight.over.wait()
        return self._flight.filled_here

    @property
    def stored(self) -> bool:
        """Whether this process has put it into the store; it may have been dropped since."""
        return self._flight.stored

    def rest(self, span: Span | None, sent: Span | None = None) -> AsyncIterator[bytes]:
        return self._passing.stream(span, self.size, sent, self.reader)

    def failed(self) -> None:
        """The flight sees to it."""

    def close(self) -> None:
        if not self._left:
            self._left = True
            self._flight.leave()


class UncachedContent:
    """A blob that the store cannot take; `why` says so for people."""

    outcome = Outcome.BYPASS
    reader: BlobReader | None = None

    def __init__(self, digest: Digest, size: int | None, passing: UpstreamStream, why: str) -> None:
        self.digest = digest
        self.size = size
        self.upstream = passing.upstream
        self.why = why
        self._passing = passing

    async def beyond(self, position: int) -> int:
        return position

    def rest(self, span: Span | None, sent: Span | None = None) -> AsyncIterator[bytes]:
        return self._passing.stream(span, self.size)

    def failed(self) -> None:
        """Nothing is read."""

    def close(self) -> None:
        """Nothing is open between calls."""
