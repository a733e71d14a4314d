"""Parts of a blob that is not in the store, sent before the whole can be verified.

    open ── noted: who is given them ── the first bytes are here ──> head ── pieces of each part, in order ──> aclose
      └── NotInParts, an error ──> the ordinary way, or a clean error

A part that the store cannot take or give comes past it, through memory, to this client alone. So does one about which
no note can be made: what is sent from the spans is always noted.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Final

from mirror.aio.threads import run_uninterrupted
from mirror.errors import StoreError, UpstreamInvalid, UpstreamUnavailable
from mirror.fills.lazy_blob import LazyBlob
from mirror.fills.part_fetches import Asker
from mirror.fills.sources import BlobSources, SourceLeft, count_received
from mirror.oci.digest import Digest
from mirror.oci.span import Span
from mirror.policy.fills.lazy_ranges import LazyParts
from mirror.ports import BlobReader, Body

_CHUNK: Final = 256 << 10
#: Parts of one answer that the note about it names.
_MOST_NOTED: Final = 8


@dataclass(frozen=True, slots=True)
class FilePiece:
    """Bytes from `start` to `stop` of the blob, which `reader` has."""

    reader: BlobReader
    start: int
    stop: int


class LazyContent:
    """The parts of one request. Made by `ProxiedBlobs.parts`."""

    def __init__(
        self,
        digest: Digest,
        size: int,
        upstream: str,
        wanted: LazyParts,
        asker: Asker,
        executor: Executor,
        received: Callable[[int], None],
        failed: Callable[[StoreError, Digest], None],
    ) -> None:
        """`size` is that of the whole blob in bytes. `executor` runs the threads that receive past the store;
        `received` counts the bytes that upstream sends then. `failed` is called if the store cannot take the parts.
        """
        self.digest: Final = digest
        self.size: Final = size
        self.upstream: Final = upstream
        self.parts: Final = wanted.parts
        #: True if all of it was here when it was asked for.
        self.was_here = True
        self._wanted = wanted
        self._asker = asker
        self._executor = executor
        self._received = received
        self._failed = failed
        self._files = AsyncExitStack()
        #: None: the parts come past the store.
        self._blob: LazyBlob | None = None
        #: The pieces of the first part, and the one that was waited for before the head.
        self._begun: tuple[AsyncGenerator[FilePiece | bytes], FilePiece | bytes] | None = None

    def __repr__(self) -> str:
        return f"<LazyContent {len(self.parts)} parts of {self._blob or self.digest}>"

    async def open(self, opening: AbstractAsyncContextManager[LazyBlob], by: str) -> None:
        """Waits for the first bytes, after a note that `by` (a caller, or an address) is given unverified ones.

        Raises `UpstreamError`, `NotInParts`.
        """
        try:
            self._blob = await self._files.enter_async_context(opening)
            await self._blob.note_served(self._note(by))
            if await self._blob.want(self._wanted.places, self._asker):
                self.was_here = False
        except StoreError as error:
            self._pass_by(error)
        pieces = self.pieces(self.parts[0])
        try:
            self._begun = pieces, await anext(pieces)
        except BaseException:
            await pieces.aclose()
            raise

    def _note(self, by: str) -> dict[str, object]:
        return {
            "at": round(time.time(), 3),
            "repository": str(self._asker.repo),
            "digest": str(self.digest),
            "by": by,
            "parts": [f"{part.start}-{part.stop - 1}" for part in self.parts[:_MOST_NOTED]],
            "bytes": sum(part.length for part in self.parts),
        }

    def _pass_by(self, error: StoreError) -> None:
        self._failed(error, self.digest)
        self.was_here, self._blob = False, None

    async def pieces(self, part: Span) -> AsyncGenerator[FilePiece | bytes]:
        """Yields the bytes of a part in order. A reader is closed when the next piece is asked for."""
        if self._begun is not None and part is self.parts[0]:
            (begun, first), self._begun = self._begun, None
            async with aclosing(begun):
                yield first
                async for piece in begun:
                    yield piece
            return
        position = part.start
        while position < part.stop and self._blob is not None:
            try:
                found = await self._blob.read(position, part.stop, self._asker)
            except StoreError as error:
                self._pass_by(error)
                break
            try:
                yield FilePiece(found.reader, position, found.stop)
            finally:
                found.reader.close()
            position = found.stop
        async with aclosing(self._past_the_store(Span(position, part.stop))) as rest:
            async for content in rest:
                yield content

    @property
    def bypasses(self) -> bool:
        """True if the store cannot take the parts, or not all of them."""
        return self._blob is None

    async def _past_the_store(self, part: Span) -> AsyncGenerator[bytes]:
        """Yields the bytes of a part from upstream. They are stored nowhere. Raises `UpstreamError`."""
        sources = self._asker.sources()
        try:
            async with aclosing(self._from(sources, part)) as received:
                async for content in received:
                    yield content
        finally:
            sources.release()

    async def _from(self, sources: BlobSources, part: Span) -> AsyncGenerator[bytes]:
        position = part.start
        buffer = bytearray(min(_CHUNK, max(1, part.length)))
        while position < part.stop:
            before = position
            try:
                async with sources(position, part.stop) as body:
                    if body.start != position or body.size not in (None, self.size):
                        body.abort()
                        raise UpstreamInvalid("not the part that was asked for", upstream=self.upstream)
                    try:
                        while position < part.stop:
                            content = await self._receive(body, memoryview(buffer)[: part.stop - position])
                            position += len(content)
                            yield content
                    finally:
                        # its connection may carry more
                        body.abort()
            except SourceLeft:
                continue
            finally:
                self._count(sources.name, position - before)

    async def _receive(self, body: Body, buffer: memoryview) -> bytes:
        count = await run_uninterrupted(self._executor, body.readinto, buffer, stop=body.abort)
        if not count:
            raise UpstreamUnavailable("the part broke off", upstream=self.upstream)
        return bytes(buffer[:count])

    def _count(self, source: str, count: int) -> None:
        if source:
            count_received(source, count)
        else:
            self._received(count)

    async def aclose(self) -> None:
        """Lets the blob go. Repeatable."""
        begun, self._begun = self._begun, None
        try:
            if begun is not None:
                await begun[0].aclose()
        finally:
            await self._files.aclose()
